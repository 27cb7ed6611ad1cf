"""What choose picks can be started: its command is read by launch, and launch plans it."""

import pytest

from qvl.catalog.prices import price_book
from qvl.cli.main import main
from qvl.plan.choose.report import launch_command
from qvl.plan.evaluate import CachedPlanner
from test_plan_choose import pick

REAL = CachedPlanner()


def commands(*args, **changes):
    choice = pick(*args, planner=REAL, **changes)
    return {c.place: launch_command(choice.requirement, c) for c in choice.ranked}


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu": "rtx4090", "commercial": True},
        {"gpu": "4xa100", "task": "video"},
        {"gpu": "rtx3060", "engine": "llama.cpp"},
        {"gpu": "cpu-2core"},
        {"gpu": "m2-ultra"},
        {"where": ("rent",), "book": price_book(), "requests_per_month": 3e6, "needs": ("thinking",)},
    ],
    ids=str,
)
def test_launch_plans_every_candidate_of_a_ranking_as_its_command_says(changes, capsys):
    task = changes.pop("task", "documents")
    found = commands(task, **changes)
    assert found
    for place, command in found.items():
        assert command, place
        name, *words = command.split()
        assert name == "qvl"
        assert main(words) == 0, (place, capsys.readouterr().err)
        capsys.readouterr()


def test_the_command_holds_the_work_it_was_chosen_for():
    choice = pick("charts,documents", gpu="2xl40s", latency_s=20.0, requests_per_month=1e6)
    command = launch_command(choice.requirement, choice.best)
    for word in (
        "--gpu 2xl40s",
        "--image 1280x720",
        "--prompt-tokens 256",
        "--answer-tokens",
        "--engine vllm",
    ):
        assert word in command
    assert f"--concurrency {choice.best.concurrency}" in command


def test_an_api_and_an_engine_without_a_server_have_no_command():
    hosted = pick(where=("api",), book=price_book())
    assert launch_command(hosted.requirement, hosted.best) == ""
    loose = pick(gpu="a100", engine="transformers")
    assert launch_command(loose.requirement, loose.best) == ""
