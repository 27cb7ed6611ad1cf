"""litellm: images, a stream, tools, a pydantic class as response format. https://docs.litellm.ai/docs/providers/openai_compatible"""

import json

import litellm
from common import IMAGE, KEY, MODEL, QUESTION, TOTAL, URL, passed
from pydantic import BaseModel

COMMON = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": KEY, "max_tokens": 200, "temperature": 0}
MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": IMAGE}}],
    }
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "book",
            "description": "Books an amount.",
            "parameters": {
                "type": "object",
                "properties": {"cents": {"type": "integer", "minimum": 0, "maximum": 9999}},
                "required": ["cents"],
            },
        },
    }
]


class Receipt(BaseModel):
    paid: bool


answer = litellm.completion(messages=MESSAGES, **COMMON)
assert TOTAL in answer.choices[0].message.content, answer
passed("image")
chunks = list(
    litellm.completion(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **COMMON)
)
whole = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
assert whole.choices[0].message.content == answer.choices[0].message.content
assert whole.usage.prompt_tokens == answer.usage.prompt_tokens
passed("stream")
called = litellm.completion(
    messages=MESSAGES, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, **COMMON
)
call = called.choices[0].message.tool_calls[0]
assert 0 <= json.loads(call.function.arguments)["cents"] <= 9999
back = [
    *MESSAGES,
    called.choices[0].message,
    {"role": "tool", "tool_call_id": call.id, "name": "book", "content": "ok"},
]
assert (
    litellm.completion(messages=back, tools=TOOLS, **COMMON).usage.prompt_tokens > called.usage.prompt_tokens
)
passed("tools")
formed = litellm.completion(messages=MESSAGES, response_format=Receipt, **COMMON)
assert type(Receipt.model_validate_json(formed.choices[0].message.content).paid) is bool
passed("structured output")
