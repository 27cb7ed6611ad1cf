"""A finding of a check: its rule, the numbers and the fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    level: Level
    rule: str  # a short name that stays the same
    what: str
    fix: str
