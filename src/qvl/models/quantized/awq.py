"""AWQ ("gemm" layout): 4-bit codes packed along the outputs, in an order that suits its GPU kernel.

qweight int32 (I, O / 8), qzeros int32 (G, O / 8), scales fp16 (G, O); weight = (code - zero) * scale, transposed.
Legend: I inputs, O outputs, G groups, W words of eight outputs.
Source: AutoAWQ 0.2.9, awq/utils/packing_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qvl.checkpoint.quantization import Scheme
from qvl.models.linear import QuantizedLinear

# output 8w + c of word w is its nibble NIBBLE_OF[c]: nibbles hold outputs 0 2 4 6 1 3 5 7
NIBBLE_OF = (0, 4, 1, 5, 2, 6, 3, 7)


def unpack(words: Tensor) -> Tensor:
    """int32 (rows, W) → uint8 (rows, 8 W), outputs in order."""
    octets = words.contiguous().view(torch.uint8).view(*words.shape, 4)
    nibbles = torch.stack((octets & 15, octets >> 4), dim=-1).flatten(2)
    return nibbles[..., list(NIBBLE_OF)].flatten(1)


def read(scheme: Scheme, parts: Mapping[str, Tensor], bias: Tensor | None) -> QuantizedLinear:
    inputs = parts["qweight"].shape[0]
    return QuantizedLinear.from_codes(
        unpack(parts["qweight"]).T.contiguous(),
        scheme.bits,
        parts["scales"].T.contiguous(),
        unpack(parts["qzeros"]).T.contiguous(),
        group_size=scheme.group_size or inputs,
        bias=bias,
    )
