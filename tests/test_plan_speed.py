"""Speed bounds: what limits each phase, and that nothing measured is faster."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_shapes import MODELS
from qvl.catalog.devices import devices, parse_hardware
from qvl.plan.memory import kv_bytes_per_token, weight_bytes
from qvl.plan.request import FitRequest
from qvl.plan.resolve import resolve
from qvl.plan.speed import (
    BANDWIDTH_SHARE,
    compute_rate,
    decode_bytes,
    decode_phase,
    language_flops,
    prefill_phase,
    speed,
    vision_phase,
)
from qvl.plan.workload import Image, Workload

SEVEN_B, MOE = MODELS["Qwen2.5-VL-7B"], MODELS["Qwen3-VL-30B-A3B"]


def setup(config=SEVEN_B, gpu="a100", **fields):
    fields.setdefault("workload", Workload(images=(Image(1240, 1754),)))
    return resolve(FitRequest(config=config, hardware=parse_hardware(gpu), **fields))


def test_decode_of_one_request_is_weights_over_bandwidth():
    work = Workload(prompt_tokens=1, answer_tokens=1)
    phase = decode_phase(setup(workload=work), 1)
    w = weight_bytes(SEVEN_B, "bf16")
    read = w.linears + w.norms + w.head + 1.5 * kv_bytes_per_token(SEVEN_B)
    assert phase.limit == "bandwidth"
    assert phase.seconds == pytest.approx(read / (2039e9 * BANDWIDTH_SHARE), rel=0.1)


def test_a_large_batch_is_limited_by_arithmetic():
    work = Workload(prompt_tokens=16, answer_tokens=16)
    assert decode_phase(setup(workload=work), 1024).limit == "compute"


def test_prefill_of_a_long_prompt_is_limited_by_arithmetic():
    phase = prefill_phase(setup(workload=Workload(prompt_tokens=8000)))
    assert phase.limit == "compute"
    # 2 operations a weight and token is the floor
    assert phase.seconds > 2 * 6.5e9 * 8000 / 312e12


def test_four_bit_weights_speed_up_decoding_not_prefill():
    full, small = speed(setup()), speed(setup(precision="awq"))
    assert small.tokens_per_s > 2.5 * full.tokens_per_s
    assert small.prefill.seconds == pytest.approx(full.prefill.seconds, rel=0.01)


def test_what_our_engine_rounds_on_a_cpu_is_multiplied_in_8_bits():
    whole = compute_rate(setup(gpu="cpu", engine="qvl"))
    assert compute_rate(setup(gpu="cpu", engine="qvl", precision="int4")) == 2 * whole
    assert compute_rate(setup(gpu="cpu", engine="transformers", precision="int8")) == whole
    assert compute_rate(setup(gpu="a100", engine="qvl", precision="int4")) == compute_rate(setup())


def test_fp8_doubles_arithmetic_only_where_the_card_has_it():
    assert compute_rate(setup(gpu="h100", precision="fp8")) > 1.9 * compute_rate(setup(gpu="h100"))
    assert compute_rate(setup(gpu="a100", precision="fp8")) == compute_rate(setup(gpu="a100"))


def test_windows_make_large_pictures_cheaper_than_full_attention():
    work = Workload(images=(Image(4000, 3000),))
    windowed = vision_phase(setup(workload=work)).seconds
    full = vision_phase(setup(MODELS["Qwen2-VL-7B"], workload=work)).seconds
    assert windowed < full / 2


def test_no_pictures_take_no_time():
    assert vision_phase(setup(workload=Workload())).seconds == 0


def test_one_request_reads_its_own_experts_and_a_crowd_reads_all():
    s = setup(MOE, workload=Workload(prompt_tokens=1, answer_tokens=0))
    w = weight_bytes(MOE, "bf16")
    # 3.3 B parameters without tower and token table, as "A3B" counts them
    assert decode_bytes(s, 1, 0) / 2 == pytest.approx(3.89e9 - 0.54e9 - 0.31e9, rel=0.01)
    assert decode_bytes(s, 4096, 0) == pytest.approx(w.linears + w.norms + w.head, rel=1e-3)


def test_hybrid_attention_grows_with_full_layers_only():
    nine = setup(MODELS["Qwen3.5-9B"])
    growth = language_flops(nine, 1, 20_000) - language_flops(nine, 1, 10_000)
    assert growth == 4 * 8 * 16 * 256 * 10_000


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from(["Qwen2.5-VL-7B", "Qwen3-VL-30B-A3B", "Qwen3.5-9B"]),
)
def test_a_larger_batch_is_never_faster_for_one_and_never_slower_for_all(a, b, name):
    few, many = sorted((a, b))
    one, all_ = (
        speed(setup(MODELS[name], workload=Workload(images=(Image(640, 480),), concurrency=n)))
        for n in (few, many)
    )
    assert all_.tokens_per_s <= one.tokens_per_s * 1.0001
    assert all_.total_tokens_per_s >= one.total_tokens_per_s * 0.9999
    assert all_.requests_per_s >= one.requests_per_s * 0.9999


def test_more_gpus_are_faster_but_pay_for_their_links():
    one, four = speed(setup()), speed(setup(gpu="4xa100"))
    assert one.tokens_per_s < four.tokens_per_s < 4 * one.tokens_per_s
    assert four.ttft_s < one.ttft_s


def test_dealt_layers_take_turns():
    one = speed(setup(engine="transformers"))
    four = speed(setup(gpu="4xa100", engine="transformers"))
    assert four.tokens_per_s == one.tokens_per_s


def test_training_and_nameless_hardware_have_no_speed():
    assert speed(setup(engine="train-lora")) is None
    assert speed(resolve(FitRequest(config=SEVEN_B))) is None


def test_a_device_without_a_stated_rate_says_so():
    silent = [d.name for d in devices() if not d.rates]
    assert silent, "every device has a rate now: drop the note"
    s = speed(setup(gpu=silent[0], engine="llama.cpp", precision="int4"))
    assert "no arithmetic rate" in s.note
    assert s.decode.limit == "bandwidth"


def test_first_token_is_pictures_and_prompt():
    s = speed(setup())
    assert s.ttft_s == s.vision.seconds + s.prefill.seconds
    assert s.to_json()["kind"] == "upper bound"


@pytest.mark.parametrize(
    ("name", "gpu", "prompt", "answer", "measured_tokens_per_s"),
    # vLLM recipes, random 8,000 in / 1,000 out: total tokens a second over 4 A100 (7B as four replicas)
    [("Qwen2.5-VL-72B", "4xa100", 8000, 1000, 1461), ("Qwen2.5-VL-7B", "a100", 8000, 1000, 25176 / 4)],
)
def test_no_recipe_is_faster_than_its_bound(name, gpu, prompt, answer, measured_tokens_per_s):
    work = Workload(prompt_tokens=prompt, answer_tokens=answer, concurrency=64)
    s = speed(setup(MODELS[name], gpu, workload=work))
    bound = s.requests_per_s * (prompt + answer)
    assert measured_tokens_per_s < bound < 10 * measured_tokens_per_s
