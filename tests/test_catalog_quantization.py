"""What a quantization_config says: patterns in every spelling, and nothing but ConfigError for what can't be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quantized_writers as writers
from qvl.checkpoint.quantization import Scheme, matches, read_quantization, spellings
from qvl.errors import ConfigError

KNOWN = [
    writers.awq_config(),
    writers.gptq_config(dynamic={"-:.*down_proj": {}, ".*up_proj": {"bits": 8}}, modules_in_block_to_quantize=[["q"]]),
    writers.fp8_config(),
    writers.compressed_config("pack-quantized", writers.int_weights(4, 128)),
    writers.compressed_config("int-quantized", writers.int_weights(8, None), writers.INT8_TOKENS),
    writers.compressed_config("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
]  # fmt: skip
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(config: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a config."""
    items = (
        config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    )
    return [p for key, value in items for p in ((*at, key), *places(value, (*at, key)))]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KNOWN), st.data())
def test_one_strange_value_anywhere_is_read_or_refused_by_name(config: dict[str, Any], data: Any) -> None:
    config = copy.deepcopy(config)
    path = data.draw(st.sampled_from(places(config)))
    inner: Any = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = data.draw(JUNK)
    try:
        quantization = read_quantization(config)
    except ConfigError:
        return  # anything else, a KeyError say, fails the test
    if quantization is not None:
        scheme = quantization.scheme_of("model.layers.0.mlp.up_proj")
        assert scheme is None or scheme.parts(256, 256)


@pytest.mark.parametrize(
    ("pattern", "module", "covered"),
    [
        ("visual", "visual.blocks.0.attn.qkv", True),
        ("model.visual", "visual.blocks.0.attn.qkv", True),
        ("visual", "model.layers.0.mlp.up_proj", False),
        ("vis", "visual.blocks.0.attn.qkv", False),
        ("mlp.gate", "model.layers.0.mlp.gate", True),
        ("mlp.gate", "model.layers.0.mlp.gate_proj", False),
        ("layers.1", "model.layers.11.mlp.up_proj", False),
        ("layers.1.", "model.layers.1.mlp.up_proj", True),
        ("model.language_model.layers.3.mlp.down_proj", "model.layers.3.mlp.down_proj", True),
        ("re:visual.*", "visual.blocks.0.attn.qkv", True),
        ("re:model.visual.*", "visual.blocks.0.attn.qkv", True),
        ("re:.*lm_head", "lm_head", True),
        ("re:layers", "model.layers.0.mlp.up_proj", False),
        ("transformer.h.2.attn", "model.h.2.attn.c_attn", True),
        ("transformer.visual", "visual.transformer.resblocks.0.mlp.c_fc", True),
    ],
)
def test_a_pattern_covers_whole_parts_of_a_name_in_any_spelling(
    pattern: str, module: str, covered: bool
) -> None:
    assert matches(pattern, module) is covered


def test_spellings_begin_with_the_networks_own_name() -> None:
    assert spellings("lm_head") == ("lm_head",)
    assert spellings("model.layers.0.mlp") == ("model.layers.0.mlp", "model.language_model.layers.0.mlp")
    assert spellings("model.h.0.attn")[1] == "transformer.h.0.attn"


@pytest.mark.parametrize(
    "module",
    [
        "lm_head",
        "visual.merger.mlp.0",
        "model.layers.0.mlp.gate",
        "model.layers.0.mlp.shared_expert_gate",
        "model.layers.0.linear_attn.in_proj_b",
    ],
)
@pytest.mark.parametrize("config", KNOWN[:2], ids=["awq", "gptq"])
def test_awq_and_gptq_leave_tower_head_and_routers_alone(config: dict[str, Any], module: str) -> None:
    quantization = read_quantization(
        {**config, "modules_in_block_to_quantize": None, "modules_to_not_convert": None}
    )
    assert quantization is not None
    assert quantization.scheme_of(module) is None
    assert quantization.scheme_of("model.layers.0.self_attn.q_proj") is not None


def test_a_target_that_names_modules_goes_before_the_class() -> None:
    config = writers.compressed_config("pack-quantized", writers.int_weights(4, 128))
    eight = {
        "targets": ["re:.*down_proj"],
        "weights": writers.int_weights(8, None),
        "input_activations": None,
    }
    config["config_groups"]["group_1"] = eight
    quantization = read_quantization(config)
    assert quantization is not None
    bits = [quantization.scheme_of(f"model.layers.0.mlp.{n}") for n in ("up_proj", "down_proj")]
    assert [s.bits for s in bits if s] == [4, 8]


@pytest.mark.parametrize("listed", [["q_proj"], [["q_proj"]], [["x"], ["q_proj"]]])
def test_gptqs_list_of_modules_may_be_flat_or_nested(listed: Any) -> None:
    quantization = read_quantization(writers.gptq_config(modules_in_block_to_quantize=listed))
    assert quantization is not None
    assert quantization.scheme_of("model.layers.0.self_attn.q_proj") is not None
    assert quantization.scheme_of("model.layers.0.self_attn.k_proj") is None


def test_no_quantization_config_is_none() -> None:
    assert read_quantization(None) is None
    assert read_quantization({}) is None


def test_known_answers_for_the_parts_of_published_layers() -> None:
    # the 3B's down_proj, 2048 x 11008
    shapes = {name: part.shape for name, part in Scheme("awq", 4, 128).parts(2048, 11008).items()}
    assert shapes == {"qweight": (11008, 256), "qzeros": (86, 256), "scales": (86, 2048)}
    shapes = {name: part.shape for name, part in Scheme("gptq", 8, 128).parts(2048, 11008).items()}
    assert shapes == {"qweight": (2752, 2048), "qzeros": (86, 512), "scales": (86, 2048), "g_idx": (11008,)}
    # the 30B-A3B's q_proj in FP8
    shapes = {
        name: part.shape
        for name, part in Scheme("fp8", 8, block=(128, 128), scale_name="s").parts(4096, 2048).items()
    }
    assert shapes == {"weight": (4096, 2048), "s": (32, 16)}
