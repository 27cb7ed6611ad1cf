"""`qvl read PAGES...`: images of pages and PDFs as Markdown, HTML, JSON or CSV; an interrupted run resumes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl.cli.media import check_writable
from qvl.cli.options import MaxPixelsOption, RetryOption, SourceOptions, command, option
from qvl.errors import OutputError, PromptError, QvlError
from qvl.inputs.pages import list_pages, page_image
from qvl.outputs import export
from qvl.outputs.draw import draw_regions, save
from qvl.records import json_text
from qvl.tasks.fields import extract_fields, read_schema
from qvl.tasks.journal import Journal, fingerprint
from qvl.tasks.pages import read_pages
from qvl.tasks.retry import check_retry
from qvl.units import format_seconds

if TYPE_CHECKING:
    from qvl.inputs.pages import PageRef
    from qvl.outputs.blocks import Page
    from qvl.tasks.model import Model
    from qvl.tasks.pages import ReadPage

FORMATS = ("md", "html", "json", "csv", "layout")
DEFAULT_PAGE_TOKENS = 4096
_BY_SUFFIX = {
    "": "md", ".md": "md", ".markdown": "md", ".txt": "md", ".html": "html", ".htm": "html", ".json": "json",
    ".csv": "csv",
}  # fmt: skip


@command
def run(
    source: SourceOptions,
    files: Annotated[list[str], typer.Argument(metavar="PAGE...", help="Images of pages, and PDFs.")],
    to: str | None = option(
        None, "The format to write (default: as the ending of -o says, else md).", metavar="|".join(FORMATS)
    ),
    out: str | None = option(
        None, "One file for all pages (default: standard output).", "--out", "-o", metavar="FILE"
    ),
    pages: str | None = option(None, "Which pages of a PDF to read (default: all).", metavar="1-3,7"),
    dpi: float = option(144.0, "The resolution at which PDF pages are drawn, in dots per inch."),
    draw: str | None = option(
        None, "Draw the pages with their blocks marked; several get numbers.", metavar="OUT.png"
    ),
    schema: str | None = option(
        None,
        "Write the fields of this JSON schema, read from all pages together (default: the whole text).",
        metavar="FILE.json",
    ),
    retry: RetryOption = None,
    max_new_tokens: int | None = option(
        None, "The longest text of one page in tokens (default: 4096, or half the context)."
    ),
    max_pixels: MaxPixelsOption = None,
) -> int:
    """Read pages: text, tables and formulas in reading order, with their places in the image."""
    form = _format(to, out)
    if not files:
        raise PromptError("no page; qvl read PAGE...")
    refs = list_pages(files, dpi, pages)
    check_writable(out)
    check_writable(draw, drawing=True)
    if schema is not None:
        if to is not None or draw is not None or retry is not None:
            raise PromptError("--schema writes JSON of its own: it can't go with --to, --draw or --retry")
        limits = {"max_new_tokens": max_new_tokens, "max_pixels": max_pixels}
        return _read_fields(source, refs, read_schema(schema), out, limits)
    backend = source.open()
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens or _page_tokens(backend)}
    if max_pixels is not None:
        settings["max_pixels"] = max_pixels
    if retry is not None:
        settings["retry"] = check_retry(retry)

    journal: Journal | None = None
    if out is not None and len(refs) > 1:
        made_with = {
            "files": fingerprint(files), "dpi": dpi, "model": backend.name, "endpoint": source.endpoint,
            "region": source.region, "family": backend.family, "high_resolution": source.high_resolution, **settings,
        }  # fmt: skip
        journal = Journal(f"{out}.partial", made_with)
        if journal.outdated:
            print(
                f"note: {journal.path} was of other files or settings; starting from scratch", file=sys.stderr
            )
        elif len(journal):
            print(f"going on after {len(journal)} of {len(refs)} pages", file=sys.stderr)

    done: list[Page] = []
    notes: list[str] = []
    progress = _Progress(refs)
    try:
        for read in read_pages(backend, refs, journal, **settings):
            done.append(read.page)
            notes += [f"{read.ref}: {line}" for line in (*read.warnings, *read.page.warnings)]
            notes += [f"{read.ref}: repaired: {line}" for line in read.page.repairs]
            if read.page.reason is not None:
                notes.append(f"{read.ref}: nothing found: {read.page.reason}")
            if draw is not None:
                notes += _draw(read, draw, numbered=len(refs) > 1)
            progress.tell(read)
    except (QvlError, KeyboardInterrupt):
        if journal is not None and len(journal):
            print(
                f"{len(journal)} of {len(refs)} pages are kept in {journal.path}: "
                "the same command goes on with the rest",
                file=sys.stderr,
            )
        raise
    for line in notes:
        print(f"note: {line}", file=sys.stderr)
    meter = backend.meter
    if meter is not None:
        print(f"cost {meter.spent} in {meter.num_calls} calls by {meter.spent.source}", file=sys.stderr)
    written = write_pages(done, form, out)
    if journal is not None and written:
        journal.remove()
    if not written:
        print("nothing found: no table in these pages", file=sys.stderr)
    return 0 if written and any(page.blocks for page in done) else 1


def _read_fields(
    source: SourceOptions,
    refs: Sequence[PageRef],
    schema: dict[str, Any],
    out: str | None,
    limits: dict[str, Any],
) -> int:
    """One question about all pages: values, evidence (page and box in its pixels) and problems, as JSON."""
    with source.open() as backend:
        settings = {name: value for name, value in limits.items() if value is not None}
        found = extract_fields(backend, [page_image(ref) for ref in refs], schema, **settings)
    for line in found.problems:
        print(f"note: {line}", file=sys.stderr)
    text = json_text(found.to_dict(), indent=1) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        Path(out).write_text(text, encoding="utf-8")
    return 1 if found.problems else 0


def _page_tokens(backend: Model) -> int:
    """A dense page takes some 3,000 tokens; a small context keeps half of it for the image."""
    room = backend.max_model_len
    return DEFAULT_PAGE_TOKENS if room is None else min(DEFAULT_PAGE_TOKENS, room // 2)


def _format(to: str | None, out: str | None) -> str:
    if to is not None and to not in FORMATS:
        raise PromptError(f"--to {to!r}: known: {', '.join(FORMATS)}")
    if to is not None:
        return to
    suffix = Path(out or "").suffix.lower()
    if suffix not in _BY_SUFFIX:
        raise PromptError(
            f"{out}: no format has that ending; give one with --to ({', '.join(FORMATS)}), or end the name in "
            f"{', '.join(filter(None, _BY_SUFFIX))}"
        )
    return _BY_SUFFIX[suffix]


def _draw(read: ReadPage, path: str, numbered: bool) -> list[str]:
    where = Path(path)
    if numbered:
        where = where.with_name(f"{where.stem}-{read.ref.number}{where.suffix}")
    drawing = draw_regions(page_image(read.ref), read.page)
    save(drawing, str(where))
    return [f"{where}: {line}" for line in drawing.notes]


class _Progress:
    """One line a page to stderr, with the time that is left by the pages read in this run."""

    def __init__(self, refs: Sequence[PageRef]):
        self.total = len(refs)
        self.count = 0
        self.read = 0
        self.began = time.monotonic()

    def tell(self, read: ReadPage) -> None:
        self.count += 1
        if read.resumed or self.total == 1:
            return
        self.read += 1
        each = (time.monotonic() - self.began) / self.read
        left = (self.total - self.count) * each
        rest = f", {format_seconds(left)} left" if left else ""
        print(f"page {self.count} of {self.total}, {format_seconds(each)} a page{rest}", file=sys.stderr)


def write_pages(pages: Sequence[Page], form: str, out: str | None) -> bool:
    """To a file, or to stdout; of CSV each table is a file. False when there is nothing to write.

    Raises: OutputError when a file can't be written.
    """
    if form == "csv":
        return _write_tables(export.to_csvs(pages), out)
    if form == "html":
        text = export.to_html(pages)
    elif form == "json":
        text = export.to_json(pages)
    elif form == "layout":
        layouts = [{"page": page.number, **export.to_layout(page)} for page in pages]
        text = json_text({"pages": layouts}, indent=1) + "\n"
    else:
        text = export.to_markdown(pages)
    _write(text, out)
    return True


def _write_tables(tables: dict[str, str], out: str | None) -> bool:
    for name, text in tables.items():
        if out is None:
            _write(f"# {name}\n{text}\n" if len(tables) > 1 else text, None)
        elif len(tables) == 1:
            _write(text, out)
        else:
            where = Path(out)
            path = where.with_name(f"{where.stem}_{name}{where.suffix or '.csv'}")
            _write(text, str(path))
            print(path, file=sys.stderr)
    return bool(tables)


def _write(text: str, out: str | None) -> None:
    """Whole or not at all: an interrupted write leaves the older file."""
    if out is None:
        sys.stdout.write(text)
        return
    temporary = f"{out}.new"
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.replace(temporary, out)
    except OSError as e:
        raise OutputError(f"{out}: can't be written ({e.strerror})") from e
