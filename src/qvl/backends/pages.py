"""Pictures and PDFs → pages read by a model, one after the other, each kept as soon as it is done.

Kept is the model's own text with the sizes it belongs to, so a reading that was interrupted goes on where it stopped,
and a better parser can be run over it without asking again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from qvl.backends.base import Backend
from qvl.backends.tasks import TaskAnswer, joined_results, run_task
from qvl.errors import MediaError, PromptError
from qvl.geometry import Size
from qvl.inputs.image import DEFAULT_LIMITS, check_pixels, load_image, read_source
from qvl.outputs.blocks import Page
from qvl.outputs.documents import parse_document
from qvl.outputs.mapping import PictureMap, Rect
from qvl.units import format_bytes

DEFAULT_DPI = 144.0  # 10-point letters are 20 pixels high, which every size of the family reads
MAX_PDF_BYTES = 1 << 30


@dataclass(frozen=True)
class PageRef:
    """A page to read: `index` counts from 0 in its file, `number` from 1 over all that is read."""

    path: str
    index: int
    number: int
    is_pdf: bool
    dpi: float = DEFAULT_DPI

    def __str__(self) -> str:
        return f"{self.path} page {self.index + 1}" if self.is_pdf else self.path


@dataclass(frozen=True)
class ReadPage:
    """`resumed` pages were read by an earlier run."""

    ref: PageRef
    page: Page
    warnings: tuple[str, ...] = ()
    resumed: bool = False


# ------------------------------------------------------------------------------------------------- pages


def list_pages(paths: Sequence[str], dpi: float = DEFAULT_DPI, wanted: str | None = None) -> list[PageRef]:
    """The pages of these pictures and PDFs in order. wanted: `1-3,7`, pages of the only PDF.

    Raises: MediaError for a file that can't be read, PromptError for pages that don't exist.
    """
    if not 18 <= dpi <= 1200:
        raise PromptError(f"dpi {dpi:g}: must be from 18 to 1200; {DEFAULT_DPI:g} suits print")
    if wanted is not None and (len(paths) != 1 or not _is_pdf(paths[0])):
        raise PromptError("pages are chosen from one PDF: give it alone")
    refs: list[PageRef] = []
    for path in paths:
        if not _is_pdf(path):
            refs.append(PageRef(path, 0, len(refs) + 1, False, dpi))
            continue
        count = len(_open_pdf(path))
        for index in range(count) if wanted is None else _chosen(wanted, count, path):
            refs.append(PageRef(path, index, len(refs) + 1 if wanted is None else index + 1, True, dpi))
    return refs


def _is_pdf(path: str) -> bool:
    where, name = read_source(path, "image", DEFAULT_LIMITS.max_bytes)
    try:
        with open(where, "rb") as file:
            # readers accept a little junk before the mark
            return b"%PDF-" in file.read(1024)
    except OSError as e:
        raise MediaError(f"{name}: can't be read ({e.strerror})") from e


def _open_pdf(path: str) -> Any:
    try:
        import pypdfium2
    except ImportError as e:
        raise MediaError(
            f"{path}: PDFs are drawn by pypdfium2, which isn't here: pip install 'qvl[pdf]'"
        ) from e
    where, name = read_source(path, "image", DEFAULT_LIMITS.max_bytes)
    size = Path(str(where)).stat().st_size
    if size > MAX_PDF_BYTES:
        raise MediaError(f"{name}: takes {format_bytes(size)}, the limit is {format_bytes(MAX_PDF_BYTES)}")
    try:
        return pypdfium2.PdfDocument(where)
    except pypdfium2.PdfiumError as e:
        why = "it needs a password" if "password" in str(e).lower() else str(e)
        raise MediaError(f"{name}: can't be opened as a PDF ({why})") from e


def _chosen(wanted: str, count: int, path: str) -> list[int]:
    """Indices from 0 of `1-3,7`, in the order given."""
    found: list[int] = []
    for part in wanted.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise PromptError(f"pages {wanted!r}: write them as 1-3,7")
        low, high = int(first), int(last) if dash else int(first)
        if not 1 <= low <= high <= count:
            raise PromptError(f"pages {part.strip()}: {path} has pages 1 to {count}")
        found += range(low - 1, high)
    if len(set(found)) < len(found):
        raise PromptError(f"pages {wanted!r}: one page is named twice")
    return found


def page_image(ref: PageRef) -> Image.Image:
    """The picture, or the PDF page drawn at its dpi. Raises: MediaError."""
    if not ref.is_pdf:
        return load_image(ref.path)
    import pypdfium2

    document = _open_pdf(ref.path)
    try:
        page = document[ref.index]
        width, height = page.get_size()
        scale = ref.dpi / 72  # a PDF measures in points, 72 to the inch
        check_pixels(
            round(width * scale),
            round(height * scale),
            f"{ref} at {ref.dpi:g} dpi",
            DEFAULT_LIMITS.max_pixels,
        )
        return load_image(page.render(scale=scale).to_pil())
    except pypdfium2.PdfiumError as e:
        raise MediaError(f"{ref}: can't be drawn ({e})") from e
    finally:
        document.close()


# ------------------------------------------------------------------------------------------------- journal


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
                f"{self.path}: can't be read to go on with ({e}); remove it to start anew"
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
                        f"{self.path}: line {number} is no page as this version of qvl keeps it; delete the file, "
                        f"and its {len(records) - 1} pages are read anew"
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

    def get(self, ref: PageRef, family: str) -> Page | None:
        record = self._done.get(str(ref))
        if record is None:
            return None
        pages = [
            parse_document(
                part["text"],
                family,
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


def read_pages(
    backend: Backend, refs: Sequence[PageRef], journal: Journal | None = None, **settings: Any
) -> Iterator[ReadPage]:
    """Each page as it is done. Raises: what run_task and page_image raise; the pages before are in the journal."""
    for ref in refs:
        kept = journal.get(ref, str(backend.family)) if journal else None
        if kept is not None:
            yield ReadPage(ref, kept, resumed=True)
            continue
        found = run_task(backend, "document", [page_image(ref)], page_number=ref.number, **settings)
        if journal is not None:
            journal.add(ref, found)
        assert isinstance(found.result, Page)
        yield ReadPage(ref, found.result, (*found.warnings, *found.answer.notes))
