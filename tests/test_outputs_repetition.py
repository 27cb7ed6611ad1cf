"""outputs.repetition: endless repeats stop, honest ones live; however the stream is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.geometry import Size
from qvl.outputs.repetition import (
    LIMITS,
    RepetitionGuard,
    classify,
    guarded,
    halves,
)
from repetition_report import cases, drawn, run, score

CASES = cases()


def stop_of(text, **options):
    guard = RepetitionGuard(**options)
    return guard.feed(text) or guard.finish()


@pytest.mark.parametrize("case", [c for c in CASES if c.loop], ids=lambda c: c.name)
def test_stops(case):
    stop = run(case)
    assert stop is not None
    assert stop.keep <= stop.at <= len(case.text)


@pytest.mark.parametrize("case", [c for c in CASES if not c.loop], ids=lambda c: c.name)
def test_survives(case):
    stop = run(case)
    assert stop is None, stop.reason


def test_the_report_counts_right_and_wrong_stops():
    # its own arithmetic on labels turned round: every stop is wrong then
    import dataclasses

    few = [dataclasses.replace(c, loop=not c.loop) for c in CASES[:3] + CASES[-3:]]
    result = score(few)
    assert (result.true_stops, result.false_stops, result.missed, result.survived) == (0, 3, 3, 0)
    assert result.precision == result.recall == 0
    assert len(result.wrong) == 6


def test_drawn_loops_stop_and_drawn_repeats_survive():
    """On a seed that no threshold was set by."""
    result = score(drawn(2, each=6))
    assert result.precision == 1, result.wrong
    assert result.recall >= 0.9, result.wrong


def test_a_loop_of_whole_tables_stops():
    """Its rows repeat inside each copy, so that short cycles come and go."""
    rows = "".join(f"<tr>{'<td>0</td>' * n}</tr>" for n in (3, 3, 3, 3, 3, 2))
    text = f"<p>Stock</p><table>{rows}</table>" * 100
    stop = stop_of(text)
    assert stop is not None
    assert stop.at < len(text)


def test_there_are_as_many_real_repeats_as_loops():
    assert sum(c.loop for c in CASES) >= 40
    assert sum(not c.loop for c in CASES) >= 40


@given(st.sampled_from(CASES), st.lists(st.integers(1, 200), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_the_verdict_does_not_depend_on_how_the_stream_is_cut(case, lengths):
    whole = stop_of(case.text)
    guard, at, n = RepetitionGuard(), 0, 0
    while at < len(case.text) and guard.stop is None:
        length = lengths[n % len(lengths)]
        guard.feed(case.text[at : at + length])
        at, n = at + length, n + 1
    assert (guard.finish()) == whole


def test_what_came_before_the_loop_is_kept_with_its_first_copy():
    text = "The picture shows a street. " + "There is a red car on the left side. " * 60
    stop = stop_of(text)
    kept = text[: stop.keep]
    assert kept.startswith("The picture shows a street.")
    assert 1 <= kept.count("red car") <= 2


def test_the_first_of_repeated_boxes_is_kept():
    box = '{"bbox_2d": [1, 2, 30, 40], "label": "a"},\n'
    text = '[{"bbox_2d": [5, 6, 70, 80], "label": "b"},\n' + box * 20
    stop = stop_of(text)
    assert stop.pattern == "box"
    assert stop.copies == LIMITS["box"].copies
    assert text[: stop.keep].count('"a"') == 1
    assert text[: stop.keep].endswith("}")


def test_a_stop_says_what_repeats_and_how_often():
    stop = stop_of("very good " * 400)
    assert "very good" in stop.reason or "good very" in stop.reason
    assert str(stop.copies) in stop.reason
    assert str(stop.keep) in stop.reason


def test_a_guard_stays_with_its_verdict():
    guard = RepetitionGuard()
    guard.feed("no " * 1000)
    first = guard.stop
    assert first is not None
    assert guard.feed("something else") is first
    assert guard.finish() is first


def test_boxes_that_leave_the_known_picture_stop_early():
    text = "".join(
        f'{{"bbox_2d": [10, {900 + 40 * i}, 90, {930 + 40 * i}], "label": "line"}},\n' for i in range(20)
    )
    assert stop_of(text) is None
    stop = stop_of(text, seen=Size(1000, 1000))
    assert stop.pattern == "drift"


def test_boxes_inside_the_known_picture_may_go_on():
    text = "".join(f'{{"bbox_2d": [10, {40 * i}, 90, {40 * i + 30}], "label": "line"}},\n' for i in range(24))
    assert stop_of(text, seen=Size(1000, 1000)) is None


@pytest.mark.parametrize(
    ("unit", "pattern"),
    [
        ("There is a red car on the left. ", "text"),
        ("<tr><td>0</td><td>0</td></tr>", "blank"),
        ("></tr><tr><td></td><td></td", "blank"),
        ("<tr><td>yes</td></tr>", "table"),
        ("| yes | no |\n", "table"),
        ("Name: ______\n", "form"),
        ("☐ yes ☐ no\n", "form"),
        (".", "blank"),
        ("女人", "text"),
    ],
)
def test_units_are_told_apart(unit, pattern):
    assert classify(unit)[0] == pattern


def test_units_of_several_rows_need_fewer_copies():
    line = "| N/A | yes |\n"
    copies = [classify(line * n)[1].copies for n in (1, 2, 4, 100)]
    assert copies == [50, 38, 19, LIMITS["text"].copies]


def test_longer_units_need_fewer_copies():
    copies = [classify(u)[1].copies for u in ("ha ", "a red car is here. ", "a red car is here and " * 4)]
    assert copies == sorted(copies, reverse=True)
    assert len(set(copies)) == 3


@given(st.text(max_size=400))
@settings(max_examples=100, deadline=None)
def test_no_text_raises(text):
    stop_of(text)


def test_memory_stays_bounded_on_a_long_stream():
    guard = RepetitionGuard()
    for i in range(3000):
        guard.feed(f"line {i * 7919 % 100003} tells of {i * 104729 % 99991} things\n")
    assert guard.stop is None
    assert len(guard._buffer) < 200
    assert all(len(c.last) <= 4096 and len(c.order) <= 4096 for c in guard._cycles)


# ------------------------------------------------------------------------------------- streams and trying again


def test_a_guarded_stream_ends_at_the_stop_and_closes_its_source():
    closed = []

    def endless():
        try:
            while True:
                yield "again and again "
        finally:
            closed.append(True)

    guard = RepetitionGuard()
    text = "".join(guarded(endless(), guard))
    assert guard.stop is not None
    assert len(text) < 2000
    assert closed == [True]


def test_a_good_stream_passes_unchanged():
    guard = RepetitionGuard()
    assert "".join(guarded(["a ", "good ", "answer"], guard)) == "a good answer"
    assert guard.stop is None


def test_halves_of_a_tall_image_overlap_so_that_no_line_is_cut_in_both():
    first, second = halves(Size(1000, 400))
    assert (first.y1, second.y2) == (0, 1000)
    assert second.y1 < first.y2


def test_wide_images_are_cut_left_and_right():
    first, second = halves(Size(400, 1000))
    assert first.y2 == second.y2 == 400
    assert second.x1 < first.x2 < 1000
