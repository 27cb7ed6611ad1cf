"""Packed segments against masks, windows against hand-made answers, rotary angles against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models_reference import PATCH_DIM, peak_growth
from qvl.catalog import generations
from qvl.catalog.config import ModelConfig, TextConfig, VisionConfig
from qvl.errors import MediaError, PromptError
from qvl.models import build
from qvl.models.attention import CausalAttention, Segments
from qvl.models.base import VisionLanguageModel, initialize
from qvl.models.decoder import mrope_cos_sin
from qvl.models.layers import RMSNorm, apply_rope
from qvl.models.qwen2_5_vl import window_index
from qvl.models.vision import patch_coordinates, vision_cos_sin

TEXT = TextConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=50,
    max_position_embeddings=100,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    mrope_section=(1, 1, 2),
    attention_bias=True,
)
VISION = VisionConfig(
    depth=2,
    hidden_size=16,
    intermediate_size=20,
    num_heads=1,
    out_hidden_size=32,
    patch_size=14,
    window_size=112,
    fullatt_block_indexes=(1,),
)


def tiny(
    family: str = "qwen2_5_vl", text: TextConfig = TEXT, vision: VisionConfig = VISION
) -> VisionLanguageModel:
    config = ModelConfig(
        generation=generations.by_name(family),
        text=text,
        vision=vision,
        image_token_id=40,
        video_token_id=41,
        vision_start_token_id=42,
        vision_end_token_id=43,
    )
    model = build(config).eval().requires_grad_(False)
    initialize(model, 0.2, torch.Generator().manual_seed(0))
    return model


def masked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, owner: torch.Tensor, causal: bool
) -> torch.Tensor:
    """The slow oracle: one big mask, softmax written out."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qnh,knh->nqk", q, k) / math.sqrt(q.shape[-1])
    allowed = owner[:, None] == owner[None]
    scores = scores.masked_fill(~(allowed.tril() if causal else allowed), -torch.inf)
    return torch.einsum("nqk,knh->qnh", scores.softmax(-1), v)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=8), st.booleans(), st.sampled_from([1, 2, 4]))
def test_segments_equal_one_big_mask(lengths: list[int], causal: bool, kv_heads: int) -> None:
    torch.manual_seed(len(lengths))
    total = sum(lengths)
    q = torch.randn(total, 4, 8)
    k, v = torch.randn(total, kv_heads, 8), torch.randn(total, kv_heads, 8)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    expected = masked(q, k, v, owner, causal)
    assert torch.allclose(Segments(lengths).attend(q, k, v, causal), expected, atol=1e-5)


def test_equal_lengths_run_as_one_batch_without_a_gather() -> None:
    segments = Segments([5, 5, 5])
    assert segments.groups == [(3, 5)]
    assert segments.rows is None


def test_no_rows_give_no_rows() -> None:
    empty = torch.empty(0, 2, 8)
    assert CausalAttention([])(0, empty, empty, empty).shape == (0, 2, 8)
    assert CausalAttention([0])(0, empty, empty, empty).shape == (0, 2, 8)


# --- windows: known answers from the published index algorithm


@pytest.mark.parametrize(
    ("grid", "order", "lengths"),
    [
        (
            (1, 8, 12),
            "0 1 2 3 6 7 8 9 12 13 14 15 18 19 20 21 4 5 10 11 16 17 22 23",
            [16, 8],
        ),
        (
            (1, 10, 10),
            "0 1 2 3 5 6 7 8 10 11 12 13 15 16 17 18 4 9 14 19 20 21 22 23 24",
            [16, 4, 4, 1],
        ),
    ],
)
def test_window_order_matches_known_answers(
    grid: tuple[int, int, int], order: str, lengths: list[int]
) -> None:
    windows = window_index([grid], VISION)
    assert windows.order_U.tolist() == [int(n) for n in order.split()]
    assert windows.lengths == lengths


@pytest.mark.parametrize(
    ("grid", "patches"),
    [((1, 16, 16), [64] * 4), ((1, 10, 20), [64, 64, 32, 16, 16, 8]), ((2, 8, 8), [64, 64])],
)
def test_window_lengths_match_known_answers(grid: tuple[int, int, int], patches: list[int]) -> None:
    assert [4 * n for n in window_index([grid], VISION).lengths] == patches


def test_windows_of_a_second_picture_follow_the_first() -> None:
    both = window_index([(1, 4, 4), (1, 10, 6)], VISION)
    second = window_index([(1, 10, 6)], VISION)
    assert both.order_U[:4].tolist() == [0, 1, 2, 3]
    assert torch.equal(both.order_U[4:], second.order_U + 4)
    assert both.lengths == [4, *second.lengths]


def test_a_frames_windows_follow_each_other() -> None:
    """So that a frame's patches stay one run in window order, and blocks with full attention need no gather."""
    order = window_index([(3, 10, 6), (1, 4, 4)], VISION).order_U
    frames = torch.arange(4).repeat_interleave(torch.tensor([15, 15, 15, 4]))
    assert torch.equal(frames[order], frames)


# --- towers


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_a_frame_never_changes_another(family: str) -> None:
    model = tiny(family)
    patches = torch.randn(3 * 80, PATCH_DIM)
    changed = patches.clone()
    changed[80:160] += 1.0
    before, after = (model.encode_media(p, [(3, 8, 10)]) for p in (patches, changed))
    assert torch.equal(before[:20], after[:20])
    assert torch.equal(before[40:], after[40:])
    assert not torch.allclose(before[20:40], after[20:40])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_media_packed_together_equal_media_encoded_alone(family: str) -> None:
    model = tiny(family)
    media = [(1, 10, 6), (2, 4, 12), (1, 2, 2), (1, 18, 10)]
    patches = [torch.randn(t * h * w, PATCH_DIM) for t, h, w in media]
    alone = torch.cat([model.encode_media(p, [g]) for p, g in zip(patches, media)])
    assert torch.allclose(model.encode_media(torch.cat(patches), media), alone, atol=1e-5)


def test_a_patch_outside_the_window_only_matters_through_the_full_blocks() -> None:
    patches = torch.randn(16 * 16, PATCH_DIM)
    changed = patches.clone()
    changed[-1] += 1.0  # bottom right: the last of the four windows
    windows_only = tiny(vision=VisionConfig(**{**vars(VISION), "fullatt_block_indexes": ()}))
    with_full = tiny()
    for model, other_windows_see_it in ((windows_only, False), (with_full, True)):
        before, after = model.encode_media(patches, [(1, 16, 16)]), model.encode_media(changed, [(1, 16, 16)])
        assert torch.equal(before[0], after[0]) is not other_windows_see_it


def test_no_attention_mask_is_built_and_windows_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, bool]] = []
    kernel = F.scaled_dot_product_attention

    def spy(q: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        calls.append((q.shape[-2], kwargs.get("attn_mask") is not None or len(args) > 2))
        return kernel(q, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    vision = VisionConfig(**{**vars(VISION), "fullatt_block_indexes": ()})
    tiny(vision=vision).encode_media(torch.randn(34 * 52, PATCH_DIM), [(1, 34, 52)])
    assert max(length for length, _ in calls) == 64
    assert not any(has_mask for _, has_mask in calls)
    assert len(calls) == vision.depth * 4  # inner, right edge, bottom edge and corner windows


def test_peak_memory_of_a_large_picture_is_far_below_patches_squared() -> None:
    num_patches = 128 * 128  # a mask of one byte a pair would be 256 MiB, scores 1 GiB a head
    model = tiny()
    patches = torch.zeros(num_patches, PATCH_DIM)
    model.encode_media(patches[:256], [(1, 16, 16)])
    with peak_growth() as growth:
        model.encode_media(patches, [(1, 128, 128)])
    assert growth[0] < num_patches * PATCH_DIM * 4 + 64 * 2**20  # the patches reordered, and little more


@pytest.mark.parametrize(
    ("shape", "media", "needed"),
    [
        ((16, PATCH_DIM), [(1, 4, 6)], "(24, 1176)"),
        ((24, 1000), [(1, 4, 6)], "(24, 1176)"),
        ((15, PATCH_DIM), [(1, 3, 5)], "multiples of 2"),
        ((0, PATCH_DIM), [(0, 4, 4)], "multiples of 2"),
    ],
)
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_patches_that_do_not_fit_the_grids_are_named(
    family: str, shape: tuple[int, int], media: list[tuple[int, int, int]], needed: str
) -> None:
    with pytest.raises(MediaError, match=needed.replace("(", r"\(").replace(")", r"\)")):
        tiny(family).encode_media(torch.zeros(shape), media)


def test_patch_coordinates_are_in_merge_block_order() -> None:
    rows = ["".join(map(str, yx)) for yx in patch_coordinates([(1, 4, 4)], 2).tolist()]
    assert rows == "00 01 10 11 02 03 12 13 20 21 30 31 22 23 32 33".split()


def test_every_frame_has_the_same_patch_coordinates() -> None:
    coordinates = patch_coordinates([(3, 4, 6)], 2).view(3, 24, 2)
    assert torch.equal(coordinates[0], coordinates[1])
    assert torch.equal(coordinates[0], coordinates[2])


# --- rotary angles


def test_vision_angles_turn_rows_then_columns_twice() -> None:
    cos, sin = vision_cos_sin(torch.tensor([[3, 5]]), head_dim=8)
    inverse = [1.0, 10000 ** (-2 / 4)]
    angles = torch.tensor([3 * inverse[0], 3 * inverse[1], 5 * inverse[0], 5 * inverse[1]] * 2)
    assert torch.allclose(cos[0], angles.cos())
    assert torch.allclose(sin[0], angles.sin())


def test_text_angles_take_each_section_from_its_axis() -> None:
    positions = torch.tensor([[7], [11], [13]])
    cos, _ = mrope_cos_sin(positions, TEXT, torch.float32)
    inverse = [10000 ** (-2 * j / 8) for j in range(4)]
    angles = torch.tensor([7 * inverse[0], 11 * inverse[1], 13 * inverse[2], 13 * inverse[3]] * 2)
    assert torch.allclose(cos[0], angles.cos(), atol=1e-6)


def test_angles_are_exact_past_bfloat16s_last_whole_number() -> None:
    """In bf16 the positions 1024 and 1025 are one number; computed in fp32 their angles differ."""
    cos, _ = mrope_cos_sin(torch.tensor([[1024, 1025]] * 3), TEXT, torch.bfloat16)
    assert cos.dtype == torch.bfloat16
    assert abs(cos[1, 0].item() - math.cos(1025)) < 0.005
    assert abs(cos[0, 0].item() - math.cos(1024)) < 0.005


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 8)

    def score(a: int, b: int) -> float:
        (ca, sa), (cb, sb) = (mrope_cos_sin(torch.full((3, 1), p), TEXT, torch.float32) for p in (a, b))
        return float((apply_rope(q, ca, sa) * apply_rope(k, cb, sb)).sum())

    assert score(3, 10) == pytest.approx(score(53, 60), abs=1e-4)
    assert score(3, 10) != pytest.approx(score(3, 11), abs=1e-4)


def test_rms_norm_multiplies_after_casting_back() -> None:
    """In bf16 the two orders differ in the last place for some values; the reference casts first."""
    torch.manual_seed(0)
    norm = RMSNorm(64).bfloat16()
    norm.weight.data.normal_()
    x = torch.randn(100, 64, dtype=torch.bfloat16)
    wide = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(norm(x), norm.weight * wide.bfloat16())
    assert not torch.equal(norm(x), (norm.weight.float() * wide).bfloat16())


# --- the model's seams


def test_each_layer_asks_once_with_its_number() -> None:
    model = tiny()
    asked: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        asked.append((layer, tuple(q.shape), tuple(k.shape)))
        assert v.shape == k.shape
        return q

    out = model.decode(model.embed(torch.arange(5)), torch.arange(5).expand(3, 5), attend)
    assert asked == [(0, (5, 4, 8), (5, 2, 8)), (1, (5, 4, 8), (5, 2, 8))]
    assert model.logits(out).shape == (5, 50)


@pytest.mark.parametrize("rows", [[4], [1, 3], [3, 3, 0], []], ids=str)
@pytest.mark.parametrize("deepstack", [0, 1, 2])
def test_rows_asked_for_alone_are_those_rows(rows: list[int], deepstack: int) -> None:
    """They alone pass the last layer's MLP, but its keys and values are those of all tokens."""
    model, seen = tiny(), []
    plain = CausalAttention([2, 3])

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append((k, v))
        return plain(layer, q, k, v)

    hidden = torch.randn(5, 32 * (1 + deepstack), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(5).expand(3, 5)
    whole = model.decode(hidden, positions, attend)
    alone = model.decode(hidden, positions, attend, torch.tensor(rows, dtype=torch.int64))
    assert alone.shape == (len(rows), 32)
    torch.testing.assert_close(alone, whole[rows] if rows else alone)
    for (k, v), (again_k, again_v) in zip(seen[:2], seen[2:], strict=True):
        assert torch.equal(k, again_k)
        assert torch.equal(v, again_v)


def test_features_fill_picture_and_video_places_in_order() -> None:
    model = tiny()
    ids = torch.tensor([1, 40, 40, 2, 41, 3])
    hidden = model.embed(ids)
    features = torch.arange(3.0)[:, None].expand(3, 32)
    merged = model.merge_features(hidden, ids, features)
    assert merged[[1, 2, 4], 0].tolist() == [0.0, 1.0, 2.0]
    assert torch.equal(merged[[0, 3, 5]], hidden[[0, 3, 5]])
    assert torch.equal(hidden, model.embed(ids)), "the input is left as it was"


@pytest.mark.parametrize("num_features", [0, 1, 3])
def test_a_wrong_number_of_features_is_refused_with_both_numbers(num_features: int) -> None:
    model = tiny()
    ids = torch.tensor([1, 40, 40])
    with pytest.raises(PromptError, match=f"2 image .* give {num_features} features"):
        model.merge_features(model.embed(ids), ids, torch.zeros(num_features, 32))


def test_one_seed_gives_one_network_and_sane_starting_values() -> None:
    first, second = tiny(), tiny()
    for (name, a), b in zip(first.named_parameters(), second.parameters()):
        assert torch.equal(a, b), name
    assert not first.visual.blocks[0].attn.qkv.bias.any()
    assert first.visual.patch_embed.proj.weight.std() == pytest.approx(0.2, rel=0.1)
    assert (first.model.norm.weight == 1).all()
