"""Attention over packed segments without ever building a mask, and the interface to the owner of the KV cache.

Legend: T packed tokens or patches, N query heads, K key/value heads, H head dim, B segments of one
length, L that length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from qvl.models.kernels import ops


class Attend(Protocol):
    """What the decoder calls in each layer. The model owns no cache: the engine, a trainer or a test gives this."""

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        """Returns o_TNH; keys and values of the tokens in T are new and may be stored."""
        ...


class Places(NamedTuple):
    """Where T rows, each the next token of a sequence of its own, find that sequence's keys and values."""

    # layer → keys and values, dense bf16 (slots, K, H) on the CPU
    held: Callable[[int], tuple[Tensor, Tensor]]
    block_size: int
    blocks_TM: Tensor  # int32: each sequence's blocks in order
    ends_T: Tensor  # int64: its tokens, the new one included


@runtime_checkable
class PagedAttend(Attend, Protocol):
    """An owner of keys and values that lets a kernel write and read them where they lie."""

    def in_place(self) -> Places | None:
        """None where that can't be: more than a token for a sequence, or KV held in another way."""
        ...


class State(NamedTuple):
    """What B sequences have left in one linear-attention layer; its size doesn't grow with their lengths.

    The model gives and takes it whole, and whoever owns it needs to know no more than its shapes.
    """

    conv: Tensor  # (B, kernel - 1, channels): the last inputs of the convolution, oldest first
    memory: Tensor  # fp32 (B, value heads, key dim, value dim)


# (state of B sequences or None where they begin, rows (B, L, …) of each) → output rows (B, L, …), state after them
Scan = Callable[..., tuple[Tensor, State]]


@runtime_checkable
class RecurrentAttend(Attend, Protocol):
    """The seam of models with linear-attention layers: their owner keeps states beside keys and values."""

    def recur(self, layer: int, scan: Scan, *rows_T: Tensor) -> Tensor:
        """Runs `scan` once over each sequence's new tokens, from its state and into it; rows as they came."""
        ...


class Run(NamedTuple):
    """Neighbouring sequences with equally many new tokens: rows [row, row + num_sequences * length) of T."""

    first: int  # the first sequence's place among all
    num_sequences: int
    length: int
    row: int

    def cut(self, rows_T: Tensor) -> Tensor:
        """(T, …) → (num_sequences, length, …)"""
        rows = rows_T[self.row : self.row + self.num_sequences * self.length]
        out: Tensor = rows.unflatten(0, (self.num_sequences, self.length))
        return out


def runs(lengths: Sequence[int]) -> list[Run]:
    """Packed sequences as few batches, without moving a row: those that decode are neighbours in a step."""
    found, first, row = [], 0, 0
    for length, group in groupby(lengths):
        num = len(list(group))
        if length:
            found.append(Run(first, num, length, row))
        first, row = first + num, row + num * length
    return found


class Segments:
    """Rows of a packed axis cut into segments, laid end to end, that attend within themselves only.

    The cost is the sum of length². On a CPU in bf16 it is one call of our kernel. Elsewhere segments of equal
    length run as one batch, one call for each distinct length: the windows of an image have at most four.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | None = None):
        sizes = torch.tensor(list(lengths), dtype=torch.int64)
        starts = sizes.cumsum(0) - sizes
        self.num_rows = int(sizes.sum())
        self.spans = [
            ops.Span(query=start, num_queries=size, key=start, num_keys=size)
            for start, size in zip(starts.tolist(), sizes.tolist())
        ]
        by_length = torch.argsort(sizes, descending=True, stable=True)
        distinct, counts = torch.unique_consecutive(sizes[by_length], return_counts=True)
        self.groups = [(c, n) for c, n in zip(counts.tolist(), distinct.tolist()) if n]
        self.rows = self.places = None
        if not torch.equal(by_length, torch.arange(len(sizes))):
            rows = torch.cat([torch.arange(s, s + n) for s, n in zip(starts[by_length], sizes[by_length])])
            self.rows, self.places = rows.to(device), torch.argsort(rows).to(device)

    def attend(self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, is_causal: bool = False) -> Tensor:
        """Scaled dot-product attention inside each segment. Returns o_TNH, rows as they came."""
        assert q_TNH.shape[0] == self.num_rows, (q_TNH.shape, self.num_rows)
        if ops.takes_attention(q_TNH, k_TKH, v_TKH):
            return ops.attend(q_TNH, k_TKH, v_TKH, self.spans, is_causal=is_causal)
        if self.rows is not None:
            q_TNH, k_TKH, v_TKH = (x.index_select(0, self.rows) for x in (q_TNH, k_TKH, v_TKH))
        outputs, start = [], 0
        for count, length in self.groups:
            stop = start + count * length
            q_BNLH, k_BKLH, v_BKLH = (
                x[start:stop].unflatten(0, (count, length)).transpose(1, 2) for x in (q_TNH, k_TKH, v_TKH)
            )
            o_BNLH = F.scaled_dot_product_attention(
                q_BNLH, k_BKLH, v_BKLH, is_causal=is_causal, enable_gqa=q_TNH.shape[1] != k_TKH.shape[1]
            )
            outputs.append(o_BNLH.transpose(1, 2).flatten(0, 1))
            start = stop
        o_TNH = torch.cat(outputs) if outputs else torch.empty_like(q_TNH)
        return o_TNH if self.places is None else o_TNH.index_select(0, self.places)


class CausalAttention:
    """Full causal attention over packed sequences, nothing kept between calls: for training and as the oracle."""

    def __init__(self, lengths: Sequence[int], device: torch.device | None = None):
        self.segments = Segments(lengths, device=device)
        self.runs = runs(lengths)

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        return self.segments.attend(q_TNH, k_TKH, v_TKH, is_causal=True)

    def recur(self, layer: int, scan: Scan, *rows_T: Tensor) -> Tensor:
        return torch.cat([scan(None, *map(run.cut, rows_T))[0].flatten(0, 1) for run in self.runs])
