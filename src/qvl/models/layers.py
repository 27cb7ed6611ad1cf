"""Small parts that several networks share: norms, rotary embedding, gated MLP.

Legend: T packed tokens or patches, N heads, H head dim, S rotary slots (H / 2), D model width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.models.kernels import ops
from qvl.models.linear import Linear, linears


class RMSNorm(nn.Module):
    """Normalises in fp32, casts back, then multiplies by the weight: the order of the reference.

    (A fused rms_norm multiplies before the cast, which moves bf16 results by one unit in the last place.)
    """

    def __init__(self, size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if ops.ready(x, self.weight):
            return ops.rms_norm(x, self.weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class CenteredRMSNorm(nn.Module):
    """RMSNorm whose weight is stored as its distance from one, multiplied before the cast (Qwen3.5)."""

    def __init__(self, size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * (1.0 + self.weight.float())).to(x.dtype)


def embedding(rows: int, width: int) -> nn.Embedding:
    """One whose numbers come from a file or `base.initialize`. Drawn here, where a network without memory is built,
    they would bring in PyTorch's compiler, which takes longer than all the rest.
    """
    out: nn.Embedding = nn.Embedding.from_pretrained(torch.zeros(rows, width), freeze=False)
    return out


def rotate_half(x: Tensor) -> Tensor:
    """(a, b) → (-b, a), where a and b are the two halves of the last axis."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def apply_rope(x_TNH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    """Rotates every head of x, in the dtype of cos and sin; the result is in x's.

    Where cos is narrower than a head, its first dimensions are rotated and the others stay.
    """
    width = cos_TH.shape[-1]
    if width < x_TNH.shape[-1]:
        return torch.cat((apply_rope(x_TNH[..., :width], cos_TH, sin_TH), x_TNH[..., width:]), dim=-1)
    if ops.ready(x_TNH) and cos_TH.dtype in (x_TNH.dtype, torch.float32):
        return ops.rope(x_TNH, cos_TH, sin_TH)
    wide_TNH = x_TNH.to(cos_TH.dtype)
    return (wide_TNH * cos_TH[:, None] + rotate_half(wide_TNH) * sin_TH[:, None]).to(x_TNH.dtype)


def inverse_frequencies(dim: int, theta: float, device: torch.device | None = None) -> Tensor:
    """theta ** (-2j / dim) for j = 0 … dim / 2 - 1, fp32 (dim / 2,)."""
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim
    return 1.0 / theta**exponents


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); the text MLP has no biases, Qwen2.5-VL's tower has all three."""

    def __init__(self, size: int, inner: int, bias: bool = False):
        super().__init__()
        self.gate_proj = Linear(size, inner, bias=bias)
        self.up_proj = Linear(size, inner, bias=bias)
        self.down_proj = Linear(inner, size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = linears((self.gate_proj, self.up_proj), x)
        inner = ops.silu_mul(gate, up) if ops.ready(gate) else F.silu(gate) * up
        return linears((self.down_proj,), inner)[0]
