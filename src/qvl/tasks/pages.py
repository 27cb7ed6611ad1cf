"""Images and PDFs read page by page, each kept in a journal as soon as it is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Unpack

from qvl.backends.base import Backend
from qvl.errors import MediaError
from qvl.inputs.pages import PageRef, page_image
from qvl.outputs.blocks import Page
from qvl.tasks.journal import Journal
from qvl.tasks.run import TaskSettings, generation_of, run_task


@dataclass(frozen=True)
class ReadPage:
    """`resumed` pages were read by an earlier run."""

    ref: PageRef
    page: Page
    warnings: tuple[str, ...] = ()
    resumed: bool = False


def read_pages(
    backend: Backend,
    refs: Sequence[PageRef],
    journal: Journal | None = None,
    **settings: Unpack[TaskSettings],
) -> Iterator[ReadPage]:
    """Each page as it is done; one of a PDF that can't be drawn says why, and the others go on.

    Raises: what run_task and page_image raise; the pages before are in the journal.
    """
    generation = generation_of(backend)
    for ref in refs:
        kept = journal.get(ref, generation) if journal else None
        if kept is not None:
            yield ReadPage(ref, kept, resumed=True)
            continue
        try:
            image = page_image(ref)
        except MediaError as e:
            if not ref.is_pdf:
                raise
            yield ReadPage(ref, Page(number=ref.number, reason=str(e)))
            continue
        found = run_task(backend, "document", [image], page_number=ref.number, **settings)
        if journal is not None:
            journal.add(ref, found)
        assert isinstance(found.result, Page)
        yield ReadPage(ref, found.result, (*found.warnings, *found.answer.notes))
