"""langchain-openai: images, a stream, bind_tools, with_structured_output in each of its three methods."""

from common import IMAGE, IMAGE_BASE64, KEY, MODEL, QUESTION, TOTAL, URL, passed
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

model = ChatOpenAI(model=MODEL, base_url=URL, api_key=KEY, max_tokens=200, temperature=0, max_retries=0)
asked = HumanMessage([{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": IMAGE}}])
block = HumanMessage(
    [{"type": "text", "text": QUESTION}, {"type": "image", "base64": IMAGE_BASE64, "mime_type": "image/png"}]
)


class Receipt(BaseModel):
    """A receipt."""

    paid: bool
    cents: int = Field(ge=0, le=9999)


@tool
def book(paid: bool) -> str:
    """Books a receipt."""
    return f"booked {paid}"


answer = model.invoke([asked])
assert TOTAL in answer.content, answer
assert model.invoke([block]).content == answer.content
passed("image")
assert "".join(chunk.content for chunk in model.stream([asked])) == answer.content
passed("stream")
called = model.bind_tools([book], tool_choice="any", parallel_tool_calls=False).invoke([asked])
(call,) = called.tool_calls
assert call["name"] == "book"
result = ToolMessage(book.invoke(call["args"]), tool_call_id=call["id"], name="book")
assert model.bind_tools([book]).invoke([asked, called, result]).usage_metadata["input_tokens"] > 0
passed("tools")
for method in ("json_schema", "function_calling"):
    got = model.with_structured_output(Receipt, method=method).invoke([asked])
    assert isinstance(got, Receipt), (method, got)
assert isinstance(model.with_structured_output(None, method="json_mode").invoke([asked]), dict | None)
passed("structured output")
