"""Small codes in streams of bits, as GPTQ and compressed-tensors pack them; the parts that formats share.

A stream is little-endian and begins with the lowest bit: code i of b bits lies at bits b * i … b * i + b - 1.
Legend: R rows, V codes of a row, O outputs, I inputs, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qvl.errors import CheckpointError


def unpack_stream(words: Tensor, bits: int) -> Tensor:
    """int32 (R, words) → uint8 (R, V): 2, 3, 4 or 8 bits a code, three words holding 32 codes of 3 bits."""
    octets = words.contiguous().view(torch.uint8)
    if bits == 8:
        return octets
    if bits == 3:
        # eight codes in three bytes: 000 111 22|2 333 444 5|55 666 777 from the lowest bit on
        a, b, c = octets.view(octets.shape[0], -1, 3).unbind(-1)
        codes = [a, a >> 3, a >> 6 | b << 2, b >> 1, b >> 4, b >> 7 | c << 1, c >> 2, c >> 5]
    else:
        codes = [octets >> shift for shift in range(0, 8, bits)]
    return torch.stack(codes, dim=-1).flatten(1).bitwise_and_((1 << bits) - 1)


def by_group(g_idx: Tensor, group_size: int, where: str) -> Tensor | None:
    """The order of inputs in which groups lie side by side, int64 (I,); None when they already do.

    Act order (GPTQ sorts inputs by importance before it groups them) scatters a group over the row.
    Raises: CheckpointError when a group hasn't group_size inputs, so that no layer here can hold it.
    """
    inputs = g_idx.shape[0]
    plain_I = torch.arange(inputs) // group_size
    if torch.equal(g_idx.long(), plain_I):
        return None
    order_I = torch.argsort(g_idx, stable=True)
    if not torch.equal(g_idx[order_I].long(), plain_I):
        raise CheckpointError(
            f"{where}: groups must have {group_size} inputs each; they have "
            f"{sorted(set(torch.bincount(g_idx.long().clamp(min=0)).tolist()))}: the file is damaged, or its "
            "group_size isn't the config's"
        )
    return order_I
