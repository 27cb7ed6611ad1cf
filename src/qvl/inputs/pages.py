"""Images and PDFs as a list of pages, and each page as an image."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from qvl.errors import MediaError, PromptError
from qvl.inputs.image import DEFAULT_LIMITS, check_pixels, load_image, num_pages, read_source
from qvl.units import format_bytes

DEFAULT_DPI = 144.0  # 10-point letters are 20 pixels high, which every size of the family reads
MAX_PDF_BYTES = 1 << 30
PAGE_SECONDS = 60.0  # of waiting; a worker's processor time has a limit of its own


@dataclass(frozen=True)
class PageRef:
    """A page to read: `index` counts from 0 in its file, `number` from 1 over all that is read."""

    path: str
    index: int
    number: int
    is_pdf: bool
    dpi: float = DEFAULT_DPI
    alone: bool = False  # its file has no other page

    def __str__(self) -> str:
        return self.path if self.alone else f"{self.path} page {self.index + 1}"


def list_pages(paths: Sequence[str], dpi: float = DEFAULT_DPI, wanted: str | None = None) -> list[PageRef]:
    """The pages of these images, PDFs and TIFFs in order. wanted: `1-3,7`, pages of the only PDF or TIFF.

    Raises: MediaError for a file that can't be read, PromptError for pages that don't exist.
    """
    if not 18 <= dpi <= 1200:
        raise PromptError(f"dpi {dpi:g}: must be from 18 to 1200; {DEFAULT_DPI:g} suits print")
    refs: list[PageRef] = []
    for path in paths:
        is_pdf = _is_pdf(path)
        count = _in_worker(path, path, "count")[0]["num_pages"] if is_pdf else num_pages(path)
        alone = count == 1 and not is_pdf
        if wanted is not None and (len(paths) != 1 or alone):
            raise PromptError("pages are chosen from one PDF or TIFF: give it alone")
        for index in range(count) if wanted is None else _chosen(wanted, count, path):
            number = len(refs) + 1 if wanted is None else index + 1
            refs.append(PageRef(path, index, number, is_pdf, dpi, alone))
    return refs


def _is_pdf(path: str) -> bool:
    where, name = read_source(path, "image", DEFAULT_LIMITS.max_bytes)
    try:
        with open(where, "rb") as file:
            # readers accept a little junk before the mark
            return b"%PDF-" in file.read(1024)
    except OSError as e:
        raise MediaError(f"{name}: can't be read ({e.strerror})") from e


def _in_worker(path: str, what: str, kind: str, *more: object) -> tuple[dict[str, Any], bytes]:
    """(what the worker says, what it writes behind it). Raises: MediaError for what it refuses, or what ends it."""
    if importlib.util.find_spec("pypdfium2") is None:
        raise MediaError(f"{path}: PDFs are drawn by pypdfium2, which isn't here: pip install 'qvl[pdf]'")
    where, name = read_source(path, "image", DEFAULT_LIMITS.max_bytes)
    size = Path(str(where)).stat().st_size
    if size > MAX_PDF_BYTES:
        raise MediaError(f"{name}: takes {format_bytes(size)}, the limit is {format_bytes(MAX_PDF_BYTES)}")
    command = [
        sys.executable,
        "-P",
        str(Path(__file__).with_name("pdf_worker.py")),
        kind,
        str(where),
        *map(str, more),
    ]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PAGE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise MediaError(f"{what}: takes longer than {PAGE_SECONDS:g} s to draw, and was given up") from e
    line, _, rest = done.stdout.partition(b"\n")
    if done.returncode or not line:
        why = (
            "more processor time than a page may take"
            if done.returncode in (-24, -9)
            else "more memory, or a fault"
        )
        raise MediaError(f"{what}: can't be drawn: it takes {why} (the worker ended with {done.returncode})")
    found = json.loads(line)
    if error := found.get("error"):
        why = "it needs a password" if "password" in error.lower() else error
        raise MediaError(f"{name}: can't be opened as a PDF ({why})")
    return found, rest


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
    """The image, or the PDF page drawn at its dpi. Raises: MediaError."""
    if not ref.is_pdf:
        return load_image(ref.path, page=ref.index)
    scale = ref.dpi / 72  # a PDF measures in points, 72 to the inch
    most = DEFAULT_LIMITS.max_pixels
    found, rows = _in_worker(ref.path, str(ref), "page", ref.index, scale, most)
    size = found["width"], found["height"]
    check_pixels(*size, f"{ref} at {ref.dpi:g} dpi", most)
    return load_image(Image.frombytes("RGB", size, rows))
