"""The plan behind an answer of choose is the plan that launch starts: one cut, one time, over 500 requirements."""

import random
import shlex

import pytest

from qvl.catalog.devices import devices, parse_hardware
from qvl.catalog.models import models
from qvl.catalog.scores import tasks
from qvl.cli import launch as verb
from qvl.cli.main import main
from qvl.plan.choose import choose
from qvl.plan.choose.report import launch_command
from qvl.plan.choose.requirement import Requirement, usual_workload
from qvl.plan.evaluate import CachedPlanner

PLANNER = CachedPlanner()


@pytest.fixture
def started(monkeypatch, capsys):
    """command → the launch that it comes to."""
    found = []
    plan = verb.plan_launch
    monkeypatch.setattr(verb, "plan_launch", lambda request: (found.append(plan(request)), found[-1])[1])

    def start(command):
        assert main(shlex.split(command)[1:]) == 0, (command, capsys.readouterr().err)
        capsys.readouterr()
        return found.pop()

    return start


def draw(rng):
    gpus = [d.name for d in devices() if d.kind == "gpu"]
    task = rng.choice([*tasks().values()])
    images, videos = (), ()
    if rng.random() < 0.5:
        images = (f"{rng.randrange(224, 3000)}x{rng.randrange(224, 3000)}x{rng.randint(1, 4)}",)
    elif rng.random() < 0.3:
        videos = (f"{rng.randint(5, 600)}s@1fps",)
    workload, _ = usual_workload(
        (task,), images, videos, rng.choice([None, 20, 3000]), rng.choice([None, 16, 900]), rng.choice([1, 1, 6]),
        None, None,
    )  # fmt: skip
    return Requirement(
        tasks=(task,), workload=workload, where=("own",),
        hardware=parse_hardware(f"{rng.choice([1, 1, 2, 4, 8])}x{rng.choice(gpus)}"),
        requests_per_month=rng.choice([None, None, 1e5, 3e6]), latency_s=rng.choice([None, None, 20.0]),
    )  # fmt: skip


def same(candidate, launch):
    plan, ranked = launch.plan, candidate.plan
    assert launch.replicas == 1
    assert launch.gpus_per_replica == ranked.setup.gpus == candidate.hardware.count
    assert (launch.precision, launch.engine.name) == (candidate.precision, candidate.engine.partition("@")[0])
    assert plan.setup.workload.concurrency == ranked.setup.workload.concurrency
    assert plan.setup.prompt_tokens == ranked.setup.prompt_tokens
    assert plan.setup.shards == ranked.setup.shards
    assert plan.fits
    if ranked.speed:
        assert plan.speed.ttft_s == pytest.approx(ranked.speed.ttft_s, rel=1e-9)
        assert plan.answer_s == pytest.approx(ranked.answer_s, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_launch_starts_the_plan_that_was_ranked(started, seed):
    """25 requirements a seed, each on two models of whichever can be had."""
    rng, seen = random.Random(seed), 0
    names = [m.name for m in models() if m.shape]
    while seen < 25:
        req = draw(rng)
        choice = choose(req, PLANNER, among=rng.sample(names, 2), detailed=0)
        for c in (*choice.ranked, *choice.unranked)[:1]:
            same(c, started(launch_command(req, c)))
            seen += 1


def test_eight_a100_are_started_as_they_were_ranked(started):
    """It was ranked with tensor parallelism over 8, 0.93 s an answer, and started as 8 copies, 3.5 s."""
    workload, _ = usual_workload((tasks()["general"],), (), (), None, None, 1, None, None)
    req = Requirement(
        tasks=(tasks()["general"],), workload=workload, hardware=parse_hardware("8xa100"), where=("own",)
    )
    for c in choose(req, PLANNER).ranked[:8]:
        command = launch_command(req, c)
        assert "--tensor-parallel-size 8" in command
        same(c, started(command))


def test_a_model_that_thinks_is_started_with_room_for_thoughts_and_says_how_to_do_without(capsys):
    assert main("launch qwen3.5-9b --gpu h100 --image 1240x1754".split()) == 0
    out = capsys.readouterr().out
    assert "--reasoning-parser qwen3" in out
    assert "8,192 answer" in out
    assert '"enable_thinking": false' in out
    assert "leave thoughts no room" not in out
    assert main("launch qwen3.5-9b --gpu h100 --image 1240x1754 --answer-tokens 1024".split()) == 0
    assert "leave thoughts no room" in capsys.readouterr().out
    assert main("launch qwen3-vl-8b --gpu h100 --image 1240x1754".split()) == 0
    out = capsys.readouterr().out
    assert "1,024 answer" in out
    assert "think" not in out
