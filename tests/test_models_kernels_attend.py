"""The compiled attention of many queries: softmax attention, however it is cut and wherever keys lie."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qvl.engine.kv import KVStore, PagedAttention, Span
from qvl.models.attention import Segments
from qvl.models.kernels import ops

pytestmark = pytest.mark.skipif(ops.functions() is None, reason="no compiler here, or QVL_KERNELS=off")


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def qkv(length: int, heads: int = 4, kv_heads: int = 2, size: int = 16, seed: int = 0, scale: float = 1.0):
    shapes = ((length, heads, size), (length, kv_heads, size), (length, kv_heads, size))
    return tuple(random(*shape, seed=3 * seed + i, scale=scale) for i, shape in enumerate(shapes))


def error(found: Tensor, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = True) -> float:
    """The largest distance from attention in fp64, in shares of what the weights times absolute values come to.

    A weight rounded to bf16 is off by 2^-8 of it at most, and so is the output: 2^-7 together, which is 0.0078.
    """
    found, q, k, v = (x.double() for x in (found, q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qnh,knh->nqk", q, k) / math.sqrt(q.shape[-1])
    if is_causal:
        unseen = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + len(k) - len(q))
        scores = scores.masked_fill(unseen, -torch.inf)
    weights = scores.softmax(-1)
    wanted, bound = (torch.einsum("nqk,knh->qnh", weights, x) for x in (v, v.abs()))
    return float(((found - wanted).abs() / bound).max())


def attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = True) -> Tensor:
    span = ops.Span(query=0, num_queries=len(q), key=0, num_keys=len(k))
    return ops.attend(q, k, v, [span], is_causal=is_causal)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "size"),
    [
        (1, 1, 1, 1),
        (2, 2, 1, 7),
        (63, 4, 2, 16),
        (64, 6, 2, 80),
        (65, 3, 3, 33),
        (130, 8, 1, 128),
        (700, 2, 2, 24),  # more queries than pass together
    ],
)
def test_softmax_attention_at_any_size(length, heads, kv_heads, size, is_causal, threads):
    q, k, v = qkv(length, heads, kv_heads, size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert error(attend(q, k, v, is_causal), q, k, v, is_causal) < 0.0079
    finally:
        torch.set_num_threads(before)


@settings(max_examples=60, deadline=None)
@given(
    past=st.integers(0, 150),
    new=st.integers(1, 150),
    heads=st.sampled_from([(1, 1), (4, 2), (7, 1), (6, 3)]),
    size=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_new_tokens_behind_a_past(past, new, heads, size, seed):
    q, k, v = qkv(past + new, *heads, size, seed)
    assert error(attend(q[past:], k, v), q[past:], k, v) < 0.0079


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 90), min_size=1, max_size=5))
def test_a_prompt_in_pieces_is_the_whole_to_the_bit(cuts):
    """Tiles are cut along the keys, which a piece doesn't move."""
    q, k, v = qkv(sum(cuts))
    end, pieces = 0, []
    for cut in cuts:
        start, end = end, end + cut
        pieces.append(attend(q[start:end], k[:end], v[:end]))
    assert torch.equal(torch.cat(pieces), attend(q, k, v))


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 80), min_size=1, max_size=6), is_causal=st.booleans())
def test_segments_beside_each_other_are_each_alone_to_the_bit(lengths, is_causal):
    q, k, v = qkv(sum(lengths))
    together = Segments(lengths).attend(q, k, v, is_causal)
    alone = [attend(*parts, is_causal) for parts in zip(*(x.split(lengths) for x in (q, k, v)))]
    assert torch.equal(together, torch.cat(alone))


def test_rows_of_a_wider_matrix_are_read_where_they_lie():
    """The tower's values are a third of its qkv; heads that don't lie side by side are copied first."""
    q, k, v = qkv(70, 4, 4)
    wide = torch.cat([q.flatten(1), k.flatten(1), v.flatten(1)], dim=1).unflatten(1, (3, 4, 16))
    assert torch.equal(attend(*wide.unbind(1), is_causal=False), attend(q, k, v, is_causal=False))
    apart = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)]
    assert torch.equal(attend(*apart), attend(q, k, v))


@pytest.mark.parametrize("scale", [1e-4, 30.0])
def test_scores_of_any_size(scale):
    """exp overflows beyond 88: at 30 scores reach 4,000."""
    q, k, v = qkv(150)
    q = (q * scale).bfloat16()
    assert error(attend(q, k, v), q, k, v) < 0.0081  # fp32 holds a score of 4,000 to within 0.0002


@pytest.mark.parametrize("broken", ["k", "v"])
def test_what_is_no_number_is_seen_and_stays_in_its_segment(broken):
    q, k, v = qkv(100)
    {"k": k, "v": v}[broken][40] = float("nan")
    out = Segments([30, 50, 20]).attend(q, k, v, is_causal=True)
    assert out[40:80].isnan().all()
    assert out[:30].isfinite().all()
    assert out[80:].isfinite().all()


def test_a_query_sees_one_key_exactly():
    q, k, v = qkv(1)
    assert torch.equal(attend(q, k, v), v.repeat_interleave(2, dim=1))


# --- keys and values in the engine's blocks


def paged(
    blocks: list[int], q: Tensor, k: Tensor, v: Tensor, past: int, dtype: torch.dtype, size: int = 4
) -> Tensor:
    """The new tokens' rows, after the past was written; what was never written is NaN."""
    store = KVStore([0], 64, size, k.shape[1], k.shape[2], dtype=dtype)
    for held in (store._keys[0], store._values[0]):
        held.fill_(0x7F if store.is_8bit else float("nan"))
    if past:
        store.write(0, store.slots(blocks, past), k[:past], v[:past])
    new = [x[past:] for x in (q, k, v)]
    attention = PagedAttention(store, [Span(0, len(q) - past, past, blocks)])
    out = attention(0, *new)
    assert "plan" not in vars(attention)  # nothing was laid out for PyTorch's
    return out


@pytest.mark.parametrize("past", [0, 1, 16, 69])
def test_scattered_blocks_are_read_as_neighbours_are(past):
    q, k, v = qkv(70)
    scattered = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:18].tolist()
    assert torch.equal(paged(scattered, q, k, v, past, torch.bfloat16), attend(q[past:], k, v))


def test_eight_bit_keys_and_values_are_those_that_are_held():
    """Every finite byte of e4m3 stands for its number: the same as attention to the decoded ones."""
    q, k, v = qkv(70, scale=3)
    held = [x.clamp(-448, 448).to(torch.float8_e4m3fn).bfloat16() for x in (k, v)]
    blocks = list(range(18))
    assert torch.equal(paged(blocks, q, k, v, 0, torch.float8_e4m3fn), attend(q, *held))
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).bfloat16()
    every = every[every.isfinite()].view(127, 1, 2)
    alone = [paged([0], q[:1, :1, :2], row[None], row[None], 0, torch.float8_e4m3fn) for row in every]
    assert torch.equal(torch.cat(alone), every)


def test_sequences_that_decode_beside_a_prompt_are_each_alone_to_the_bit():
    lengths, news = [30, 1, 90, 66], [30, 1, 1, 5]
    store = KVStore([0], 64, 4, 2, 16, dtype=torch.bfloat16)
    free = iter(torch.randperm(64, generator=torch.Generator().manual_seed(2)).tolist())
    spans, parts, wanted, row = [], [], [], 0
    for seed, (length, new) in enumerate(zip(lengths, news)):
        q, k, v = qkv(length, seed=seed + 1)
        blocks, past = [next(free) for _ in range(-(-length // 4))], length - new
        if past:
            store.write(0, store.slots(blocks, past), k[:past], v[:past])
        spans.append(Span(row, new, past, blocks))
        parts.append((q[past:], k[past:], v[past:]))
        wanted.append(attend(q[past:], k, v))
        row += new
    out = PagedAttention(store, spans)(0, *(torch.cat(x) for x in zip(*parts)))
    assert torch.equal(out, torch.cat(wanted))


# --- who takes it


def test_other_activations_and_training_are_left_to_pytorch():
    q, k, v = qkv(4)
    assert ops.takes_attention(q, k, v)
    assert ops.takes_attention(q, k.view(torch.uint8), v.view(torch.uint8))
    assert not ops.takes_attention(q.float(), k.float(), v.float())
    assert not ops.takes_attention(q, k.float(), v.float())
    assert not ops.takes_attention(q.requires_grad_(), k, v)
    with torch.no_grad():
        assert ops.takes_attention(q, k, v)
