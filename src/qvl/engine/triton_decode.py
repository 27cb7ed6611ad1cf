"""Paged decode attention for NVIDIA GPUs: each sequence is cut into splits that run side by side, then combined.

    programs of the first kernel (b, k, s)          split s of sequence b takes an equal run of its tokens
    each reads its keys and values once             for all G query heads of key/value head k
    second kernel (b, n)                            weighs the splits' outputs by exp(log-sum-exp)

A split without tokens leaves a log-sum-exp of -inf and weighs nothing, so the grid needs no lengths from the host:
both kernels can be captured in a graph. Reference: paged_decode.paged_decode_reference.
Source of the split over the sequence: Flash-Decoding (Dao, Haziza, Massa, Sizov, 2023); online softmax: Milakov and
Gimelshein, 2018. Both in our own arrangement.
Legend: as in paged_decode; P splits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64  # tokens read at a time
FP32_TILE = (
    16  # of fp32, which is multiplied out of registers: 64 spill 350 bytes a thread (gpu/compile_kernels.py)
)
MAX_SPLITS = 64
PROGRAMS_PER_PROCESSOR = 2
LEAST_ROWS = 16  # tl.dot's smallest side


@triton.jit
def _wide(x, WIDEN: tl.constexpr):
    """Triton's interpreter multiplies the bit patterns of bf16; fp32 products of bf16 values are what a GPU sums."""
    if WIDEN:
        x = x.to(tl.float32)
    return x


@triton.jit
def _split_kernel(
    q_ptr, keys_ptr, values_ptr, blocks_ptr, ends_ptr, partial_ptr, lse_ptr,
    q_stride_b, q_stride_n, kv_stride_s, kv_stride_k, blocks_stride, scale,
    num_heads: tl.constexpr, group: tl.constexpr, head_dim: tl.constexpr, block_size: tl.constexpr,
    num_splits: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    b, k, s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    end = tl.load(ends_ptr + b)
    run = tl.cdiv(tl.cdiv(end, num_splits), TILE) * TILE
    first = s * run
    last = tl.minimum(end, first + run)

    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = tl.arange(0, TILE)
    heads = k * group + rows
    is_q = (rows[:, None] < group) & (columns[None, :] < head_dim)
    q = tl.load(q_ptr + b * q_stride_b + heads[:, None] * q_stride_n + columns[None, :], mask=is_q, other=0.0)

    # the running maximum starts finite: -inf - -inf would be NaN in rows whose split is empty
    best = tl.full((ROWS,), -1.0e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(first, last, TILE):
        tokens = start + inside
        is_token = tokens < last
        blocks = tl.load(blocks_ptr + b * blocks_stride + tokens // block_size, mask=is_token, other=0)
        # int64: slots times their width pass 2**31 in a cache of a few GiB
        slots = blocks.to(tl.int64) * block_size + tokens % block_size
        places = slots[:, None] * kv_stride_s + k * kv_stride_k + columns[None, :]
        is_kv = is_token[:, None] & (columns[None, :] < head_dim)
        keys = tl.load(keys_ptr + places, mask=is_kv, other=0.0).to(q.dtype)
        scores = tl.dot(_wide(q, WIDEN), _wide(tl.trans(keys), WIDEN), input_precision="ieee") * scale
        scores = tl.where(is_token[None, :], scores, -1.0e30)
        highest = tl.maximum(best, tl.max(scores, 1))
        shrink = tl.exp(best - highest)
        weights = tl.where(is_token[None, :], tl.exp(scores - highest[:, None]), 0.0)
        total = total * shrink + tl.sum(weights, 1)
        values = tl.load(values_ptr + places, mask=is_kv, other=0.0).to(q.dtype)
        weights = _wide(weights.to(q.dtype), WIDEN)
        acc = acc * shrink[:, None] + tl.dot(weights, _wide(values, WIDEN), input_precision="ieee")
        best = highest

    is_empty = total == 0.0
    out = acc / tl.where(is_empty, 1.0, total)[:, None]
    lse = tl.where(is_empty, float("-inf"), best + tl.log(tl.where(is_empty, 1.0, total)))
    at = (b * num_heads + heads) * num_splits + s
    tl.store(partial_ptr + at[:, None] * head_dim + columns[None, :], out, mask=is_q)
    tl.store(lse_ptr + at, lse, mask=rows < group)


@triton.jit
def _combine_kernel(
    partial_ptr, lse_ptr, out_ptr,
    num_heads: tl.constexpr, head_dim: tl.constexpr, num_splits: tl.constexpr,
    WIDTH: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * num_heads + tl.program_id(1)
    splits = tl.arange(0, SPLITS)
    columns = tl.arange(0, WIDTH)
    is_split = splits < num_splits
    lse = tl.load(lse_ptr + at * num_splits + splits, mask=is_split, other=float("-inf"))
    weights = tl.exp(lse - tl.max(lse, 0))  # every sequence has a token, so one split isn't empty
    places = (at * num_splits + splits[:, None]) * head_dim + columns[None, :]
    mask = is_split[:, None] & (columns[None, :] < head_dim)
    partial = tl.load(partial_ptr + places, mask=mask, other=0.0)
    out = tl.sum(partial * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out_ptr + at * head_dim + columns, out.to(out_ptr.dtype.element_ty), mask=columns < head_dim)


def split_count(programs: int, longest: int, num_processors: int) -> int:
    """How many splits fill the device with `programs` = B * K, none shorter than a tile of the longest table."""
    wanted = -(-PROGRAMS_PER_PROCESSOR * num_processors // programs)
    most = max(1, min(MAX_SPLITS, longest // TILE))
    return min(most, wanted)


def paged_decode(
    q_BNH: Tensor,
    keys_SKH: Tensor,
    values_SKH: Tensor,
    blocks_BM: Tensor,
    ends_B: Tensor,
    block_size: int,
    num_splits: int | None = None,
) -> Tensor:
    """o_BNH; see paged_decode_reference. fp32, bf16 or fp16 queries; keys and values likewise or fp8 as uint8."""
    num_sequences, num_heads, head_dim = q_BNH.shape
    num_kv_heads = keys_SKH.shape[1]
    if keys_SKH.dtype == torch.uint8:
        keys_SKH, values_SKH = keys_SKH.view(torch.float8_e4m3fn), values_SKH.view(torch.float8_e4m3fn)
    assert q_BNH.stride(2) == keys_SKH.stride(2) == blocks_BM.stride(1) == 1
    assert keys_SKH.stride() == values_SKH.stride()
    if num_splits is None:
        num_splits = split_count(
            num_sequences * num_kv_heads, blocks_BM.shape[1] * block_size, _num_processors(q_BNH.device)
        )
    group, width = num_heads // num_kv_heads, triton.next_power_of_2(head_dim)
    partial = torch.empty(
        num_sequences, num_heads, num_splits, head_dim, dtype=torch.float32, device=q_BNH.device
    )
    lse = torch.empty(num_sequences, num_heads, num_splits, dtype=torch.float32, device=q_BNH.device)
    out_BNH = torch.empty(q_BNH.shape, dtype=q_BNH.dtype, device=q_BNH.device)
    _split_kernel[(num_sequences, num_kv_heads, num_splits)](
        q_BNH, keys_SKH, values_SKH, blocks_BM, ends_B, partial, lse,
        q_BNH.stride(0), q_BNH.stride(1), keys_SKH.stride(0), keys_SKH.stride(1), blocks_BM.stride(0), head_dim**-0.5,
        num_heads, group, head_dim, block_size, num_splits,
        ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)), WIDTH=max(LEAST_ROWS, width),
        TILE=FP32_TILE if q_BNH.dtype == torch.float32 else TILE,
        WIDEN=q_BNH.device.type == "cpu",
    )  # fmt: skip
    _combine_kernel[(num_sequences, num_heads)](
        partial, lse, out_BNH, num_heads, head_dim, num_splits,
        WIDTH=max(LEAST_ROWS, width), SPLITS=triton.next_power_of_2(num_splits),
    )  # fmt: skip
    return out_BNH


def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # the interpreter
    return torch.cuda.get_device_properties(device).multi_processor_count
