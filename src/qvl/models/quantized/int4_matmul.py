"""4-bit layers on a GPU through PyTorch's int4 matrix product, which multiplies bf16 rows with packed codes.

PyTorch's weight is (code - 8) * scale + shift with shift = (8 - zero) * scale, both in bf16: zeros that aren't 8 are
rounded there, so this is close to `QuantizedLinear.dequantize` and not equal to it. The same product exists on the
CPU with another packing; that is what tests run. No GPU was at hand: benchmarks/gpu/int4_matmul.py measures and
checks it on one.
Source: torch 2.13 aten/native, _weight_int4pack_mm and _convert_weight_to_int4pack.
Legend: T rows of activations, O outputs, I inputs, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qvl.models.linear import QuantizedLinear, _untiled, unpack_codes

GROUP_SIZES = (32, 64, 128, 256)
_INNER_TILES = (8, 4, 2)  # 16 inputs each, packed together; the most that divide


class Int4Linear(nn.Module):
    """What a 4-bit `QuantizedLinear` becomes on a GPU. Answers in the dtype of x; multiplies in bf16."""

    packed: Tensor  # as the operator of the device wants it
    scales_and_shifts: Tensor  # bf16 (G, O, 2)
    bias: Tensor | None
    input_order: Tensor | None

    def __init__(self, layer: QuantizedLinear, device: torch.device):
        """`layer` is left as it is. Only for layers that `fits` says yes to."""
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.group_size = layer.group_size
        codes_OI = unpack_codes(layer.packed, 4, layer.out_features, layer.in_features).to(device)
        self.register_buffer("packed", _pack(codes_OI))
        scales_OG, zeros_OG = _scales_and_zeros(layer)
        shifts_OG = (8 - zeros_OG) * scales_OG
        both = torch.stack((scales_OG.T, shifts_OG.T), dim=-1).contiguous().to(device, torch.bfloat16)
        self.register_buffer("scales_and_shifts", both)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.to(device))
        order = layer.input_order
        self.register_buffer("input_order", None if order is None else order.to(device))

    def forward(self, x: Tensor) -> Tensor:
        rows_TI = x.reshape(-1, self.in_features).to(torch.bfloat16)
        if self.input_order is not None:
            rows_TI = rows_TI[:, self.input_order]
        product = _OPERATORS[x.device.type][1]
        y_TO = product(rows_TI.contiguous(), self.packed, self.group_size, self.scales_and_shifts).to(x.dtype)
        if self.bias is not None:
            y_TO = y_TO + self.bias.to(x.dtype)
        out: Tensor = y_TO.view(*x.shape[:-1], self.out_features)
        return out

    @property
    def num_bytes(self) -> int:
        return sum(b.numel() * b.element_size() for b in self.buffers())

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, group_size={self.group_size}"


def on_device(layer: nn.Module, device: torch.device) -> nn.Module:
    """The layer where it is to run: on a GPU a 4-bit one as `Int4Linear` if it fits, anything else moved as it is."""
    if device.type != "cuda":
        return layer.to(device)
    for name, child in list(layer.named_children()):  # a mixture's experts
        setattr(layer, name, on_device(child, device))
    if (
        isinstance(layer, QuantizedLinear)
        and fits(layer)
        and torch.cuda.get_device_capability(device)[0] >= 8
    ):
        return Int4Linear(layer, device)
    return layer.to(device)


def fits(layer: QuantizedLinear) -> bool:
    """Whether PyTorch's product takes this layer: 4 bits, its group sizes, whole tiles."""
    return (
        layer.bits == 4
        and layer.group_size in GROUP_SIZES
        and layer.in_features % layer.group_size == 0
        and layer.in_features % 32 == 0
        and layer.out_features % 8 == 0
    )


def _scales_and_zeros(layer: QuantizedLinear) -> tuple[Tensor, Tensor]:
    """fp32 (O, G) each, out of the tiles of models/linear.py."""
    scales_OG = _untiled(layer.scales, layer.out_features).float()
    if layer.zeros is None:
        return scales_OG, torch.full_like(scales_OG, 8.0)
    return scales_OG, _untiled(layer.zeros, layer.out_features).float()


def _pack(codes_OI: Tensor) -> Tensor:
    return _OPERATORS[codes_OI.device.type][0](codes_OI)


def _pack_cuda(codes_OI: Tensor) -> Tensor:
    tiles = next(t for t in _INNER_TILES if codes_OI.shape[1] % (16 * t) == 0)
    pairs = (codes_OI[:, 0::2] << 4 | codes_OI[:, 1::2]).contiguous()  # the even input in the high nibble
    out: Tensor = torch.ops.aten._convert_weight_to_int4pack(pairs, tiles)
    return out


def _pack_cpu(codes_OI: Tensor) -> Tensor:
    out: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_OI.int(), 1)
    return out


# device → (packing, product)
_OPERATORS = {
    "cuda": (_pack_cuda, torch.ops.aten._weight_int4pack_mm),
    "cpu": (_pack_cpu, torch.ops.aten._weight_int4pack_mm_for_cpu),
}
