"""The planning verbs on a machine that has no torch at all: the package installed alone, in a new environment."""

import json
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = [
    ["--help"],
    ["ask", "--help"],
    ["models", "qwen2.5-vl-7b"],
    ["fit", "qwen2.5-vl-7b", "--gpu", "rtx4090", "--image", "1240x1754x3"],
    ["choose", "--task", "documents", "--gpu", "rtx4090", "--private", "--commercial"],
    [
        "cost",
        "--model",
        "qwen-vl-max",
        "--image",
        "1280x720",
        "--requests",
        "100000",
        "--gpu",
        "1xh100",
        "--allow-stale",
    ],
    ["launch", "qwen2.5-vl-7b", "--engine", "vllm@0.32", "--gpu", "l40s"],
]


@pytest.fixture(scope="module")
def qvl_alone(tmp_path_factory):
    """The console script of an environment that holds the package and its plain dependencies only."""
    folder = tmp_path_factory.mktemp("alone")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run(
        [*pip, "-c", ROOT / "constraints.txt", source], check=True, capture_output=True, timeout=600
    )
    return python.parent


def test_torch_is_not_there_and_its_absence_is_one_clear_line(qvl_alone):
    missing = subprocess.run([qvl_alone / "python", "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in missing.stderr
    picture = ROOT / "examples" / "receipt.png"
    asked = subprocess.run([qvl_alone / "qvl", "ask", picture, "What?"], capture_output=True, text=True)
    assert asked.returncode == 2
    assert asked.stderr.count("\n") == 1
    assert "qvl[run]" in asked.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_planning_verbs_run_without_torch(qvl_alone, command):
    done = subprocess.run([qvl_alone / "qvl", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_fit_prints_the_fixed_names(qvl_alone):
    command = [qvl_alone / "qvl", "fit", "qwen2.5-vl-3b", "--gpu", "2xl40s", "--image", "640x480", "--json"]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    names = {
        "fits",
        "total_bytes",
        "per_gpu_bytes",
        "terms",
        "visual_tokens",
        "max_context",
        "max_concurrency",
    }
    assert names | {"speed", "changes"} <= set(result)
    assert result["visual_tokens"] == 23 * 17
