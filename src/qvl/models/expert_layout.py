"""Experts stored one by one ↔ the fused tensors that `moe.Experts` holds.

fused                        one by one (transformers 5 writes these; so do most quantisers)
….experts.gate_up_proj       ….experts.0.gate_proj.weight, ….experts.0.up_proj.weight, ….experts.1.…
….experts.down_proj          ….experts.0.down_proj.weight, ….experts.1.…
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from qvl.catalog.config import TextConfig

_PARTS = {"experts.gate_up_proj": ("gate_proj", "up_proj"), "experts.down_proj": ("down_proj",)}


class Place(NamedTuple):
    """Where one expert's matrix (out, in) lies in a fused tensor."""

    fused: str
    expert: int
    part: int  # 0 gate or down, 1 up
    num_parts: int


def expert_places(
    text: TextConfig, shapes: Mapping[str, tuple[int, ...]], stored: Container[str]
) -> dict[str, Place]:
    """Name of a single matrix → its place, for every fused tensor in `shapes` that is stored one by one."""
    places = {}
    for fused in shapes:
        parts = next((parts for end, parts in _PARTS.items() if fused.endswith(end)), ())
        at = fused.rpartition(".")[0]
        if not parts or fused in stored or f"{at}.0.{parts[0]}.weight" not in stored:
            continue
        for expert in range(text.num_experts):
            for i, part in enumerate(parts):
                places[f"{at}.{expert}.{part}.weight"] = Place(fused, expert, i, len(parts))
    return places


def single_shape(text: TextConfig, place: Place) -> tuple[int, int]:
    """(out, in) of one expert's matrix."""
    width, inner = text.hidden_size, text.moe_intermediate_size
    return (inner, width) if place.num_parts == 2 else (width, inner)


def is_fused(name: str) -> bool:
    return name.endswith(tuple(_PARTS))


class FusedExperts:
    """One fused tensor while it is read, in its published shape. Whatever that is, each matrix lies outputs first in
    memory, as a product with few rows reads it: the other way round one took almost three times as long on a CPU.
    """

    def __init__(self, text: TextConfig, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
        self.inputs_first = text.expert_inputs_first
        experts, rows, columns = shape
        lies = (experts, columns, rows) if self.inputs_first else shape
        self._tensor_EOI = torch.empty(lies, dtype=dtype, device=device)

    @property
    def tensor(self) -> Tensor:
        return self._tensor_EOI.transpose(1, 2) if self.inputs_first else self._tensor_EOI

    def put(self, first: int, experts_EAB: Tensor) -> None:
        """Experts from `first` on, as they are stored fused."""
        self.tensor[first : first + len(experts_EAB)] = experts_EAB

    def put_one(self, place: Place, matrix_OI: Tensor) -> None:
        """One expert's matrix, stored alone."""
        self._tensor_EOI[place.expert].chunk(place.num_parts)[place.part].copy_(matrix_OI)
