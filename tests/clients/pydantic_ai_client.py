"""pydantic-ai: images, a stream, tools, output types; over chat completions and over responses."""

from common import IMAGE_PATH, KEY, MODEL, QUESTION, TOTAL, URL, passed
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=URL, api_key=KEY)
asked = [QUESTION, BinaryContent(data=IMAGE_PATH.read_bytes(), media_type="image/png")]
settings = {"max_tokens": 200, "temperature": 0.0}


class Receipt(BaseModel):
    paid: bool


for name, model in (
    ("chat", OpenAIChatModel(MODEL, provider=provider, settings=settings)),
    ("responses", OpenAIResponsesModel(MODEL, provider=provider, settings=settings)),
):
    answer = Agent(model).run_sync(asked)
    assert TOTAL in answer.output, answer
    passed(f"image, {name}")
    followed = Agent(model).run_sync("And the tax?", message_history=answer.all_messages())
    assert followed.usage.input_tokens > answer.usage.input_tokens
    passed(f"history, {name}")
    for output in (ToolOutput(Receipt), NativeOutput(Receipt)):
        got = Agent(model, output_type=output).run_sync(asked)
        assert isinstance(got.output, Receipt), got
    passed(f"tools and structured output, {name}")


async def streamed(model):
    async with Agent(model).run_stream(asked) as result:
        return await result.get_output()


import asyncio  # noqa: E402

assert TOTAL in asyncio.run(
    streamed(OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key=KEY)))
)
passed("stream")
