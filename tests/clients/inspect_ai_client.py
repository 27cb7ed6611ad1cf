"""inspect_ai: an evaluation with images, tools and a response schema."""

import os
import tempfile

from common import IMAGE, KEY, MODEL, QUESTION, TOTAL, URL, passed
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    ResponseSchema,
    get_model,
)
from inspect_ai.scorer import includes, pattern
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool
from inspect_ai.util import json_schema
from pydantic import BaseModel

os.environ["INSPECT_LOG_DIR"] = tempfile.mkdtemp()
asked = [ChatMessageUser(content=[ContentText(text=QUESTION), ContentImage(image=IMAGE)])]


class Receipt(BaseModel):
    paid: bool


@tool
def book():
    async def execute(paid: bool) -> str:
        """Books a receipt.

        Args:
            paid: whether it is paid
        """
        return f"booked {paid}"

    return execute


def accuracy(solver, scorer, target, **config):
    model = get_model(
        f"openai-api/qvl/{MODEL}",
        base_url=URL,
        api_key=KEY,
        config=GenerateConfig(max_tokens=200, temperature=0, **config),
    )
    task = Task(
        dataset=[Sample(input=asked, target=target, id=i) for i in range(3)], solver=solver, scorer=scorer
    )
    (log,) = eval(task, model=model, display="plain", max_retries=0, fail_on_error=True)
    assert log.status == "success", log.error
    return log.results.scores[0].metrics["accuracy"].value


assert accuracy([generate()], includes(), TOTAL) == 1
passed("image")
schema = ResponseSchema(name="receipt", json_schema=json_schema(Receipt))
form = pattern(r'^\{"paid": (true|false)\}$')
assert accuracy([generate()], form, ["true", "false"], response_schema=schema) == 1
passed("structured output")
model = get_model(f"openai-api/qvl/{MODEL}", base_url=URL, api_key=KEY, memoize=False)


async def called():
    from inspect_ai.model import execute_tools

    config = GenerateConfig(max_tokens=200, parallel_tool_calls=False)
    output = await model.generate(asked, tools=[book()], tool_choice="any", config=config)
    assert output.message.tool_calls[0].function == "book", output
    messages, _ = await execute_tools([*asked, output.message], [book()])
    return await model.generate([*asked, output.message, *messages], tools=[book()], config=config)


import asyncio  # noqa: E402

assert asyncio.run(called()).usage.input_tokens > 0
# mini answers badly after a tool: that the run ends without an error is what is shown
accuracy([use_tools(book()), generate()], includes(), TOTAL)
passed("tools")
