"""Launch: flags follow from the plan, spellings from the version; a refusal says what to do instead."""

import inspect
import json
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.catalog.devices import parse_hardware
from qvl.catalog.engines import engines, find_engine, parse_version
from qvl.catalog.models import config_of, models, resolve
from qvl.catalog.precisions import PRECISIONS
from qvl.errors import CapacityError, CatalogError, PlanError
from qvl.plan.fit import fit
from qvl.plan.launch import NO_HOST, WRITERS, LaunchRequest, plan_launch
from qvl.plan.request import FitRequest
from qvl.plan.workload import Image, Video, Workload

PAGES = (Image(1240, 1754, 2),)


def request(model="qwen2.5-vl-7b", gpu="l40s", work=None, **changes):
    found, checkpoint = resolve(model)
    base = {"images": PAGES, "prompt_tokens": 500, "answer_tokens": 1000, "concurrency": 4}
    return LaunchRequest(
        config=config_of(found),
        model=found,
        checkpoint=checkpoint,
        hardware=parse_hardware(gpu),
        workload=Workload(**{**base, **(work or {})}),
        **changes,
    )


def launch(*args, **kwargs):
    return plan_launch(request(*args, **kwargs))


def value(plan, flag):
    text = plan.flag(flag)
    assert text is not None, f"{flag} is not in {plan.command}"
    return json.loads(text)


# Flags follow from the plan


def test_every_flag_and_variable_has_a_reason():
    for engine in ("vllm", "sglang", "llama.cpp", "qvl"):
        plan = launch(engine=engine, precision="int4" if engine == "llama.cpp" else "")
        assert all(len(f.reason) > 5 for f in plan.flags if f.name.startswith("--"))
        assert all(len(v.reason) > 5 for v in plan.environment)


def test_max_model_len_is_what_the_work_needs_rounded_up():
    # two A4 pages at 150 dpi: 2 x (2,772 + 2) tokens, 500 of text, 1,000 of answer = 7,048
    plan = launch()
    assert value(plan, "--max-model-len") == 7168
    reason = next(f.reason for f in plan.flags if f.name == "--max-model-len")
    assert "7,048" in reason


def test_max_model_len_never_exceeds_the_models_context():
    plan = launch("qwen2-vl-2b", "h100", work={"prompt_tokens": 26_000})
    assert value(plan, "--max-model-len") == 32_768


def test_a_length_too_short_for_the_work_is_refused_with_both_numbers():
    with pytest.raises(PlanError, match=r"max-model-len 4,096: the work needs 7,048"):
        launch(max_model_len=4096)
    assert value(launch(max_model_len=20_000), "--max-model-len") == 20_000


def test_limits_and_size_hints_are_the_planned_pictures():
    limit = value(launch(work={"images": (Image(640, 480), Image(1240, 1754, 2))}), "--limit-mm-per-prompt")
    assert limit == {"image": {"count": 3, "width": 1240, "height": 1754}, "video": 0}


def test_larger_pictures_than_planned_are_shrunk_to_the_largest_planned():
    plan = launch()
    assert value(plan, "--mm-processor-kwargs") == {"max_pixels": 1764 * 1232}
    asked = launch(work={"max_pixels": 1_003_520, "min_pixels": 100_352})
    assert value(asked, "--mm-processor-kwargs") == {"min_pixels": 100_352, "max_pixels": 1_003_520}


def test_qwen3_writes_sizes_as_edges_and_scopes_them_when_clips_are_planned():
    assert set(value(launch("qwen3-vl-8b"), "--mm-processor-kwargs")["size"]) == {
        "shortest_edge",
        "longest_edge",
    }
    both = launch("qwen3-vl-8b", work={"videos": (Video(60, 2),), "concurrency": 1})
    assert set(value(both, "--mm-processor-kwargs")) == {"images_kwargs"}


def test_a_clip_sets_the_frames_that_the_plan_counted():
    plan = launch("qwen2.5-vl-7b", "h100", work={"images": (), "videos": (Video(60, 2),), "concurrency": 1})
    assert value(plan, "--media-io-kwargs") == {"video": {"num_frames": 120}}
    assert value(plan, "--limit-mm-per-prompt")["video"]["num_frames"] == 120


def test_words_only_leave_the_tower_out():
    plan = launch(work={"images": ()})
    assert plan.flag("--language-model-only") == ""
    assert plan.flag("--limit-mm-per-prompt") is None
    old = launch(work={"images": ()}, engine="vllm@0.11.1")
    assert value(old, "--limit-mm-per-prompt") == {"image": 0, "video": 0}


def test_the_plan_behind_the_command_is_the_one_fit_makes():
    plan = launch("qwen2.5-vl-72b", "4xh100", work={"concurrency": 4})
    again = fit(
        FitRequest(
            config=config_of("qwen2.5-vl-72b"),
            engine="vllm@0.32.0",
            precision="bf16",
            hardware=parse_hardware("4xh100"),
            workload=plan.workload,
            max_num_seqs=value(plan, "--max-num-seqs"),
        )
    )
    assert again.fits
    assert again.setup.max_num_batched_tokens == value(plan, "--max-num-batched-tokens")


# How many GPUs a copy takes


def test_a_model_that_fits_one_card_gets_a_copy_on_each():
    plan = launch("qwen2.5-vl-7b", "4xa100")
    assert (plan.gpus_per_replica, plan.replicas) == (1, 4)
    assert (value(plan, "--tensor-parallel-size"), value(plan, "--data-parallel-size")) == (1, 4)


def test_a_copy_is_cut_wider_than_weights_need_where_that_answers_far_more():
    plan = launch("qwen2.5-vl-72b", "8xh100")
    assert (plan.gpus_per_replica, plan.replicas) == (4, 2)
    assert plan.flag("--enable-expert-parallel") is None


def test_a_forced_cut_is_kept():
    plan = launch("qwen2.5-vl-7b", "4xa100", tensor_parallel_size=4)
    assert (plan.gpus_per_replica, plan.replicas) == (4, 1)
    assert plan.flag("--data-parallel-size") is None


def test_copies_of_a_mixture_deal_experts_whole():
    # otherwise vLLM cuts the experts' width over the GPUs of all copies together
    plan = launch("qwen3-vl-30b-a3b", "4xl40s", precision="fp8")
    assert (plan.gpus_per_replica, plan.replicas) == (2, 2)
    flag = next(f for f in plan.flags if f.name == "--enable-expert-parallel")
    assert flag.copies_only


@pytest.mark.parametrize(
    ("model", "gpu", "precision", "tp", "reason", "nearest"),
    [
        ("qwen2.5-vl-72b", "8xl40s", "awq", 8, "231 groups of 128, which do not divide by 8", "Nearest legal: 1"),
        ("qwen3-vl-30b-a3b", "4xl40s", "fp8", 4, "1.5|blocks of 128|6 blocks", "4 with --expert-parallel"),
        ("qwen3-vl-235b-a22b", "8xh100", "fp8", 8, "12 blocks of 128, which do not divide by 8", "Nearest legal: 4"),
        ("qwen2.5-vl-7b", "8xl4", "bf16", 8, "28 attention heads do not divide by 8", "Nearest legal: 4"),
    ],
)  # fmt: skip
def test_an_illegal_forced_cut_is_refused_with_the_nearest_legal_one(
    model, gpu, precision, tp, reason, nearest
):
    with pytest.raises(PlanError, match=reason) as e:
        launch(model, gpu, precision=precision, tensor_parallel_size=tp)
    assert nearest in str(e.value)


def test_expert_parallelism_makes_the_forced_cut_legal():
    plan = launch("qwen3-vl-30b-a3b", "4xl40s", precision="fp8", tensor_parallel_size=4, expert_parallel=True)
    assert plan.flag("--enable-expert-parallel") == ""
    assert not next(f for f in plan.flags if f.name == "--enable-expert-parallel").copies_only


def test_gpus_that_do_not_divide_into_copies_are_refused():
    with pytest.raises(PlanError, match="6 GPUs do not divide into replicas of 4: use 1, 2, 3, 6"):
        launch("qwen2.5-vl-7b", "6xl40s", tensor_parallel_size=4)


def test_what_does_not_fit_says_what_would():
    with pytest.raises(CapacityError, match=r"does not fit rtx4090.*Any of these helps: .*--gpu"):
        launch("qwen2.5-vl-32b", "rtx4090")


def test_more_gpus_that_can_not_be_used_are_explained():
    with pytest.raises(CapacityError, match="231 groups"):
        launch("qwen2.5-vl-72b-awq", "8xrtx4090")


def test_a_precision_is_only_suggested_where_weights_are_published():
    with pytest.raises(CapacityError) as e:
        launch("qwen3-vl-32b", "l40s", precision="fp8", work={"concurrency": 64})
    assert "--precision awq" not in str(e.value)


# Versions


def test_versions_that_break_the_generation_are_refused_with_the_way_out():
    for version in ("0.8.0", "0.8.1"):
        with pytest.raises(PlanError, match=r"boxes useless.*use 0.7.3 or 0.8.2"):
            launch(engine=f"vllm@{version}")
    assert launch(engine="vllm@0.8.2").version == "0.8.2"
    assert launch("qwen2-vl-7b", engine="vllm@0.8.1").version == "0.8.1"


def test_a_version_older_than_the_model_names_the_first_that_knows_it():
    with pytest.raises(PlanError, match=r"does not know Qwen3-VL-8B-Instruct, which needs 0.11.0"):
        launch("qwen3-vl-8b", engine="vllm@0.10.2")


def test_the_first_generation_is_refused_where_vllm_dropped_it():
    with pytest.raises(PlanError, match=r"no longer serves Qwen-VL-Chat; the last that does is 0.23.0"):
        launch("qwen-vl-chat", "h100")
    old = launch("qwen-vl-chat", "h100", engine="vllm@0.23")
    assert old.flag("--trust-remote-code") == ""
    assert any("remote-code" in w for w in old.warnings)


def test_a_regression_of_some_checkpoints_spares_the_others():
    assert launch(engine="vllm@0.10.1").version == "0.10.1"
    with pytest.raises(PlanError, match="no longer load"):
        launch(engine="vllm@0.10.1", precision="gptq-int4")


def test_a_regression_with_a_workaround_only_warns():
    assert any("no effect" in w for w in launch("qwen3-vl-8b", engine="vllm@0.17.1").warnings)


def test_limits_are_spelled_for_the_version():
    assert launch(engine="vllm@0.8.2").flag("--limit-mm-per-prompt") == "image=2,video=0"
    assert value(launch(engine="vllm@0.9.0"), "--limit-mm-per-prompt") == {"image": 2, "video": 0}
    assert "width" in value(launch(engine="vllm@0.11.1"), "--limit-mm-per-prompt")["image"]


def test_versions_compare_by_number_and_trailing_zeros_do_not_count():
    assert parse_version("0.11") == parse_version("0.11.0") < parse_version("0.11.1") < parse_version("0.32")
    with pytest.raises(PlanError, match="not a version"):
        parse_version("newest")


def test_an_unknown_engine_lists_the_known():
    with pytest.raises(PlanError, match=r"known: vllm, sglang, llama\.cpp, qvl"):
        find_engine("tgi")


def test_a_feature_nobody_wrote_down_is_never_guessed():
    with pytest.raises(CatalogError, match="--magic"):
        engines()["vllm"].has("--magic", "0.32")


# Weights


def test_int4_takes_what_is_published_and_says_so():
    plan = launch(precision="int4")
    assert plan.model == "Qwen/Qwen2.5-VL-7B-Instruct-AWQ"
    assert any("published as awq" in n for n in plan.notes)


def test_a_checkpoints_name_sets_the_precision_and_contradictions_are_refused():
    assert launch("Qwen/Qwen2.5-VL-7B-Instruct-AWQ").precision == "awq"
    with pytest.raises(PlanError, match="is awq, --precision says fp8"):
        launch("Qwen/Qwen2.5-VL-7B-Instruct-AWQ", precision="fp8")


def test_a_precision_without_weights_lists_what_there_is():
    with pytest.raises(PlanError, match=r"not published in gptq-int8; it is in bf16, awq"):
        launch(precision="gptq-int8")


def test_fp8_without_published_weights_is_quantised_while_loading():
    plan = launch("qwen2.5-vl-32b", "h100", precision="fp8", work={"concurrency": 1})
    assert plan.model == "Qwen/Qwen2.5-VL-32B-Instruct"
    assert plan.flag("--quantization") == "fp8"
    assert plan.weight_bytes > 60e9  # what is downloaded is still 16 bits wide


def test_fp8_on_an_a100_is_said_to_be_weights_only():
    assert any("no fp8 arithmetic" in n for n in launch("qwen3-vl-8b", "a100", precision="fp8").notes)


def test_a_card_without_bf16_runs_in_half():
    assert launch(gpu="v100-32", work={"concurrency": 1}).flag("--dtype") == "half"


def test_own_weights_need_no_catalogue():
    plan = plan_launch(
        LaunchRequest(
            config=config_of("qwen2.5-vl-7b"),
            source="./mine",
            hardware=parse_hardware("l40s"),
            workload=Workload(images=PAGES),
        )
    )
    assert plan.command[:3] == ("vllm", "serve", "./mine")


# Safety


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_no_address_and_no_file_may_be_named_unless_asked(engine):
    plan = launch(engine=engine)
    assert plan.flag("--allowed-media-domains") == NO_HOST
    assert plan.flag("--allowed-local-media-path") is None
    assert plan.flag("--host") == "127.0.0.1"


def test_redirects_are_off_and_the_list_of_hosts_is_never_empty():
    assert [(v.name, v.value) for v in launch().environment] == [("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0")]
    listed = launch(media_domains=("a.example.org", "b.example.org"))
    at = listed.command.index("--allowed-media-domains")
    assert listed.command[at + 1 : at + 3] == ("a.example.org", "b.example.org")


def test_versions_that_can_not_restrict_addresses_warn():
    plan = launch(engine="vllm@0.9.2")
    assert plan.flag("--allowed-media-domains") is None
    assert any("CVE-2025-6242" in w for w in plan.warnings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"media_domains": ("https://a.org/x",)}, "no URL"),
        ({"media_domains": ("",)}, "media domain ''"),
        ({"media_path": "images"}, "absolute"),
        ({"media_path": "/"}, "read the machine's files"),
        ({"port": 0}, "port 0"),
        ({"port": 70_000}, "port 70000"),
        ({"tensor_parallel_size": 0}, "tensor-parallel-size 0"),
    ],
)
def test_unsafe_or_impossible_settings_are_refused(changes, message):
    with pytest.raises(PlanError, match=message):
        launch(**changes)


def test_listening_to_everyone_warns_that_there_is_no_key():
    assert any("API key" in w for w in launch(host="0.0.0.0").warnings)


# Other engines


def test_sglang_gets_its_own_spellings():
    plan = launch(engine="sglang")
    assert plan.command[:3] == ("python3", "-m", "sglang.launch_server")
    assert value(plan, "--context-length") == 7168
    assert value(plan, "--mm-process-config") == {"image": {"max_pixels": 1764 * 1232}}


def test_llama_cpp_shares_its_context_among_slots_and_keeps_grounding_tokens():
    plan = launch(engine="llama.cpp", gpu="rtx4090", work={"concurrency": 2})
    assert value(plan, "--ctx-size") == 2 * 7168
    assert value(plan, "--image-max-tokens") == 2772
    assert value(plan, "--image-min-tokens") == 1024
    with pytest.raises(PlanError, match=r"llama\.cpp does not take awq"):
        launch(engine="llama.cpp", precision="awq")


def test_our_engine_takes_one_device_and_refuses_a_cut():
    assert launch(engine="qvl", gpu="2xl40s").command[:4] == (
        "qvl",
        "serve",
        "--model",
        "Qwen/Qwen2.5-VL-7B-Instruct",
    )
    with pytest.raises(PlanError, match="no tensor parallelism"):
        launch(engine="qvl", gpu="2xl40s", tensor_parallel_size=2)


def test_our_own_servers_verb_knows_every_flag_written_for_it():
    serve = pytest.importorskip("qvl.cli.serve")
    plan = launch(engine="qvl", media_domains=("a.example.org",), media_path="/srv/pictures", kv_dtype="bf16")
    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve.run).parameters}
    assert {f.name for f in plan.flags} <= options


def test_apple_machines_are_sent_to_llama_cpp():
    with pytest.raises(PlanError, match=r"use llama\.cpp"):
        launch(gpu="m4-max")


# Whatever is asked, the answer is a legal command or a helpful refusal

NAMES = [m.name for m in models() if m.shape and not m.hosted]


@settings(max_examples=30, deadline=None)
@given(
    model=st.sampled_from(NAMES),
    gpu=st.sampled_from(["rtx3060", "rtx4090", "2xl40s", "4xa100", "8xh100", "v100-32", "h200", "mi300x"]),
    precision=st.sampled_from(["", "bf16", "fp8", "int4", "awq", "gptq-int8"]),
    engine=st.sampled_from(["vllm", "vllm@0.8.2", "vllm@0.11.0", "sglang", "llama.cpp"]),
    concurrency=st.integers(1, 64),
    image=st.tuples(st.integers(28, 4000), st.integers(28, 4000)),
)
def test_every_request_ends_in_a_command_or_a_refusal(model, gpu, precision, engine, concurrency, image):
    work = {"images": (Image(*image),), "concurrency": concurrency}
    try:
        plan = launch(model, gpu, work=work, engine=engine, precision=precision)
    except (PlanError, CapacityError) as refusal:
        told = str(refusal)
        assert any(c.isdigit() for c in told) or "known" in told, told
        return
    assert plan.gpus_per_replica * plan.replicas in (plan.hardware.count, 1)
    assert plan.precision in (*PRECISIONS, "nvfp4")
    names = [f.name for f in plan.flags if f.name.startswith("--")]
    assert len(names) == len(set(names))
    assert shlex.split(shlex.join(plan.command)) == list(plan.command)


def test_sglang_without_pictures_allows_none_and_keeps_its_tower():
    # 0.5.23 refuses --language-model-only for every architecture of this family
    plan = launch(engine="sglang", work={"images": ()})
    assert plan.flag("--language-model-only") is None
    assert value(plan, "--limit-mm-data-per-request") == {"image": 0, "video": 0}
    assert any("tower all the same" in note for note in plan.notes)


@pytest.mark.parametrize("host", ["", "a b", "0.0.0.0;id", "host\nrun", "$(id)", "`id`"])
def test_a_host_that_a_shell_would_read_otherwise_is_refused(host):
    with pytest.raises(PlanError, match="give an address or a name"):
        launch(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "[fe80::1%eth0]", "gpu-7.example.org"])
def test_addresses_and_names_are_hosts(host):
    assert launch(host=host).flag("--host") == host


@pytest.mark.parametrize("source", ["-rf", "model\nrun: id", "a\tb", "x\x1b[31m"])
def test_a_source_that_breaks_out_of_its_line_is_refused(source):
    with pytest.raises(PlanError, match="give a folder or a hub id"):
        launch(source=source)


def test_a_gguf_file_is_loaded_as_it_is_named():
    plan = launch(engine="llama.cpp", source="mine-Q4_K_M.gguf")
    assert plan.flag("--model") == "mine-Q4_K_M.gguf"
    assert plan.flag("--mmproj") == "mmproj-mine-F16.gguf"


def test_llama_cpp_does_not_take_an_awq_checkpoint_for_its_own():
    with pytest.raises(PlanError, match=r"GGUF files, Qwen/Qwen2\.5-VL-7B-Instruct-AWQ is awq"):
        launch("qwen2.5-vl-7b-awq", engine="llama.cpp")


def test_every_engine_of_the_catalogue_has_a_writer():
    assert set(WRITERS) == set(engines())
