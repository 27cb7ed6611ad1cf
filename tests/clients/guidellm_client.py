"""guidellm: a synchronous run of text prompts and one of prompts with images, every request answered."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import IMAGE_PATH, MODEL, QUESTION, URL, passed

PROGRAM = Path(sys.executable).with_name("guidellm")


def run(data: str, folder: str, *more: str) -> None:
    out = Path(folder) / "report.json"
    command = [
        PROGRAM, "run", "--disable-console-interactive",
        "--backend", f"kind=openai_http,target={URL.removesuffix('/v1')},model={MODEL}",
        "--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=6", "--data", data, *more,
        "--output", f"kind=json,path={out}",
    ]  # fmt: skip
    done = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (6, 0), totals


with tempfile.TemporaryDirectory() as folder:
    items = Path(folder) / "items.jsonl"
    items.write_text(
        "".join(json.dumps({"prompt": f"{QUESTION} {i}", "output_tokens_count": 8}) + "\n" for i in range(6))
    )
    run(f"kind=json_file,path={items}", folder)
    passed("text")
    items.write_text(
        "".join(json.dumps({"prompt": f"{QUESTION} {i}", "image": str(IMAGE_PATH)}) + "\n" for i in range(6))
    )
    run(f"kind=json_file,path={items}", folder, "--data-preprocessor", "kind=encode_media")
    passed("image")
