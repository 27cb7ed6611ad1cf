"""config.json of Qwen2-VL and Qwen2.5-VL: both layouts, every fault named, written and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_configs import SIZES, hub_config
from qvl.catalog.config import config_dict, read_config
from qvl.errors import ConfigError, warn_once

REQUIRED = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
]
BOTH = ["Qwen2-VL-7B", "Qwen2.5-VL-7B"]


def changed(name: str = "Qwen2.5-VL-7B", vision: dict[str, Any] | None = None, **text: Any) -> dict[str, Any]:
    raw = hub_config(name)
    raw["vision_config"] = raw["vision_config"] | (vision or {})
    return raw | text


@pytest.mark.parametrize("name", SIZES)
def test_the_hubs_files_are_read(name: str) -> None:
    family, hidden, layers, heads, kv_heads, inner, vocab, tied, tower_inner = SIZES[name]
    config = read_config(hub_config(name))
    text, vision = config.text, config.vision
    assert config.family == family
    assert (text.hidden_size, text.num_hidden_layers, text.intermediate_size) == (hidden, layers, inner)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (heads, kv_heads, 128)
    assert (text.vocab_size, text.tie_word_embeddings, text.attention_bias) == (vocab, tied, True)
    assert text.mrope_section == (16, 24, 24)
    assert (vision.hidden_size, vision.intermediate_size, vision.out_hidden_size) == (
        1280,
        tower_inner,
        hidden,
    )
    assert (vision.head_dim, vision.patch_dim) == (80, 1176)
    assert config.eos_token_ids == (151645,)
    assert config.dtype == "bfloat16"


def test_qwen2_5_has_windows_and_absolute_time_and_qwen2_has_neither() -> None:
    later, earlier = read_config(hub_config("Qwen2.5-VL-3B")), read_config(hub_config("Qwen2-VL-2B"))
    assert (later.vision.window_size, later.vision.fullatt_block_indexes) == (112, (7, 15, 23, 31))
    assert later.vision.tokens_per_second == 2
    assert (earlier.vision.window_size, earlier.vision.tokens_per_second) == (0, 0)


@pytest.mark.parametrize("name", SIZES)
def test_a_written_config_is_read_back_equal(name: str) -> None:
    config = read_config(hub_config(name))
    assert read_config(json.loads(json.dumps(config_dict(config)))) == config


@pytest.mark.parametrize("name", BOTH)
def test_transformers_reads_a_written_config(name: str) -> None:
    hf = pytest.importorskip("transformers")

    kinds = {"Qwen2-VL-7B": hf.Qwen2VLConfig, "Qwen2.5-VL-7B": hf.Qwen2_5_VLConfig}
    ours = read_config(changed(name, vision={"depth": 33}))
    theirs = kinds[name](**config_dict(ours))
    text = theirs.get_text_config()
    for field in [*REQUIRED, "tie_word_embeddings"]:
        assert getattr(text, field) == getattr(ours.text, field), field
    assert tuple(text.rope_scaling["mrope_section"]) == ours.text.mrope_section
    assert theirs.vision_config.depth == ours.vision.depth


@pytest.mark.parametrize("name", BOTH)
def test_the_nested_layout_of_newer_transformers_reads_the_same(name: str, tmp_path: Path) -> None:
    hf = pytest.importorskip("transformers")

    kinds = {"Qwen2-VL-7B": hf.Qwen2VLConfig, "Qwen2.5-VL-7B": hf.Qwen2_5_VLConfig}
    kinds[name](**hub_config(name)).save_pretrained(tmp_path)
    nested = json.loads((tmp_path / "config.json").read_text())
    assert "text_config" in nested
    assert read_config(tmp_path) == read_config(hub_config(name))


def test_rope_parameters_of_transformers_5_read_the_same() -> None:
    raw = hub_config("Qwen2.5-VL-7B")
    theta, scaling = raw.pop("rope_theta"), raw.pop("rope_scaling")
    raw["rope_parameters"] = {**scaling, "rope_type": "default", "rope_theta": theta}
    assert read_config(raw) == read_config(hub_config("Qwen2.5-VL-7B"))


@pytest.mark.parametrize(
    ("version", "top", "nested", "tied"),
    [
        ("4.57.6", True, False, False),  # version 4's class default at the top of an untied model's file
        ("4.57.6", False, True, True),
        ("5.23.0", False, True, False),  # version 5 obeys the top flag
        ("5.23.0", True, False, True),
        ("5.23.0", None, True, True),
        ("4.57.6", True, None, True),
        (None, False, True, False),
    ],
)
def test_of_two_tying_flags_the_one_that_its_writer_obeyed_counts(
    version: str | None, top: bool | None, nested: bool | None, tied: bool
) -> None:
    raw = hub_config("Qwen2.5-VL-7B")
    text = {k: raw.pop(k) for k in [*REQUIRED, "rope_scaling"]}
    raw["text_config"] = text | {"tie_word_embeddings": nested}
    raw |= {"tie_word_embeddings": top, "transformers_version": version}
    assert read_config(raw).text.tie_word_embeddings is tied


# --- what a file may leave out, and what it may not


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(name: str, key: str) -> None:
    raw = hub_config(name)
    del raw[key]
    with pytest.raises(ConfigError, match=f"missing {key}"):
        read_config(raw)


def test_all_missing_keys_are_named_at_once() -> None:
    raw = hub_config("Qwen2.5-VL-7B")
    for key in REQUIRED:
        del raw[key]
    with pytest.raises(ConfigError) as caught:
        read_config(raw)
    assert all(key in str(caught.value) for key in REQUIRED)


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "tokens_per_second"])
def test_tower_fields_that_differ_between_models_have_no_default(key: str) -> None:
    raw = hub_config("Qwen2.5-VL-7B")
    del raw["vision_config"][key]
    with pytest.raises(ConfigError, match=f"vision_config: missing {key}"):
        read_config(raw)


def test_a_missing_tower_is_an_error_for_qwen2_5() -> None:
    raw = hub_config("Qwen2.5-VL-7B")
    del raw["vision_config"]
    with pytest.raises(ConfigError, match="vision_config: missing hidden_size"):
        read_config(raw)


def test_tower_fields_that_all_models_share_may_be_left_out() -> None:
    raw = hub_config("Qwen2-VL-7B")
    raw["vision_config"] = {"in_chans": 3, "spatial_patch_size": 14, "model_type": "qwen2_vl"}
    assert read_config(raw) == read_config(hub_config("Qwen2-VL-7B"))


@pytest.mark.parametrize("name", BOTH)
def test_the_towers_rotation_as_transformers_5_23_writes_it_is_read_and_any_other_refused(name: str) -> None:
    written = {"rope_theta": 10000.0, "rope_type": "axial"}
    assert read_config(changed(name, vision={"rope_parameters": written})) == read_config(hub_config(name))
    with pytest.raises(ConfigError, match=r"vision_config: rope_parameters is .*20000"):
        read_config(changed(name, vision={"rope_parameters": written | {"rope_theta": 20000.0}}))


@pytest.mark.parametrize("name", BOTH)
def test_a_key_that_is_not_known_is_passed_over_and_named_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What trainers write at the top, and a slip of the pen, which nobody can tell from it."""
    raw = changed(
        name, unsloth_version="2025.11.1", unsloth_fixed=True, atention_bias=True, vision={"flux": 3}
    )
    warn_once.cache_clear()
    config = read_config(raw)
    assert config == read_config(hub_config(name))
    assert config.unread == ("atention_bias", "unsloth_fixed", "unsloth_version", "vision_config.flux")
    read_config(raw)
    assert [r.getMessage() for r in caplog.records] == [f"config: not read: {', '.join(config.unread)}"]
    assert "unread" not in config.to_dict()


def test_a_key_of_the_rotary_embedding_that_its_type_does_not_use_is_named() -> None:
    rope = {"type": "mrope", "mrope_section": [16, 24, 24], "beta": 1}
    assert read_config(changed(rope_scaling=rope)).unread == ("rope_parameters.beta",)


@pytest.mark.parametrize("name", BOTH)
def test_a_key_known_to_change_the_computation_is_refused_unless_it_is_off(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"attn_logit_softcapping 30\.0, logit_scale 0\.5 changes what is computed"
    ):
        read_config(changed(name, attn_logit_softcapping=30.0, logit_scale=0.5))
    with pytest.raises(ConfigError, match="vision_config: vision_feature_layer -2 changes what is computed"):
        read_config(changed(name, vision={"vision_feature_layer": -2}))
    off = changed(name, attn_logit_softcapping=None, logit_scale=1.0, alibi=False, no_rope_layers=[])
    assert read_config(off) == read_config(hub_config(name))


def test_a_key_beside_a_nested_text_config_is_named() -> None:
    raw = hub_config("Qwen2.5-VL-7B")
    raw["text_config"] = {k: raw[k] for k in [*REQUIRED, "rope_scaling"]}
    assert read_config(raw).text.hidden_size == 3584
    assert read_config({**raw, "flux": 1}).unread == ("flux",)
    raw["text_config"]["flux"] = 1
    assert read_config(raw).unread == ("text_config.flux",)


# --- values that can't be


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(hidden_size="wide"), "hidden_size is 'wide', must be a whole number"),
        (dict(num_hidden_layers=0), "num_hidden_layers is 0, must be a whole number of at least 1"),
        (dict(num_hidden_layers=2.5), "num_hidden_layers is 2.5"),
        (dict(num_attention_heads=True), "num_attention_heads is True"),
        (dict(rms_norm_eps=-1e-6), "rms_norm_eps is -1e-06, must be a number of at least 0"),
        (dict(rope_theta=[1]), r"rope_theta is \[1\]"),
        (dict(num_key_value_heads=5), "28 heads can't share 5 key/value heads evenly"),
        (dict(hidden_act="gelu"), "hidden_act is 'gelu', only 'silu'"),
        (dict(use_sliding_window=True), "sliding-window attention"),
        (dict(rope_scaling={"type": "yarn", "factor": 4}), "rope type 'yarn' is not supported; known"),
        (dict(rope_scaling="mrope"), "must be an object, is 'mrope'"),
        (dict(rope_scaling={"type": "mrope"}), "mrope_section .* must sum to 64"),
        (dict(rope_scaling={"type": "mrope", "mrope_section": [16, 24, 25]}), "must sum to 64"),
        (dict(rope_scaling={"type": "mrope", "mrope_section": [32, 32]}), "must have 3 parts"),
        (dict(rope_scaling={"type": "mrope", "mrope_section": ["a"]}), "must be a list of whole numbers"),
        (dict(eos_token_id="end"), "eos_token_id is 'end'"),
        (dict(image_token_id="<image>"), "image_token_id is '<image>'"),
        (dict(quantization_config=4), "quantization_config must be an object, is 4"),
        (dict(vision_config=[1]), r"vision_config: must be an object, is \[1\]"),
        (dict(text_config="text"), "text_config must be an object, is 'text'"),
    ],
)
def test_an_impossible_value_is_named_with_what_is_possible(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(hub_config("Qwen2.5-VL-7B") | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(hidden_act="gelu"), "hidden_act is 'gelu', only 'silu'"),
        (dict(out_hidden_size=1280), "gives features of 1280, the text model takes 3584"),
        (dict(window_size=100), "window_size 100 is not a whole number of 28-pixel units"),
        (dict(fullatt_block_indexes=[7, 32]), r"\[7, 32\] go past depth 32"),
        (dict(num_heads=7), "width 1280 must be 7 heads"),
    ],
)
def test_an_impossible_tower_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(changed(vision=change))


def test_an_explicit_head_dim_wins_over_the_derived_one() -> None:
    raw = changed(head_dim=64, rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12]})
    config = read_config(raw)
    assert config.text.head_dim == 64
    assert read_config(config_dict(config)) == config


@given(st.integers(1, 5000), st.integers(1, 40000))
def test_a_written_mlp_ratio_gives_the_inner_width_back(width: int, inner: int) -> None:
    raw = hub_config("Qwen2-VL-7B")
    config = read_config(raw)
    from dataclasses import replace

    odd = replace(config, vision=replace(config.vision, hidden_size=width * 64, intermediate_size=inner))
    assert read_config(config_dict(odd)) == odd


# --- files


def test_a_folder_a_file_and_its_content_read_the_same(tmp_path: Path) -> None:
    raw = hub_config("Qwen2.5-VL-3B")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert read_config(tmp_path) == read_config(tmp_path / "config.json") == read_config(raw)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("[1]", "holds a list, not an object"),
        ('{"model_type": "llava"}', "'llava' is not known; known: .*qwen2_5_vl"),
        ("{}", "model_type None is not known"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_path(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(tmp_path)
    assert str(path) in str(caught.value)


def test_a_folder_without_config_is_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: can't be read \(No such file"):
        read_config(tmp_path)


def test_quantisation_is_kept_as_published() -> None:
    q = {"quant_method": "awq", "bits": 4, "group_size": 128}
    assert read_config(hub_config("Qwen2.5-VL-7B") | {"quantization_config": q}).quantization == q
