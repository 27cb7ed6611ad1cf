"""instructor: images, and structured output in the modes that OpenAI's servers have."""

import instructor
from common import IMAGE, IMAGE_PATH, KEY, MODEL, URL, passed
from openai import OpenAI
from pydantic import BaseModel


class Receipt(BaseModel):
    """A receipt."""

    paid: bool


client = OpenAI(base_url=URL, api_key=KEY, max_retries=0)
asked = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Is it paid?"},
            {"type": "image_url", "image_url": {"url": IMAGE}},
        ],
    }
]
for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
    patched = instructor.from_openai(client, mode=mode)
    got = patched.chat.completions.create(
        model=MODEL, messages=asked, response_model=Receipt, max_tokens=200, max_retries=0
    )
    assert isinstance(got, Receipt), (mode, got)
    passed(f"structured output, {mode.name}")
own = ["Is it paid?", instructor.Image.from_path(str(IMAGE_PATH))]
got = instructor.from_openai(client).chat.completions.create(
    model=MODEL, messages=[{"role": "user", "content": own}], response_model=Receipt, max_tokens=200
)
assert isinstance(got, Receipt)
passed("its own image")
