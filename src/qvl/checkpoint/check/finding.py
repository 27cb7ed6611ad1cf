"""What a check looks at and what it says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qvl.catalog.config import ModelConfig
from qvl.checkpoint.quantization import Quantization
from qvl.checkpoint.weight_files import StoredTensor

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    level: Level
    rule: str  # a short name that stays the same
    what: str
    fix: str


@dataclass
class Subject:
    """What is being examined. `tensors`: stored name → header entry, of all files that can be read."""

    folder: Path
    config: ModelConfig
    raw: dict[str, Any]
    quantization: Quantization | None = None
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    tensor_parallel_size: int | None = None


def listed(names: list[str], most: int = 4) -> str:
    """The first few names and how many more."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
