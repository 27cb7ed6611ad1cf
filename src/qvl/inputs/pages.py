"""Images and PDFs as a list of pages, and each page as an image."""

from __future__ import annotations

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
        count = len(_open_pdf(path)) if is_pdf else num_pages(path)
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


def _open_pdf(path: str) -> Any:
    try:
        import pypdfium2
    except ImportError as e:
        raise MediaError(f"{path}: PDFs need pypdfium2: pip install 'qvl[pdf]'") from e
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
    """The image, or the PDF page drawn at its dpi. Raises: MediaError."""
    if not ref.is_pdf:
        return load_image(ref.path, page=ref.index)
    import pypdfium2

    document = _open_pdf(ref.path)
    try:
        document.init_forms()  # what is filled in is drawn too; before a page is opened
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
