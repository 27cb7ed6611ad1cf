"""Parameter counts against element counts of the reference modules, to the last one."""

import pytest

from plan_shapes import MODELS, TINY
from qvl.plan.parameters import language_linears, parameter_counts, vision_linears

# name: total, tower, merger, DeepStack, language (table and norm included), head.
# Source: reference classes on the meta device with the published configs (generation 1: summed by hand from
# its remote code; its projection after the resampler counts as merger here).
KNOWN = {
    "Qwen2-VL-2B": (2_208_985_600, 631_183_360, 34_087_936, 0, 1_543_714_304, 0),
    "Qwen2-VL-7B": (8_291_375_616, 631_183_360, 44_575_744, 0, 7_070_619_136, 544_997_376),
    "Qwen2-VL-72B": (73_405_560_320, 631_183_360, 68_173_312, 0, 71_460_495_360, 1_245_708_288),
    "Qwen2.5-VL-3B": (3_754_622_976, 631_975_680, 36_708_608, 0, 3_085_938_688, 0),
    "Qwen2.5-VL-7B": (8_292_166_656, 631_975_680, 44_574_464, 0, 7_070_619_136, 544_997_376),
    "Qwen2.5-VL-32B": (33_452_718_336, 636_401_664, 52_440_320, 0, 31_985_308_672, 778_567_680),
    "Qwen2.5-VL-72B": (73_410_777_344, 636_401_664, 68_172_032, 0, 71_460_495_360, 1_245_708_288),
    "Qwen3-VL-2B": (2_127_532_032, 306_242_560, 25_174_016, 75_540_480, 1_720_574_976, 0),
    "Qwen3-VL-4B": (4_437_815_808, 306_242_560, 27_271_680, 81_833_472, 4_022_468_096, 0),
    "Qwen3-VL-8B": (8_767_123_696, 415_891_440, 40_119_040, 120_377_856, 7_568_405_504, 622_329_856),
    "Qwen3-VL-32B": (33_357_390_064, 415_891_440, 44_838_656, 134_536_704, 31_984_210_944, 777_912_320),
    "Qwen3-VL-30B-A3B": (31_070_754_032, 415_891_440, 30_679_808, 92_060_160, 30_220_957_696, 311_164_928),
    "Qwen3-VL-235B-A22B": (
        235_670_022_896, 415_891_440, 40_119_040, 120_377_856, 234_471_304_704, 622_329_856,
    ),
    "Qwen-VL": (
        9_656_935_168, 1_842_770_688, 76_054_528 + 16_785_408, 0, 7_721_324_544 - 622_329_856, 622_329_856,
    ),
}  # fmt: skip

# name: total, vision
KNOWN_3_5 = {
    "Qwen3.5-0.8B": (852_985_920, 100_592_896),
    "Qwen3.5-9B": (9_409_813_744, 456_010_480),
    "Qwen3.5-27B": (27_356_728_560, 460_730_096),
    "Qwen3.5-35B-A3B": (35_107_181_936, 446_571_248),
    "Qwen3.5-397B-A17B": (396_802_360_816, 456_010_480),
}

KNOWN_ACTIVE = {
    "Qwen3-VL-30B-A3B": 3_891_664_112,
    "Qwen3-VL-235B-A22B": 22_767_151_856,
    "Qwen3.5-35B-A3B": 3_901_560_176,
    "Qwen3.5-397B-A17B": 17_805_051_376,
}


@pytest.mark.parametrize("name", KNOWN)
def test_counts_by_part_equal_the_reference_to_the_last_one(name):
    c = parameter_counts(MODELS[name])
    assert (c.total, c.tower, c.merger, c.deepstack, c.language, c.head) == KNOWN[name]


@pytest.mark.parametrize("name", KNOWN_3_5)
def test_hybrid_counts_equal_the_reference_to_the_last_one(name):
    c = parameter_counts(MODELS[name])
    assert (c.total, c.vision) == KNOWN_3_5[name]


@pytest.mark.parametrize("name", KNOWN_ACTIVE)
def test_active_counts_equal_the_reference_to_the_last_one(name):
    assert parameter_counts(MODELS[name]).active == KNOWN_ACTIVE[name]


def test_dense_models_have_no_idle_experts():
    c = parameter_counts(MODELS["Qwen2.5-VL-7B"])
    assert c.active == c.total


def test_every_known_model_is_checked():
    assert set(KNOWN) | set(KNOWN_3_5) == set(MODELS)


def test_explicit_head_dim_widens_q_and_o_only():
    shapes = {s.name: s for s in language_linears(TINY)}
    assert shapes["q_proj"].out_features == 4 * 128 != TINY.text.hidden_size
    assert shapes["o_proj"].in_features == 4 * 128
    assert shapes["k_proj"].out_features == 2 * 128
    assert shapes["gate_proj"].in_features == TINY.text.hidden_size


def test_hybrid_layers_share_the_depth_between_two_kinds_of_attention():
    shapes = {s.name: s for s in language_linears(MODELS["Qwen3.5-9B"])}
    assert (shapes["q_proj"].count, shapes["in_proj_qkv"].count) == (8, 24)
    assert shapes["down_proj"].count == 32


def test_no_vision_linear_is_quantised_and_every_head_is_listed_once():
    for config in MODELS.values():
        for part in ("tower", "merger", "deepstack"):
            shapes = vision_linears(config, part)
            assert not any(s.quantized for s in shapes)
            assert len({s.name for s in shapes}) == len(shapes)


def test_changing_the_vision_inner_size_moves_only_the_tower():
    from dataclasses import replace

    config = MODELS["Qwen2.5-VL-72B"]
    narrow = replace(config, vision=replace(config.vision, intermediate_size=3420))
    assert parameter_counts(narrow).total == 73_406_351_360
    assert parameter_counts(narrow).language == parameter_counts(config).language
