"""Published scores: kept as printed, disagreements settled openly, paired runs apart."""

import pytest

from qvl.catalog.models import models
from qvl.catalog.scores import find_task, rows, scores_of, tasks, used
from qvl.errors import CatalogError


def one(model, benchmark, variant=None):
    found = [
        s
        for s in scores_of(model)
        if s.benchmark.name == benchmark and (variant is None or s.benchmark.variant == variant)
    ]
    assert len(found) == 1, found
    return found[0]


def test_no_row_is_lost_when_one_is_used():
    kept = sum(1 + len([o for o in s.figure.others]) for s in used())
    agreeing = len(rows()) - kept
    assert len(rows()) == 807  # 736 published to 2025, 69 of the cards of 2026, 2 of the guide's that differ
    assert 0 <= agreeing < 40


@pytest.mark.parametrize(("benchmark", "right", "guide"), [("MMMU", 70.0, 70.2), ("MathVista", 74.7, 74.8)])
def test_the_guides_wrong_values_for_32b_are_kept_but_not_used(benchmark, right, guide):
    score = one("Qwen2.5-VL-32B-Instruct", benchmark)
    assert score.value == right
    assert [(o.value, o.source.key) for o in score.figure.others] == [(guide, "guide")]


def test_a_mislabelled_row_loses_to_the_report():
    score = one("Qwen2-VL-72B-Instruct", "AndroidControl", "High (goal only) EM")
    assert score.value == 59.1
    assert "Aguvis" in score.figure.reason


def test_reruns_by_others_are_kept_beside_the_makers_value():
    score = one("Qwen2.5-VL-7B-Instruct", "AITZ", "test EM")
    assert score.value == 81.9
    assert sorted(o.value for o in score.figure.others) == [55.68, 57.58]


def test_equal_values_of_two_sources_are_no_disagreement():
    assert one("Qwen2.5-VL-72B-Instruct", "DocVQA").figure.others == ()


def test_paired_runs_stay_out_of_headline_scores():
    assert one("Qwen2-VL-7B-Instruct", "MMMU").value == 54.1
    assert all(s.series == "" for s in scores_of("Qwen2-VL-7B-Instruct"))
    paired = [s for s in used() if s.series and s.model == "Qwen2-VL-7B-Instruct"]
    assert {s.precision for s in paired} == {"bf16", "awq", "gptq-int8", "gptq-int4"}


def test_every_quantised_score_has_its_baseline_under_the_same_harness():
    keys = {(s.model, s.series, s.benchmark, s.metric) for s in used() if s.precision == "bf16"}
    lonely = [
        s for s in used() if s.precision != "bf16" and (s.model, s.series, s.benchmark, s.metric) not in keys
    ]
    # one card printed this metric for FP8 alone, and a re-run printed no baseline of its own
    assert {(s.model, s.series) for s in lonely} <= {
        ("Qwen2.5-VL-72B-Instruct", "vLLM ROCm test"),
        ("Qwen2.5-VL-72B-Instruct", "quantisation, Red Hat"),
    }


def test_hosted_names_keep_their_old_snapshots_apart():
    found = scores_of("Qwen-VL-Max")
    assert found
    assert {s.model for s in found} == {"Qwen-VL-Max@2024-01"}


def test_a_thousand_points_are_a_hundred_percent():
    score = one("Qwen2.5-VL-7B-Instruct", "OCRBench")
    assert score.value == 864
    assert score.percent == pytest.approx(86.4)


@pytest.mark.parametrize("task", tasks().values(), ids=lambda t: t.name)
def test_every_benchmark_of_a_task_has_scores_of_several_models(task):
    known = {m.name for m in models()}
    for benchmark in task.benchmarks:
        scored = {s.model for s in used() if s.benchmark == benchmark and not s.series} & known
        assert len(scored) >= 4, benchmark


def test_a_task_is_found_by_an_alias():
    assert find_task("Docs").name == "documents"


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(CatalogError, match=r"cooking.*documents.*charts"):
        find_task("cooking")
