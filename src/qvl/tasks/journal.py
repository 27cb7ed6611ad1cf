"""The pages read so far, so that an interrupted run resumes.

Kept is the model's own text with the sizes it belongs to, so that a better parser can be run over it without asking
again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qvl.catalog.generations import Generation
from qvl.errors import MediaError
from qvl.geometry import Size
from qvl.inputs.pages import PageRef
from qvl.outputs.blocks import Page
from qvl.outputs.documents import parse_document
from qvl.outputs.mapping import PictureMap, Rect
from qvl.tasks.run import TaskAnswer, joined_results


class Journal:
    """What was read so far, one JSON object a line; the first tells of what and how. One process writes it."""

    def __init__(self, path: str | Path, made_with: Mapping[str, Any]):
        self.path = Path(path)
        self.outdated = False  # another reading's journal was there, and is replaced
        self._made_with = json.loads(json.dumps(made_with))
        self._done: dict[str, dict[str, Any]] = {}
        self._load()

    def _load(self) -> None:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            lines = []
        except (OSError, UnicodeDecodeError) as e:
            raise MediaError(
                f"{self.path}: can't be read to resume ({e}); remove it to start from scratch"
            ) from e
        records = []
        for line in lines:
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError):
                break  # the end of a run that was killed while it wrote
        if records and records[0] == self._made_with:
            for number, record in enumerate(records[1:], 2):
                if not _is_kept_page(record):
                    raise MediaError(
                        f"{self.path}: line {number} is not a page of this version of qvl; "
                        f"delete the file to read its {len(records) - 1} pages again"
                    )
            self._done = {record["page"]: record for record in records[1:]}
        else:
            self.outdated = bool(records)
        try:
            # written anew, so that half a line at its end doesn't spoil the next one
            kept = [self._made_with, *self._done.values()]
            temporary = self.path.with_name(self.path.name + ".new")
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as e:
            raise MediaError(f"{self.path}: can't be written ({e.strerror})") from e

    def __len__(self) -> int:
        return len(self._done)

    def get(self, ref: PageRef, generation: Generation) -> Page | None:
        record = self._done.get(str(ref))
        if record is None:
            return None
        pages = [
            parse_document(
                part["text"],
                generation,
                PictureMap(
                    Size(*part["original"]), Size(*part["seen"]), crop=part["crop"] and Rect(*part["crop"])
                ),
                number=ref.number,
            )
            for part in record["parts"]
        ]
        joined: Page = joined_results(pages)
        return joined

    def add(self, ref: PageRef, found: TaskAnswer[Page]) -> None:
        parts = []
        for part in found.parts:
            picture = part.picture
            assert picture is not None
            parts.append(
                {
                    "original": list(picture.original),
                    "seen": list(picture.seen),
                    "crop": picture.crop and list(picture.crop),
                    "text": part.text,
                }
            )
        record = {"page": str(ref), "parts": parts}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._done[str(ref)] = record

    def remove(self) -> None:
        """The whole is written: nothing to go on with."""
        self.path.unlink(missing_ok=True)


def _is_kept_page(record: Any) -> bool:
    """Whether a journal's line is what `Journal.add` writes; those of older versions were not cut into parts."""

    def numbers(value: Any, count: int, low: float) -> bool:
        return (
            isinstance(value, list)
            and len(value) == count
            and all(type(v) in (int, float) and low <= v < math.inf for v in value)
        )

    if not isinstance(record, dict) or not isinstance(record.get("page"), str):
        return False
    parts = record.get("parts")
    return (
        isinstance(parts, list)
        and parts != []
        and all(
            isinstance(part, dict)
            and isinstance(part.get("text"), str)
            and numbers(part.get("original"), 2, 1)
            and numbers(part.get("seen"), 2, 1)
            and (part.get("crop", "") is None or numbers(part.get("crop"), 4, 0))
            for part in parts
        )
    )


def fingerprint(paths: Sequence[str]) -> dict[str, str]:
    """A digest of each file, so that a journal of an older version isn't gone on with."""
    found = {}
    for path in paths:
        with open(path, "rb") as file:
            found[path] = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return found
