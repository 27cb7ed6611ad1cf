"""Figures with their provenance: where a value was read, when, what kind of source it is, and who disagrees."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from qvl.errors import CatalogError

Kind = Literal["official", "measured", "derived", "third_party"]

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Source:
    key: str
    title: str
    date: str  # ISO year-month or year-month-day of what was read
    kind: Kind
    verified: bool = True

    def cite(self) -> str:
        """`Qwen2-VL report, arXiv 2409.12191 (2024-09, official)`."""
        doubt = "" if self.verified else ", unverified"
        return f"{self.title} ({self.date}, {self.kind.replace('_', ' ')}{doubt})"


@dataclass(frozen=True)
class Figure:
    """One value as one source gives it.

    `others` are the same figure in sources that disagree; `reason` says why this one is used.
    """

    value: Any
    source: Source
    date: str
    kind: Kind
    verified: bool = True
    note: str = ""
    others: tuple[Figure, ...] = ()
    reason: str = ""

    def cite(self) -> str:
        """`Qwen2-VL report, arXiv 2409.12191 (2024-09, official)`, with the note when there is one."""
        doubt = "" if self.verified else ", unverified"
        note = f"; {self.note}" if self.note else ""
        return f"{self.source.title} ({self.date}, {self.kind.replace('_', ' ')}{doubt}){note}"


def read_json(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


@cache
def sources() -> Mapping[str, Source]:
    """Every source the data names, by its short key."""
    return {key: _source(key, raw) for key, raw in read_json("sources.json").items()}


def _source(key: str, raw: Mapping[str, Any]) -> Source:
    if raw["kind"] not in get_args(Kind):
        raise CatalogError(f"source {key}: kind {raw['kind']!r}; known: {', '.join(get_args(Kind))}")
    return Source(key=key, **raw)


_FIGURE_KEYS = {"value", "source", "date", "kind", "verified", "note", "others", "reason"}


def figure(raw: Mapping[str, Any], where: str) -> Figure:
    """`{"value", "source"}` with optional date, kind, verified, note, others and reason → Figure.

    Raises: CatalogError for an unknown key or source, or for a disagreement without a reason.
    """
    unknown = set(raw) - _FIGURE_KEYS
    if unknown or "value" not in raw or "source" not in raw:
        raise CatalogError(
            f"{where}: a figure needs value and source; unknown keys: {sorted(unknown) or 'none'}"
        )
    source = sources().get(raw["source"])
    if source is None:
        raise CatalogError(f"{where}: source {raw['source']!r} is not in sources.json")
    others = tuple(figure(o, where) for o in raw.get("others", ()))
    if others and not raw.get("reason"):
        raise CatalogError(f"{where}: sources disagree and no reason says why {raw['value']!r} is used")
    return Figure(
        value=raw["value"],
        source=source,
        date=raw.get("date", source.date),
        kind=raw.get("kind", source.kind),
        verified=raw.get("verified", source.verified),
        note=raw.get("note", ""),
        others=others,
        reason=raw.get("reason", ""),
    )


def with_value(base: Figure, value: Any) -> Figure:
    """The same provenance around a converted value."""
    return replace(base, value=value)
