"""Scorers by name. A new one is a record in SCORERS; a user's own is `file.py:function`.

scorer = find_scorer("anls", {"threshold": "0.4"})
grade = scorer.grade(Reply(text="12.50"), sample)
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvl.errors import QvlError, nearest
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers import places, structure, text
from qvl.evaluate.scorers.base import Grade, Reply, Scorer, accepted, one_text

_READ = "Read all text in the image."
_SHORT = "\nAnswer with a single word, number or phrase."
_LETTER = "\nAnswer with the letter of the right option only."

SCORERS: dict[str, Scorer] = {
    s.name: s
    for s in (
        Scorer(name="exact", rule=text.exact, truth=accepted),
        Scorer(name="contains", rule=text.contains, truth=accepted),
        Scorer(name="anls", rule=text.anls, truth=accepted, graded=True),
        Scorer(name="number", rule=text.number, truth=text.numbers),
        Scorer(name="choice", rule=text.choice, truth=text.right_choice, suffix=_LETTER),
        Scorer(name="regex", rule=text.regex, truth=text.patterns),
        Scorer(name="wer", rule=text.wer, truth=one_text, graded=True, prompt=_READ),
        Scorer(name="cer", rule=text.cer, truth=one_text, graded=True, prompt=_READ),
        Scorer(name="iou", rule=places.iou, truth=places.boxes, graded=True, needs_family=True),
        Scorer(name="point", rule=places.point, truth=places.boxes, needs_family=True),
        Scorer(
            name="fields", rule=structure.fields, truth=structure.fields_truth, graded=True,
            prompt="Give these fields as one JSON object: {fields}.",
        ),
        Scorer(
            name="teds", rule=structure.teds, truth=structure.table_truth, graded=True,
            prompt="Give the table in the image as HTML.",
        ),
        Scorer(name="blocks", rule=structure.blocks, truth=structure.blocks_truth, graded=True, prompt=_READ),
    )
}  # fmt: skip


def find_scorer(name: str, options: Mapping[str, Any] | None = None) -> Scorer:
    """By its name, or a function of the user's own as `file.py:function`. Raises: QvlError."""
    scorer = SCORERS.get(name)
    if scorer is None:
        if name == "judge":
            raise QvlError("scorer judge needs a second model: --judge MODEL, or judge_scorer() from Python")
        path, _, function = name.rpartition(":")
        if not path.endswith(".py"):
            raise QvlError(f"no scorer {name!r}; {nearest(name, [*SCORERS, 'judge'])}, or file.py:function")
        scorer = own_scorer(Path(path), function)
    return scorer.with_options(options or {})


def own_scorer(path: Path, function: str) -> Scorer:
    """`function(answer, sample)` of a file gives a number, or (number, what it read). Raises: QvlError."""
    if not path.is_file():
        raise QvlError(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise QvlError(f"{path}: {type(e).__name__}: {e}") from e
    found = getattr(module, function, None)
    if not callable(found):
        raise QvlError(f"{path} has no function {function!r}")

    def rule(reply: Reply, truth: Any, sample: Sample) -> Grade:
        said = found(reply.text, sample)
        score, parsed = said if isinstance(said, tuple) else (said, reply.text)
        if not isinstance(score, int | float):
            raise QvlError(f"{path}:{function} gave {score!r}, no number")
        return Grade(float(score), parsed)

    rule.__doc__ = getattr(found, "__doc__", None) or f"the function {function} of {path.name}"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Scorer(name=f"{path.name}:{function}", rule=rule, graded=True, digest=digest)


def fit_scorer(sample: Sample) -> str:
    """The scorer for a sample when none is said: by what its truth looks like."""
    answer = sample.answer
    if sample.choices:
        return "choice"
    if isinstance(answer, dict):
        return "fields"
    if isinstance(answer, int | float):
        return "number"
    flat = answer[0] if isinstance(answer, list) and answer else answer
    if isinstance(flat, list) or (
        isinstance(answer, list) and len(answer) == 4 and not isinstance(flat, str)
    ):
        return "iou"
    return "exact" if not isinstance(flat, str) or len(flat) <= 60 else "anls"
