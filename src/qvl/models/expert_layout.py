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


def put_expert(text: TextConfig, fused_EAB: Tensor, place: Place, matrix_OI: Tensor) -> None:
    """Writes one expert's matrix into the fused tensor, turned if that is stored inputs first."""
    expert_OI = fused_EAB[place.expert].T if text.expert_inputs_first else fused_EAB[place.expert]
    with torch.no_grad():
        expert_OI.chunk(place.num_parts)[place.part].copy_(matrix_OI)
