"""compressed-tensors, the format of llm-compressor: packed 4- and 8-bit weights, and W8A8.

pack-quantized   weight_packed int32 (O, I * bits / 32), weight_scale (O, G), perhaps weight_zero_point int32
                 (O * bits / 32, G) packed down its rows, perhaps weight_g_idx int32 (I,), the group of each input.
                 Signed numbers are stored 2 ** (bits - 1) higher, weights and zero points alike.
int-quantized    weight int8 (O, I), weight_scale (O, 1)

Legend: T rows of activations, O outputs, I inputs, G groups.
Source: compressed-tensors 0.17, compressors/pack_quantized; vLLM 0.32 for how W8A8 rounds activations.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.checkpoint.quantization import Scheme
from qvl.errors import CheckpointError
from qvl.models.linear import QuantizedLinear
from qvl.models.quantized.packing import by_group, unpack_stream


def read_packed(scheme: Scheme, parts: Mapping[str, Tensor], bias: Tensor | None) -> QuantizedLinear:
    """Raises: CheckpointError for an impossible weight_g_idx or a weight_shape that contradicts the network's."""
    scales_OG = parts["weight_scale"]
    codes_OI = unpack_stream(parts["weight_packed"], scheme.bits)
    if "weight_shape" in parts:
        outputs, inputs = parts["weight_shape"].tolist()
        if (outputs, -(-inputs * scheme.bits // 32)) != tuple(parts["weight_packed"].shape):
            raise CheckpointError(
                f"weight_shape says {outputs} x {inputs}, weight_packed holds {tuple(codes_OI.shape)}"
            )
        codes_OI = codes_OI[:, :inputs]
    zeros_OG = None
    if "weight_zero_point" in parts:
        zeros_OG = unpack_stream(parts["weight_zero_point"].T, scheme.bits).T[: codes_OI.shape[0]]
    group_size = scheme.group_size or codes_OI.shape[1]
    order_I = by_group(parts["weight_g_idx"], group_size, "weight_g_idx") if "weight_g_idx" in parts else None
    return QuantizedLinear.from_codes(
        codes_OI if order_I is None else codes_OI[:, order_I],
        scheme.bits,
        scales_OG,
        zeros_OG,
        group_size=group_size,
        bias=bias,
        input_order=order_I,
    )


def read_int8(scheme: Scheme, parts: Mapping[str, Tensor], bias: Tensor | None) -> nn.Module:
    return Int8Linear(parts["weight"], parts["weight_scale"], bias, scheme.quantized_inputs)


class Int8Linear(nn.Module):
    """Weights of int8 with one scale an output row; with `quantized_inputs` activations are int8 too (W8A8).

    Each row of activations gets scale = max |x| / 127 and codes round(x / scale), halves to even; sums are int32,
    so that the result is exact before its last two products.
    """

    weight: Tensor  # int8 (O, I)
    scales: Tensor  # (O, 1)
    bias: Tensor | None

    def __init__(
        self, weight_OI: Tensor, scales_O1: Tensor, bias: Tensor | None = None, quantized_inputs: bool = True
    ):
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        self.quantized_inputs = quantized_inputs
        self.register_buffer("weight", weight_OI)
        self.register_buffer("scales", scales_O1)
        self.register_buffer("bias", bias)

    @property
    def num_bytes(self) -> int:
        return sum(b.numel() * b.element_size() for b in self.buffers())

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, quantized_inputs={self.quantized_inputs}"

    def dequantize(self) -> Tensor:
        """fp32 (O, I): the weights this layer stands for, exactly."""
        return self.weight.float() * self.scales.float()

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantized_inputs:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.linear(x, self.dequantize().to(x.dtype), bias)
        codes_TI, scales_T1 = quantize_rows(x.reshape(-1, self.in_features))
        sums_TO = _int_matmul(codes_TI, self.weight)
        y_TO = sums_TO.float() * scales_T1 * self.scales.float().T
        if self.bias is not None:
            y_TO = y_TO + self.bias.float()
        return y_TO.to(x.dtype).view(*x.shape[:-1], self.out_features)


def quantize_rows(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes_TI and fp32 scales_T1; a row of zeros keeps a scale above zero."""
    wide_TI = x_TI.float()
    scales_T1 = wide_TI.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 127
    return (wide_TI / scales_T1).round().clamp(-128, 127).to(torch.int8), scales_T1


def _int_matmul(a_TI: Tensor, b_OI: Tensor) -> Tensor:
    """int32 (T, O), exact."""
    if a_TI.device.type == "cpu":
        return torch._int_mm(a_TI, b_OI.T)
    # cuBLAS wants more than 16 rows, and sides that are multiples of 8
    rows, columns, inner = a_TI.shape[0], b_OI.shape[0], a_TI.shape[1]
    a_TI = F.pad(a_TI, (0, -inner % 8, 0, max(24 - rows, -rows % 8)))
    b_OI = F.pad(b_OI, (0, -inner % 8, 0, -columns % 8))
    return torch._int_mm(a_TI, b_OI.T)[:rows, :columns]
