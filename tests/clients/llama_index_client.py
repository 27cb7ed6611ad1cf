"""LlamaIndex OpenAILike: images, a stream, tool calls, structured_predict."""

from common import IMAGE_PATH, KEY, MODEL, QUESTION, TOTAL, URL, passed
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

model = OpenAILike(
    model=MODEL,
    api_base=URL,
    api_key=KEY,
    is_chat_model=True,
    is_function_calling_model=True,
    max_tokens=200,
    temperature=0,
    max_retries=0,
)
asked = ChatMessage(role="user", blocks=[TextBlock(text=QUESTION), ImageBlock(path=IMAGE_PATH)])


def book(paid: bool) -> str:
    """Books a receipt."""
    return f"booked {paid}"


class Receipt(BaseModel):
    """A receipt."""

    paid: bool


answer = model.chat([asked])
assert TOTAL in answer.message.content, answer
passed("image")
*_, last = model.stream_chat([asked])
assert last.message.content == answer.message.content
passed("stream")
tool = FunctionTool.from_defaults(fn=book)
called = model.chat_with_tools(
    [tool], chat_history=[asked], tool_required=True, allow_parallel_tool_calls=False
)
(call,) = model.get_tool_calls_from_response(called)
assert call.tool_name == "book"
result = ChatMessage(
    role="tool", content="booked", additional_kwargs={"tool_call_id": call.tool_id, "name": "book"}
)
assert model.chat_with_tools([tool], chat_history=[asked, called.message, result]).message is not None
passed("tools")
got = model.structured_predict(Receipt, PromptTemplate("Is it paid? {text}"), text="Paid in cash.")
assert isinstance(got, Receipt), got
passed("structured output")
