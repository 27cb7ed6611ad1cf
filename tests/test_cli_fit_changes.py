"""What one verb promises, asked of another: offered options typed back, a config file against the catalogue's name,
choose's planner against fit."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.catalog.config import config_dict, read_config
from qvl.catalog.devices import parse_hardware
from qvl.catalog.models import config_of, find_model, models
from qvl.cli.main import main
from qvl.errors import PlanError
from qvl.plan.choose.machines import CandidateMachine
from qvl.plan.fit import fit
from qvl.plan.request import FitRequest
from qvl.plan.resolve import request_for
from qvl.plan.workload import Image, Workload

SHAPED = {m.shape: m.name for m in models() if m.shape}
TOO_MUCH = [
    "qwen2.5-vl-7b --engine transformers@4.45 --gpu rtx4090",
    "qwen2.5-vl-7b --engine transformers@4.45 --gpu rtx3060",
    "qwen2.5-vl-7b --engine transformers --gpu v100-32 --image 4000x3000",
    "qwen2.5-vl-7b --gpu l4 --image 1240x1754 --concurrency 40",
    "qwen2.5-vl-7b --engine qvl --gpu rtx4090 --image 1240x1754 --concurrency 300",
    "qwen2.5-vl-7b --engine llama.cpp --gpu rtx3060 --precision bf16",
    "qwen2.5-vl-7b --gpu rtx3060 --prompt-tokens 100000 --precision awq",
    "qwen2.5-vl-72b --precision awq --gpu 4xrtx4090",
    "qwen3-vl-30b-a3b --precision fp8 --gpu 4xl40s",
    "qwen3-vl-8b --gpu rtx4090 --default-limits",
    "qwen3.5-35b-a3b --gpu l40s --image 1240x1754x3",
    "qwen2.5-vl-7b --engine train-full --gpu 4xa100 --no-checkpointing --image 640x480",
    "qwen2.5-vl-7b --engine train-lora --gpu rtx3060",
]


def asked(capsys, words: list[str]):
    code = main(["fit", *words, "--json"])
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    return json.loads(captured.out)


@pytest.mark.parametrize("command", TOO_MUCH)
def test_an_offered_option_typed_after_the_command_makes_it_fit(capsys, command):
    words = command.split()
    result = asked(capsys, words)
    assert result["fits"] is False
    assert result["changes"]
    for change in result["changes"]:
        option = change["option"]
        after = asked(capsys, [*words, *option.split()])
        assert after["fits"] is True, option
        assert f"becomes {gib(after['total_bytes'])}" in change["effect"], option


def test_a_precision_offered_to_a_quantised_name_says_which_name_takes_it(capsys):
    main(["fit", "qwen2.5-vl-72b-awq", "--gpu", "4xrtx4090"])
    out = capsys.readouterr().out
    assert "any one of these makes it fit" in out
    assert "--precision goes with the model's own name, Qwen2.5-VL-72B-Instruct" in out
    main(["fit", "qwen2.5-vl-72b", "--precision", "awq", "--gpu", "4xrtx4090"])
    assert "own name" not in capsys.readouterr().out


def gib(size: int) -> str:
    from qvl.units import format_bytes

    return format_bytes(size)


@pytest.mark.parametrize("shape", sorted(SHAPED))
def test_a_config_file_is_planned_as_the_catalogues_name_is(shape, tmp_path):
    name = SHAPED[shape]
    (tmp_path / "config.json").write_text(json.dumps(config_dict(config_of(name))))
    work = Workload(images=(Image(1240, 1754, 2),), concurrency=3)
    hardware = parse_hardware("8xh100")
    ours = fit(request_for(name, workload=work, hardware=hardware)).to_json()
    config = read_config(tmp_path)
    file = fit(FitRequest(config=config, name=name, workload=work, hardware=hardware)).to_json()
    assert file == ours


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(SHAPED.values())),
    st.sampled_from(["bf16", "fp8", "awq", "int4"]),
    st.sampled_from(["vllm", "qvl", "llama.cpp", "transformers"]),
    st.sampled_from(["rtx4090", "2xl40s", "a100", "4xh100", "t4", "m2-ultra", "epyc-9654"]),
    st.integers(1, 64),
)
def test_choose_and_fit_say_the_same_of_a_deployment(name, precision, engine, gpu, batch):
    work = Workload(images=(Image(1240, 1754),), concurrency=batch)
    hardware = parse_hardware(gpu)
    request = request_for(name, engine=engine, precision=precision, workload=work, hardware=hardware)
    try:
        result = fit(request)
    except PlanError as e:
        with pytest.raises(PlanError, match="^" + str(e)[:20]):
            fit(CandidateMachine(find_model(name), hardware, None, engine, precision, None).request(work))
        return
    found = fit(CandidateMachine(find_model(name), hardware, None, engine, precision, None).request(work))
    assert found.fits == result.fits
    assert (found.total_bytes, found.busiest_bytes) == (result.total_bytes, max(result.per_gpu_bytes))
    assert bool(found.reasons) == (not result.fits)
    if result.fits and result.speed:
        assert found.speed.ttft_s == result.speed.ttft_s
        assert found.requests_per_s == result.speed.requests_per_s
        assert found.answer_s == pytest.approx(result.speed.ttft_s + 256 / result.speed.tokens_per_s)
