"""Expected quality and quantisation loss: only from published scores, comparable across gaps."""

import pytest

from qvl.catalog.scores import Benchmark, find_task, tasks
from qvl.plan.choose.quality import (
    REFCOCO_AVG,
    additive_fit,
    combined_quality,
    published_percent,
    quantisation_loss,
    task_quality,
)

A, B, C = (Benchmark(name, "all") for name in "ABC")


def test_additive_fit_recovers_a_table_that_is_additive():
    table = {(m, b): x + y for m, x in (("p", 50.0), ("q", 70.0)) for b, y in ((A, -5.0), (B, 0.0), (C, 5.0))}
    models, benchmarks = additive_fit(table)
    assert models["q"] - models["p"] == pytest.approx(20.0)
    assert benchmarks[C] - benchmarks[A] == pytest.approx(10.0)


def test_a_model_tried_on_the_hard_benchmark_only_is_not_taken_for_a_bad_one():
    table = {("p", A): 90.0, ("p", B): 40.0, ("q", A): 92.0, ("q", B): 42.0, ("r", B): 45.0}
    models, _ = additive_fit(table)
    assert models["r"] > models["q"] > models["p"]  # although r's plain mean, 45, is the lowest


def test_a_full_row_is_its_plain_mean():
    task = find_task("reasoning")
    q = task_quality(task)["Qwen3-VL-8B-Instruct"]
    assert q.filled == ()
    assert q.value == pytest.approx((69.6 + 77.2) / 2)
    assert q.coverage == 1.0


def test_a_filled_cell_never_beats_a_model_that_wins_wherever_both_were_tried():
    quality = task_quality(find_task("video"))
    old, new = quality["Qwen2-VL-72B-Instruct"], quality["Qwen2.5-VL-72B-Instruct"]
    assert old.coverage < 1 == new.coverage
    published = dict(new.scores)
    for benchmark, value in old.filled:
        assert value <= published[benchmark]
    assert old.value < new.value


def test_old_reports_are_compared_by_the_mean_of_the_eight_refcoco_splits():
    value, source = published_percent("Qwen2.5-VL-7B-Instruct", REFCOCO_AVG)
    assert value == pytest.approx((90.0 + 92.5 + 85.4 + 84.2 + 89.1 + 76.9 + 87.2 + 87.2) / 8)
    assert "mean of 8 splits" in source


def test_snapshots_of_hosted_names_do_not_speak_for_todays_models():
    for task in tasks().values():
        assert not {"Qwen-VL-Max", "Qwen-VL-Plus", "qwen3-vl-plus"} & set(task_quality(task))


def test_a_model_without_a_score_on_one_of_two_tasks_has_no_quality():
    assert combined_quality([find_task("documents"), find_task("video")], "Qwen-VL") is None
    assert combined_quality([find_task("documents")], "Qwen-VL") is not None


def test_quality_names_its_sources():
    q = task_quality(find_task("charts"))["Qwen2.5-VL-7B-Instruct"]
    assert any("2502.13923" in s for s in q.sources)
    assert "ChartQA (test avg) 87.3" in q.describe()


def test_loss_is_the_mean_difference_under_one_harness():
    loss = quantisation_loss("qwen2.5-vl-7b", "awq")
    assert loss.own
    assert loss.count == 3
    assert loss.points == pytest.approx(((58.4 - 55.6) + (94.9 - 94.6) + (67.9 - 64.7)) / 3)


def test_sixteen_bits_lose_nothing():
    assert quantisation_loss("qwen2.5-vl-7b", "bf16").points == 0.0


def test_an_unmeasured_model_borrows_from_the_nearest_size_and_says_so():
    loss = quantisation_loss("qwen3-vl-4b", "fp8")
    assert not loss.own
    assert loss.on == ("Qwen2.5-VL-3B-Instruct",)
    assert "not measured on this model" in loss.describe()


def test_an_unmeasured_format_borrows_from_its_relatives_and_names_them():
    loss = quantisation_loss("qwen2.5-vl-7b", "int4")
    assert not loss.own
    assert any(" in awq" in name for name in loss.on)


def test_small_models_lose_more_in_four_bits():
    assert quantisation_loss("qwen2-vl-2b", "awq").points > quantisation_loss("qwen2-vl-72b", "awq").points


def test_what_another_source_prints_stands_beside_the_score_that_is_used():
    quality = task_quality(find_task("ocr"))["Qwen2-VL-7B-Instruct"]
    assert dict(quality.elsewhere)[Benchmark("OCRBench", "all")] == (pytest.approx(86.6),)
    assert "OCRBench (all) 84.5 (elsewhere 86.6)" in quality.describe()
    assert any("(2025-01, official)" in s for s in quality.sources)
