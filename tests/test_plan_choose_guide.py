"""The guide's four scenarios with the real planner: our answer, and where and why it differs.

1 best quality: Qwen-VL-Max API → Qwen3-VL-235B-A22B-Thinking. Younger, 10 points more than Qwen2.5-VL-72B, and
  nobody prints scores for what the API's name serves today.
2 in house: Qwen2.5-VL-72B or 32B → Qwen3-VL-235B-A22B or 32B. The same, and Apache 2.0 throughout.
3 one RTX 4090: Qwen2.5-VL-7B → Qwen3-VL-8B. 5 points more on the same card.
4 edge: Qwen2.5-VL-3B in 4 bits → Qwen3-VL-4B. 3B's licence forbids commercial use, and 4B scores more.
"""

from pathlib import Path

import pytest

from qvl.catalog.devices import parse_hardware
from qvl.catalog.prices import price_book
from qvl.catalog.scores import find_task
from qvl.plan.choose import choose
from qvl.plan.choose.requirement import Requirement, usual_workload


def answer(task, gpu=None, prices=False, **changes):
    tasks = (find_task(task),)
    workload, _ = usual_workload(tasks, (), (), None, None, 1, None, None)
    if gpu:
        changes = {"hardware": parse_hardware(gpu), "where": ("own",), **changes}
    return choose(
        Requirement(tasks=tasks, workload=workload, **changes), book=price_book() if prices else None
    )


def find(choice, name):
    return next(c for c in choice.ranked if c.model.name == name)


@pytest.fixture(scope="module")
def best_quality():
    return answer("reasoning", prices=True, aim="high", commercial=True, where=("rent", "api"))


def test_scenario_1_best_quality_is_the_large_thinking_model_not_the_api_name(best_quality):
    assert best_quality.best.model.name == "Qwen3-VL-235B-A22B-Thinking"


def test_scenario_1_the_guides_pick_cannot_be_ranked_for_want_of_scores(best_quality):
    unranked = {c.model.name: c for c in best_quality.unranked}
    assert "Qwen-VL-Max" in unranked
    assert any("published scores are of old" in line for line in unranked["Qwen-VL-Max"].why)


def test_scenario_1_an_api_is_the_runner_up_at_a_fraction_of_the_bill(best_quality):
    second = best_quality.ranked[1]
    assert second.where == "api"
    assert second.cost_per_1000 < best_quality.best.cost_per_1000 / 5


@pytest.mark.parametrize(("gpu", "ours"), [("8xh100", "Qwen3-VL-235B-A22B"), ("2xh100", "Qwen3-VL-32B")])
def test_scenario_2_in_house_a_younger_generation_of_each_size_wins(gpu, ours):
    choice = answer("general", gpu, private=True, commercial=True, aim="high")
    assert choice.best.model.name.startswith(ours)
    guide = [
        c for c in choice.ranked if c.model.name in ("Qwen2.5-VL-72B-Instruct", "Qwen2.5-VL-32B-Instruct")
    ]
    assert guide, "the guide's picks must still be possible here"
    assert all(choice.best.expected > c.expected + 2 for c in guide)
    assert choice.best.model.licence.key == "apache-2.0"


def test_scenario_3_one_4090_runs_8b_of_the_younger_generation():
    choice = answer("general", "rtx4090", aim="balanced")
    assert choice.best.model.name == "Qwen3-VL-8B-Instruct"
    assert choice.best.expected > find(choice, "Qwen2.5-VL-7B-Instruct").expected + 4
    assert choice.best.plan.fits
    assert choice.decisive().startswith("memory decides")


def test_scenario_4_the_guides_3b_is_ruled_out_by_its_licence_for_business():
    choice = answer("documents", "rtx3060", commercial=True)
    assert choice.best.model.name == "Qwen3-VL-4B-Instruct"
    r = next(r for r in choice.ruled_out if r.model.name == "Qwen2.5-VL-3B-Instruct")
    assert r.requirement == "licence"


def test_scenario_4_without_business_the_younger_4b_still_expects_more():
    choice = answer("documents", "rtx3060")
    assert choice.best.model.name == "Qwen3-VL-4B-Instruct"
    assert choice.best.expected > find(choice, "Qwen2.5-VL-3B-Instruct").expected + 3


def test_the_real_planner_answers_what_the_fake_one_is_made_after():
    best = answer("documents", "rtx4090").best
    assert best.as_asked.max_concurrency >= 1
    assert best.as_asked.max_context >= best.plan.setup.prompt_tokens
    assert 0 < best.plan.speed.ttft_s < best.plan.answer_s
    assert best.plan.busiest_bytes <= best.hardware.device.usable_bytes


def test_the_docs_tell_what_is_computed(best_quality):
    """docs/choose.md's table of scenarios against the planner's answers, figure by figure."""
    text = (Path(__file__).parent.parent / "docs" / "choose.md").read_text(encoding="utf-8")
    rows = {
        line.split("|")[1].split()[0]: line
        for line in text.splitlines()
        if line.startswith("| ") and "--task" in line
    }
    own = answer("general", "rtx4090")
    edge = answer("documents", "rtx3060")
    two = [answer("general", gpu, private=True, commercial=True, aim="high") for gpu in ("8xh100", "2xh100")]
    expected = {
        "1": [best_quality.best, best_quality.ranked[1]],
        "2": [two[0].best, two[1].best, find(two[0], "Qwen2.5-VL-72B-Instruct")],
        "3": [own.best, find(own, "Qwen2.5-VL-7B-Instruct")],
        "4": [edge.best, find(edge, "Qwen2.5-VL-3B-Instruct")],
    }
    for row, candidates in expected.items():
        assert candidates[0].model.name in rows[row]
        for c in candidates:
            assert f"{c.expected:.1f}" in rows[row] or c.where == "api", (row, c.model.name, c.expected)
    assert f"${best_quality.ranked[1].cost_per_1000:.2f}" in rows["1"]
    assert f"${best_quality.best.cost_per_1000:.2f}" in rows["1"]
    for row in ("3", "4"):
        assert f"{expected[row][0].plan.busiest_bytes / 2**30:.1f} GiB" in rows[row]
