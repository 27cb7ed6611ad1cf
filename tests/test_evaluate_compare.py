"""Comparing runs: paired on the same items, nothing dropped silently, the right test for the kind of score."""

import json

import pytest

from qvl.errors import QvlError
from qvl.evaluate import statistics
from qvl.evaluate.compare import compare, compare_all
from qvl.evaluate.runner import Result

SCORER = {"name": "exact", "version": 1, "options": {}}


def result(scores, *, name="m", start=0, clusters=None, truth="t", scorer=SCORER, **about):
    lines = [
        {"id": str(start + i), "score": s, "truth": truth, "answer": "x", "parsed": "x", "error": None,
         "cluster": str(clusters[i] if clusters else start + i)}
        for i, s in enumerate(scores)
    ]  # fmt: skip
    return Result({"scorer": scorer, "model": {"name": name}, **about}, lines)


def test_right_and_wrong_answers_get_the_exact_test_and_tangos_interval():
    found = compare(result([1] * 95 + [1] * 5), result([1] * 95 + [0] * 5))
    assert found.exact == found.p == 0.0625
    assert found.mid_p == 0.03125
    assert found.difference == pytest.approx(-0.05)
    assert (found.low, found.high) == statistics.tango(5, 0, 100)
    assert [c.id for c in found.lost] == [str(i) for i in range(95, 100)]
    assert found.won == ()
    assert found.needed == statistics.needed_items(0.05, 0.05)
    json.dumps(found.to_dict())


def test_unmatched_items_and_changed_truths_are_counted():
    a, b = result([1, 1, 1, 0]), result([0, 1, 1], start=1)
    b.lines[0]["truth"] = "other"
    found = compare(a, b)
    assert (found.num, found.only_first, found.only_second, found.other_truth) == (2, 1, 0, 1)
    with pytest.raises(QvlError, match="no item in common: 4 and 1"):
        compare(a, result([1], start=9))


def test_graded_scores_get_sign_flips_and_the_bootstrap():
    before, after = [0.5, 0.2, 0.9, 1.0, 0.4], [0.4, 0.1, 0.9, 0.7, 0.1]
    found = compare(result(before), result(after))
    gaps = [b - a for a, b in zip(before, after)]
    assert found.p == statistics.sign_flip(gaps)
    assert (found.low, found.high) == statistics.bootstrap_interval(gaps)
    assert found.exact is None
    assert found.p_method == "sign flips"
    assert found.lost[0].difference == min(gaps)


def test_items_of_one_image_are_no_independent_evidence():
    before, after = [1] * 20, [0] * 5 + [1] * 15
    alone = compare(result(before), result(after))
    clusters = [0] * 5 + list(range(1, 16))
    together = compare(result(before, clusters=clusters), result(after, clusters=clusters))
    assert alone.p == 0.0625
    assert together.p == 1  # one image that went wrong
    assert together.exact == 0.0625
    assert together.num_clusters == 16
    assert together.p_method == "sign flips, whole clusters"


def test_no_worse_by_a_margin_needs_items():
    few = compare(result([1] * 50), result([1] * 50), max_drop=0.01)
    assert few.no_worse is False
    many = compare(result([1] * 500), result([1] * 500), max_drop=0.01)
    assert many.no_worse is True
    assert compare(result([1]), result([1])).no_worse is None


def test_several_comparisons_are_adjusted_by_holm():
    base = result([1] * 30)
    runs = [base, result([0] * 6 + [1] * 24, name="b"), result([0] * 8 + [1] * 22, name="c")]
    found = compare_all(runs)
    assert [c.adjusted_p for c in found] == statistics.holm([c.p for c in found])
    assert compare_all(runs[:2])[0].adjusted_p is None
    with pytest.raises(QvlError):
        compare_all(runs[:1])


def test_other_scorers_are_refused_and_other_settings_told():
    with pytest.raises(QvlError, match=r'scorer.name was "exact", is "anls".*--rescore'):
        compare(result([1]), result([1], scorer={**SCORER, "name": "anls"}))
    found = compare(result([1], settings={"max_pixels": 1}), result([1], settings={"max_pixels": 2}))
    assert found.changed_settings == ("settings.max_pixels was 1, is 2",)


def test_a_run_against_itself_differs_in_nothing():
    found = compare(result([1, 0, 1]), result([1, 0, 1]))
    assert (found.difference, found.p, found.num_changed) == (0, 1, 0)
    assert found.needed is None
