"""One new token of each sequence attends to all of its own, through block tables: the reference, and which form runs.

    blocks_BM   for each sequence its blocks in order; what lies behind its last one is never read
    ends_B      how many tokens each has, the new one included

The kernel for GPUs is in triton_decode.py. Where it can't run, `engine.kv` gathers blocks for PyTorch's own attention.
Legend: B sequences, M blocks of the longest table, S slots, L slots of a table, N query heads, K key/value heads,
G = N / K, H head dim.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn


def paged_decode_reference(
    q_BNH: Tensor, keys_SKH: Tensor, values_SKH: Tensor, blocks_BM: Tensor, ends_B: Tensor, block_size: int
) -> Tensor:
    """softmax(q k / sqrt(H)) v over each sequence's first ends_B slots, in fp32; o_BNH in the dtype of q.

    Gathers the whole table of every sequence, and asks the host nothing: fit for a graph, and for tests.
    """
    num_sequences, _, head_dim = q_BNH.shape
    num_kv_heads = keys_SKH.shape[1]
    inside = torch.arange(block_size, device=blocks_BM.device)
    slots_BL = (blocks_BM[:, :, None] * block_size + inside).flatten(1)
    is_past_BL = torch.arange(slots_BL.shape[1], device=ends_B.device) < ends_B[:, None]
    slots_BL = slots_BL.where(is_past_BL, slots_BL[:, :1]).long()  # a slot that was written: NaN * 0 is NaN
    k_BLKH, v_BLKH = (_wide(held, slots_BL) for held in (keys_SKH, values_SKH))
    q_BKGH = q_BNH.float().view(num_sequences, num_kv_heads, -1, head_dim)
    scores_BKGL = torch.einsum("bkgh,blkh->bkgl", q_BKGH, k_BLKH) * head_dim**-0.5
    scores_BKGL = scores_BKGL.masked_fill(~is_past_BL[:, None, None], float("-inf"))
    o_BKGH = torch.einsum("bkgl,blkh->bkgh", scores_BKGL.softmax(-1), v_BLKH)
    return o_BKGH.flatten(1, 2).to(q_BNH.dtype)


def _wide(held_SKH: Tensor, slots_BL: Tensor) -> Tensor:
    rows = held_SKH.index_select(0, slots_BL.flatten())
    rows = rows.view(FP8) if rows.dtype == torch.uint8 else rows
    return rows.float().view(*slots_BL.shape, *held_SKH.shape[1:])


@cache
def has_kernel(device: torch.device, held: torch.dtype) -> bool:
    """Whether the Triton kernel reads KV held like this there. 8-bit floats need compute capability 8.9."""
    if device.type != "cuda" or torch.version.hip or find_spec("triton") is None:
        return False
    capability = torch.cuda.get_device_capability(device)
    return capability >= ((8, 9) if held == torch.uint8 else (8, 0))


def paged_decode(
    q_BNH: Tensor, keys_SKH: Tensor, values_SKH: Tensor, blocks_BM: Tensor, ends_B: Tensor, block_size: int
) -> Tensor:
    """By the kernel where there is one, else by the reference. Keys and values as `KVStore` holds them."""
    if has_kernel(q_BNH.device, keys_SKH.dtype):
        from qvl.engine import triton_decode

        return triton_decode.paged_decode(q_BNH, keys_SKH, values_SKH, blocks_BM, ends_B, block_size)
    return paged_decode_reference(q_BNH, keys_SKH, values_SKH, blocks_BM, ends_B, block_size)
