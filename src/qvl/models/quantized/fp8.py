"""FP8 (e4m3) weights with a scale for each block of rows x columns: Qwen3-VL's 128 x 128, or rows, or one.

weight float8_e4m3fn (O, I), weight_scale_inv fp32 (blocks down, blocks across); despite its name it multiplies.
compressed-tensors calls it weight_scale, one a row (O, 1) or one for all (1,). Activations stay as they are: GPUs
that multiply in FP8 round them too, which loses a little more than this does.
Legend: O outputs, I inputs, R and C blocks down and across.
Source: transformers 5.19 integrations/finegrained_fp8.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.catalog.quantization import Scheme

_CHUNK = 1 << 19  # weights that are widened at once: they stay in the cache until they are multiplied


class Fp8Linear(nn.Module):
    """y = x @ W.T + bias; W stays one byte a weight and is widened a few rows at a time."""

    weight: Tensor  # float8_e4m3fn (O, I)
    scales: Tensor  # (R, C)
    bias: Tensor | None

    def __init__(
        self, weight_OI: Tensor, scales_RC: Tensor, block: tuple[int, int], bias: Tensor | None = None
    ):
        """`block`: rows and columns that share a scale; 0 means the whole side."""
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        self.block = (block[0] or self.out_features, block[1] or self.in_features)
        self.register_buffer("weight", weight_OI)
        self.register_buffer("scales", scales_RC)
        self.register_buffer("bias", bias)

    @property
    def num_bytes(self) -> int:
        return sum(b.numel() * b.element_size() for b in self.buffers())

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, block={self.block}"

    def dequantize(self, rows: slice = slice(None)) -> Tensor:
        """fp32 rows of (O, I): the weights this layer stands for, exactly. Rows start at a block."""
        down, across = self.block
        first = (rows.start or 0) // down
        weight_OI = self.weight[rows].float()
        scales_RC = self.scales[first : first - (-weight_OI.shape[0] // down)].float()
        scales_OC = scales_RC.repeat_interleave(down, 0)[: weight_OI.shape[0]]
        return weight_OI * scales_OC.repeat_interleave(across, 1)[:, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        step = self.block[0] * max(1, _CHUNK // (self.block[0] * self.in_features))
        y = torch.empty(*x.shape[:-1], self.out_features, dtype=x.dtype, device=x.device)
        for start in range(0, self.out_features, step):
            rows = slice(start, min(start + step, self.out_features))
            y[..., rows] = F.linear(x, self._widened(rows, x.dtype))
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def _widened(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """`dequantize(rows).to(dtype)`, over ten times as fast on a CPU, where PyTorch converts FP8 one by one.

        e4m3's bits, moved to where fp16 has its sign, exponent and mantissa, are 2 ** -8 of the number:
            s eeee mmm  →  s 0eeee mmm0000000
        """
        if self.weight.device.type != "cpu":
            return self.dequantize(rows).to(dtype)
        bits_OI = self.weight[rows].view(torch.int8).to(torch.int16)  # the sign fills the upper byte
        bits_OI.bitwise_left_shift_(7).bitwise_and_(~0x4000)
        small_OI = bits_OI.view(torch.float16)
        (down, across), count = self.block, rows.stop - rows.start
        first = rows.start // down
        scales_RI = self.scales[first : first - (-count // down)].float() * 2**8
        if scales_RI.shape[1] > 1:
            scales_RI = scales_RI.repeat_interleave(across, 1)[:, : self.in_features]
        weight_OI = torch.empty(count, self.in_features, dtype=dtype)
        whole = count // down * down  # the last block of rows may be short
        blocks = (whole // down, down, self.in_features)
        torch.mul(
            small_OI[:whole].view(blocks), scales_RI[: blocks[0], None], out=weight_OI[:whole].view(blocks)
        )
        if whole < count:
            torch.mul(small_OI[whole:], scales_RI[-1], out=weight_OI[whole:])
        return weight_OI


def read(scheme: Scheme, parts: Mapping[str, Tensor], bias: Tensor | None) -> Fp8Linear:
    scales = parts[scheme.scale_name]
    return Fp8Linear(parts["weight"], scales.view(1, 1) if scales.ndim < 2 else scales, scheme.block, bias)
