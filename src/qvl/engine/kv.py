"""The store of keys and values, and attention that reads it in place.

Legend: T packed tokens of a step, L tokens of one sequence, B sequences, S slots, N query heads, K key/value heads,
G = N / K query heads a key/value head, H head dim, R rows of queries.

A block is `block_size` neighbouring slots. Our kernels for the CPU (bf16) and for GPUs (tokens that are decoded) read a
sequence's blocks where they lie. For PyTorch's attention a sequence whose blocks are neighbours is a slice of the store
and is read without a copy; the pool hands blocks out that way when it can. Any other sequence is gathered first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qvl.engine.paged_decode import has_kernel, paged_decode
from qvl.models.attention import Places
from qvl.models.kernels import ops

QUERY_ROWS = 512  # prefill behind a cached past builds a mask of at most this many rows
GATHER_BYTES = 4 << 20  # decoding sequences are padded into one call while a layer's copy stays below this


class KVStore:
    """Keys and values of every attention layer: two tensors (num_blocks * block_size, K, H) a layer.

    8-bit storage is float8 e4m3 without scales: rotated keys and values of these models stay far below its limit of
    448, and what is beyond is clamped. Rows are converted when read.
    """

    def __init__(
        self,
        layers: Sequence[int],
        num_blocks: int,
        block_size: int,
        num_key_value_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ):
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.dtype = dtype
        self.device = torch.device(device)
        shape = (num_blocks * block_size, num_key_value_heads, head_dim)
        held = self.held_dtype  # copying by index isn't implemented for float8 everywhere
        self._keys = {layer: torch.empty(shape, dtype=held, device=device) for layer in layers}
        self._values = {layer: torch.empty(shape, dtype=held, device=device) for layer in layers}

    @property
    def is_8bit(self) -> bool:
        return self.dtype == torch.float8_e4m3fn

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in [*self._keys.values(), *self._values.values()])

    @property
    def held_dtype(self) -> torch.dtype:
        """Of the tensors: uint8 stands for float8."""
        return torch.uint8 if self.is_8bit else self.dtype

    def held(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values as they are held, for kernels that read them in place."""
        return self._keys[layer], self._values[layer]

    def slots(self, blocks: Sequence[int], num_tokens: int) -> Tensor:
        """int64 (num_tokens,): where a sequence's first tokens lie."""
        first = torch.tensor(blocks, dtype=torch.int64)[:, None] * self.block_size
        return (first + torch.arange(self.block_size)).flatten()[:num_tokens].to(self.device)

    def write(self, layer: int, slots_T: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> None:
        self._keys[layer].index_copy_(0, slots_T, self._encoded(k_TKH))
        self._values[layer].index_copy_(0, slots_T, self._encoded(v_TKH))

    def read(self, layer: int, place: slice | Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of the slots, (S, K, H) each; a view when `place` is a slice and nothing is converted."""
        k, v = self._keys[layer], self._values[layer]
        if isinstance(place, slice):
            return self._decoded(k[place], dtype), self._decoded(v[place], dtype)
        return self._decoded(k.index_select(0, place), dtype), self._decoded(v.index_select(0, place), dtype)

    def _encoded(self, x: Tensor) -> Tensor:
        if self.is_8bit:
            return x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
        return x.to(self.dtype)

    def _decoded(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.view(torch.float8_e4m3fn).to(dtype) if self.is_8bit else x.to(dtype)


class Span(NamedTuple):
    """Some tokens of one sequence in a step: rows [row, row + n) of T are its tokens [start, start + n)."""

    row: int
    num_tokens: int
    start: int
    blocks: Sequence[int]

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


class _Read(NamedTuple):
    span: Span
    place: slice | Tensor  # the slots of all its tokens up to `end`


class _Padded(NamedTuple):
    """Sequences that decode, padded to one length: one kernel call a layer instead of one each."""

    rows_B: Tensor
    slots_S: Tensor  # B * L
    mask_B11L: Tensor  # True where a token is


class _Tabled(NamedTuple):
    """Sequences that decode, for the kernel that reads blocks in place."""

    rows_B: Tensor
    blocks_BM: Tensor  # int32
    ends_B: Tensor


class _Plan(NamedTuple):
    tabled: _Tabled | None
    padded: _Padded | None
    reads: Sequence[_Read]  # those one by one that the others don't take


class PagedAttention:
    """The `attend` of one step: writes the new keys and values, then each sequence reads all of its own."""

    def __init__(self, store: KVStore, spans: Sequence[Span]):
        self.store, self.spans = store, spans

    def in_place(self) -> Places | None:
        on_cpu = self.store.device.type == "cpu" and self.store.held_dtype == torch.bfloat16
        if not on_cpu or any(span.num_tokens != 1 or span.row != row for row, span in enumerate(self.spans)):
            return None
        table = self._table(self.spans)
        return Places(self.store.held, self.store.block_size, table.blocks_BM, table.ends_B)

    @cached_property
    def slots(self) -> Sequence[Tensor]:
        """Of each sequence, up to the end of its new tokens."""
        return [self.store.slots(span.blocks, span.end) for span in self.spans]

    @cached_property
    def new_slots_T(self) -> Tensor:
        return torch.cat([slots[span.start :] for span, slots in zip(self.spans, self.slots)])

    @cached_property
    def kernel_spans(self) -> tuple[Sequence[ops.Span], Tensor]:
        """What our kernel for CPUs reads: of every sequence, in place. The tensor is what the spans point into."""
        table_BM = self._table(self.spans).blocks_BM
        spans = [
            ops.Span(query=span.row, num_queries=span.num_tokens, num_keys=span.end, blocks=row_M.data_ptr())
            for span, row_M in zip(self.spans, table_BM)
        ]
        return spans, table_BM

    @cached_property
    def plan(self) -> _Plan:
        """What PyTorch's attention and the kernel for GPUs need."""
        store, spans, places = self.store, self.spans, self.slots
        decoding = [(span, place) for span, place in zip(spans, places) if span.num_tokens == 1]
        by_kernel = bool(decoding) and has_kernel(store.device, store.held_dtype)
        tabled = self._table([span for span, _ in decoding]) if by_kernel else None
        padded = self._pad(decoding) if not by_kernel and self._pays(decoding) else None
        reads = [
            _Read(span, _as_slice(span, store.block_size) or place)
            for span, place in zip(spans, places)
            if span.num_tokens > 1 or (padded is None and tabled is None)
        ]
        return _Plan(tabled, padded, reads)

    def _table(self, decoding: Sequence[Span]) -> _Tabled:
        longest = max(len(span.blocks) for span in decoding)
        blocks = [[*span.blocks, *[0] * (longest - len(span.blocks))] for span in decoding]
        numbers = torch.tensor([(span.row, span.end) for span in decoding]).to(self.store.device)
        blocks_BM = torch.tensor(blocks, dtype=torch.int32).to(self.store.device)
        return _Tabled(numbers[:, 0], blocks_BM, numbers[:, 1].contiguous())

    def _pays(self, decoding: Sequence[tuple[Span, Tensor]]) -> bool:
        if len(decoding) < 2:
            return False
        num_slots = len(decoding) * max(span.end for span, _ in decoding)
        keys = next(iter(self.store._keys.values()))
        return num_slots * keys.shape[1] * keys.shape[2] * keys.element_size() <= GATHER_BYTES

    def _pad(self, decoding: Sequence[tuple[Span, Tensor]]) -> _Padded:
        device = self.store.device
        longest = max(span.end for span, _ in decoding)
        slots_BL = torch.zeros(len(decoding), longest, dtype=torch.int64, device=device)
        for slots_L, (_, place) in zip(slots_BL, decoding):
            slots_L[: len(place)] = place
            slots_L[len(place) :] = place[0]  # a slot that was written: what is masked must still be finite
        ends_B = torch.tensor([span.end for span, _ in decoding], device=device)
        mask_BL = torch.arange(longest, device=device) < ends_B[:, None]
        rows_B = torch.tensor([span.row for span, _ in decoding], device=device)
        return _Padded(rows_B, slots_BL.flatten(), mask_BL[:, None, None, :])

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        self.store.write(layer, self.new_slots_T, k_TKH, v_TKH)
        held = self.store.held(layer)
        if ops.takes_attention(q_TNH, *held):
            spans, _ = self.kernel_spans
            return ops.attend(q_TNH, *held, spans, is_causal=True, block_size=self.store.block_size)
        plan = self.plan
        out_TNH = torch.empty_like(q_TNH)
        num_kv_heads = k_TKH.shape[1]
        if plan.tabled is not None:
            rows_B, blocks_BM, ends_B = plan.tabled
            out_TNH[rows_B] = paged_decode(q_TNH[rows_B], *held, blocks_BM, ends_B, self.store.block_size)
        if plan.padded is not None:
            rows_B, slots_S, mask_B11L = plan.padded
            k_SKH, v_SKH = self.store.read(layer, slots_S, q_TNH.dtype)
            k_BKLH, v_BKLH = (
                x.unflatten(0, (len(rows_B), -1)).transpose(1, 2) for x in (k_SKH, v_SKH)
            )  # fmt: skip
            q_BKGH = q_TNH[rows_B].unflatten(1, (num_kv_heads, -1))
            o_BKGH = F.scaled_dot_product_attention(q_BKGH, k_BKLH, v_BKLH, attn_mask=mask_B11L)
            out_TNH[rows_B] = o_BKGH.flatten(1, 2)
        for span, place in plan.reads:
            k_LKH, v_LKH = self.store.read(layer, place, q_TNH.dtype)
            rows = slice(span.row, span.row + span.num_tokens)
            out_TNH[rows] = attend_one(q_TNH[rows], k_LKH, v_LKH)
        return out_TNH


def attend_one(q_RNH: Tensor, k_LKH: Tensor, v_LKH: Tensor) -> Tensor:
    """Causal attention of a sequence's last R tokens over all its L tokens. Returns o_RNH."""
    num_rows, num_heads, _ = q_RNH.shape
    length, num_kv_heads, _ = k_LKH.shape
    k_1KLH, v_1KLH = k_LKH.transpose(0, 1)[None], v_LKH.transpose(0, 1)[None]
    if num_rows == 1:
        # the G heads of a key/value head become rows: each key is read once, not G times
        q_1KGH = q_RNH.unflatten(1, (num_kv_heads, -1))
        return F.scaled_dot_product_attention(q_1KGH, k_1KLH, v_1KLH).flatten(1, 2)
    grouped = num_heads != num_kv_heads
    if num_rows == length:
        q_1NLH = q_RNH.transpose(0, 1)[None]
        o_1NLH = F.scaled_dot_product_attention(q_1NLH, k_1KLH, v_1KLH, is_causal=True, enable_gqa=grouped)
        return o_1NLH[0].transpose(0, 1)
    if q_RNH.is_cuda and q_RNH.dtype != torch.float32:
        return _attend_without_mask(q_RNH, k_1KLH, v_1KLH)
    pieces = []
    for first in range(0, num_rows, QUERY_ROWS):
        last = min(num_rows, first + QUERY_ROWS)
        seen = length - num_rows + last
        mask_RL = torch.ones(last - first, seen, dtype=torch.bool, device=q_RNH.device).tril(
            seen - (last - first)
        )
        o_1NRH = F.scaled_dot_product_attention(
            q_RNH[first:last].transpose(0, 1)[None],
            k_1KLH[:, :, :seen],
            v_1KLH[:, :, :seen],
            attn_mask=mask_RL,
            enable_gqa=grouped,
        )
        pieces.append(o_1NRH[0].transpose(0, 1))
    return torch.cat(pieces)


def _attend_without_mask(q_RNH: Tensor, k_1KLH: Tensor, v_1KLH: Tensor) -> Tensor:
    """The same for R < L as one call. On a GPU it is flash attention in half precision, which takes no mask but knows
    this one; elsewhere PyTorch builds the mask.
    """
    from torch.nn.attention.bias import causal_lower_right  # brings in PyTorch's compiler: a second

    mask = causal_lower_right(q_RNH.shape[0], k_1KLH.shape[2])
    o_1NRH = F.scaled_dot_product_attention(
        q_RNH.transpose(0, 1)[None],
        k_1KLH,
        v_1KLH,
        attn_mask=mask,
        enable_gqa=q_RNH.shape[1] != k_1KLH.shape[1],
    )
    return o_1NRH[0].transpose(0, 1)


def _as_slice(span: Span, block_size: int) -> slice | None:
    first = span.blocks[0]
    used = -(-span.end // block_size)
    if any(block != first + i for i, block in enumerate(span.blocks[:used])):
        return None
    return slice(first * block_size, first * block_size + span.end)
