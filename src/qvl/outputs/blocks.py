"""A parsed page as a tree of blocks in reading order, whatever markup it was written in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qvl.catalog.generations.generation import Convention
from qvl.outputs.mapping import PictureMap, Rect
from qvl.outputs.tables import Table, tidy

Kind = Literal[
    "heading", "paragraph", "list", "list_item", "table", "formula", "image", "chart", "music", "chemistry",
    "caption", "image_text", "code", "quote", "group",
]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A stretch of text in one style: any of bold, italic, underline, strike, sup, sub, code, mark."""

    text: str
    styles: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Block:
    """box: edges in pixels of the original page; seen: in the image the model saw; both None where the model
    gave none. level: of a heading. start: the first number of an ordered list. value: an item's own number, where it
    was written and isn't the next one. format: of a formula (latex), music (abc notation), chemistry (smile), …"""

    kind: Kind
    runs: tuple[Run, ...] = ()
    level: int = 0
    ordered: bool = False
    start: int = 1
    value: int | None = None
    box: Rect | None = None
    seen: Rect | None = None
    children: tuple[Block, ...] = ()
    table: Table | None = None
    format: str = ""

    @property
    def text(self) -> str:
        return "".join(run.text for run in self.runs)

    def numbered(self) -> Iterator[tuple[int, Block]]:
        """The items of a list with the numbers that they show."""
        number = self.start - 1
        for item in self.children:
            number = number + 1 if item.value is None else item.value
            yield number, item

    def walk(self) -> Iterator[Block]:
        """This block and those inside it, in reading order."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, kw_only=True)
class Page:
    """One parsed page. `reason` says why there are no blocks."""

    blocks: tuple[Block, ...] = ()
    number: int = 1
    picture: PictureMap | None = None
    warnings: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    reason: str | None = None
    suspected: Convention | None = None

    def walk(self) -> Iterator[Block]:
        for block in self.blocks:
            yield from block.walk()

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(b.table for b in self.walk() if b.table is not None)

    @property
    def text(self) -> str:
        return "\n".join(b.text for b in self.walk() if b.text)


def plain(block: Block) -> str:
    """A block's text on one line."""
    return " ".join(tidy(block.text).split("\n"))
