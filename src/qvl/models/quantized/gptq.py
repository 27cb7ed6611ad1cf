"""GPTQ: codes of 2, 3, 4 or 8 bits packed along the inputs, zeros stored less one, inputs perhaps regrouped.

qweight int32 (I * bits / 32, O), qzeros int32 (G, O * bits / 32), scales fp16 (G, O), g_idx int32 (I,), the group
of each input. weight[i] = (code - zero) * scale of group g_idx[i], transposed. The first format ("gptq") stores
zero - 1, the second ("gptq_v2") the zero itself. Codes of 2 and 3 bits are held as 4-bit ones.
Legend: I inputs, O outputs, G groups.
Sources: AutoGPTQ 0.7, GPTQModel.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qvl.checkpoint.quantization import Scheme
from qvl.models.linear import QuantizedLinear
from qvl.models.quantized.packing import by_group, unpack_stream


def read(scheme: Scheme, parts: Mapping[str, Tensor], bias: Tensor | None) -> QuantizedLinear:
    """Raises: CheckpointError for an impossible g_idx."""
    codes_OI = unpack_stream(parts["qweight"].T, scheme.bits)
    zeros_GO = unpack_stream(parts["qzeros"], scheme.bits).short() + scheme.zero_offset
    group_size = scheme.group_size or codes_OI.shape[1]
    order_I = by_group(parts["g_idx"], group_size, "g_idx") if "g_idx" in parts else None
    return QuantizedLinear.from_codes(
        codes_OI if order_I is None else codes_OI[:, order_I],
        max(4, scheme.bits),
        parts["scales"].T.contiguous(),
        zeros_GO.T.contiguous(),
        group_size=group_size,
        bias=bias,
        input_order=order_I,
    )
