"""The workflow files parse, name what exists, and the version has one place."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import qvl

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parent.parent


def read(name: str):
    return yaml.safe_load((ROOT / name).read_text())


def commands(workflow) -> str:
    return "\n".join(
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    )


@pytest.mark.parametrize("name", ["ci", "release"])
def test_a_workflow_has_jobs_of_steps_that_run_or_use_something(name):
    workflow = read(f".github/workflows/{name}.yml")
    assert workflow[True]  # YAML reads the key `on` as true
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def test_ci_runs_every_supported_python_with_and_without_torch():
    jobs = read(".github/workflows/ci.yml")["jobs"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for job in ("test", "without-torch"):
        pythons = jobs[job]["strategy"]["matrix"]["python"]
        assert pythons == ["3.11", "3.12", "3.13"]
        assert project["requires-python"] == f">={pythons[0]}"


def test_commands_of_workflows_name_existing_files_and_targets():
    text = commands(read(".github/workflows/ci.yml")) + commands(read(".github/workflows/release.yml"))
    for pattern in re.findall(r"tests/[\w*]+\.py", text):
        assert list(ROOT.glob(pattern)), pattern
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_publishing_asks_for_no_secret():
    text = (ROOT / ".github/workflows/release.yml").read_text()
    assert "secrets." not in text
    publish = read(".github/workflows/release.yml")["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}


def test_pre_commit_runs_what_make_check_runs():
    hooks = [
        hook["entry"].split()[0]
        for repo in read(".pre-commit-config.yaml")["repos"]
        for hook in repo["hooks"]
    ]
    assert hooks == ["ruff", "ruff", "mypy"]


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "qvl.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", qvl.__version__)
