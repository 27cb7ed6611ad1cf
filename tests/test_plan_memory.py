"""Weights, KV and state in bytes: against known layouts and by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plan_shapes import MODELS, TINY
from qvl.errors import ConfigError, PlanError
from qvl.plan.memory import (
    Shards,
    check_kv_dtype,
    check_precision,
    kv_bytes_per_token,
    matrix_bytes,
    num_kv_blocks,
    state_bytes,
    stored_precision,
    weight_bytes,
)
from qvl.plan.parameters import parameter_counts
from qvl.units import GiB, KiB

SEVEN_B = MODELS["Qwen2.5-VL-7B"]
HYBRID = MODELS["Qwen3.5-9B"]


@pytest.mark.parametrize("name", MODELS)
def test_16_bit_weights_are_two_bytes_a_parameter(name):
    assert weight_bytes(MODELS[name], "bf16").total == 2 * parameter_counts(MODELS[name]).total
    assert weight_bytes(MODELS[name], "fp32").total == 4 * parameter_counts(MODELS[name]).total


@pytest.mark.parametrize("precision", ["fp8", "int8", "int4", "awq", "gptq-int8", "gptq-int4", "nf4"])
def test_tower_embeddings_head_and_norms_stay_in_16_bits(precision):
    full, small = weight_bytes(SEVEN_B, "bf16"), weight_bytes(SEVEN_B, precision)
    assert small.vision == full.vision
    assert (small.embeddings, small.head, small.norms) == (full.embeddings, full.head, full.norms)
    assert small.linears < full.linears


def test_awq_matrix_equals_its_three_tensors():
    inn, out = 3584, 18944
    qweight, qzeros, scales = inn * out // 8 * 4, inn // 128 * out // 8 * 4, inn // 128 * out * 2
    assert matrix_bytes("gate_proj", inn, out, "awq") == (qweight, qzeros + scales)


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_matrix_equals_its_four_tensors(bits):
    inn, out = 29568, 8192
    qweight = inn * bits // 32 * out * 4
    qzeros = inn // 128 * (out * bits // 32) * 4
    scales, g_idx = inn // 128 * out * 2, inn * 4
    assert matrix_bytes("down_proj", inn, out, f"gptq-int{bits}") == (qweight, qzeros + scales + g_idx)


def test_fp8_matrix_has_an_fp32_scale_for_each_started_block():
    assert matrix_bytes("x", 200, 130, "fp8") == (200 * 130, 4 * 2 * 2)


def test_nf4_takes_a_little_over_half_a_byte():
    payload, extra = matrix_bytes("x", 4096, 4096, "nf4")
    assert (payload + extra) / 4096**2 == pytest.approx(0.5 + 1 / 64 + 4 / (64 * 256))


def test_gguf_down_projections_get_half_their_layers_in_six_bits():
    gate, _ = matrix_bytes("gate_proj", 4096, 4096, "q4_k_m")
    down, _ = matrix_bytes("down_proj", 4096, 4096, "q4_k_m")
    assert gate * 8 / 4096**2 == 4.5
    assert down * 8 / 4096**2 == (4.5 + 6.5625) / 2


@pytest.mark.parametrize(
    ("name", "precision", "gib"),
    # third-party table built from the same configs: 4-bit groups of 128, and FP8, on language linears only
    [
        ("Qwen2-VL-2B", "int4", 2.3),
        ("Qwen2.5-VL-7B", "int4", 6.4),
        ("Qwen2.5-VL-72B", "int4", 39.9),
        ("Qwen3-VL-30B-A3B", "int4", 16.6),
        ("Qwen3-VL-235B-A22B", "fp8", 221),
        ("Qwen3-VL-8B", "fp8", 9.9),
    ],
)
def test_quantised_sizes_agree_with_an_independent_table(name, precision, gib):
    assert weight_bytes(MODELS[name], precision).total / GiB == pytest.approx(gib, rel=0.03)


@pytest.mark.parametrize(
    ("name", "kib"),
    [
        ("Qwen-VL", 512), ("Qwen2-VL-2B", 28), ("Qwen2-VL-7B", 56), ("Qwen2-VL-72B", 320), ("Qwen2.5-VL-3B", 36),
        ("Qwen2.5-VL-32B", 256), ("Qwen3-VL-2B", 112), ("Qwen3-VL-8B", 144), ("Qwen3-VL-30B-A3B", 96),
        ("Qwen3-VL-235B-A22B", 188),
    ],
)  # fmt: skip
def test_kv_of_a_token_in_16_bits(name, kib):
    assert kv_bytes_per_token(MODELS[name]) == kib * KiB


def test_kv_of_llama_cpp_q8_0_equals_a_users_log():
    # 1224 MiB for 16384 cells of Qwen3-VL-8B
    assert kv_bytes_per_token(MODELS["Qwen3-VL-8B"], "q8_0") * 16384 == 1224 * 1024 * KiB


def test_kv_uses_the_explicit_head_dim():
    assert kv_bytes_per_token(TINY) == 2 * 4 * 2 * 128 * 2


def test_hybrid_models_keep_kv_for_full_attention_layers_only():
    assert kv_bytes_per_token(HYBRID) == 2 * 8 * 4 * 256 * 2
    more_linear = replace(
        HYBRID.text, layer_types=("linear_attention",) * 31 + ("full_attention",), num_hidden_layers=32
    )
    assert kv_bytes_per_token(replace(HYBRID, text=more_linear)) == 2 * 1 * 4 * 256 * 2


def test_hybrid_state_is_fp32_matrices_and_three_convolution_inputs():
    per_layer = 32 * 128 * 128 * 4 + (2 * 16 * 128 + 32 * 128) * 3 * 2
    assert state_bytes(HYBRID) == 24 * per_layer
    assert state_bytes(SEVEN_B) == 0


def test_kv_heads_are_replicated_when_there_are_more_gpus():
    assert kv_bytes_per_token(SEVEN_B, shards=Shards(4)) == kv_bytes_per_token(SEVEN_B) // 4
    assert kv_bytes_per_token(SEVEN_B, shards=Shards(8)) == kv_bytes_per_token(SEVEN_B) // 4


def test_a_replicated_tower_is_whole_on_every_gpu():
    split, copy = (
        weight_bytes(SEVEN_B, "bf16", Shards(4)),
        weight_bytes(SEVEN_B, "bf16", Shards(4, vision="replicate")),
    )
    assert copy.vision == weight_bytes(SEVEN_B, "bf16").vision
    assert split.vision < copy.vision / 3
    assert split.language == copy.language


@given(st.sampled_from(sorted(MODELS)), st.sampled_from(["bf16", "fp8", "int8"]), st.sampled_from([2, 4]))
def test_shards_together_hold_at_least_the_whole_and_less_than_a_copy_each(name, precision, tp):
    whole, one = weight_bytes(MODELS[name], precision), weight_bytes(MODELS[name], precision, Shards(tp))
    assert whole.total <= tp * one.total
    assert one.total < whole.total


def test_expert_parallel_deals_whole_experts():
    config = MODELS["Qwen3-VL-30B-A3B"]
    tp, ep = weight_bytes(config, "bf16", Shards(4)), weight_bytes(config, "bf16", Shards(4, True))
    assert tp.total == ep.total  # 128 experts in 4 hands: as many bytes either way


def test_sum_of_parts_is_the_total():
    w = weight_bytes(SEVEN_B, "awq")
    assert w.total == w.linears + w.scales + w.embeddings + w.head + w.norms + w.tower + w.merger


@pytest.mark.parametrize(
    ("quantization", "precision"),
    [
        (None, "bf16"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 8}, "gptq-int8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq-int4"),
        ({"quant_method": "fp8"}, "fp8"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"0": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            "int4",
        ),
    ],
)
def test_stored_precision_is_read_from_the_config(quantization, precision):
    assert stored_precision(replace(SEVEN_B, quantization=quantization)) == precision


def test_an_unknown_quantisation_is_named():
    with pytest.raises(ConfigError, match="bitsandbytes"):
        stored_precision(replace(SEVEN_B, quantization={"quant_method": "bitsandbytes"}))
    with pytest.raises(ConfigError, match="float64"):
        stored_precision(replace(SEVEN_B, dtype="float64"))


def test_unknown_names_list_the_known():
    with pytest.raises(PlanError, match=r"int3.*gptq-int4"):
        check_precision("int3")
    with pytest.raises(PlanError, match=r"fp4.*q8_0"):
        check_kv_dtype("fp4")
    assert check_precision("awq") == "awq"
    assert check_kv_dtype("fp8") == "fp8"


def test_blocks_fill_the_free_bytes_and_never_go_below_none():
    assert num_kv_blocks(1000, 4, 10) == 25
    assert num_kv_blocks(1039, 4, 10) == 25
    assert num_kv_blocks(-5, 4, 10) == 0
    with pytest.raises(PlanError, match="block_size 0"):
        num_kv_blocks(1000, 0, 10)
