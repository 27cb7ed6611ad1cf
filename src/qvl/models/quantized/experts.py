"""A mixture's experts from quantised tensors: each expert's matrices are quantised layers of their own.

    one by one   ….experts.0.gate_proj.qweight, ….experts.0.up_proj.qweight, …     every format
    fused        ….experts.gate_up_proj (E, D, 2 I) and gate_up_proj_scale_inv     FP8 in blocks; inputs first for
                 ….experts.down_proj (E, I, D) and down_proj_scale_inv             Qwen3-VL, outputs first in Qwen3.5

Legend: T packed tokens, E experts, D width, I inner width of one expert.
No released file of these was at hand: both layouts are taken from readers of other projects (transformers 5.19's
fused FP8 experts, vLLM's expert names).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl import moved
from qvl.checkpoint.compare import FUSED
from qvl.checkpoint.quantization import Scheme
from qvl.models.linear import linears
from qvl.models.moe import Experts
from qvl.models.quantized import reader
from qvl.models.quantized.fp8 import Fp8Linear


class QuantizedExperts(nn.Module):
    """Stands where `moe.Experts` stood. `inner` has one module that gives gate and up together, or one for each."""

    def __init__(self, inner: list[list[nn.Module]], down: list[nn.Module]):
        super().__init__()
        self.inner = nn.ModuleList(nn.ModuleList(parts) for parts in inner)
        self.down = nn.ModuleList(down)

    def forward(self, hidden_TD: Tensor, expert: int) -> Tensor:
        parts = linears(list(cast(nn.ModuleList, self.inner[expert])), hidden_TD)
        gate_TI, up_TI = parts if len(parts) == 2 else parts[0].chunk(2, dim=-1)
        out: Tensor = self.down[expert](up_TI * F.silu(gate_TI))
        return out


def make_experts(scheme: Scheme, experts: Experts, tensors: Mapping[str, Tensor]) -> QuantizedExperts:
    """Raises: CheckpointError for contents that can't be."""
    count = experts.down_proj.shape[0]
    if "gate_up_proj" in tensors:
        fused = {name: (tensors[name], tensors[f"{name}_scale_inv"]) for name in FUSED}
        inner: list[list[nn.Module]] = [
            [_fused(scheme, experts, *fused["gate_up_proj"], expert)] for expert in range(count)
        ]
        down = [_fused(scheme, experts, *fused["down_proj"], expert) for expert in range(count)]
        return QuantizedExperts(inner, list(down))

    def single(expert: int, name: str) -> nn.Module:
        at = f"{expert}.{name}."
        parts = {key.removeprefix(at): t for key, t in tensors.items() if key.startswith(at)}
        return reader(scheme)(scheme, parts, None)

    return QuantizedExperts(
        [[single(e, "gate_proj"), single(e, "up_proj")] for e in range(count)],
        [single(e, "down_proj") for e in range(count)],
    )


def _fused(scheme: Scheme, experts: Experts, weight: Tensor, scales: Tensor, expert: int) -> nn.Module:
    matrix, grid, block = weight[expert], scales[expert], scheme.block
    if experts.inputs_first:
        # bytes are moved, not numbers: FP8 has few operations of its own
        matrix = matrix.view(torch.uint8).T.contiguous().view(torch.float8_e4m3fn)
        grid, block = grid.T.contiguous(), (block[1], block[0])
    return Fp8Linear(matrix, grid, block)


__getattr__ = moved.names(__name__)
