"""RefCOCO, RefCOCO+ and RefCOCOg: an expression to a box, right at an IoU of 0.5."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from qvl.catalog.generations import by_name
from qvl.catalog.generations.qwen3_vl import QWEN3_VL
from qvl.catalog.generations.qwen_vl import QWEN_VL
from qvl.evaluate.benchmarks import readers
from qvl.evaluate.benchmarks.record import GREEDY, QWEN3_SAMPLED, Benchmark, Files, macro_means
from qvl.evaluate.benchmarks.screenspot import Rect, xyxy
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers import places
from qvl.evaluate.scorers.base import Grade, Reply, Scorer
from qvl.outputs.boxes import Box, Quad
from qvl.outputs.mapping import iou

SPLITS = tuple(
    f"{name}_{part}"
    for name, parts in (
        ("refcoco", ("val", "testA", "testB")),
        ("refcoco+", ("val", "testA", "testB")),
        ("refcocog", ("val", "test")),
    )
    for part in parts
)
ENOUGH = 0.5
_PAIRS = re.compile(r"\((.*?)\),\((.*?)\)")


def first_generation_box(text: str, width: float, height: float) -> Rect:
    """`(x1,y1),(x2,y2)` in parts of 999; an unread box is (0, 0, 0, 0).

    Source: QwenLM/Qwen-VL @aa00ed0 eval_mm/evaluate_grounding.py.
    """
    found = _PAIRS.findall(text)
    try:
        (x1, y1), (x2, y2) = (map(float, part.split(",")) for part in found[0])
    except (IndexError, ValueError):
        return 0.0, 0.0, 0.0, 0.0
    return x1 / 999 * width, y1 / 999 * height, x2 / 999 * width, y2 / 999 * height


def rule(reply: Reply, truth: Rect, sample: Sample, *, official: bool = False) -> Grade:
    """Right when the first box meets the truth at an IoU of at least 0.5, in the generation's own coordinates.

    official: the first generation's script, `(x1,y1),(x2,y2)` in parts of 999.
    """
    if official:
        height, width = reply.sizes[0][0]
        said = first_generation_box(reply.text, width, height)
        return Grade(float(iou(said, truth) >= ENOUGH), list(said) if any(said) else None)
    for place in places.places(reply):
        if isinstance(place, Box | Quad):
            found = tuple(place.rect)
            return Grade(float(iou(found, truth) >= ENOUGH), list(found))
    return Grade(0.0)


def prompt(sample: Sample, generation: str) -> str:
    if generation == QWEN_VL.name:
        return f"<ref>{sample.question}</ref><box>"
    words = by_name(generation).prompts.boxes if generation else "Report the bbox coordinates in JSON format."
    return f"Locate {sample.question}. {words}"


def read(path: Path, split: str) -> list[Sample]:
    """refcoco_val.jsonl and its seven sisters; `all` reads those that are there."""
    files = [path] if path.is_file() else sorted(path.glob("refcoco*.jsonl"))
    files = [f for f in files if split == "all" or f.stem == split]
    samples = []
    for file in files:
        for i, (where, row) in enumerate(readers.read_jsonl(file)):
            image = readers.field(row, "image", where)
            samples.append(
                Sample(
                    id=f"{file.stem}-{i}", media=(readers.image_file(file.parent, image, where),),
                    question=readers.field(row, "sent", where), answer=readers.field(row, "bbox", where),
                    stratum=file.stem, cluster=image, where=where,
                )
            )  # fmt: skip
    return samples


REFCOCO = Benchmark(
    name="refcoco",
    title="RefCOCO, RefCOCO+, RefCOCOg: expressions to boxes",
    files=Files(
        where="the eight JSONL files that QwenLM/Qwen-VL eval_mm/EVALUATION.md links to; images of COCO train2014",
        licence="Apache-2.0 (annotations); COCO's terms (images)",
        layout="refcoco_val.jsonl ... refcocog_test.jsonl: {image, sent, bbox [x1, y1, x2, y2] in pixels, width, "
        "height}; image is a path beside the file",
        seen="QwenLM/Qwen-VL @aa00ed04091eea5fcdd32985e7915f1c53e7d599: eval_mm/evaluate_grounding.py",
    ),
    read=read,
    splits=("all", *SPLITS),
    prompt=prompt,
    scorer=Scorer(name="refcoco", rule=rule, truth=xyxy, needs_family=True),
    settings={QWEN3_VL.name: replace(QWEN3_SAMPLED, max_tokens=128), "*": replace(GREEDY, max_tokens=128)},
    figures=macro_means,
    faults=(
        "the space of the numbers is guessed by other harnesses: VLMEvalKit reads any box up to 1000 as parts of 1000, "
        "so that pixel boxes of Qwen2.5-VL on COCO's 640-pixel images are always misread (a perfect one: IoU 0.12). "
        "Ours takes the generation's own",
        "the first generation's script divides by 999; Qwen's figures for it are made so",
    ),
    pitfalls=("lmms-eval scores every box under both readings and keeps the best",),
)  # fmt: skip
