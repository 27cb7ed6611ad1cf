"""From nothing to a labelled set: a model answers, a person corrects, and the least sure answers come first.

lines = propose(model, samples, "labels.run").lines
for line in least_sure_first(lines, labels.done): labels.add(samples_by_id[line["id"]], corrected, line)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl.errors import QvlError
from qvl.evaluate.journal import to_line
from qvl.evaluate.runner import Progress, Result, run
from qvl.evaluate.samples import Sample, SampleError
from qvl.evaluate.scorers.base import Grade, Reply, Scorer

if TYPE_CHECKING:
    from qvl.backends.base import Backend


def _unscored(reply: Reply, truth: Any, sample: Sample) -> Grade:
    """0 for all: there is no truth yet."""
    return Grade(0.0, reply.text or None)


UNSCORED = Scorer(name="unscored", rule=_unscored, prompt="Read all text in the image.")


def propose(
    model: Backend,
    samples: Sequence[Sample],
    folder: str | Path | None,
    *,
    settings: Mapping[str, Any] | None = None,
    on_line: Callable[[Mapping[str, Any], Progress], None] | None = None,
) -> Result:
    """The model's answers, with their confidence where it can give it; resumed as any run."""
    sure = {"logprobs": 1} if model.can.logprobs else {}
    return run(model, samples, UNSCORED, folder, settings={**(settings or {}), **sure}, on_line=on_line)


def least_sure_first(
    lines: Sequence[Mapping[str, Any]], done: Collection[str] = ()
) -> list[Mapping[str, Any]]:
    """Lines to look at: those that failed, then the least sure; without confidences in their order."""
    left = [r for r in lines if r["id"] not in done]
    return sorted(left, key=lambda r: -1.0 if r.get("error") else r.get("confidence", 1.0))


class Labels:
    """The file that is being made: eval JSONL, one label a line, each on the disk before the next is asked for."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.done: set[str] = set()
        try:
            pieces = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        for number, piece in enumerate(pieces, 1):
            if not piece.strip():
                continue
            try:
                self.done.add(str(json.loads(piece)["id"]))
            except (ValueError, TypeError, KeyError) as e:
                raise SampleError(f"{self.path}:{number}: no item; mend or remove the line") from e

    def add(self, sample: Sample, answer: Any, line: Mapping[str, Any]) -> None:
        """Keeps the right answer to a sample; media as paths relative to this file. Raises: QvlError."""
        record: dict[str, Any] = {
            "id": sample.id,
            **self._media(sample),
            "question": line["prompt"],
            "answer": answer,
        }
        if sample.choices:
            record |= {"question": sample.question, "choices": list(sample.choices)}
        if sample.strata:
            record["stratum"] = sample.strata
        if sample.system is not None:
            record["system"] = sample.system
        record["meta"] = {**sample.meta, "proposed": line.get("answer"), "confidence": line.get("confidence")}
        try:
            with open(self.path, "ab") as f:
                f.write(to_line(record))
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise QvlError(f"{self.path}: can't be written ({e.strerror})") from e
        self.done.add(sample.id)

    def _media(self, sample: Sample) -> dict[str, Any]:
        from qvl.backends.answer import media_item

        names = [
            str(m)
            if "://" in str(m) or str(m).startswith("data:")
            else os.path.relpath(m, self.path.parent or ".")
            for m in sample.media
        ]
        if len(names) == 1:
            return {media_item(names[0])["type"]: names[0]}
        return {"images": names} if names else {}


def read_answer(text: str) -> Any:
    """What a person typed: an object or a list where it is JSON of that kind, else the text."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
