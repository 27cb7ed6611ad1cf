"""MMMU and MMMU-Pro: college questions over 30 subjects, mostly multiple choice. Here is the official parser without
its guess, and with it where the official figure is wanted."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qvl.catalog.generations.qwen2_5_vl import QWEN2_5_VL
from qvl.catalog.generations.qwen2_vl import QWEN2_VL
from qvl.catalog.generations.qwen3_vl import QWEN3_VL
from qvl.evaluate.benchmarks import prompts, readers
from qvl.evaluate.benchmarks.record import QWEN3_SAMPLED, QWEN25_IMAGE, Benchmark, Files, Settings, means
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers.base import Grade, Reply, Scorer
from qvl.evaluate.scorers.text import read_choice

GUESS_SEED = 42  # the official script's

_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def parse_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter that the official parser finds before it guesses: `(B)`, then ` B `, then, in more than five words,
    a choice's text; of several the last.

    Source: MMMU-Benchmark/MMMU @bb0b95a mmmu/utils/eval_utils.py parse_multi_choice_response.
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    known = prompts.letters(choices)
    for form in ("({})", " {} "):
        found = [c for c in known if form.format(c) in text]
        if found:
            return max(found, key=lambda c: text.rfind(form.format(c)))
    if len(text.split()) > 5:
        low = text.lower()
        named = [(low.rfind(c.lower()), letter) for letter, c in zip(known, choices) if c.lower() in low]
        if named:
            return max(named, key=lambda n: n[0])[1]
    return None


def parse_pro_letter(text: str, choices: Sequence[str]) -> str | None:
    """MMMU-Pro's parser: the only letter after the last `Answer:`; then as MMMU's, with `B ` and `B.` anywhere.

    Source: MMMU-Benchmark/MMMU @bb0b95a mmmu-pro/evaluate.py parse_multi_choice_response.
    """
    known = prompts.letters(choices)
    _, said, tail = text.rpartition("Answer:")
    if said:
        named = [c for c in known if c in tail]
        if len(named) == 1:
            return named[0]
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    # The place of a letter is looked for as ` B `, whatever form it was found in; -1 is the first of them then.
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [c for c in known if form.format(c) in text]
        if found:
            return max(found, key=lambda c: text.rfind(place.format(c)))
    return parse_letter(text, choices) if len(text.split()) > 5 else None


def numbers(text: str) -> list[str]:
    return [n for pattern in _NUMBERS for n in pattern.findall(text)]


def normalise(text: str) -> list[str | float]:
    """A number to two places, or lower-case text; a letter alone gets a blank, to be no part of a word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def parse_open(text: str) -> list[str | float]:
    """What an open answer may mean: the shortest tail after a key phrase in each of its sentences, and their numbers.

    Source: MMMU-Benchmark/MMMU @bb0b95a mmmu/utils/eval_utils.py parse_open_response. It lower-cases before it splits
    at ". " and a capital, so in fact only line breaks split.
    """
    text = text.strip().strip(".").lower()
    sentences = re.split(r"\.\s(?=[A-Z])|\n", text)
    tails = []
    for i, sentence in enumerate(sentences):
        keys = (*_KEYS, "=") if i == len(sentences) - 1 else _KEYS
        found = [sentence.split(key)[-1].strip() for key in keys if key in sentence]
        tail = ""
        for one in found:  # an empty tail is replaced by the next, as in the source
            tail = one if not tail or len(one) < len(tail) else tail
        if tail and tail not in _TRIVIAL:
            tails.append(tail)
    tails = tails or [text]
    return [value for t in [*tails, *(n for t in tails for n in numbers(t))] for value in normalise(t)]


def open_right(said: Sequence[str | float], answers: Sequence[str]) -> bool:
    """Whether a text of the truth stands in what was said, or a number equals one."""
    accepted = [value for a in answers for value in normalise(a)]
    for value in said:
        if isinstance(value, str):
            if any(isinstance(a, str) and a in value for a in accepted):
                return True
        elif value in accepted:
            return True
    return False


def rule(
    reply: Reply, truth: list[str], sample: Sample, *, official: bool = False, seed: int = GUESS_SEED
) -> Grade:
    """Multiple choice by the official parser, then by other clear forms (`**B**`, `\\boxed{B}`, a bare `b`); an answer
    that names no option is wrong. Open questions by the official rule: containment, numbers to two places.

    official: no other forms, and an answer that names no option is a guess by `seed`, right one time in four.
    """
    if not sample.choices:
        said = parse_open(reply.text)
        return Grade(float(open_right(said, truth)), said or None)
    parse = parse_pro_letter if sample.meta.get("pro") else parse_letter
    letter = parse(reply.text, sample.choices)
    if letter is None and official:
        letter = random.Random(f"{seed} {sample.id}").choice(prompts.letters(sample.choices))
    elif letter is None:
        found = read_choice(reply.text, sample.choices)
        letter = None if found is None else prompts.letters(sample.choices)[found]
    return Grade(float(letter in truth), letter)


def truth(answer: Any, sample: Sample) -> list[str]:
    several = [str(a) for a in answer] if isinstance(answer, list) else [str(answer)]
    if sample.choices and not all(a in tuple(prompts.letters(sample.choices)) for a in several):
        raise ValueError(f"{answer!r} is no letter of the {len(sample.choices)} options")
    return several


def read_options(value: Any) -> tuple[str, ...]:
    """A list, or a text with a Python list in it, which is how the hub's files hold it."""
    return tuple(
        str(o) for o in (ast.literal_eval(value) if isinstance(value, str) and value else value or [])
    )


def read(path: Path, split: str) -> list[Sample]:
    """VLMEvalKit's MMMU_DEV_VAL.tsv, or the hub's parquet files with image_1 to image_7."""
    if path.suffix == ".tsv" or (path.is_dir() and list(path.glob("MMMU*.tsv"))):
        return _read_tsv(readers.the_file(path, "MMMU_DEV_VAL.tsv", "MMMU*.tsv"), split)
    return [_hub_sample(*row) for row in readers.read_parquet(path, IMAGES)]


def _read_tsv(path: Path, split: str) -> list[Sample]:
    samples = []
    for where, row, images in readers.read_tsv(path):
        if row.get("split", split) != split:
            continue
        choices = tuple(row[c] for c in "ABCDEFGHI" if row.get(c))
        samples.append(
            Sample(
                id=row.get("id") or row["index"], media=images, question=row["question"],
                answer=readers.field(row, "answer", where), choices=choices,
                stratum=row.get("category", ""), where=where,
            )
        )  # fmt: skip
    return samples


IMAGES = tuple(f"image_{i}" for i in range(1, 8))


def _hub_sample(where: str, row: dict[str, Any], images: tuple[Any, ...]) -> Sample:
    options = read_options(row.get("options"))
    answer = row["answer"]
    if not options and isinstance(answer, str) and answer.startswith("["):
        answer = ast.literal_eval(answer)
    return Sample(
        id=row["id"],
        media=images,
        question=row["question"],
        answer=answer,
        choices=options,
        stratum=row["id"].rsplit("_", 1)[0].split("_", 1)[-1],
        where=where,
    )


def read_pro(path: Path, split: str) -> list[Sample]:
    """The hub's parquet files, or JSONL with the images as files beside it (field `image`)."""
    jsonl = path.suffix == ".jsonl" or (path.is_dir() and bool(list(path.glob("*.jsonl"))))
    if not jsonl:
        rows = [_hub_sample(*row) for row in readers.read_parquet(path, ("image", *IMAGES))]
        return [replace(s, meta={"pro": True}) for s in rows]
    file = readers.the_file(path, "*.jsonl")
    samples = []
    for where, row in readers.read_jsonl(file):
        image = row.get("image")
        samples.append(
            Sample(
                id=readers.field(row, "id", where),
                media=(readers.image_file(file.parent, image, where),) if image else (),
                question=row.get("question", ""), answer=row["answer"], choices=read_options(row["options"]),
                stratum=row.get("subject", ""), meta={"pro": True}, where=where,
            )
        )  # fmt: skip
    return samples


def pro_prompt(sample: Sample, generation: str) -> str:
    """Source: MMMU-Benchmark/MMMU @bb0b95a mmmu-pro/prompts.yaml, direct; in the vision split the image holds all."""
    direct = "Answer with the option letter from the given choices directly."
    if not sample.question:
        return (
            f"{direct} The last line of your response should be of the following format: 'Answer: $LETTER' "
            "(without quotes) where LETTER is one of options."
        )
    return f"{sample.question}\n{prompts.option_lines(sample.choices)}\n{direct}"


SETTINGS = {
    QWEN2_VL.name: QWEN25_IMAGE,
    QWEN2_5_VL.name: QWEN25_IMAGE,
    QWEN3_VL.name: replace(
        QWEN3_SAMPLED, min_pixels=1280 * 28 * 28, max_pixels=5120 * 28 * 28, max_tokens=32768,
        source="QwenLM/Qwen3-VL @9658872 evaluation/mmmu; thinking models: temperature 1.0 (dense), 40,960 tokens",
    ),
    "*": Settings(temperature=0.0),
}  # fmt: skip

_SCORER = Scorer(name="mmmu", rule=rule, truth=truth)

MMMU = Benchmark(
    name="mmmu",
    title="MMMU: college-level questions over 30 subjects",
    files=Files(
        where="hub data set MMMU/MMMU (parquet, 30 folders), or VLMEvalKit's MMMU_DEV_VAL.tsv",
        licence="Apache-2.0; the questions come from textbooks and the web",
        layout="parquet: id, question, options (a Python list as text), image_1 to image_7, answer, question_type; "
        "TSV: index, id, question, A to I, answer, category, split, image (base64)",
        seen="parquet: MMMU-Benchmark/MMMU @bb0b95a: mmmu/utils/data_utils.py; TSV: open-compass/VLMEvalKit @e8e78f0: "
        "vlmeval/dataset/image_mcq.py",
        items={"validation": 900, "dev": 150},
    ),
    read=read,
    splits=("validation", "dev"),
    prompt=prompts.mmmu,
    scorer=_SCORER,
    settings=SETTINGS,
    figures=means,
    faults=(
        "an answer that names no option is scored as a random one: on Qwen-VL's own 900 answers 35.2 to 36.4 by seed, "
        "34.3 without the guess. Ours counts it as wrong",
        "`**B**`, `\\boxed{B}` and a bare `b` fall to the guess. Ours reads them",
    ),
    pitfalls=(
        "direct or with chain of thought: 50 to 52 against 58.6 for Qwen2.5-VL-7B",
        "options as `A. text`, after `Question:`; with `A: text` the score falls by points",
        "VLMEvalKit and Qwen's script let a language model judge what the rules can't read",
    ),
)  # fmt: skip

MMMU_PRO = Benchmark(
    name="mmmu_pro",
    title="MMMU-Pro: MMMU with ten options, or with the question inside the image",
    files=Files(
        where="hub data set MMMU/MMMU_Pro, configurations `standard (10 options)` and `vision`",
        licence="Apache-2.0; the questions come from textbooks and the web",
        layout="parquet or JSONL: id, question, options (a Python list as text), image_1 ... or image, answer, subject",
        seen="MMMU-Benchmark/MMMU @bb0b95a: mmmu-pro/output/gpt-4o_standard(10 options)_direct.jsonl (without images)",
        items={"standard": 1730, "vision": 1730},
    ),
    read=read_pro,
    prompt=pro_prompt,
    scorer=_SCORER,
    settings=SETTINGS,
    figures=means,
    faults=(
        "as MMMU's: a random option where none is named",
        "a letter and a blank anywhere count, so that the A of `A red apple` is an option",
    ),
)
