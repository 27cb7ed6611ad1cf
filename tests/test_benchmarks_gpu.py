"""The GPU scripts do on the CPU, at a tiny size, what they do on a GPU; the queue keeps its budget and its word."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks" / "gpu"


def load(name: str):
    """A script as a module; `decode`, `train_mini` and others exist in several folders."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(FOLDER))


def dry_run(name: str, out: Path, *more: str) -> dict:
    assert load(name).main(["--dry-run", "--out", str(out), *more]) == 0
    result = json.loads((out / f"{name}.json").read_text())
    assert result["dry_run"]
    assert "mean nothing" in result["device"]
    return result


def goal_of(result: dict, start: str) -> dict:
    return next(g for g in result["goals"] if g["goal"].startswith(start))


def test_parity_of_a_device_with_itself_is_the_yardstick(tmp_path):
    result = dry_run("parity", tmp_path)
    (cell,) = result["cells"]
    assert cell["features_ratio"] == cell["logits_ratio"] == pytest.approx(1.0, abs=0.05)
    assert 0 < cell["logits_cpu_bf16"] < 0.05
    assert all(g["met"] for g in result["goals"])


def test_parity_misses_its_goal_when_one_weight_differs(tmp_path, monkeypatch):
    parity = load("parity")
    honest, calls = parity.outputs, []

    def broken(model, inputs):
        calls.append(model)
        if len(calls) == 1:  # the device's run
            model.model.layers[0].mlp.down_proj.weight.mul_(3.0)
            found = honest(model, inputs)
            model.model.layers[0].mlp.down_proj.weight.div_(3.0)
            return found
        return honest(model, inputs)

    monkeypatch.setattr(parity, "outputs", broken)
    parity.main(["--dry-run", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "parity.json").read_text())
    assert not goal_of(result, "Qwen2.5-VL-3B tiny: logits")["met"]


def test_decode_counts_every_weight_that_a_token_reads_once(tmp_path):
    decode, common = load("decode"), load("common")
    config = common.shape("Qwen2.5-VL-7B", True)
    model = common.random_model(config, torch.device("cpu"), torch.bfloat16)
    whole = sum(p.numel() for p in model.model.layers.parameters()) + 64 + 1024 * 64
    assert decode.bytes_per_token(model, 0) == 2 * whole  # the head, and not the table
    kv = decode.bytes_per_token(model, 10) - decode.bytes_per_token(model, 0)
    assert kv == 10 * 2 * 2 * 2 * 16 * 2  # tokens, k and v, layers, heads, width, bytes


def test_decode_runs_against_the_bound_and_transformers(tmp_path):
    result = dry_run("decode", tmp_path)
    assert result["token_s"]["n"] == result["new_tokens"] - 1
    assert result["bound_s"] == pytest.approx(result["bytes_per_token"] / result["copy_bytes_per_s"])
    assert goal_of(result, "share of the bandwidth bound")["wanted"] == 0.85
    assert goal_of(result, "times transformers")["wanted"] == 6.0


def test_clients_with_one_prompt_get_one_answer(tmp_path):
    result = dry_run("clients", tmp_path)
    assert result["same_answers"]
    assert result["first_token_s"]["n"] == result["clients"] == 3


def test_vision_counts_the_operations_of_its_layers(tmp_path):
    vision, common = load("vision"), load("common")
    config = common.shape("Qwen2.5-VL-7B", True)
    model = common.random_model(config, torch.device("cpu"), torch.bfloat16)
    counted = vision.operations(model, (1, 4, 4))  # 16 patches, one window
    block = 3 * 32 * 32 + 32 * 32 + 3 * 32 * 64
    merger = 128 * 128 + 128 * 64
    assert counted["linear"] == 2 * 16 * (2 * block + 32 * 3 * 2 * 14 * 14) + 2 * 4 * merger
    assert counted["attention"] == 4 * 32 * (16**2 + 16**2)


def test_vision_runs_a_picture_of_several_windows(tmp_path):
    result = dry_run("vision", tmp_path)
    assert result["seen"] == [84, 140]
    assert result["bound_s"] > 0


def test_memory_plans_the_weights_that_are_held(tmp_path):
    result = dry_run("memory", tmp_path)
    assert result["planned"]["weights"] == result["held_weights"]
    assert goal_of(result, "weights")["met"]


def test_paged_attention_compares_all_small_cases(tmp_path):
    result = dry_run("paged_attention", tmp_path)
    assert {cell["kv"] for cell in result["cells"]} == {"fp32", "bf16", "fp16", "fp8"}
    assert all(g["met"] for g in result["goals"])


@pytest.mark.slow
def test_train_mini_trains_packs_and_scores(tmp_path):
    result = dry_run("train_mini", tmp_path)
    before = json.loads((FOLDER.parents[1] / "src/qvl/mini/training.json").read_text())
    assert result["training"]["step"] == before["step"] + 1
    assert [cell["n"] for cell in result["scores"]] == [1]


def test_scripts_refuse_a_machine_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--dry-run"):
        load("vision").main(["--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_missed_goal_ends_in_status_1_on_a_gpu_only(tmp_path, monkeypatch):
    common = load("common")
    args = common.arguments("").parse_args(["--out", str(tmp_path)])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert common.report(args, "x", {}, [common.goal("g", 0.5, 0.85)]) == 1
    assert common.report(args, "x", {}, [common.goal("g", 0.9, 0.85)]) == 0
    assert common.report(args, "x", {}, [common.goal("g", 0.9, 0.85, at_most=True)]) == 1
    args.dry_run = True
    assert common.report(args, "x", {}, [common.goal("g", 0.5, 0.85)]) == 0


def queue(tmp_path, monkeypatch, scripts: dict[str, str]):
    """run_all over small scripts of our own."""
    run_all = load("run_all")
    for name, code in scripts.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(run_all, "FOLDER", tmp_path)
    monkeypatch.setattr(run_all, "QUEUE", tuple(scripts))
    return run_all


ANSWERS = """import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
(out / "{name}.json").write_text(json.dumps({{"goals": [{{"goal": "half", "met": {met}}}]}}))
sys.exit({status})
"""


def test_the_queue_writes_what_became_of_each_script(tmp_path, monkeypatch):
    scripts = {
        "good": ANSWERS.format(name="good", met=True, status=0),
        "missed": ANSWERS.format(name="missed", met=False, status=1),
        "broken": "raise ValueError('no such kernel')",
    }
    run_all = queue(tmp_path, monkeypatch, scripts)
    assert run_all.main(["--out", str(tmp_path / "out")]) == 1
    rows = json.loads((tmp_path / "out" / "run_all.json").read_text())
    states = [row["state"] for row in rows]
    assert states == ["ok", "missed: half", "failed: ValueError: no such kernel"]


def test_the_queue_stops_a_script_that_takes_too_long_and_goes_on(tmp_path, monkeypatch):
    scripts = {
        "endless": "import time; time.sleep(60)",
        "good": ANSWERS.format(name="good", met=True, status=0),
    }
    run_all = queue(tmp_path, monkeypatch, scripts)
    monkeypatch.setattr(run_all, "LIMIT_S", 1.0)
    assert run_all.main(["--out", str(tmp_path / "out"), "--only", "endless"]) == 1
    (row,) = json.loads((tmp_path / "out" / "run_all.json").read_text())
    assert row["state"] == "stopped after 1 s"


def test_the_queue_names_what_its_budget_had_no_room_for(tmp_path, monkeypatch):
    run_all = queue(tmp_path, monkeypatch, {"good": ANSWERS.format(name="good", met=True, status=0)})
    assert run_all.main(["--out", str(tmp_path / "out"), "--budget-minutes", "0.1"]) == 1
    (row,) = json.loads((tmp_path / "out" / "run_all.json").read_text())
    assert row["state"].startswith("not run: ")


def test_the_queue_forgets_answers_of_an_earlier_run(tmp_path, monkeypatch):
    run_all = queue(tmp_path, monkeypatch, {"broken": "raise ValueError('again')"})
    out = tmp_path / "out"
    out.mkdir()
    (out / "broken.json").write_text('{"goals": [{"goal": "old", "met": true}]}')
    assert run_all.main(["--out", str(out)]) == 1
    assert not (out / "broken.json").exists()


def test_every_script_of_the_folder_is_in_the_queue_and_the_readme():
    queue = load("run_all").QUEUE
    scripts = {p.stem for p in FOLDER.glob("*.py")} - {"common", "run_all"}
    assert set(queue) == scripts - {
        "compile_kernels"
    }  # which needs no GPU: its time isn't to be taken for it
    readme = (FOLDER / "README.md").read_text()
    assert all(f"| `{name}.py` |" in readme for name in scripts)


def test_a_script_runs_by_its_own_name_from_anywhere(tmp_path):
    """As on a bare machine: not as an installed package, from another folder."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / "paged_attention.py"), "--dry-run", "--out", "here"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "paged_attention.json").exists()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton isn't installed")
def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path):
    assert load("compile_kernels").main(["--capability", "90", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "compile_kernels.json").read_text())["kernels"]
    assert {row["stored"] for row in rows} == {"bf16", "fp16", "fp8", "fp32"}
    assert all(0 < row["registers"] <= 255 for row in rows)
