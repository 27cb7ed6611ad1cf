"""Verdicts, what is left, and the changes that make it fit."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_shapes import MODELS
from qvl.catalog.devices import parse_hardware
from qvl.errors import CatalogError, PlanError
from qvl.plan.fit import fit, fits, max_concurrency, max_context
from qvl.plan.request import FitRequest, Training, with_workload
from qvl.plan.resolve import planned_engines, request_for, resolve
from qvl.plan.workload import Image, Video, Workload
from qvl.units import GiB

PAGE = Image(1240, 1754)


def ask(name="Qwen2.5-VL-7B", gpu="rtx4090", **fields):
    hardware = parse_hardware(gpu) if gpu else None
    return FitRequest(config=MODELS[name], name=name, hardware=hardware, **fields)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(MODELS)),
    st.sampled_from(planned_engines()),
    st.sampled_from(["a100", "2xa100", "4xh100"]),
    st.integers(1, 8),
)
def test_terms_add_up_to_the_total_and_gpus_do_too(name, engine, gpu, batch):
    gpu = "a100" if engine == "qvl" else gpu  # runs on one device
    work = Workload(images=(PAGE,), concurrency=batch)
    result = fit(ask(name, gpu, engine=engine, workload=work))
    assert sum(result.terms.values()) == result.total_bytes == sum(result.per_gpu_bytes)
    assert len(result.per_gpu_bytes) == parse_hardware(gpu).count


def test_without_hardware_there_is_no_verdict():
    result = fit(ask(gpu=""))
    assert result.fits is None
    assert result.max_context is None
    assert result.speed is None
    assert "--gpu" in result.verdict


def test_seven_b_fits_a_24_gb_card_and_not_a_16_gb_one():
    assert fit(ask(workload=Workload(images=(PAGE,)))).fits
    small = fit(ask(gpu="rtxa4000", workload=Workload(images=(PAGE,))))
    assert small.fits is False
    assert "GiB free (90% of the card)" in small.verdict


def test_the_largest_context_fits_and_one_more_block_does_not():
    request = ask(gpu="rtx4090", workload=Workload(images=(PAGE,), concurrency=8))
    most = max_context(request)
    words = most - fit(request).setup.context_tokens + request.workload.prompt_tokens
    assert fits(with_workload(request, prompt_tokens=words))
    assert not fits(with_workload(request, prompt_tokens=words + 16))


def test_the_largest_batch_fits_and_one_more_does_not():
    request = ask(workload=Workload(images=(PAGE,)))
    most = max_concurrency(request)
    assert fits(with_workload(request, concurrency=most))
    assert not fits(with_workload(request, concurrency=most + 1))


def test_context_never_exceeds_the_models():
    result = fit(ask("Qwen2-VL-2B", "h200"))
    assert result.max_context == 32_768
    long = fit(ask("Qwen2-VL-2B", "h200", workload=Workload(prompt_tokens=40_000)))
    assert not long.fits
    assert "40,256 tokens, the model's context is 32,768" in long.verdict


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 64), st.integers(0, 20_000), st.sampled_from(["qvl", "transformers", "vllm", "llama.cpp"])
)
def test_more_work_never_makes_it_fit(batch, words, engine):
    request = ask(engine=engine, workload=Workload(prompt_tokens=words, concurrency=batch))
    if not fits(request):
        assert not fits(with_workload(request, concurrency=batch + 1))
        assert not fits(with_workload(request, prompt_tokens=words + 500))


def test_vllm_budget_is_its_share_and_graphs_need_room_on_the_card_only():
    tight = fit(ask(gpu_memory_utilization=0.9))
    assert tight.budget_bytes == int(24 * GiB * 0.9)
    whole = ask(gpu_memory_utilization=1.0, workload=Workload(concurrency=1))
    most = max_concurrency(whole)
    result = fit(with_workload(whole, concurrency=most))
    assert result.per_gpu_bytes[0] <= 24 * GiB


# changes


@pytest.mark.parametrize(
    "request_",
    [
        ask(gpu="rtx3060", workload=Workload(images=(PAGE,))),
        ask(gpu="v100-32", engine="transformers", workload=Workload(images=(Image(4000, 3000),))),
        ask(gpu="l4", workload=Workload(images=(PAGE,), concurrency=40)),
        ask("Qwen2.5-VL-72B", "4xrtx4090", precision="awq"),
        ask("Qwen3-VL-30B-A3B", "4xl40s", precision="fp8"),
        ask("Qwen2.5-VL-32B", "rtx4090"),
        ask("Qwen3-VL-8B", "rtx4090", default_limits=True),
        ask(gpu="rtx4090", engine="train-full"),
        ask(gpu="4xa100", engine="train-full"),
    ],
    ids=lambda r: f"{r.name} {r.engine} {r.hardware.name}",
)
def test_every_offered_change_makes_it_fit(request_):
    result = fit(request_)
    assert result.fits is False
    assert result.changes
    for change in result.changes:
        assert fits(change.request), change.option


def options(request):
    return [c.option for c in fit(request).changes]


def test_a_picture_too_large_for_an_old_card_gets_the_largest_limit_that_fits():
    request = ask(gpu="v100-32", engine="transformers", workload=Workload(images=(Image(4000, 3000),)))
    change = next(c for c in fit(request).changes if c.option.startswith("--max-pixels"))
    assert "visual tokens instead of 15,301" in change.effect
    more = change.request.workload.max_pixels + 40 * 784
    assert not fits(with_workload(request, max_pixels=more))


def test_too_many_requests_get_fewer_or_an_8_bit_cache():
    found = options(ask(gpu="l4", workload=Workload(images=(PAGE,), concurrency=40)))
    assert any(o.startswith("--concurrency") for o in found)
    assert any(o.startswith("--precision") for o in found)


def test_our_engine_is_offered_the_8_bit_cache_that_its_server_takes():
    most = max_concurrency(ask(engine="qvl", workload=Workload(images=(PAGE,))))
    crowd = Workload(images=(PAGE,), concurrency=most + 1)
    assert "--kv-dtype fp8" in options(ask(engine="qvl", workload=crowd))


def test_a_cache_slightly_too_large_is_halved():
    most = max_concurrency(ask(workload=Workload(images=(PAGE,))))
    request = ask(workload=Workload(images=(PAGE,), concurrency=most + 1))
    assert "--kv-dtype fp8" in options(request)


def test_illegal_cuts_offer_experts_dealt_whole_or_another_precision():
    assert "--expert-parallel" in options(ask("Qwen3-VL-30B-A3B", "4xl40s", precision="fp8"))
    result = fit(ask("Qwen2.5-VL-72B", "4xrtx4090", precision="awq"))
    assert "231 groups" in result.verdict
    assert any("--precision" in c.option for c in result.changes)


def test_an_illegal_cut_offers_the_nearest_legal_number_of_gpus():
    found = options(ask("Qwen2.5-VL-7B", "8xa100"))  # 28 heads
    assert "--gpu 7xa100" not in found  # 4 KV heads
    assert "--gpu 4xa100" in found


def test_pairs_are_tried_when_no_single_change_is_enough():
    (first, *_) = fit(ask("Qwen2.5-VL-72B", "rtx4090")).changes
    assert "--precision" in first.option or "--gpu" in first.option


def test_training_offers_adapters_and_more_gpus():
    found = options(ask(gpu="a100-40", engine="train-full", training=Training(train_vision=True)))
    assert "--engine train-lora" in found
    assert any(o.startswith("--gpu") for o in found)
    assert "--sharding zero3" in options(ask("Qwen2.5-VL-3B", "4xl40s", engine="train-full"))


def test_lost_checkpointing_is_offered_back():
    request = ask(
        gpu="l40s",
        engine="train-lora",
        workload=Workload(prompt_tokens=6000, answer_tokens=0),
        training=Training(checkpoint_language=False),
    )
    assert "--checkpointing" in options(request)


def test_an_engine_too_old_for_the_model_gets_the_first_that_knows_it():
    request = request_for("qwen2.5-vl-7b", engine="transformers@4.45", hardware=parse_hardware("rtx4090"))
    (change,) = fit(request).changes
    assert change.option == "--engine transformers@4.49"
    assert fits(change.request)


def test_an_engine_too_old_on_a_card_too_small_gets_both_changes_together():
    request = request_for("qwen2.5-vl-7b", engine="transformers@4.45", hardware=parse_hardware("rtx3060"))
    result = fit(request)
    assert result.changes
    for change in result.changes:
        assert change.option.startswith("--engine transformers@4.49 --")
        assert fits(change.request)


def test_nothing_fits_means_no_changes():
    request = ask("Qwen3.5-397B-A17B", "rtx3060", engine="train-full")
    result = fit(request)
    assert result.fits is False
    assert result.changes == ()


# catalogue names


def test_a_checkpoints_name_sets_the_precision():
    assert request_for("Qwen/Qwen2.5-VL-7B-Instruct-AWQ").precision == "awq"
    assert fit(request_for("qwen2.5-vl-7b")).setup.precision == "bf16"


def test_unknown_and_hosted_models_are_refused():
    with pytest.raises(CatalogError, match="no model"):
        request_for("qwen9")
    with pytest.raises(CatalogError, match="hosted"):
        request_for("qwen-vl-max")


def test_json_has_the_fixed_names():
    result = fit(
        request_for("qwen2.5-vl-7b", hardware=parse_hardware("2xa100"), workload=Workload(images=(PAGE,)))
    )
    found = result.to_json()
    assert {
        "fits", "total_bytes", "per_gpu_bytes", "terms", "visual_tokens", "max_context", "max_concurrency", "speed",
        "changes",
    } <= set(found)  # fmt: skip
    assert found["visual_tokens"] == 2772
    assert sum(found["terms"].values()) == found["total_bytes"]
    assert len(found["per_gpu_bytes"]) == 2


def test_a_contradiction_is_an_error_not_a_verdict():
    with pytest.raises(PlanError, match="images only"):
        fit(replace(ask("Qwen-VL"), workload=Workload(videos=(Video(10),))))


@pytest.mark.parametrize("precision", ["bf16", "int8", "gptq-int4"])
def test_a_quantised_name_and_another_precision_contradict_each_other(precision):
    with pytest.raises(PlanError, match=f"is awq, --precision says {precision}"):
        request_for("qwen2.5-vl-7b-awq", precision=precision)


def test_a_quantised_name_may_say_its_precision_twice():
    assert request_for("qwen2.5-vl-7b-awq", precision="awq").precision == "awq"
    assert request_for("Qwen/Qwen2.5-VL-7B-Instruct", precision="int8").precision == "int8"


def test_a_version_that_dropped_the_generation_is_a_reason_and_the_last_one_the_way_out():
    for engine, said in (("vllm", "0.32.0"), ("vllm@0.30", "0.30")):
        request = request_for("qwen-vl-chat", engine=engine, hardware=parse_hardware("rtx4090"))
        result = fit(request)
        assert f"vllm {said} no longer serves Qwen-VL-Chat; the last that does is 0.23.0" in result.verdict
        assert [c.option for c in result.changes] == ["--engine vllm@0.23.0"]
    assert fit(request_for("qwen-vl-chat", engine="vllm@0.23", hardware=parse_hardware("rtx4090"))).fits
    never = resolve(request_for("qwen-vl-chat", engine="llama.cpp"))
    assert never.problems == ("llama.cpp does not serve Qwen-VL-Chat",)


def test_json_says_what_is_left_for_the_cache_and_how_many_tokens_that_holds():
    """Qwen2.5-VL-7B: 28 layers x 4 KV heads x 128 x 2 in 16 bits = 57,344 B a token, half of them on each of two."""
    from qvl.catalog.devices import parse_hardware
    from qvl.plan.fit import fit
    from qvl.plan.resolve import request_for

    found = fit(request_for("qwen2.5-vl-7b", hardware=parse_hardware("2xl40s"), engine="vllm")).to_json()
    assert len(found["kv_pool_bytes"]) == 2
    held = sum(v for name, v in found["terms"].items() if name not in ("kv_cache", "cuda_graphs"))
    assert found["kv_tokens"] == min(found["kv_pool_bytes"]) // 28_672
    assert 0 < sum(found["kv_pool_bytes"]) <= 2 * found["budget_bytes_per_gpu"]
    assert sum(found["kv_pool_bytes"]) == pytest.approx(2 * found["budget_bytes_per_gpu"] - held, abs=2)
    alone = fit(
        request_for("qwen2.5-vl-7b", hardware=parse_hardware("m2-ultra"), engine="llama.cpp")
    ).to_json()
    assert (alone["kv_pool_bytes"], alone["kv_tokens"]) == (None, None)
