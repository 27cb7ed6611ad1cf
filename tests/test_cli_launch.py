"""`qvl launch` from the command line: what it prints, refuses and exits with."""

import json
import shlex

import pytest

from hub_configs import hub_config
from qvl.cli.main import main

L40S = ["launch", "qwen2.5-vl-7b", "--engine", "vllm@0.32", "--gpu", "2xl40s"]
PAGE = ["--image", "1240x1754"]


def run(capsys, *words):
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_issues_own_command_prints_a_command_with_reasons(capsys):
    code, out, err = run(capsys, *L40S)
    assert code == 0
    comments, _, command = out.partition("\n\n")
    assert all(line.startswith("#") for line in comments.splitlines())
    words = shlex.split(command.replace("\\\n", ""))
    assert words[1:4] == ["vllm", "serve", "Qwen/Qwen2.5-VL-7B-Instruct"]
    assert "one 1240x1754 image" in err  # what was assumed is said, apart from the command


def test_json_holds_words_reasons_and_text(capsys):
    code, out, _ = run(capsys, *L40S, *PAGE, "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["command"][:3] == ["vllm", "serve", "Qwen/Qwen2.5-VL-7B-Instruct"]
    assert plan["gpus_per_replica"] * plan["replicas"] == 2
    assert all(f["reason"] for f in plan["flags"] if f["name"].startswith("--"))
    assert plan["environment"]["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"
    assert "vllm serve" in plan["text"]


@pytest.mark.parametrize("form", ["compose", "kubernetes", "ray"])
def test_every_format_is_reachable(capsys, form):
    code, out, _ = run(capsys, *L40S, *PAGE, "--format", form)
    assert code == 0
    assert "Qwen/Qwen2.5-VL-7B-Instruct" in out


REFUSED = {
    "unknown model": (["launch", "qwen2.5-vl-9b", "--gpu", "l40s"], "qwen2.5-vl"),
    "unknown gpu": (["launch", "qwen2.5-vl-7b", "--gpu", "rtx4091"], "rtx4090"),
    "no gpu": (["launch", "qwen2.5-vl-7b"], "--gpu"),
    "zero gpus": (["launch", "qwen2.5-vl-7b", "--gpu", "0xl40s"], "0 devices"),
    "unknown engine": ([*L40S, "--engine", "tgi"], "known: vllm"),
    "no version": ([*L40S, "--engine", "vllm@new"], "not a version"),
    "unknown format": ([*L40S, "--format", "helm"], "known: shell"),
    "hosted": (["launch", "qwen-vl-max", "--gpu", "l40s"], "qvl cost"),
    "no model": (["launch", "--gpu", "l40s"], "name one model"),
    "contradiction": ([*L40S, "--text-only", *PAGE], "--text-only and --image contradict"),
    "a billion pixels": ([*L40S, "--image", "100000x10000"], "1,000,000,000 pixels"),
    "negative tokens": ([*L40S, "--prompt-tokens", "-5"], "-5"),
    "negative concurrency": ([*L40S, "--concurrency", "0"], "concurrency is 0"),
    "utilisation": ([*L40S, *PAGE, "--gpu-memory-utilization", "1.5"], "1.5"),
    "bad 2.5 version": ([*L40S, "--engine", "vllm@0.8.0"], "0.8.2"),
    "72B AWQ at 8": (["launch", "qwen2.5-vl-72b", "--precision", "awq", "--gpu", "8xl40s",
                      "--tensor-parallel-size", "8"], "Nearest legal: 1"),
    "30B-A3B FP8 at 4": (["launch", "qwen3-vl-30b-a3b", "--precision", "fp8", "--gpu", "4xl40s",
                          "--tensor-parallel-size", "4"], "--expert-parallel"),
    "wrong flag": ([*L40S, "--gpus", "2"], "--gpus"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_line_that_helps_and_exit_2(capsys, name):
    words, helps = REFUSED[name]
    code, out, err = run(capsys, *words)
    told = [line for line in err.splitlines() if "planned for one" not in line]
    assert code == 2
    assert out == ""
    assert len(told) == 1
    assert told[0].startswith("qvl launch: ")
    assert helps in told[0]


def test_a_config_of_ones_own_is_launched_from_its_folder(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hub_config("Qwen2.5-VL-7B")))
    code, out, _ = run(
        capsys, "launch", "--config", tmp_path / "config.json", "--gpu", "l40s", *PAGE, "--json"
    )
    assert code == 0
    assert json.loads(out)["command"][2] == str(tmp_path)


def test_a_config_of_ones_own_is_refused_by_a_version_that_its_family_is_too_young_for(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hub_config("Qwen2.5-VL-7B")))
    code, out, err = run(
        capsys, "launch", "--config", tmp_path, "--engine", "vllm@0.7.1", "--gpu", "l40s", *PAGE
    )
    assert (code, out) == (2, "")
    assert "--engine vllm@0.7.2" in err


def test_help_names_the_formats(capsys):
    code, out, _ = run(capsys, "launch", "--help")
    assert code == 0
    assert "kubernetes" in out
