"""inspect_ai against `qvl serve`: the receipts of this folder as one of its tasks.

Run with inspect_ai 0.3.285 on 2026-12-01 against `qvl serve --model mini`:

    qvl serve --model mini --port 8000
    LOCAL_API_KEY=none LOCAL_BASE_URL=http://127.0.0.1:8000/v1 inspect eval examples/eval/inspect_task.py \\
        --model openai-api/local/mini --max-connections 8 --display plain
"""

import json
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText
from inspect_ai.scorer import exact
from inspect_ai.solver import generate

FOLDER = Path(__file__).parent


@task
def receipts() -> Task:
    """24 receipts and forms; right when the whole answer is the truth."""
    samples = []
    for line in (FOLDER / "receipts.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        content = [ContentImage(image=str(FOLDER / row["image"])), ContentText(text=row["question"])]
        samples.append(Sample(id=row["id"], input=[ChatMessageUser(content=content)], target=row["answer"]))
    return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=exact())
