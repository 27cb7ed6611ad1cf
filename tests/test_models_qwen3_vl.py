"""What Qwen3-VL adds: position table, interleaved axes, DeepStack rows, experts. Parity is in test_models_parity."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models_reference import SHAPES_3, Prompt, both, our_hidden, our_logits
from qvl.catalog.config import TextConfig, VisionConfig, config_dict, read_config
from qvl.catalog.generations import by_name
from qvl.catalog.models import config_of
from qvl.checkpoint.names import published_names
from qvl.models import build
from qvl.models.base import VisionLanguageModel
from qvl.models.checkpoint import load_model, save_model
from qvl.models.decoder import mrope_axes
from qvl.models.moe import Experts, MixtureOfExperts
from qvl.models.qwen3_vl import table_taps
from qvl.models.vision import patch_coordinates
from test_models_attention import TEXT, VISION, tiny

TEXT_3 = replace(TEXT, qk_norm=True, attention_bias=False, mrope_interleaved=True, mrope_section=(2, 1, 1))
EXPERTS = replace(TEXT_3, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=12)
VISION_3 = VisionConfig(
    depth=3,
    hidden_size=16,
    intermediate_size=20,
    num_heads=1,
    out_hidden_size=32,
    patch_size=16,
    num_position_embeddings=25,
    deepstack_visual_indexes=(0, 2),
)

# whole model, tower without mergers, main merger, DeepStack mergers, decoder, head (0: tied)
PARAMETERS = {
    "Qwen3-VL-2B": (2_127_532_032, 306_242_560, 25_174_016, 75_540_480, 1_720_574_976, 0),
    "Qwen3-VL-4B": (4_437_815_808, 306_242_560, 27_271_680, 81_833_472, 4_022_468_096, 0),
    "Qwen3-VL-8B": (8_767_123_696, 415_891_440, 40_119_040, 120_377_856, 7_568_405_504, 622_329_856),
    "Qwen3-VL-32B": (33_357_390_064, 415_891_440, 44_838_656, 134_536_704, 31_984_210_944, 777_912_320),
    "Qwen3-VL-30B-A3B": (31_070_754_032, 415_891_440, 30_679_808, 92_060_160, 30_220_957_696, 311_164_928),
    "Qwen3-VL-235B-A22B": (
        235_670_022_896,
        415_891_440,
        40_119_040,
        120_377_856,
        234_471_304_704,
        622_329_856,
    ),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = build(config_of(name))

    def count(module: torch.nn.Module | None) -> int:
        return sum(p.numel() for p in module.parameters()) if module is not None else 0

    merger, deep = count(model.visual.merger), count(model.visual.deepstack_merger_list)
    tower = count(model.visual) - merger - deep
    assert (count(model), tower, merger, deep, count(model.model), count(model.lm_head)) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_written_config_is_read_back_equal(name: str) -> None:
    config = replace(config_of(name), dtype="bfloat16")
    assert read_config(json.loads(json.dumps(config_dict(config)))) == config


# --- the position table


def test_table_taps_match_known_answers() -> None:
    """A 4 x 4 grid on the 48 x 48 table: steps of 47 / 3, so shares are thirds and ninths."""
    coordinates = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [3, 3]])
    index, weight = table_taps(coordinates, torch.full((5, 2), 4), 48)
    taps = [
        {i: round(w * 9) for i, w in zip(column_i, column_w) if w > 1e-6}
        for column_i, column_w in zip(index.T.tolist(), weight.T.tolist())
    ]
    assert taps == [
        {0: 9},
        {15: 3, 16: 6},
        {720: 3, 768: 6},
        {735: 1, 736: 2, 783: 2, 784: 4},
        {47 * 48 + 47: 9},
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(1, 12), st.integers(1, 12))
def test_the_resampled_table_equals_bilinear_interpolation(side: int, h: int, w: int) -> None:
    table = torch.randn(side * side, 3)
    coordinates = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).view(-1, 2)
    index, weight = table_taps(coordinates, torch.tensor([[h, w]]).expand(h * w, 2), side)
    ours = (table[index] * weight[..., None]).sum(0)
    square = table.view(1, side, side, 3).permute(0, 3, 1, 2)
    expected = F.interpolate(square, (h, w), mode="bilinear", align_corners=True)
    assert torch.allclose(ours.view(h, w, 3), expected[0].permute(1, 2, 0), atol=1e-5)


def test_every_frame_and_picture_has_its_own_stretch_of_the_table() -> None:
    model = tiny("qwen3_vl", TEXT_3, VISION_3)
    media = [(2, 4, 6), (1, 2, 2)]
    together = model.visual.positions(patch_coordinates(media, 2), media)
    for grid, rows in zip(media, together.split([48, 4])):
        alone = model.visual.positions(patch_coordinates([grid], 2), [grid])
        assert torch.equal(rows, alone)
    assert torch.equal(together[:24], together[24:48])


# --- axes


def test_interleaved_axes_match_the_published_layout() -> None:
    axes = mrope_axes(config_of("Qwen3-VL-8B").text)
    assert "".join("THW"[a] for a in axes) == "THW" * 20 + "TTTT"


def test_axes_in_runs_match_the_published_layout() -> None:
    axes = mrope_axes(config_of("Qwen2.5-VL-7B").text)
    assert "".join("THW"[a] for a in axes) == "T" * 16 + "H" * 24 + "W" * 24


# --- DeepStack


def cached(cache: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> object:
    """An attend that keeps keys and values between calls: one sequence, fed in any cuts."""

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if layer in cache:
            k, v = torch.cat((cache[layer][0], k)), torch.cat((cache[layer][1], v))
        cache[layer] = (k, v)
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)

    return attend


@pytest.mark.parametrize("cuts", [[1], [7, 3], [5, 1, 1, 1, 9]])
def test_a_prompt_fed_in_pieces_gives_the_same_answer(cuts: list[int], tmp_path: Path) -> None:
    prompt = Prompt([3, ("image", (1, 6, 4)), 2, ("video", (2, 2, 4)), 4], 0, "qwen3_vl")
    with both("qwen3_vl", tmp_path, "wide_heads") as (_, ours):
        whole = our_logits(ours, [prompt])
        hidden = our_hidden(ours, [prompt])
        positions = torch.from_numpy(prompt.positions("qwen3_vl").positions)
        cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        sizes = [*cuts, len(hidden) - sum(cuts)]
        parts = [
            ours.decode(h, p, cached(cache))  # type: ignore[arg-type]
            for h, p in zip(hidden.split(sizes), positions.split(sizes, dim=1))
        ]
    assert torch.allclose(ours.logits(torch.cat(parts)), whole, atol=1e-4)


def test_rows_without_deepstack_are_rows_with_zeros() -> None:
    model = tiny("qwen3_vl", TEXT_3, VISION_3)
    ids, positions = torch.arange(6), torch.arange(6).expand(3, 6)
    narrow = model.embed(ids)
    wide = F.pad(narrow, (0, 64))

    def out(hidden: torch.Tensor) -> torch.Tensor:
        return model.decode(hidden, positions, cached({}))  # type: ignore[arg-type]

    assert torch.equal(out(narrow), out(wide))
    wide[2, 40] = 1.0
    changed = out(wide)
    assert torch.equal(changed[:2], out(narrow)[:2])
    assert not torch.allclose(changed[2:], out(narrow)[2:])


def test_features_widen_every_row_and_fill_only_placeholders() -> None:
    model = tiny("qwen3_vl", TEXT_3, VISION_3)
    ids = torch.tensor([1, 40, 2, 41])
    features = torch.ones(2, 96)
    merged = model.merge_features(model.embed(ids), ids, features)
    assert merged.shape == (4, 96)
    assert merged[[1, 3]].eq(1).all()
    assert torch.equal(merged[[0, 2], :32], model.embed(ids[[0, 2]]))
    assert not merged[[0, 2], 32:].any()


def test_each_tap_adds_one_width_to_the_features() -> None:
    model = tiny("qwen3_vl", TEXT_3, VISION_3)
    assert model.encode_media(torch.randn(24, 1536), [(1, 4, 6)]).shape == (6, 3 * 32)


# --- experts


def experts(config: TextConfig = EXPERTS) -> MixtureOfExperts:
    torch.manual_seed(1)
    block = MixtureOfExperts(config).requires_grad_(False)
    for p in block.parameters():
        p.normal_(0, 0.3)
    return block


@pytest.mark.parametrize("num_tokens", [1, 2, 17])
@pytest.mark.parametrize("renormalise", [True, False])
def test_experts_equal_a_loop_over_tokens(num_tokens: int, renormalise: bool) -> None:
    block = experts(replace(EXPERTS, norm_topk_prob=renormalise))
    x = torch.randn(num_tokens, 32)
    for token, result in zip(x, block(x)):
        scores = (block.gate.weight @ token).softmax(0)
        best = scores.argsort(descending=True)[:2]
        weights = scores[best] / (scores[best].sum() if renormalise else 1.0)
        expected = torch.zeros(32)
        for e, weight in zip(best.tolist(), weights):
            gate, up = (token @ block.experts.gate_up_proj[e]).chunk(2)
            expected += weight * ((F.silu(gate) * up) @ block.experts.down_proj[e])
        assert torch.allclose(result, expected, atol=1e-5)


def test_one_token_runs_only_its_own_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    forward = Experts.forward

    def spy(self: Experts, x: torch.Tensor, expert: int) -> torch.Tensor:
        ran.append(expert)
        return forward(self, x, expert)

    monkeypatch.setattr(Experts, "forward", spy)
    block, x = experts(), torch.randn(1, 32)
    block(x)
    assert sorted(ran) == sorted(block.route(x)[1][0].tolist())


def test_no_tokens_give_no_rows() -> None:
    assert experts()(torch.empty(0, 32)).shape == (0, 32)


# --- files


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe"])
@pytest.mark.parametrize("shape", SHAPES_3)
def test_transformers_reads_what_we_save(family: str, shape: str, tmp_path: Path) -> None:
    with both(family, tmp_path / "theirs", shape) as (theirs, ours):
        save_model(ours, tmp_path / "ours")
        again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    expected = theirs.state_dict()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_saved_names_are_nested_and_read_back(tmp_path: Path) -> None:
    model: VisionLanguageModel = tiny("qwen3_vl_moe", EXPERTS, VISION_3)
    names = published_names((n for n, _ in model.named_parameters()), by_name("qwen3_vl_moe"))
    assert names["model.layers.0.mlp.experts.down_proj"] == (
        "model.language_model.layers.0.mlp.experts.down_proj"
    )
    assert names["visual.pos_embed.weight"] == "model.visual.pos_embed.weight"
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    for (name, a), b in zip(model.named_parameters(), again.parameters()):
        assert torch.equal(a, b), name


def test_a_qwen2_5_tower_has_no_extra_width() -> None:
    model = tiny("qwen2_5_vl", TEXT, VISION)
    assert model.encode_media(torch.randn(16, 1176), [(1, 4, 4)]).shape == (4, 32)
