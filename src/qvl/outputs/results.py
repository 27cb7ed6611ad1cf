"""The result of every parser here: the items, with the repairs and warnings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from qvl.catalog.generations.generation import Convention

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ParseResult(Generic[T]):
    """`reason` says why there are no items; `suspected` is the way of writing coordinates that would have
    fitted the numbers better than the family's own (a sign of a wrong family, image size or server)."""

    items: tuple[T, ...] = ()
    warnings: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    reason: str | None = None
    suspected: Convention | None = None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers for json.dumps; every item carries its `kind`."""
        return {
            "items": [item_dict(item) for item in self.items],
            "warnings": list(self.warnings),
            "repairs": list(self.repairs),
            "reason": self.reason,
            "suspected": self.suspected.name if self.suspected else None,
        }


def item_dict(item: Any) -> dict[str, Any]:
    """A dataclass as a dict with its class name under `kind`, empty fields left out."""
    out: dict[str, Any] = {"kind": type(item).__name__.lower()}
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        if value is not None and value != () and value != {} and value is not False:
            out[field.name] = list(value) if isinstance(value, tuple) else value
    return out
