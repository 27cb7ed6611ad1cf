"""Scoring a model's text about a synthetic sample."""

import itertools

import pytest

from qvl.evaluate.score_synth import (
    RULES,
    SCORERS,
    find_box,
    find_point,
    find_span,
    iou,
    normal,
    score,
    wilson,
)
from qvl.synth import KINDS, make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_the_known_answer_is_right_and_anothers_answer_mostly_wrong(kind, level):
    samples = [make(kind, seed, level) for seed in range(12)]
    assert all(score(s, s.answer) for s in samples)
    others = [score(s, t.answer) for s, t in itertools.pairwise(samples) if s.answer != t.answer]
    assert sum(others) <= len(others) / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["", "I can't see that.", "[", "12 12 12 12", "\x00", "{" * 50])
def test_empty_and_broken_text_is_wrong_and_raises_nothing(kind, text):
    assert score(make(kind, 3), text) is False


def test_every_kind_has_a_scorer_and_a_rule():
    assert set(SCORERS) == set(RULES) == set(KINDS)


def test_receipt_is_scored_as_a_field():
    sample = make("receipt", 4)
    assert score(sample, f"  {sample.answer.lower()}\n")


def test_reading_forgives_white_space_but_not_case():
    sample = next(s for s in (make("read", seed) for seed in range(9)) if s.answer != s.answer.lower())
    assert score(sample, f" {sample.answer}\n")
    assert not score(sample, sample.answer.lower())


def test_find_needs_half_overlap():
    sample = make("find", 1)
    x1, y1, x2, y2 = sample.boxes[0][:4]
    width = x2 - x1
    near = f'[{{"bbox_2d": [{x1 + width // 4}, {y1}, {x2 + width // 4}, {y2}], "label": "x"}}]'
    far = f'[{{"bbox_2d": [{x1 + width // 2}, {y1}, {x2 + width // 2}, {y2}], "label": "x"}}]'
    assert score(sample, near)  # overlap 3/5
    assert not score(sample, far)  # overlap 1/3


def test_screen_click_must_hit_the_target():
    sample = make("screen", 1)
    box = sample.boxes[0]
    assert score(sample, f'{{"point_2d": [{box.x1}, {box.y1}]}}')
    assert not score(sample, f'{{"point_2d": [{box.x2}, {box.y1}]}}')
    assert not score(sample, f'{{"point_2d": [{box.x1}, {box.y2}]}}')


def test_clip_needs_half_overlap_in_time():
    sample = next(
        s for s in (make("clip", seed) for seed in range(40))
        if s.extra["end_seconds"] - s.extra["start_seconds"] == 2
    )  # fmt: skip
    start, end = sample.extra["start_seconds"], sample.extra["end_seconds"]
    assert score(sample, f"It is visible from {start + 0.5} to {end} s")
    assert not score(sample, f"From {start + 1.5} to {end} seconds")
    assert not score(sample, f"From {end} to {start} seconds")


def test_page_is_wrong_when_a_block_is_missing_or_a_word_differs_or_a_box_is_off():
    sample = next(s for s in (make("page", seed) for seed in range(20)) if len(s.boxes) == 3)
    lines = sample.answer.split("\n")
    assert score(sample, "```html\n" + sample.answer + "\n```")
    assert not score(sample, "\n".join(lines[:2] + lines[3:]))
    word = sample.boxes[1].text.split()[-1]
    assert not score(sample, sample.answer.replace(word, "Zzz"))
    place = " ".join(map(str, sample.boxes[0][:4]))
    assert not score(sample, sample.answer.replace(place, "0 0 5 5"))
    x1, y1, x2, y2 = sample.boxes[0][:4]
    assert score(sample, sample.answer.replace(place, f"{x1 + 1} {y1} {x2 + 1} {y2}"))


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ('```json\n[\n\t{"bbox_2d": [1, 2, 30, 40], "label": "a"}\n]\n```', (1, 2, 30, 40)),
        ("{bbox_2d: [1.5,2,30,40],}", (1.5, 2, 30, 40)),
        ("The box is (1, 2, 30, 40).", (1, 2, 30, 40)),
        ('[{"bbox_2d": [1, 2, 30', None),
        ("1, 2, 30, 40", None),
    ],
)
def test_boxes_are_found_in_loose_json(text, box):
    assert find_box(text) == box


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ('{"point_2d": [12, 34], "label": "OK"}', (12, 34)),
        ("click at (12, 34)", (12, 34)),
        ('{"bbox_2d": [10, 20, 30, 40]}', (20, 30)),
        ("12 and 34", None),
    ],
)
def test_points_are_found_or_taken_from_a_box(text, point):
    assert find_point(text) == point


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("From 2.0 to 5.5 seconds.", (2.0, 5.5)),
        ("It shows 2s - 5s", (2, 5)),
        ("between 2 and 5", (2, 5)),
        ("at 2 seconds", None),
    ],
)
def test_time_spans_are_found_in_words(text, span):
    assert find_span(text) == span


def test_iou_of_equal_apart_half_and_empty_boxes():
    assert iou((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert iou((0, 0, 4, 4), (4, 0, 8, 4)) == 0
    assert iou((0, 0, 4, 4), (0, 0, 2, 4)) == 0.5
    assert iou((2, 2, 2, 2), (0, 0, 4, 4)) == 0
    assert iou((4, 4, 0, 0), (0, 0, 4, 4)) == 0


def test_normal_folds_case_only_when_asked():
    assert normal("  A\tb \n c") == "a b c"
    assert normal("  A\tb", fold=False) == "A b"


def test_wilson_interval_has_its_known_values():
    # Brown, Cai and DasGupta's worked forms: the centre moves to one half, the ends stay within [0, 1].
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)
    assert wilson(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(400, 500)
    assert low < 0.8 < high
    assert high - low < 0.08
