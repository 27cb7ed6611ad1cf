"""The items of an evaluation, from the user's own files: JSONL, CSV, or a folder of images with truths beside them.

    samples = read_samples("receipts.jsonl")        everything wrong is raised with its file and line
    some = choose(samples, 100, seed=0)             the same hundred for each model

Reads no pixels: only checks that the files exist.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvl.errors import QvlError, nearest

FIELDS = (
    "id", "image", "images", "video", "question", "answer", "choices", "stratum", "cluster", "system", "meta",
)  # fmt: skip
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
MOST_FAULTS = 20  # told at once


class SampleError(QvlError):
    """Items that can't be used; each line names its file and line."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question with its truth.

    media: paths, or what a backend takes besides; a function of no arguments is called when the item is asked, so
    that a large set needs no room. answer: as written; a scorer reads it (`Scorer.truth`). cluster: items that share
    one aren't independent; the media by default. where: file and line, for messages.
    """

    id: str
    media: tuple[Any, ...] = ()
    question: str = ""
    answer: Any = None
    choices: tuple[str, ...] = ()
    stratum: str | Mapping[str, str] = ""  # one, or several by kind: language, size, …
    cluster: str = ""
    system: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    @property
    def strata(self) -> dict[str, str]:
        """By kind; a plain text is of the kind "stratum"."""
        if isinstance(self.stratum, str):
            return {"stratum": self.stratum} if self.stratum else {}
        return dict(self.stratum)

    def loaded(self) -> list[Any]:
        return [m() if callable(m) else m for m in self.media]

    def identity(self) -> dict[str, Any]:
        """What makes this the same item in another run: its words, its truth, and the names of its media."""
        names = [Path(m).name if isinstance(m, (str, Path)) else "" for m in self.media]
        return {
            "id": self.id, "media": names, "question": self.question, "answer": self.answer,
            "choices": list(self.choices), "system": self.system,
        }  # fmt: skip


def digest(samples: Iterable[Sample]) -> str:
    """SHA-256 of the items, whatever their order; media by name, not by pixel."""
    lines = sorted(json.dumps(s.identity(), sort_keys=True, ensure_ascii=False, default=str) for s in samples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def choose(samples: Sequence[Sample], num: int | None, seed: int = 0) -> list[Sample]:
    """`num` of them at random, in their order; a larger choice of the same seed holds the smaller one whole."""
    if num is None or num >= len(samples):
        return list(samples)
    if num < 1:
        raise SampleError(f"-n {num}: needs at least 1")
    rank = {s.id: hashlib.sha256(f"{seed} {s.id}".encode()).digest() for s in samples}
    kept = {s.id for s in sorted(samples, key=lambda s: rank[s.id])[:num]}
    return [s for s in samples if s.id in kept]


def read_samples(source: str | Path, question: str | None = None, *, labelled: bool = True) -> list[Sample]:
    """Items of a .jsonl or .csv file, or a folder of images. question: for those that bring none. labelled: each
    needs its truth.

    Raises: SampleError that lists what is wrong: missing files, unknown fields, repeated ids, nothing in it.
    """
    path = Path(source)
    if path.is_dir():
        rows = list(_folder_rows(path, labelled))
        base = path
    elif not path.is_file():
        raise SampleError(f"{path}: there is no such file or folder")
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        rows, base = _jsonl_rows(path), path.parent
    elif path.suffix.lower() == ".csv":
        rows, base = _csv_rows(path), path.parent
    else:
        raise SampleError(f"{path}: .jsonl, .csv or a folder of images is needed")
    if not rows:
        raise SampleError(f"{path}: nothing in it to ask")
    faults: list[str] = []
    samples: list[Sample] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        if isinstance(row, str):
            faults.append(f"{where}: {row}")
            continue
        found, wrong = _sample(row, where, base, question, labelled)
        faults += wrong
        if found is None:
            continue
        if found.id in seen:
            faults.append(f"{where}: id {found.id!r} is that of {seen[found.id]} too")
        seen.setdefault(found.id, where)
        samples.append(found)
    _raise_faults(faults)
    return samples


def _raise_faults(faults: Sequence[str]) -> None:
    if faults:
        more = f"\n… and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        raise SampleError("\n".join(faults[:MOST_FAULTS]) + more)


def check_truths(samples: Sequence[Sample], read: Callable[[Sample], Any]) -> None:
    """Whether a scorer can read each truth. Raises: SampleError that lists those it can't."""
    faults = []
    for sample in samples:
        try:
            read(sample)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as e:
            faults.append(f"{sample.where or sample.id}: answer: {e}")
    _raise_faults(faults)


Row = tuple[str, dict[str, Any] | str]  # (file and line, its fields or what is wrong)


def _jsonl_rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as e:
            rows.append((where, f"no JSON ({e})"))
            continue
        rows.append((where, value if isinstance(value, dict) else "no JSON object"))
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise SampleError(f"{path}: can't be read as UTF-8 text ({e})") from e


def _csv_rows(path: Path) -> list[Row]:
    """Cells that are JSON lists or objects are read as such; an empty cell is left out."""
    rows: list[Row] = []
    reader = csv.DictReader(_text(path).splitlines(keepends=True))
    for record in reader:
        where = f"{path}:{reader.line_num}"
        if None in record:
            rows.append((where, f"more cells than the header's {len(reader.fieldnames or ())} columns"))
            continue
        row = {k: _cell(k, v) for k, v in record.items() if v not in (None, "")}
        rows.append((where, row))
    return rows


def _cell(name: str, text: str) -> Any:
    if name in ("answer", "choices", "images", "meta", "stratum") and text.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _folder_rows(folder: Path, labelled: bool) -> Iterable[Row]:
    """image.png with image.txt (its text) or image.json (fields of an item, or the truth itself)."""
    for image in sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES):
        text, data = image.with_suffix(".txt"), image.with_suffix(".json")
        row: dict[str, Any] = {"id": image.name, "image": image.name}
        if text.is_file() and data.is_file():
            yield str(image), f"both {text.name} and {data.name} lie beside it"
        elif text.is_file():
            yield str(text), row | {"answer": _text(text).rstrip("\n")}
        elif data.is_file():
            try:
                value = json.loads(_text(data))
            except (ValueError, RecursionError) as e:
                yield str(data), f"no JSON ({e})"
                continue
            whole = isinstance(value, dict) and "answer" in value and set(value) <= set(FIELDS)
            yield str(data), row | (value if whole else {"answer": value})
        elif not labelled:
            yield str(image), row
        else:
            yield str(image), f"no truth beside it: {text.name} or {data.name} is needed"


def _sample(
    row: Mapping[str, Any], where: str, base: Path, question: str | None, labelled: bool
) -> tuple[Sample | None, list[str]]:
    faults = [
        f"{where}: unknown field {name!r}; {nearest(name, FIELDS)}" for name in row if name not in FIELDS
    ]
    if "id" not in row or not str(row["id"]).strip():
        faults.append(f"{where}: no id")
    if labelled and row.get("answer") is None:
        faults.append(f"{where}: no answer")
    asked = row.get("question", question)
    if not isinstance(asked, str | None):
        faults.append(f"{where}: question is no text")
    media, wrong = _media(row, where, base)
    faults += wrong
    choices = row.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(c, str | int | float) for c in choices):
        faults.append(f"{where}: choices is no list of texts")
        choices = []
    elif choices and len(choices) < 2:
        faults.append(f"{where}: choices has only one entry")
    meta = row.get("meta", {})
    if not isinstance(meta, dict):
        faults.append(f"{where}: meta is no object")
    stratum = row.get("stratum", "")
    if not isinstance(stratum, str | int | float | dict):
        faults.append(f"{where}: stratum is no text, and no object of texts")
    if faults:
        return None, faults
    cluster = str(row.get("cluster") or (json.dumps(media) if media else row["id"]))
    return Sample(
        id=str(row["id"]),
        media=tuple(media),
        question=asked or "",
        answer=row.get("answer"),
        choices=tuple(map(str, choices)),
        stratum={k: str(v) for k, v in stratum.items()} if isinstance(stratum, dict) else str(stratum),
        cluster=cluster,
        system=row.get("system"),
        meta=meta,
        where=where,
    ), []


def _media(row: Mapping[str, Any], where: str, base: Path) -> tuple[list[str], list[str]]:
    """(paths, faults): those of image, images and video, looked for beside the data file."""
    faults, found = [], []
    if "image" in row and "images" in row:
        faults.append(f"{where}: both image and images")
    for name in ("image", "images", "video"):
        value = row.get(name)
        if value is None:
            continue
        names = value if isinstance(value, list) else [value]
        if (isinstance(value, list) and name != "images") or not all(isinstance(n, str) for n in names):
            faults.append(f"{where}: {name} is no {'list of paths' if name == 'images' else 'path'}")
            continue
        for path in names:
            if path.startswith(("data:", "http://", "https://")):
                found.append(path)
            elif not (base / path).is_file():
                faults.append(f"{where}: {name}: there is no file {base / path}")
            else:
                found.append(str(base / path))
    return found, faults
