"""What every script here uses: where the server is, an image and a question. Nothing but the standard library."""

import base64
import os
from pathlib import Path

URL = os.environ.get("QVL_URL", "http://127.0.0.1:8000/v1")
MODEL = os.environ.get("QVL_MODEL", "mini")
KEY = "none"
IMAGE_PATH = Path(__file__).parents[2] / "examples/receipt.png"
IMAGE_BASE64 = base64.b64encode(IMAGE_PATH.read_bytes()).decode()
IMAGE = f"data:image/png;base64,{IMAGE_BASE64}"
QUESTION = "What is the total?"
TOTAL = "14.27"  # what the embedded model reads off the receipt


def passed(what: str) -> None:
    print(f"passed: {what}", flush=True)
