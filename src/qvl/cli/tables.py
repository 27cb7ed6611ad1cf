"""Tables for people: what the planning verbs share. rich is imported when something is printed, not before."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from qvl.cli.gate import gated_console
from qvl.records import json_text

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """A console on stdout as wide as the terminal, at most 120 columns; 100 when there is none."""
    width = min(120, shutil.get_terminal_size((100, 40)).columns)
    return gated_console(width=width, highlight=False, soft_wrap=False)


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[int] = (),
    whole: Iterable[int] = (),
    title: str = "",
) -> Any:
    """A rich table; columns in `right` are right-aligned numbers, those in `whole` never break.

    Cells are plain text: square brackets in them are printed, not read as markup.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    right, whole = set(right), set(whole)
    t = Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        pad_edge=False,
        show_edge=False,
        show_header=any(headers),
    )
    for i, header in enumerate(headers):
        t.add_column(
            Text(header),
            justify="right" if i in right else "left",
            no_wrap=i in whole or i in right,
            overflow="fold",
        )
    for row in rows:
        t.add_row(*(Text(cell) for cell in row))
    return t


def print_json(data: Any, indent: int | None = 2) -> None:
    print(json_text(data, indent=indent))


def short_count(tokens: int) -> str:
    """`256K`, `128K`, `2K`: context lengths the way they are advertised."""
    for unit in (1000, 1024):
        if tokens % unit == 0:
            return f"{tokens // unit}K"
    return f"{tokens:,}"
