"""KRETA (KoTextVQA): reading and reasoning in Korean images, four options."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qvl.evaluate.benchmarks import prompts, readers
from qvl.evaluate.benchmarks.mmmu import parse_pro_letter
from qvl.evaluate.benchmarks.record import Benchmark, Files, macro_means, settings_with
from qvl.evaluate.benchmarks.videomme import letter_truth
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers.base import Grade, Reply, Scorer
from qvl.evaluate.scorers.text import read_choice


def rule(reply: Reply, truth: str, sample: Sample, *, official: bool = False) -> Grade:
    """The only letter after the last `Answer:`, then other clear forms; an answer that names no option is wrong.

    official: MMMU-Pro's parser; where the official script guesses at random, this gives 0, so that it can be repeated.
    """
    letter = parse_pro_letter(reply.text, sample.choices)
    if not official:
        found = read_choice(reply.text, sample.choices)
        _, said, tail = reply.text.rpartition("Answer:")
        clear = said and sum(c in tail for c in prompts.letters(sample.choices)) == 1
        if not clear:
            letter = None if found is None else prompts.letters(sample.choices)[found]
    return Grade(float(letter == truth), letter)


def prompt(sample: Sample, generation: str) -> str:
    """Source: tabtoyou/KRETA @c273302 eval/infer/infer_hf_vlm.py."""
    return (
        f"Question: {sample.question}\nOptions:\n{prompts.option_lines(sample.choices)}\n"
        "Please select the correct answer from the options above. The last line of your response should be of the "
        "following format: 'Answer: LETTER' (without quotes) where LETTER is one of options."
    )


def read(path: Path, split: str) -> list[Sample]:
    """JSONL with the image as base64 or as a file beside it, or the hub's parquet."""
    jsonl = path.suffix == ".jsonl" or (path.is_dir() and bool(list(path.glob("*.jsonl"))))
    if not jsonl:
        return [_sample(row, where, image) for where, row, (image,) in readers.read_parquet(path)]
    file = readers.the_file(path, "*.jsonl")
    return [_sample(row, where, _image(row, file.parent, where)) for where, row in readers.read_jsonl(file)]


def _image(row: dict[str, Any], base: Path, where: str) -> Any:
    image = str(readers.field(row, "image", where))
    if len(image) < 300:
        return readers.image_file(base, image, where)
    return lambda: readers.decode_image(base64.b64decode(image))


def _sample(row: dict[str, Any], where: str, image: str | Callable[[], Any]) -> Sample:
    return Sample(
        id=str(row.get("id") or row.get("index") or where),
        media=(image,),
        question=readers.field(row, "question", where),
        answer=readers.field(row, "answer", where),
        choices=tuple(str(readers.field(row, c, where)) for c in "ABCD"),
        stratum=str(row.get("category", "")),
        where=where,
    )


KRETA = Benchmark(
    name="kreta",
    title="KRETA: reading and reasoning in Korean images",
    files=Files(
        where="hub data set tabtoyou/KoTextVQA",
        licence="see the hub's card",
        layout="id, question, A, B, C, D, answer (a letter), category, image; parquet, or JSONL with base64 images",
        seen="tabtoyou/KRETA @c273302ade2c330f7afb7794cbbdd1ab0a3e0106: eval/evaluate.py, eval/infer/infer_hf_vlm.py",
    ),
    read=read,
    prompt=prompt,
    scorer=Scorer(name="kreta", rule=rule, truth=letter_truth),
    settings=settings_with(max_tokens=300),
    figures=macro_means,
    faults=("an answer that names no option is scored as a random one",),
)  # fmt: skip
