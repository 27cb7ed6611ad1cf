"""lmms-eval: its `openai` model answers a task of receipts, and is scored by exact match."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import IMAGE_PATH, KEY, MODEL, QUESTION, TOTAL, URL, passed

TASK = """
task: qvl_receipts
dataset_path: {folder}/data
test_split: train
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
process_results: !function utils.results
generation_kwargs:
  max_new_tokens: 32
  temperature: 0
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
"""
UTILS = """
from PIL import Image


def visual(doc):
    return [Image.open(doc["path"]).convert("RGB")]


def text(doc, *_):
    return doc["question"]


def results(doc, answers):
    return {"right": float(doc["answer"] in answers[0])}
"""
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    (folder / "data").mkdir()
    item = {"question": QUESTION, "path": str(IMAGE_PATH), "answer": TOTAL}
    (folder / "data/train.jsonl").write_text("".join(json.dumps(item | {"id": i}) + "\n" for i in range(3)))
    (folder / "tasks").mkdir()
    (folder / "tasks/receipts.yaml").write_text(TASK.format(folder=folder))
    (folder / "tasks/utils.py").write_text(UTILS)
    command = [
        sys.executable, "-m", "lmms_eval", "--model", "openai",
        "--model_args", f"model={MODEL},base_url={URL},api_key={KEY}",
        "--include_path", str(folder / "tasks"), "--tasks", "qvl_receipts", "--output_path", str(folder / "out"),
    ]  # fmt: skip
    environment = os.environ | {"OPENAI_API_KEY": KEY, "OPENAI_API_BASE": URL, "HF_HOME": name}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, said
    reports = list(folder.glob("out/**/*results.json"))
    assert len(reports) == 1, said
    (report,) = reports
    scores = json.loads(report.read_text())["results"]["qvl_receipts"]
    assert scores["right,none"] == 1, (scores, said)
    passed("image")
