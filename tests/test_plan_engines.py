"""Terms of each engine: what grows with what, and by how much, in numbers worked out by hand."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_shapes import MODELS
from qvl.catalog.devices import parse_hardware
from qvl.errors import PlanError
from qvl.plan.engines import ENGINES
from qvl.plan.engines.training import lora_parameters
from qvl.plan.engines.transformers import logits_bytes_per_token
from qvl.plan.engines.vllm import CUDA_GRAPHS, worst_item_tokens
from qvl.plan.memory import kv_bytes_per_token, state_bytes, weight_bytes
from qvl.plan.parameters import parameter_counts
from qvl.plan.request import FitRequest, Training
from qvl.plan.resolve import parse_engine, planned_engines, resolve
from qvl.plan.terms import (
    encoder_bytes_per_token,
    memory_terms,
    prefill_activation_bytes,
    vision_activation_bytes,
)
from qvl.plan.workload import Image, Video, Workload
from qvl.units import GiB

SEVEN_B, HYBRID = MODELS["Qwen2.5-VL-7B"], MODELS["Qwen3.5-9B"]
PAGE = Image(1240, 1754)


def terms(config=SEVEN_B, gpu="a100", **fields):
    """Name → bytes on the first GPU."""
    hardware = parse_hardware(gpu) if gpu else None
    gpus = memory_terms(resolve(FitRequest(config=config, hardware=hardware, **fields)))
    return {t.name: t.bytes for t in gpus[0]}


def test_our_engine_holds_table_and_tower_in_8_bits_on_a_cpu_when_it_rounds_the_weights_itself():
    table, tower = 152_064 * 3584, parameter_counts(SEVEN_B).tower
    for precision in ("int8", "int4"):
        held = terms(gpu="cpu", engine="qvl", precision=precision)
        assert held["embeddings"] == held["head"] == table + 2 * 152_064
        assert tower < held["tower"] < 1.01 * tower
    coded = replace(SEVEN_B, quantization={"quant_method": "compressed-tensors"})
    others = (
        {"gpu": "a100", "engine": "qvl", "precision": "int4"},
        {"gpu": "cpu", "engine": "qvl", "precision": "bf16"},
        {"gpu": "cpu", "engine": "qvl", "precision": "int4", "config": coded},
        {"gpu": "a100", "engine": "vllm", "precision": "int4"},
    )
    for fields in others:
        held = terms(**fields)
        assert (held["embeddings"], held["tower"]) == (2 * table, 2 * tower), fields
    first = MODELS["Qwen-VL"]
    assert (
        terms(config=first, gpu="cpu", engine="qvl", precision="int8")["tower"]
        == 2 * parameter_counts(first).tower
    )


def total(**fields):
    return sum(terms(**fields).values())


ANY_ENGINE = st.sampled_from(planned_engines())


@pytest.mark.parametrize("engine", planned_engines())
def test_every_term_has_bytes_and_a_formula(engine):
    request = FitRequest(
        config=SEVEN_B, engine=engine, hardware=parse_hardware("a100"), workload=Workload(images=(PAGE,))
    )
    (gpu,) = memory_terms(resolve(request))
    assert len({t.name for t in gpu}) == len(gpu)
    assert all(t.bytes > 0 and t.formula for t in gpu)


@settings(max_examples=25, deadline=None)
@given(ANY_ENGINE, st.integers(0, 30000), st.integers(0, 30000), st.integers(1, 60), st.integers(1, 60))
def test_memory_never_falls_with_context_or_concurrency(engine, a, b, m, n):
    (few, many), (one, more) = sorted((a, b)), sorted((m, n))
    small = total(engine=engine, workload=Workload(prompt_tokens=few, concurrency=one))
    assert total(engine=engine, workload=Workload(prompt_tokens=many, concurrency=one)) >= small
    assert total(engine=engine, workload=Workload(prompt_tokens=few, concurrency=more)) >= small


@settings(max_examples=25, deadline=None)
@given(ANY_ENGINE, st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([1, 2, 4, 8, 16]), st.booleans())
def test_memory_never_falls_with_pixels(engine, a, b, flash):
    few, many = sorted((a, b))
    small, large = (
        total(
            engine=engine,
            flash_attention=flash,
            workload=Workload(images=(Image(4000, 3000),), max_pixels=n * 1024 * 784),
        )
        for n in (few, many)
    )
    assert large >= small


@pytest.mark.parametrize("engine", ["qvl", "transformers", "vllm", "llama.cpp"])
def test_pictures_cost_memory_beyond_their_kv(engine):
    without = terms(engine=engine, workload=Workload(prompt_tokens=3030))
    with_picture = terms(engine=engine, workload=Workload(prompt_tokens=256, images=(PAGE,)))
    assert with_picture["kv_cache"] == pytest.approx(without["kv_cache"], rel=0.01)
    assert sum(with_picture.values()) > sum(without.values()) - 0.05 * GiB


def test_kv_of_paged_engines_is_whole_blocks_of_every_request():
    work = Workload(prompt_tokens=100, answer_tokens=1, concurrency=3)
    per_token = kv_bytes_per_token(SEVEN_B)
    assert terms(engine="vllm", workload=work)["kv_cache"] == 3 * 112 * per_token
    assert terms(engine="vllm", workload=work, block_size=32)["kv_cache"] == 3 * 128 * per_token
    assert terms(engine="transformers", workload=work)["kv_cache"] == 3 * 101 * per_token


@pytest.mark.parametrize(
    ("engine", "kv", "takes"),
    [("qvl", "int8", "fp8"), ("qvl", "q8_0", "fp8"), ("vllm", "int8", "fp8"), ("llama.cpp", "fp8", "q8_0")],
)
def test_a_cache_that_the_engine_cannot_keep_is_refused_with_what_it_takes(engine, kv, takes):
    with pytest.raises(PlanError, match=rf"{engine} keeps no KV cache in {kv}; it takes .*{takes}"):
        resolve(FitRequest(config=SEVEN_B, engine=engine, kv_dtype=kv))


def test_our_engine_plans_the_caches_that_it_allocates():
    pytest.importorskip("torch")
    from qvl.engine.engine import KV_TORCH_DTYPES

    assert set(ENGINES["qvl"].kv_dtypes) == set(KV_TORCH_DTYPES)


def test_eight_bit_kv_is_half():
    full = terms(engine="vllm")["kv_cache"]
    assert terms(engine="vllm", kv_dtype="fp8")["kv_cache"] * 2 == full


def test_hybrid_models_add_state_per_request_and_kv_for_full_layers_only():
    work = Workload(prompt_tokens=1000, answer_tokens=24, concurrency=5)
    t = terms(HYBRID, engine="vllm", workload=work)
    assert t["linear_state"] == 5 * state_bytes(HYBRID)
    assert t["kv_cache"] == 5 * 1024 * 2 * 8 * 4 * 256 * 2
    assert "linear_state" not in terms(engine="vllm", workload=work)


# vision


def test_without_flash_attention_scores_are_heads_times_squared_patches():
    patches = 65_536  # one picture of 16,384 tokens
    extra = vision_activation_bytes(SEVEN_B, patches, patches, flash=False)
    extra -= vision_activation_bytes(SEVEN_B, patches, patches, flash=True)
    assert extra == 16 * patches**2 * 2
    assert extra / 1e9 == pytest.approx(137, abs=0.5)


def test_fp32_scores_equal_a_users_41_gb():
    patches = 25_530  # llama.cpp with a 2592x1944 picture
    extra = vision_activation_bytes(SEVEN_B, patches, patches, flash=False, value=4)
    extra -= vision_activation_bytes(SEVEN_B, patches, patches, flash=True, value=4)
    assert extra / 1e9 == pytest.approx(41.7, abs=0.1)


def test_old_cards_have_no_flash_attention_and_new_ones_do():
    work = Workload(images=(Image(4000, 3000),))
    old = terms(gpu="v100-32", engine="transformers", workload=work)
    new = terms(gpu="a100", engine="transformers", workload=work)
    assert old["vision_activations"] > 100 * GiB > 10 * GiB > new.get("vision_activations", 0)
    forced = terms(gpu="a100", engine="transformers", workload=work, flash_attention=False)
    assert forced["vision_activations"] == old["vision_activations"]


def test_deepstack_multiplies_what_a_visual_token_takes():
    assert encoder_bytes_per_token(SEVEN_B) == 7 * 1024
    assert encoder_bytes_per_token(MODELS["Qwen3-VL-8B"]) == 4 * 4096 * 2


# vLLM


def test_vllm_default_limits_reserve_for_the_worst_item():
    # 98,304 tokens x 7 KiB and 153,600 x 32 KiB, as vLLM's log and the arithmetic of users have it
    t = terms(engine="vllm", default_limits=True)
    config = replace(SEVEN_B, text=replace(SEVEN_B.text, max_position_embeddings=128_000))
    assert worst_item_tokens(config, 128_000) == 98_304
    assert terms(config, engine="vllm", default_limits=True)["encoder_cache"] == 98_304 * 7 * 1024
    eight = terms(MODELS["Qwen3-VL-8B"], engine="vllm", default_limits=True)
    assert eight["encoder_cache"] / GiB == pytest.approx(4.7, abs=0.05)
    assert "encoder_cache" not in terms(engine="vllm")
    assert t["encoder_cache"] > 0


def test_a_shorter_context_shrinks_the_worst_item():
    assert worst_item_tokens(SEVEN_B, 32_768) == 16_384
    assert worst_item_tokens(SEVEN_B, 4_096) == 4_096
    assert worst_item_tokens(MODELS["Qwen-VL"], 2_048) == 256


def test_encoder_cache_holds_at_least_one_prefill_step():
    work = Workload(images=(Image(280, 280),))
    t = terms(engine="vllm", workload=work, max_num_batched_tokens=4096)
    assert t["encoder_cache"] == 4096 * 7 * 1024


def test_a_hybrid_batch_and_graphs_are_separate_terms():
    assert terms(engine="vllm")["cuda_graphs"] == CUDA_GRAPHS
    assert "cuda_graphs" not in terms(engine="vllm", enforce_eager=True)


def test_tensor_parallel_shares_weights_and_kv_and_adds_communication():
    one, four = terms(engine="vllm"), terms(gpu="4xa100", engine="vllm")
    assert four["weights"] < one["weights"] / 3.9
    assert four["kv_cache"] * 4 == one["kv_cache"]
    assert four["nccl"] > 0
    assert "nccl" not in one


def test_all_ranks_hold_the_same():
    gpus = memory_terms(resolve(FitRequest(config=SEVEN_B, engine="vllm", hardware=parse_hardware("4xa100"))))
    assert len(gpus) == 4
    assert len(set(gpus)) == 1


# transformers


@pytest.mark.parametrize(
    ("name", "engine", "bytes_per_vocab"),
    [
        ("Qwen2-VL-7B", "transformers@4.45", 6),
        ("Qwen2-VL-7B", "transformers@4.57.6", 2),
        ("Qwen2-VL-7B", "transformers@5.0", 0),
        ("Qwen2.5-VL-7B", "transformers@4.49", 2),
        ("Qwen2.5-VL-7B", "transformers@4.54", 0),
        ("Qwen3-VL-8B", "transformers@4.57", 0),
        ("Qwen2-VL-7B", "transformers", 0),
    ],
)
def test_logits_of_the_whole_prompt_by_version(name, engine, bytes_per_vocab):
    setup = resolve(FitRequest(config=MODELS[name], engine=engine))
    assert logits_bytes_per_token(setup) == bytes_per_vocab * MODELS[name].text.vocab_size


def test_dealt_layers_add_up_to_one_copy():
    request = FitRequest(config=SEVEN_B, engine="transformers", hardware=parse_hardware("3xa100"))
    gpus = memory_terms(resolve(request))
    w = weight_bytes(SEVEN_B, "bf16")
    held = sum(
        t.bytes
        for gpu in gpus
        for t in gpu
        if t.name in ("weights", "scales", "embeddings", "head", "tower", "merger")
    )
    assert held == w.total
    assert [any(t.name == "tower" for t in gpu) for gpu in gpus] == [True, False, False]
    assert [any(t.name == "head" for t in gpu) for gpu in gpus] == [False, False, True]


def test_only_the_largest_phase_counts_and_names_the_others():
    request = FitRequest(
        config=SEVEN_B, engine="transformers", workload=Workload(images=(Image(4000, 3000),))
    )
    (gpu,) = memory_terms(resolve(request))
    phases = [t for t in gpu if t.name in ("vision_activations", "prefill_activations", "logits")]
    assert len(phases) == 1
    assert "in the same space" in phases[0].formula


def test_prefill_holds_three_inner_tensors_of_the_widest_part():
    assert prefill_activation_bytes(SEVEN_B, 10) == 10 * (2 * 3584 + 3 * 18944) * 2
    moe = MODELS["Qwen3-VL-30B-A3B"]
    assert prefill_activation_bytes(moe, 10) == 10 * (2 * 2048 + 8 * (3 * 768 + 2048)) * 2


# llama.cpp


def test_llama_cpp_reserves_its_compute_buffer():
    t = terms(engine="llama.cpp", precision="int4")
    assert t["compute_activations"] == 512 * (152_064 + 3_584) * 4
    assert t["head"] * 8 / parameter_counts(SEVEN_B).head == pytest.approx(6.5625)


# training


def test_full_training_takes_16_bytes_a_parameter():
    t = terms(engine="train-full", training=Training(train_vision=True), workload=Workload())
    states = t["weights"] + t["tower"] + t["gradients"] + t["optimizer"]
    assert states == 16 * parameter_counts(SEVEN_B).total


def test_zero3_deals_all_states_and_zero2_all_but_weights():
    plain = terms(engine="train-full")
    three = terms(gpu="4xa100", engine="train-full", training=Training(sharding="zero3"))
    two = terms(gpu="4xa100", engine="train-full", training=Training(sharding="zero2"))
    assert three["optimizer"] * 4 == pytest.approx(plain["optimizer"], rel=1e-6)
    assert three["weights"] * 4 == pytest.approx(plain["weights"], rel=1e-6)
    assert two["weights"] == plain["weights"]
    assert two["gradients"] * 4 == pytest.approx(plain["gradients"], rel=1e-6)


def test_lora_trains_rank_times_in_plus_out():
    per_layer = sum(i + o for i, o in [(3584, 3584), (3584, 512), (3584, 512), (3584, 3584)]) + 3 * (
        3584 + 18944
    )
    assert lora_parameters(SEVEN_B, 8) == 28 * 8 * per_layer
    t = terms(engine="train-lora")
    assert t["adapters"] == 16 * lora_parameters(SEVEN_B, 8)
    assert "optimizer" not in t


def test_qlora_keeps_language_linears_in_nf4_and_dequantises_one_at_a_time():
    t = terms(engine="train-qlora")
    assert t["weights"] == weight_bytes(SEVEN_B, "nf4").language
    assert t["dequantised"] == 3584 * 18944 * 2


def test_checkpointing_and_fused_loss_save_what_they_say():
    work = Workload(prompt_tokens=4096, answer_tokens=0)
    kept = terms(engine="train-lora", workload=work)
    whole = terms(engine="train-lora", workload=work, training=Training(checkpoint_language=False))
    fused = terms(engine="train-lora", workload=work, training=Training(fused_loss=True))
    assert whole["language_activations"] > 10 * kept["language_activations"]
    assert kept["logits"] == 4096 * 152_064 * 10
    assert "logits" not in fused


# names and settings


def test_engine_versions_are_read():
    assert parse_engine("vllm@0.8.1") == (ENGINES["vllm"], (0, 8, 1))
    assert parse_engine("llama.cpp") == (ENGINES["llama.cpp"], ())


@pytest.mark.parametrize("text", ["vlm", "vllm@", "vllm@new", ""])
def test_unknown_engines_and_versions_are_named(text):
    with pytest.raises(PlanError, match=r"engine"):
        parse_engine(text)


def test_an_engine_that_lacks_a_precision_lists_what_it_has():
    with pytest.raises(PlanError, match=r"llama.cpp does not take awq; it takes bf16"):
        resolve(FitRequest(config=SEVEN_B, engine="llama.cpp", precision="awq"))
    with pytest.raises(PlanError, match=r"no precision 'int3'"):
        resolve(FitRequest(config=SEVEN_B, precision="int3"))


@pytest.mark.parametrize("engine", planned_engines())
def test_every_precision_an_engine_takes_can_be_planned(engine):
    for precision in ENGINES[engine].precisions():
        assert total(engine=engine, precision=precision) > 3 * GiB


def test_fp8_on_an_a100_is_said_to_be_weights_only():
    setup = resolve(FitRequest(config=SEVEN_B, precision="fp8", hardware=parse_hardware("a100")))
    assert "no fp8 arithmetic" in setup.notes[0]
    assert not setup.problems


@pytest.mark.parametrize(
    ("gpu", "fields", "words"),
    [
        ("v100-32", {"precision": "awq"}, "AWQ kernels need"),
        ("v100-32", {"precision": "fp8"}, "need compute capability 8.0"),
        ("a100", {"precision": "nvfp4"}, "NVFP4 needs"),
        ("m4-max", {}, "vLLM does not run"),
        ("t4", {"kv_dtype": "fp8"}, "fp8 KV cache needs"),
        ("2xa100", {"engine": "qvl"}, "one device"),
    ],
)
def test_what_a_card_can_not_do_is_a_reason(gpu, fields, words):
    setup = resolve(FitRequest(config=SEVEN_B, hardware=parse_hardware(gpu), **fields))
    assert any(words in p for p in setup.problems)


def test_old_cards_run_bf16_as_fp16():
    setup = resolve(FitRequest(config=SEVEN_B, hardware=parse_hardware("v100-32")))
    assert "fp16" in setup.notes[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"gpu_memory_utilization": 0.0},
        {"gpu_memory_utilization": 1.5},
        {"block_size": 0},
        {"max_num_seqs": -1},
    ],
)
def test_impossible_settings_are_refused(fields):
    with pytest.raises(PlanError, match=next(iter(fields))):
        FitRequest(config=SEVEN_B, **fields)


def test_impossible_rank_is_refused():
    with pytest.raises(PlanError, match="lora_rank is 0"):
        Training(lora_rank=0)


def test_clips_are_planned_by_every_engine():
    work = Workload(videos=(Video(30, 2.0),))
    for engine in planned_engines():
        assert total(engine=engine, workload=work) > total(engine=engine, workload=Workload())


def test_clips_for_llama_cpp_are_said_to_be_images():
    for engine, said in (("llama.cpp", True), ("vllm", False)):
        notes = resolve(
            FitRequest(config=SEVEN_B, engine=engine, workload=Workload(videos=(Video(30, 2.0),)))
        ).notes
        assert any("takes images, no videos" in n for n in notes) is said


# versions


def test_a_version_older_than_the_model_is_a_reason():
    setup = resolve(
        FitRequest(config=MODELS["Qwen3-VL-8B"], name="Qwen3-VL-8B-Instruct", engine="vllm@0.10.2")
    )
    assert setup.problems == ("vllm 0.10.2 does not know Qwen3-VL-8B-Instruct, which needs 0.11.0",)


def test_a_version_with_a_known_fault_says_so_with_the_way_out():
    setup = resolve(FitRequest(config=SEVEN_B, name="Qwen2.5-VL-7B-Instruct", engine="vllm@0.8.1"))
    assert "images read wrong" in setup.notes[0]
    assert "0.8.2" in setup.notes[0]
    assert not setup.problems
    assert not resolve(FitRequest(config=SEVEN_B, engine="vllm@0.8.2")).notes


def test_a_version_that_ignores_limits_reserves_for_the_worst():
    eight, work = MODELS["Qwen3-VL-8B"], Workload(images=(PAGE,))
    fault = terms(eight, engine="vllm@0.17.1", workload=work)["encoder_cache"]
    assert fault == terms(eight, engine="vllm", workload=work, default_limits=True)["encoder_cache"]
    assert fault > 10 * terms(eight, engine="vllm@0.18", workload=work)["encoder_cache"]


def test_a_local_config_needs_what_its_family_needs():
    old = resolve(FitRequest(config=SEVEN_B, name="some/folder", engine="vllm@0.7.1"))
    assert old.problems == ("vllm 0.7.1 does not know some/folder, which needs 0.7.2",)


@pytest.mark.parametrize("version", ["0.17", "0.17.0", "0.17.0.0"])
def test_a_version_without_its_zeros_is_the_same_version(version):
    assert not resolve(FitRequest(config=SEVEN_B, name="Qwen3.5-9B", engine=f"vllm@{version}")).problems
    faulty = resolve(FitRequest(config=SEVEN_B, name="Qwen2.5-VL-7B-Instruct", engine="vllm@0.8"))
    assert any("window-attention mask" in note for note in faulty.notes)
    assert not resolve(FitRequest(config=SEVEN_B, name="some/folder", engine="vllm@0.7.2")).problems
    assert not resolve(
        FitRequest(config=SEVEN_B, engine="vllm@0.1")
    ).problems  # no known model: only arithmetic


def test_sglang_is_sent_to_launch_and_to_the_formulas_it_shares():
    with pytest.raises(PlanError, match=r"--engine vllm.*qvl launch --engine sglang"):
        resolve(FitRequest(config=SEVEN_B, engine="sglang"))


# what is left open is filled in


@pytest.mark.parametrize(
    ("gpu", "chunk"), [("h100", 8192), ("a100", 2048), ("rtx4090", 2048), ("h200", 8192)]
)
def test_vllm_prefill_steps_follow_the_card(gpu, chunk):
    setup = resolve(FitRequest(config=SEVEN_B, hardware=parse_hardware(gpu)))
    assert setup.max_num_batched_tokens == chunk
    wide = resolve(FitRequest(config=SEVEN_B, hardware=parse_hardware(gpu), max_num_batched_tokens=5000))
    assert wide.max_num_batched_tokens == 5000


def test_a_batch_wider_than_256_widens_what_sampling_prepares_for():
    assert resolve(FitRequest(config=SEVEN_B)).max_num_seqs == 256
    assert resolve(FitRequest(config=SEVEN_B, workload=Workload(concurrency=300))).max_num_seqs == 300
    assert resolve(FitRequest(config=SEVEN_B, max_num_seqs=16)).max_num_seqs == 16


def test_a_tower_that_can_not_be_cut_is_copied_unless_told_otherwise():
    three = MODELS["Qwen2.5-VL-3B"]
    request = FitRequest(config=three, hardware=parse_hardware("8xa100"))
    assert resolve(request).shards.vision == "replicate"
    assert not resolve(request).problems
    assert resolve(replace(request, vision="split")).problems


def test_experts_are_dealt_whole_only_when_asked():
    request = FitRequest(
        config=MODELS["Qwen3-VL-30B-A3B"], precision="fp8", hardware=parse_hardware("4xh100")
    )
    assert resolve(request).problems
    dealt = resolve(replace(request, expert_parallel=True))
    assert dealt.shards.expert_parallel
    assert not dealt.problems


def test_precision_and_kv_follow_the_checkpoint():
    awq = replace(SEVEN_B, quantization={"quant_method": "awq", "bits": 4})
    assert resolve(FitRequest(config=awq)).precision == "awq"
    assert resolve(FitRequest(config=SEVEN_B)).kv_dtype == "bf16"
    assert resolve(FitRequest(config=SEVEN_B, engine="qvl", precision="fp32")).kv_dtype == "fp32"


def test_four_bits_are_what_each_engine_makes_of_them():
    stored = {
        e: resolve(FitRequest(config=SEVEN_B, engine=e, precision="int4")).precision
        for e in ("qvl", "vllm", "transformers", "llama.cpp")
    }
    assert stored == {"qvl": "int4", "vllm": "int4", "transformers": "nf4", "llama.cpp": "q4_k_m"}
    assert (
        "stores int4 as nf4"
        in resolve(
            FitRequest(
                config=SEVEN_B, engine="transformers", precision="int4", hardware=parse_hardware("a100")
            )
        ).notes[0]
    )


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(MODELS)), ANY_ENGINE, st.integers(0, 6), st.integers(1, 4000))
def test_any_model_on_any_engine_is_planned_without_a_traceback(name, engine, pictures, side):
    images = (Image(max(side, 28), 800, pictures),) if pictures and side < 4000 else ()
    try:
        result = memory_terms(
            resolve(FitRequest(config=MODELS[name], engine=engine, workload=Workload(images=images)))
        )
    except PlanError:
        return
    assert all(t.bytes > 0 for gpu in result for t in gpu)
