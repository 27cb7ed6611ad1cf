"""Which cuts over GPUs are legal, against cases that users met."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plan_shapes import MODELS
from qvl.errors import PlanError
from qvl.plan.memory import Shards
from qvl.plan.split import best_split, legal_splits, nearest_split, split_problems


def legal(name, precision, tp, **more):
    return not split_problems(MODELS[name], precision, Shards(tp, **more))


@pytest.mark.parametrize(
    ("name", "precision", "tp", "allowed"),
    [
        ("Qwen2.5-VL-72B", "bf16", 8, True),
        ("Qwen2.5-VL-72B", "awq", 2, False),
        ("Qwen2.5-VL-72B", "awq", 4, False),
        ("Qwen2.5-VL-72B", "gptq-int4", 8, False),
        ("Qwen2.5-VL-72B", "gptq-int8", 2, False),
        ("Qwen2.5-VL-32B", "awq", 8, True),
        ("Qwen2.5-VL-7B", "awq", 4, True),
        ("Qwen2.5-VL-7B", "bf16", 8, False),  # 28 heads
        ("Qwen2.5-VL-3B", "awq", 2, True),
        ("Qwen2.5-VL-3B", "awq", 4, False),  # 86 groups
        ("Qwen3-VL-30B-A3B", "fp8", 2, True),
        ("Qwen3-VL-30B-A3B", "fp8", 4, False),
        ("Qwen3-VL-235B-A22B", "fp8", 4, True),
        ("Qwen3-VL-235B-A22B", "fp8", 8, False),
        ("Qwen3-VL-235B-A22B", "bf16", 8, True),
        ("Qwen3-VL-8B", "fp8", 8, True),
        ("Qwen3-VL-8B", "bf16", 3, False),
    ],
)
def test_known_cases(name, precision, tp, allowed):
    assert legal(name, precision, tp) == allowed


def test_the_reason_names_the_groups():
    (reason,) = split_problems(MODELS["Qwen2.5-VL-72B"], "awq", Shards(2))
    assert reason == "down_proj's 29568 inputs are 231 groups of 128, which do not divide by 2"


def test_the_reason_names_the_fp8_blocks_and_experts_dealt_whole_avoid_it():
    reasons = split_problems(MODELS["Qwen3-VL-30B-A3B"], "fp8", Shards(4))
    assert any("768 outputs are 6 blocks of 128" in r for r in reasons)
    assert legal("Qwen3-VL-30B-A3B", "fp8", 4, expert_parallel=True)
    assert legal("Qwen3-VL-235B-A22B", "fp8", 8, expert_parallel=True)


def test_padding_to_29696_makes_72b_splittable():
    config = MODELS["Qwen2.5-VL-72B"]
    padded = replace(config, text=replace(config.text, intermediate_size=29696))
    assert not split_problems(padded, "awq", Shards(8))


def test_a_tower_that_does_not_divide_can_be_copied():
    reasons = split_problems(MODELS["Qwen2.5-VL-3B"], "bf16", Shards(8))
    assert reasons == (
        "the tower's inner size 3420 does not divide by 8 (give each GPU a whole tower: --mm-encoder-tp-mode data)",
    )
    assert legal("Qwen2.5-VL-3B", "bf16", 8, vision="replicate")
    assert best_split(MODELS["Qwen2.5-VL-3B"], "bf16", 8) == Shards(8, False, "replicate")


def test_more_gpus_than_kv_heads_is_legal_when_they_divide():
    assert legal("Qwen2.5-VL-3B", "bf16", 4)  # 2 KV heads
    assert not legal("Qwen2.5-VL-7B", "bf16", 7)  # 4 KV heads, 28 heads


def test_hybrid_layers_need_whole_value_heads():
    config = MODELS["Qwen3.5-27B"]
    narrow = replace(config, text=replace(config.text, linear_num_value_heads=50))
    assert any("value heads" in r for r in split_problems(narrow, "bf16", Shards(4)))


def test_expert_parallel_is_refused_for_dense_models():
    assert any("dense" in r for r in split_problems(MODELS["Qwen3-VL-8B"], "bf16", Shards(2, True)))


def test_zero_gpus_are_refused():
    with pytest.raises(PlanError, match="0 GPUs"):
        split_problems(MODELS["Qwen3-VL-8B"], "bf16", Shards(0))


@given(st.sampled_from(sorted(MODELS)), st.sampled_from(["bf16", "fp8", "awq", "int4", "gptq-int8"]))
def test_one_gpu_is_always_legal_and_listed_first(name, precision):
    assert legal_splits(MODELS[name], precision, 8)[0] == Shards(1)


@given(st.sampled_from(sorted(MODELS)), st.sampled_from(["bf16", "fp8", "awq"]), st.integers(1, 16))
def test_the_nearest_split_is_legal(name, precision, gpus):
    near = nearest_split(MODELS[name], precision, gpus)
    assert not split_problems(MODELS[name], precision, near)
    best = best_split(MODELS[name], precision, gpus)
    assert best is None or near == best


def test_72b_awq_splits_nowhere_up_to_8():
    assert legal_splits(MODELS["Qwen2.5-VL-72B"], "awq", 8) == (Shards(1),)
    assert nearest_split(MODELS["Qwen2.5-VL-72B"], "awq", 8) == Shards(1)
