"""`qvl fit`: fixed names, one readable page, one line for every mistake, a fast start."""

import json
import subprocess
import sys

import pytest

from hub_configs import hub_config
from qvl.cli import main as cli


def run(capsys, *args):
    code = cli.main(["fit", *args])
    out, err = capsys.readouterr()
    return code, out, err


def as_json(capsys, *args):
    code, out, err = run(capsys, *args, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_json_answers_with_the_fixed_names(capsys):
    found = as_json(
        capsys, "qwen2.5-vl-7b", "--engine", "vllm", "--precision", "bf16", "--prompt-tokens", "500",
        "--answer-tokens", "200", "--image", "1240x1754x3", "--video", "10s@2fps", "--concurrency", "2",
        "--gpu", "2xa100",
    )  # fmt: skip
    assert found["fits"] is True
    assert sum(found["per_gpu_bytes"]) == found["total_bytes"] == sum(found["terms"].values())
    assert len(found["per_gpu_bytes"]) == 2
    assert found["visual_tokens"] > 3 * 2772
    assert found["max_context"] > found["context_tokens"]
    assert found["max_concurrency"] > 2
    assert found["speed"]["ttft_s"] > 0
    assert found["changes"] == []


def test_a_refusal_lists_changes_and_exits_0(capsys):
    found = as_json(capsys, "qwen2.5-vl-7b", "--gpu", "rtx3060", "--image", "1240x1754")
    assert found["fits"] is False
    assert all(set(c) == {"option", "effect"} for c in found["changes"])
    assert found["changes"]


def test_people_read_the_verdict_first_and_a_formula_beside_each_term(capsys):
    code, out, _ = run(capsys, "qwen2.5-vl-7b", "--gpu", "rtx4090", "--image", "1240x1754x3")
    assert code == 0
    lines = out.splitlines()
    assert "fits rtx4090" in lines[0]
    assert any("2 x 28 layers x 4 KV heads x 128" in line for line in lines)
    assert any(line.startswith("  first token") for line in lines)


def test_people_are_told_what_makes_it_fit(capsys):
    _, out, _ = run(capsys, "qwen3-vl-30b-a3b", "--precision", "fp8", "--gpu", "4xl40s")
    assert "6 blocks of 128" in out.splitlines()[0]
    assert "--expert-parallel" in out


def test_each_gpu_of_dealt_layers_has_its_own_table(capsys):
    _, out, _ = run(capsys, "qwen2.5-vl-7b", "--engine", "transformers", "--gpu", "2xl4")
    assert "memory of GPU 0" in out
    assert "memory of GPU 1" in out


def test_without_a_gpu_only_bytes_are_told(capsys):
    _, out, _ = run(capsys, "qwen2.5-vl-3b")
    assert "no hardware named" in out
    assert "speed" not in out
    assert as_json(capsys, "qwen2.5-vl-3b")["fits"] is None


def test_a_local_config_of_any_size_is_planned(capsys, tmp_path):
    config = hub_config("Qwen2.5-VL-3B") | {"num_hidden_layers": 12}  # a size nobody published
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = as_json(capsys, "--config", str(tmp_path), "--gpu", "l4", "--image", "280x280")
    named = as_json(capsys, "qwen2.5-vl-3b", "--gpu", "l4", "--image", "280x280")
    assert found["terms"]["kv_cache"] * 3 == named["terms"]["kv_cache"]
    assert found["fits"] is True
    assert found["visual_tokens"] == 100


def test_an_old_transformers_holds_the_logits_of_the_whole_prompt(capsys):
    args = ["qwen2-vl-7b", "--prompt-tokens", "14336", "--gpu", "a100", "--engine"]
    old, new = (
        as_json(capsys, *args, engine)["total_bytes"] for engine in ("transformers@4.45", "transformers")
    )
    assert old - new > 10 * 2**30


def test_training_takes_its_own_settings(capsys):
    base = ["qwen2.5-vl-7b", "--gpu", "4xa100", "--image", "640x480", "--engine", "train-full"]
    whole = as_json(capsys, *base)
    dealt = as_json(capsys, *base, "--sharding", "zero3", "--train-vision")
    assert whole["fits"] is False
    assert dealt["fits"] is True
    lora = as_json(capsys, "qwen2.5-vl-7b", "--gpu", "rtx4090", "--engine", "train-lora", "--lora-rank", "16")
    assert lora["terms"]["adapters"] > 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "name one model"),
        (["qwen2.5-vl-7b", "--config", "x"], "both qwen2.5-vl-7b and --config"),
        (["qwen9"], "no model 'qwen9'"),
        (["qwen-vl-max"], "hosted"),
        (["qwen2.5-vl-7b", "--gpu", "rtx9999"], "no device 'rtx9999'"),
        (["qwen2.5-vl-7b", "--gpu", "0xa100"], "0 devices"),
        (["qwen2.5-vl-7b", "--gpu", "-2xa100"], "-2 devices"),
        (["qwen2.5-vl-7b", "--engine", "vlm"], "no engine 'vlm'"),
        (["qwen2.5-vl-7b", "--precision", "int3"], "no precision 'int3'"),
        (["qwen2.5-vl-7b", "--kv-dtype", "fp4"], "no KV dtype 'fp4'"),
        (["qwen2.5-vl-7b", "--image", "40000x25000"], "1,000,000,000 pixels"),
        (["qwen2.5-vl-7b", "--image", "0x10"], "image width is 0"),
        (["qwen2.5-vl-7b", "--image", "big"], "WIDTHxHEIGHT"),
        (["qwen2.5-vl-7b", "--video", "-5@2"], "-5 s"),
        (["qwen2.5-vl-7b", "--max-pixels", "1000000000"], "max_pixels is 1000000000"),
        (["qwen2.5-vl-7b", "--prompt-tokens", "-1"], "prompt_tokens is -1"),
        (["qwen2.5-vl-7b", "--concurrency", "0"], "concurrency is 0"),
        (["qwen2.5-vl-7b", "--gpu-memory-utilization", "2"], "gpu_memory_utilization is 2.0"),
        (["qwen2.5-vl-7b", "--sharding", "zero9"], "no sharding 'zero9'"),
        (["--config", "no/such/config.json"], "can't be read"),
        (["qwen2.5-vl-7b", "--frob"], "--frob"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(capsys, args, words):
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert words in err
    assert "Traceback" not in err


FIT = ["fit", "qwen2.5-vl-7b", "--gpu", "rtx4090", "--image", "1240x1754x3"]


HEAVY = ("torch", "numpy", "rich", "PIL", "jinja2", "tokenizers", "transformers", "av", "lxml", "httpx")


def loaded(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of the modules a fresh interpreter holds after `code`."""
    code = f"import sys; {code}; print([m for m in {names!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1].replace("'", '"'))


def test_a_fit_loads_no_heavy_module():
    assert loaded(f"from qvl.cli.main import main; main({FIT!r})", HEAVY) == []


def test_the_planner_itself_loads_no_command_line_library_either():
    code = "from qvl.plan.fit import fit; from qvl.plan.request import request_for; fit(request_for('qwen3-vl-8b'))"
    assert loaded(code, (*HEAVY, "typer", "pydantic")) == []
