"""MathVista: maths with images. The official rule compares what a language model extracted; ours reads by rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvl.evaluate.benchmarks import prompts, readers
from qvl.evaluate.benchmarks.record import Benchmark, Files, Rows, by_stratum, mean
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers.base import Grade, Reply, Scorer, levenshtein
from qvl.evaluate.scorers.text import read_choice

_NUMBER = r"[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?"
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_SAID = re.compile(r"(?:answer|result|value)(?:\s+is|\s*[:=])\s*:?\s*(.+)", re.IGNORECASE)


def read(path: Path, split: str) -> list[Sample]:
    """testmini.json beside images/: {pid: {question, image, choices, precision, answer, question_type, ...}}."""
    file = readers.the_file(path, "testmini.json", "data/testmini.json")
    base = file.parent if (file.parent / "images").is_dir() else file.parent.parent
    samples = []
    for pid, row in readers.read_json(file).items():
        where = f"{file}: {pid}"
        choices = row.get("choices") or []
        question = row.get("query") or build_query(row)
        samples.append(
            Sample(
                id=str(pid),
                media=(readers.image_file(base, readers.field(row, "image", where), where),),
                question=question,
                answer=str(readers.field(row, "answer", where)),
                choices=tuple(map(str, choices)),
                stratum=str(row.get("metadata", {}).get("task", "")),
                meta={k: row.get(k) for k in ("question_type", "answer_type", "precision", "unit")},
                where=where,
            )
        )
    return samples


def build_query(row: dict[str, Any]) -> str:
    """The official query: a hint by kind of answer, the question with its unit, and `(A) text` options.

    Source: lupantech/MathVista @53d5258 evaluation/build_query.py.
    """
    multi, kind = row["question_type"] == "multi_choice", row["answer_type"]
    one = kind == "float" and int(row["precision"]) == 1
    hint = (
        "answer the question and provide the correct option letter, e.g., A, B, C, D, at the end"
        if multi
        else "answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end"
        if kind == "integer"
        else f"answer the question requiring a floating-point number with {'one' if one else 'two'} decimal "
        f"place{'' if one else 's'} and provide the final value, "
        f"e.g., {'1.2, 1.3, 1.4' if one else '1.23, 1.34, 1.45'}, at the end"
        if kind == "float"
        else "answer the question requiring a Python list as an answer and provide the final list, "
        "e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end"
    )
    unit = f" (Unit: {row['unit']})" if row.get("unit") else ""
    lines = [f"Hint: Please {hint}.", f"Question: {row['question']}{unit}"]
    if row.get("choices"):
        lines.append("Choices:")
        lines += [f"({letter}) {c}" for letter, c in zip(prompts.letters(row["choices"]), row["choices"])]
    return "\n".join(lines)


def normalise(
    extraction: Any, choices: Sequence[str], question_type: str, answer_type: str, precision: Any
) -> str | None:
    """The official normalising of an extracted answer; None for a number that can't be read.

    A choice is the letter's, or else the *nearest by edit distance*: every text names some choice.
    Source: lupantech/MathVista @53d5258 evaluation/calculate_score.py.
    """
    if question_type == "multi_choice":
        said = str(extraction).strip() if isinstance(extraction, str) else str(extraction)
        bracketed = re.findall(r"\(([a-zA-Z])\)", said)
        said = bracketed[0].upper() if bracketed else said
        known = prompts.letters(choices)
        if len(said) == 1 and said in known:
            return choices[known.index(said)]
        return min(choices, key=lambda c: levenshtein(said, c))
    try:
        if answer_type == "integer":
            return str(int(float(extraction)))
        if answer_type == "float":
            return str(round(float(extraction), int(precision)))
    except (TypeError, ValueError, OverflowError):
        return None
    return str(extraction)


def official_right(extraction: Any, sample: Sample) -> bool:
    """Whether an extraction counts as right by the official rule."""
    kind = sample.meta
    read = normalise(
        extraction, sample.choices, kind["question_type"], kind["answer_type"], kind["precision"]
    )
    return bool(read == sample.answer)


def extract(text: str, sample: Sample) -> tuple[str, str] | None:
    """(route, extraction) by rules alone; None when nothing in the answer can be judged.

    Routes in this order: the answer as it stands; `\\boxed{}`; after the last "answer is"; the last number or list.
    """
    text = text.strip()
    if sample.meta["question_type"] == "multi_choice":
        found = read_choice(text, sample.choices)
        return None if found is None else ("choice", sample.choices[found])
    pattern = re.compile(r"\[[^\[\]]*\]" if sample.meta["answer_type"] == "list" else _NUMBER)
    for route, part in _parts(text):
        numbers = [m[0] for m in pattern.finditer(part) if re.search(r"\d", m[0])]
        if numbers:
            at = 0 if route == "said" else -1
            return route, numbers[at].replace(",", "").replace(
                "−", "-"
            ) if pattern.pattern == _NUMBER else numbers[at]
    return None


def _parts(text: str) -> list[tuple[str, str]]:
    parts = [("whole", text)] if re.fullmatch(_NUMBER, text) and text else []
    parts += [("boxed", b) for b in _BOXED.findall(text)[-1:]]
    parts += [("said", s) for s in _SAID.findall(text)[-1:]]
    return [*parts, ("last", text)]


def rule(reply: Reply, truth: str, sample: Sample, *, official: bool = False) -> Grade:
    """Right when the answer, read by rules, normalises to the truth: choices by letter or text, whole numbers cut,
    decimals rounded to the item's places. An answer in which nothing is found is wrong.

    official: the answer itself stands for the judge's extraction, and a choice is the nearest by edit distance.
    """
    if official:
        found = _official_extract(reply.text, sample)
        return Grade(float(official_right(found, sample)), found)
    read = extract(reply.text, sample)
    if read is None:
        return Grade(0.0)
    route, value = read
    if sample.meta["answer_type"] == "list":
        right = re.sub(r"\s", "", value) == re.sub(r"\s", "", truth)
    else:
        right = official_right(value, sample)
    return Grade(float(right), {"route": route, "value": value})


def _official_extract(text: str, sample: Sample) -> str:
    """What the official extractor does before it asks its language model.

    Source: lupantech/MathVista @53d5258 evaluation/extract_answer.py, with quick_extract.
    """
    try:
        if sample.meta["answer_type"] == "integer":
            return str(int(text))
        if sample.meta["answer_type"] == "float":
            return str(float(text))
    except ValueError:
        pass
    quoted = re.search(r'The answer is "(.*)"\.', text)
    return quoted[1] if quoted else text


def truth(answer: Any, sample: Sample) -> str:
    if sample.meta.get("question_type") not in ("multi_choice", "free_form"):
        raise ValueError(
            f"question_type {sample.meta.get('question_type')!r} is neither multi_choice nor free_form"
        )
    if sample.choices and answer not in sample.choices:
        raise ValueError(f"{answer!r} is none of the choices")
    return str(answer)


def figures(rows: Rows) -> dict[str, float]:
    """Accuracy, that of each kind of question and of each task."""
    out = {"accuracy": mean(g.score for _, g in rows)}
    for kind in ("multi_choice", "free_form"):
        out[kind] = mean(g.score for s, g in rows if s.meta["question_type"] == kind)
    return out | by_stratum(rows)


MATHVISTA = Benchmark(
    name="mathvista",
    title="MathVista testmini: maths with images",
    files=Files(
        where="hub data set AI4Math/MathVista, or data/ of github.com/lupantech/MathVista with images.zip",
        licence="CC BY-SA 4.0",
        layout="testmini.json: {pid: {question, image, choices, unit, precision, answer, question_type, answer_type, "
        "metadata}}, images/N.jpg beside it",
        seen="lupantech/MathVista @53d525874bdde205128e6b160b7357a88277d479: data/testmini.json",
        items={"testmini": 1000},
    ),
    read=read,
    prompt=prompts.as_it_is,
    scorer=Scorer(name="mathvista", rule=rule, truth=truth),
    figures=figures,
    faults=(
        "any text is mapped to the nearest choice by edit distance: 118 of the 292 answers of GPT-4 (2-shot) that "
        "count as right name no choice at all, most of them refusals. Ours needs a letter or a choice's text",
        "a language model extracts the answer, so the judge is part of the score. Ours uses rules and says which one "
        "decided",
    ),
    pitfalls=("three values of Qwen2.5-VL-72B are published: 74.8 (report), 75.3 (AWQ card), 78.2 (another harness)",),
)  # fmt: skip
