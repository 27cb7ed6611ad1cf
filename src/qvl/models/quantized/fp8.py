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
from torch import Tensor, nn

from qvl.checkpoint.quantization import Scheme
from qvl.models.kernels import ops
from qvl.models.linear import SCALE_DTYPES, bias_fits, product

# Up to here our kernel is faster than widening and PyTorch's product (benchmarks/cpu/kernels.py).
FEW_ROWS = 8
_CHUNK = 1 << 21  # weights that are widened at once: they stay in the cache until they are multiplied


class Fp8Linear(nn.Module):
    """y = x @ W.T + bias; W stays one byte a weight. A few rows of bf16 are multiplied with the bytes as they lie, in
    which no weight is rounded; for more a few rows of W at a time are widened to x's dtype.
    """

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
        weight_RI, scales_RC = self._rows(rows)
        scales_RI = (
            scales_RC.float().repeat_interleave(down, 0)[: len(weight_RI)].repeat_interleave(across, 1)
        )
        return weight_RI.float() * scales_RI[:, : self.in_features]

    def _rows(self, rows: slice) -> tuple[Tensor, Tensor]:
        down, weight_RI = self.block[0], self.weight[rows]
        first = (rows.start or 0) // down
        return weight_RI, self.scales[first : first - (-len(weight_RI) // down)]

    def forward(self, x: Tensor) -> Tensor:
        if self.takes_kernel(x):
            return ops.linear((self.matrix(),), x)
        step = self.block[0] * max(1, _CHUNK // (self.block[0] * self.in_features))
        y = torch.empty(*x.shape[:-1], self.out_features, dtype=x.dtype, device=x.device)
        for start in range(0, self.out_features, step):
            rows = slice(start, min(start + step, self.out_features))
            y[..., rows] = product(x, self._widened(rows, x))
        return y if self.bias is None else y + self.bias.to(x.dtype)

    @property
    def shares(self) -> int:
        return self.block[1]

    def takes_kernel(self, x: Tensor) -> bool:
        few = x.dtype == torch.bfloat16 and x.numel() <= FEW_ROWS * self.in_features
        return few and bias_fits(self, x) and self._has_kernel(x)

    def matrix(self) -> ops.Matrix:
        return ops.Matrix(
            weight=self.weight.data_ptr(),
            scales=self.scales.data_ptr(),
            bias=ops.address(self.bias),
            outputs=self.out_features,
            inputs=self.in_features,
            down=self.block[0],
            across=self.block[1],
            kind=ops.FP8,
            scale_dtype=ops.dtype_number(self.scales.dtype),
        )

    def _has_kernel(self, x: Tensor) -> bool:
        held = (self.weight, self.scales)
        return ops.ready(x) and all(t.is_contiguous() for t in held) and self.scales.dtype in SCALE_DTYPES

    def _widened(self, rows: slice, x: Tensor) -> Tensor:
        """`dequantize(rows)` in x's dtype. On a CPU PyTorch converts FP8 one by one."""
        if self._has_kernel(x):
            return ops.fp8_widen(*self._rows(rows), self.block, x.dtype)
        return self.dequantize(rows).to(x.dtype)


def read(scheme: Scheme, parts: Mapping[str, Tensor], bias: Tensor | None) -> Fp8Linear:
    scales = parts[scheme.scale_name]
    return Fp8Linear(parts["weight"], scales.view(1, 1) if scales.ndim < 2 else scales, scheme.block, bias)
