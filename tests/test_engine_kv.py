"""Paged attention against plain attention over the whole sequence, the slow clear version."""

import pytest
import torch

from qvl.engine.kv import KVStore, PagedAttention, Span, _attend_without_mask, attend_one
from qvl.models.attention import CausalAttention

N, K, H, SIZE = 4, 2, 8, 4


def store(num_blocks=64, dtype=torch.float32) -> KVStore:
    made = KVStore([0], num_blocks, SIZE, K, H, dtype=dtype)
    for held in (made._keys[0], made._values[0]):  # what was never written must never be read
        held.fill_(0x7F if made.is_8bit else float("nan"))
    return made


def qkv(length: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(length, heads, H, generator=generator) for heads in (N, K, K))


def oracle(q, k, v):
    return CausalAttention([len(q)])(0, q, k, v)


def run(kv: KVStore, sequences, cuts):
    """Each sequence (blocks, q, k, v) in chunks; the i-th chunks of all go together. Returns outputs."""
    outputs = [[] for _ in sequences]
    for index in range(max(map(len, cuts))):
        spans, parts, owners, row = [], [], [], 0
        for owner, ((blocks, q, k, v), cut) in enumerate(zip(sequences, cuts)):
            if index >= len(cut):
                continue
            start, end = sum(cut[:index]), sum(cut[: index + 1])
            spans.append(Span(row, end - start, start, blocks))
            parts.append((q[start:end], k[start:end], v[start:end]))
            owners.append(owner)
            row += end - start
        out = PagedAttention(kv, spans)(0, *(torch.cat(x) for x in zip(*parts)))
        for owner, span in zip(owners, spans):
            outputs[owner].append(out[span.row : span.row + span.num_tokens])
    return [torch.cat(parts) for parts in outputs]


@pytest.mark.parametrize("blocks", [[3, 4, 5, 6, 7], [9, 2, 30, 11, 5]], ids=["neighbours", "scattered"])
@pytest.mark.parametrize("cut", [[17], [5, 12], [1] * 17, [9, 1, 1, 6], [16, 1]], ids=str)
def test_paged_equals_contiguous_however_the_sequence_is_cut(blocks, cut):
    q, k, v = qkv(17, seed=0)
    (out,) = run(store(), [(blocks, q, k, v)], [cut])
    torch.testing.assert_close(out, oracle(q, k, v), atol=1e-5, rtol=1e-5)


def test_prefill_behind_a_past_without_a_mask_equals_masked_rows():
    q, k, v = qkv(17, seed=4)
    late = slice(12, 17)
    out = _attend_without_mask(q[late], k.transpose(0, 1)[None], v.transpose(0, 1)[None])
    torch.testing.assert_close(out, oracle(q, k, v)[late], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
def test_decoding_beside_a_prompt_through_block_tables_equals_ordinary_reading(monkeypatch, dtype):
    sequences = [([0, 1, 2], *qkv(9, 1)), ([20, 7, 13], *qkv(12, 2)), ([40, 41, 42], *qkv(10, 3))]
    cuts = [[3, 1, 1, 4], [8, 4], [4, 1, 1, 1, 3]]
    ordinary = run(store(dtype=dtype), sequences, cuts)
    monkeypatch.setattr("qvl.engine.kv.has_kernel", lambda device, held: True)
    for found, expected in zip(run(store(dtype=dtype), sequences, cuts), ordinary):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_sequences_in_one_step_do_not_see_each_other():
    sequences = [([0, 1, 2], *qkv(9, 1)), ([20, 7, 13], *qkv(12, 2)), ([40, 41, 42], *qkv(10, 3))]
    cuts = [[3, 1, 1, 4], [8, 4], [4, 1, 1, 1, 3]]
    for out, (_, q, k, v) in zip(run(store(), sequences, cuts), sequences):
        torch.testing.assert_close(out, oracle(q, k, v), atol=1e-5, rtol=1e-5)


def test_padded_decoding_equals_one_by_one(monkeypatch):
    sequences = [([3 * i, 3 * i + 1, 3 * i + 2], *qkv(6 + i, i)) for i in range(5)]
    cuts = [[len(q) - 2, 1, 1] for _, q, _, _ in sequences]
    together = run(store(), sequences, cuts)
    monkeypatch.setattr("qvl.engine.kv.GATHER_BYTES", 0)
    apart = run(store(), sequences, cuts)
    for one, other in zip(together, apart):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_decoding_pads_only_when_it_pays():
    kv = store()
    spans = [Span(0, 1, 6, [0, 1]), Span(1, 1, 3, [8])]
    assert PagedAttention(kv, spans).plan.padded is not None
    assert PagedAttention(kv, spans[:1]).plan.padded is None


def test_a_long_chunk_behind_a_past_is_cut_into_pieces_of_rows(monkeypatch):
    q, k, v = qkv(40, seed=4)
    whole = attend_one(q[10:], k, v)
    monkeypatch.setattr("qvl.engine.kv.QUERY_ROWS", 7)
    torch.testing.assert_close(attend_one(q[10:], k, v), whole, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(whole, oracle(q, k, v)[10:], atol=1e-5, rtol=1e-5)


def test_neighbouring_blocks_are_read_without_a_copy():
    kv = store()
    assert isinstance(PagedAttention(kv, [Span(0, 6, 0, [5, 6])]).plan.reads[0].place, slice)
    assert not isinstance(PagedAttention(kv, [Span(0, 6, 0, [6, 5])]).plan.reads[0].place, slice)
    keys, _ = kv.read(0, slice(20, 26), torch.float32)
    assert keys.data_ptr() == kv._keys[0][20].data_ptr()


def test_eight_bit_kv_halves_the_bytes_and_stays_close():
    half, quarter = store(dtype=torch.bfloat16), store(dtype=torch.float8_e4m3fn)
    assert quarter.num_bytes * 2 == half.num_bytes
    q, k, v = qkv(17, seed=0)
    (out,) = run(quarter, [([3, 4, 5, 6, 7], q, k, v)], [[10, 1, 6]])
    reference = oracle(q, k, v)
    # e4m3 keeps 3 bits of mantissa: 6% of a value at most, averaged over the attended tokens
    assert (out - reference).abs().max() < 0.15 * reference.abs().max()
    assert torch.nn.functional.cosine_similarity(out.flatten(), reference.flatten(), dim=0) > 0.995


def test_a_key_beyond_eight_bits_is_clamped_not_infinite():
    kv = store(dtype=torch.float8_e4m3fn)
    kv.write(0, torch.tensor([0]), torch.full((1, K, H), 1e4), torch.full((1, K, H), -1e4))
    keys, values = kv.read(0, slice(0, 1), torch.float32)
    assert keys.max() == 448
    assert values.min() == -448
