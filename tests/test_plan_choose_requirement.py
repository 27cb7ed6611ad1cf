"""Requirements: parsed from what people write, refused where they can't be or contradict each other."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvl.catalog.devices import parse_hardware
from qvl.catalog.scores import find_task
from qvl.errors import CatalogError, PlanError
from qvl.plan.choose.requirement import (
    SECONDS_PER_MONTH,
    Requirement,
    parse_latency,
    parse_tasks,
    parse_volume,
    usual_workload,
)


def require(**changes):
    tasks = (find_task("documents"),)
    workload, _ = usual_workload(tasks, (), (), None, None, 1, None, None)
    return Requirement(**{"tasks": tasks, "workload": workload, **changes})


@pytest.mark.parametrize(
    ("text", "per_month"),
    [
        ("2M-pages/month", 2e6),
        ("2m/month", 2e6),
        ("500k/day", 500e3 * 365 / 12),
        ("3/s", 3 * SECONDS_PER_MONTH),
        ("1,500 images/week", 1500 * 365 / 12 / 7),
        ("1.2B/year", 1e8),
        ("40000", 40000),
    ],
)
def test_volumes_are_read_as_people_write_them(text, per_month):
    assert parse_volume(text) == pytest.approx(per_month)


@pytest.mark.parametrize("text", ["", "many", "2M/fortnight", "-5/day", "0/day", "1e5/day", "3..4/day"])
def test_other_volumes_are_refused_with_the_text(text):
    with pytest.raises(PlanError, match="volume"):
        parse_volume(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2s", 2), ("800ms", 0.8), ("1.5min", 90), ("3", 3), ("2 sec", 2)]
)
def test_latencies_are_read_as_people_write_them(text, seconds):
    assert parse_latency(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["soon", "2h", "1.2.3s", ""])
def test_other_latencies_are_refused(text):
    with pytest.raises(PlanError, match="latency"):
        parse_latency(text)


@given(st.text(max_size=20))
def test_no_text_ends_in_anything_but_a_number_or_a_plan_error(text):
    for parse in (parse_volume, parse_latency):
        with contextlib.suppress(PlanError):
            assert parse(text) > -1e30


def test_tasks_may_be_named_by_alias_and_count_once():
    assert [t.name for t in parse_tasks("docs, charts,documents")] == ["documents", "charts"]


def test_an_unknown_task_is_answered_with_the_known_ones():
    with pytest.raises(CatalogError, match="documents"):
        parse_tasks("documint")


@pytest.mark.parametrize(
    ("changes", "both"),
    [
        ({"private": True, "where": ("api",)}, ("--private", "--where api")),
        ({"where": ("api",), "hardware": parse_hardware("h100")}, ("--gpu", "--where api")),
        ({"where": ("api",), "engine": "vllm"}, ("--engine", "--where api")),
        ({"where": ("api",), "precisions": ("awq",)}, ("--precision", "--where api")),
        ({"budget_per_month": 0.0}, ("--budget 0", "--gpu")),
    ],
)
def test_contradictions_name_both_requirements(changes, both):
    with pytest.raises(PlanError) as e:
        require(**changes)
    for name in both:
        assert name in str(e.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"latency_s": -1.0}, "-1"),
        ({"latency_s": 0.0}, "latency 0"),
        ({"requests_per_month": 0.0}, "volume 0"),
        ({"budget_per_month": -5.0}, "-5"),
        ({"min_quality": 120.0}, "120"),
        ({"thinking_factor": 0.5}, "0.5"),
        ({"latency_s": float("nan")}, "nan"),
    ],
)
def test_impossible_numbers_are_named(changes, text):
    with pytest.raises(PlanError, match=text):
        require(**changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"needs": ("telepathy",)}, "telepathy"),
        ({"precisions": ("fp3",)}, "fp3"),
        ({"languages": ("korean",)}, "two letters"),
        ({"languages": ("ko", "xx")}, "no language 'xx'"),
        ({"languages": ("jp",)}, "not of a country"),
        ({"aim": "best"}, "high, balanced, economy"),
        ({"where": ("moon",)}, "own, rent, api"),
        ({"tasks": ()}, "--task"),
        ({"where": ("own",)}, "--gpu"),
    ],
)
def test_unknown_words_are_answered_with_the_known_ones(changes, text):
    with pytest.raises(PlanError, match=text):
        require(**changes)


def test_a_video_task_needs_the_video_ability():
    assert "video" in require(tasks=(find_task("video"),)).all_needs


def test_what_the_user_did_not_say_is_told():
    _, assumed = usual_workload((find_task("video"),), (), (), None, None, 1, None, None)
    assert any("video" in a for a in assumed)
    assert any("256" in a for a in assumed)
    _, assumed = usual_workload((find_task("video"),), ("100x100",), (), 10, 20, 1, None, None)
    assert assumed == ()


def test_hardware_of_ones_own_and_renting_alone_contradict_each_other():
    with pytest.raises(PlanError, match=r"--gpu and --where rent contradict"):
        require(hardware=parse_hardware("rtx4090"), where=("rent",))
    assert require(hardware=parse_hardware("rtx4090"), where=("own", "rent")).hardware
