"""Experts' matrices gathered into the fused tensors that `moe.Experts` holds, however they are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from qvl import moved
from qvl.catalog.config import TextConfig
from qvl.checkpoint.compare import Place


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


__getattr__ = moved.names(__name__)
