"""ChartQA: questions about charts, scored by relaxed accuracy; half of them written by people, half generated."""

from __future__ import annotations

from pathlib import Path

from qvl.evaluate.benchmarks import prompts, readers
from qvl.evaluate.benchmarks.docvqa import read_vqa_tsv
from qvl.evaluate.benchmarks.record import Benchmark, Files, macro_means, settings_with
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers.base import Grade, Reply, Scorer, accepted

TOLERANCE = 0.05


def as_number(text: str) -> float | None:
    """A per cent sign divides by 100; thousands' commas aren't read."""
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed(said: str, target: str) -> bool:
    """Within 5% of the target where both are numbers and it isn't 0; else equal up to case.

    Source: google-research/pix2struct metrics.py, as in open-compass/VLMEvalKit @e8e78f0
    vlmeval/dataset/utils/vqa_eval.py.
    """
    a, b = as_number(said), as_number(target)
    if a is not None and b:
        return abs(a - b) / abs(b) <= TOLERANCE
    return said.lower() == target.lower()


def is_year(text: str) -> bool:
    return text.isdecimal() and 1900 <= int(text) <= 2100


def strict(said: str, target: str) -> bool:
    """`relaxed`, but a year must be met exactly, 0 equals 0.0, 1,000 equals 1000, and a final full stop is forgiven."""
    said, target = (t.strip().rstrip(".").replace(",", "") for t in (said, target))
    a, b = as_number(said), as_number(target)
    if a is not None and b is not None and (is_year(target) or b == 0):
        return a == b
    return relaxed(said, target)


def rule(reply: Reply, truth: tuple[str, ...], sample: Sample, *, official: bool = False) -> Grade:
    """Relaxed accuracy: a number within 5% of the target (`%` divides by 100), else the same text up to case.

    `official` doesn't trim the answer. The field `strict` of what was read tells whether it holds with exact years.
    """
    said = reply.text if official else reply.text.strip()
    return Grade(
        float(any(relaxed(said, t) for t in truth)),
        {"text": said, "strict": any(strict(said, t) for t in truth)} if said else None,
    )


def read(path: Path, split: str) -> list[Sample]:
    """test_human.json and test_augmented.json with png/ beside them, or VLMEvalKit's TSV."""
    if path.suffix == ".tsv" or (path.is_dir() and list(path.glob("*.tsv"))):
        return read_vqa_tsv(readers.the_file(path, "ChartQA_TEST.tsv", "*.tsv"))
    folder = path if path.is_dir() else path.parent
    files = sorted(folder.glob("test_*.json")) if path.is_dir() else [path]
    samples = []
    for file in files:
        half = file.stem.removeprefix("test_")
        for i, row in enumerate(readers.read_json(file)):
            where = f"{file}[{i}]"
            image = readers.field(row, "imgname", where)
            samples.append(
                Sample(
                    id=f"{half}-{i}", media=(readers.image_file(folder, f"png/{image}", where),),
                    question=readers.field(row, "query", where), answer=str(readers.field(row, "label", where)),
                    stratum=half, cluster=image, where=where,
                )
            )  # fmt: skip
    return samples


CHARTQA = Benchmark(
    name="chartqa",
    title="ChartQA test: questions about charts",
    files=Files(
        where="github.com/vis-nlp/ChartQA, `ChartQA Dataset/test`, or VLMEvalKit's ChartQA_TEST.tsv",
        licence="GPL-3.0",
        layout="test_human.json and test_augmented.json: [{imgname, query, label}], png/ beside them; TSV: index, "
        "image (base64), question, answer, split",
        seen="vis-nlp/ChartQA @3dab8e83b6ac559b847b7c6e2f24d1faa95a4507: ChartQA Dataset/test/test_human.json",
        items={"human": 1250, "augmented": 1250},
    ),
    read=read,
    prompt=prompts.short_answer,
    scorer=Scorer(name="chartqa", rule=rule, truth=accepted),
    settings=settings_with(max_tokens=100),
    figures=macro_means,
    faults=(
        "years get the 5% too: 2010 passes for 2015; `1,000` isn't 1000, `0.0` isn't 0, and a final full stop is "
        "wrong. The rule is kept, for its figures are published; `strict` beside it counts without these",
    ),
    pitfalls=(
        "the headline is the mean of the two halves",
        "Qwen-VL's own script divides by the answer: 105.1 against 100 is right there and wrong elsewhere",
        "`anywhere in answer` figures of other harnesses (Red Hat cards, issue 1629) are another measure",
    ),
)  # fmt: skip
