"""The difficulty ladder: what each level promises about size, amount and variety, for any seed."""

import itertools
import json
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.evaluate.score_synth import score
from qvl.synth import KINDS, TEST_SEEDS, Clip, chart, clip, field, make, page, pair, read, scenes, screen
from qvl.synth.page import Block, html
from qvl.synth.sample import Box

# kind → per level: smallest (width, height), largest (width, height)
SIZES = {
    "read": [((112, 56), (168, 56)), ((140, 84), (196, 140)), ((224, 112), (280, 168))],
    "field": [((168, 84), (196, 112)), ((224, 224), (252, 280)), ((336, 336), (448, 560))],
    "find": [((112, 112), (168, 168)), ((168, 168), (224, 224)), ((224, 224), (280, 280))],
    "count": [((112, 112), (168, 168)), ((168, 168), (224, 224)), ((224, 224), (280, 280))],
    "chart": [((196, 168), (224, 196)), ((224, 168), (252, 224)), ((280, 252), (336, 280))],
    "page": [((140, 56), (196, 112)), ((224, 224), (252, 280)), ((392, 448), (448, 560))],
    "screen": [((140, 84), (196, 140)), ((224, 196), (280, 252)), ((336, 336), (448, 420))],
    "clip": [((112, 112), (112, 112)), ((112, 112), (112, 112)), ((112, 112), (168, 168))],
    "pair": [((112, 56), (168, 84)), ((112, 56), (168, 168)), ((168, 56), (252, 224))],
}


def size_of(medium) -> tuple[int, int]:
    return medium.frames.shape[2:0:-1] if isinstance(medium, Clip) else medium.size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_pictures_keep_the_sizes_of_their_level(kind, level):
    low, high = SIZES[kind][level]
    widths, heights = zip(
        *(size_of(m) for seed in range(30) for m in make(kind, seed, level).media), strict=True
    )
    assert low[0] <= min(widths)
    assert max(widths) <= high[0]
    assert low[1] <= min(heights)
    assert max(heights) <= high[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_test_level_picture_costs_few_visual_tokens(kind):
    # One token per 28 x 28 pixels and, in clips, per two frames.
    for seed in range(20):
        tokens = 0
        for medium in make(kind, seed).media:
            width, height = size_of(medium)
            pairs = (len(medium.frames) + 1) // 2 if isinstance(medium, Clip) else 1
            tokens += width * height // 784 * pairs
        assert tokens <= 100


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(KINDS)), st.integers(0, 2 * 10**9), st.integers(0, 3))
def test_any_seed_draws_a_sample_whose_answer_is_right(kind, seed, level):
    sample = make(kind, seed, level)
    assert sample.question
    assert sample.answer
    assert score(sample, sample.answer)
    for medium in sample.media:
        shades = medium.frames if isinstance(medium, Clip) else np.asarray(medium)
        assert shades.std() > 0 or sample.answer == "0"


PARAPHRASES = {
    "read": read.QUESTIONS,
    "page": page.QUESTIONS,
    "find": scenes.FIND_QUESTIONS,
    "count": scenes.COUNT_QUESTIONS,
    "clip": clip.QUESTIONS,
    "chart": chart.VALUE_QUESTIONS + chart.EXTREME_QUESTIONS[True] + chart.EXTREME_QUESTIONS[False],
    "field": tuple(q for group in field.QUESTIONS.values() for q in group),
    "screen": tuple(q for group in screen.QUESTIONS.values() for q in group),
    "pair": pair.SAME_QUESTIONS + pair.NTH_QUESTIONS + pair.MORE_QUESTIONS,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_paraphrase_is_asked(kind):
    asked = [make(kind, seed).question for seed in range(500 if kind == "field" else 150)]
    for phrase in PARAPHRASES[kind]:
        before, _, after = phrase.partition("{}")
        assert any(q.startswith(before) and q.endswith(after) for q in asked), phrase


def test_unseen_readings_are_not_a_repeat_of_training_ones():
    trained = {make("read", seed).answer for seed in range(400)}
    longer = [make("read", seed).answer for seed in TEST_SEEDS[:200]]
    longer = [answer for answer in longer if len(answer) >= 4]
    assert len(longer) > 60
    assert not trained & set(longer)


def rows_of(sample) -> list[Counter]:
    lines = defaultdict(list)
    for glyph in sample.glyphs:
        lines[glyph.line].append(glyph)
    return list(lines.values())


def test_receipts_come_right_aligned_with_colons_and_in_columns():
    right = colons = 0
    for seed in range(60):
        sample = make("receipt", seed)
        values = [b for b in sample.extra["value_boxes"] if b.label != "shop"]
        right += max(b.x2 for b in values) == min(b.x2 for b in values)
        colons += any(g.char == ":" for g in sample.glyphs)
    assert 15 < right < 55
    assert 5 < colons < 40


def test_label_and_value_stand_on_one_line_with_the_value_to_the_right():
    for seed in range(40):
        sample = make("field", seed)
        for row in rows_of(sample):
            row.sort(key=lambda g: g.column)
            assert all(a.x0 < b.x0 for a, b in itertools.pairwise(row))
            assert max(g.y0 for g in row) < min(g.y1 for g in row) + 8


def test_longer_receipts_have_currency_signs_other_dates_and_mixed_case():
    samples = [make("receipt", seed, 2) for seed in range(40)]
    values = [v for s in samples for v in s.extra["fields"].values()]
    assert {"€", "£", "$"} <= {v[0] for v in values}
    dates = [s.extra["fields"]["date"] for s in samples]
    assert {"-" in d for d in dates} == {True, False}
    assert any(" " in d for d in dates)
    assert any("/" in d for d in dates)
    shops = [s.extra["fields"]["shop"] for s in samples]
    assert any(s.isupper() for s in shops)
    assert any(not s.isupper() for s in shops)


@pytest.mark.parametrize(
    ("cents", "sign", "text"), [(5, "", "0.05"), (1240, "", "12.40"), (100000, "€", "€1000.00")]
)
def test_money_has_two_places(cents, sign, text):
    assert field.money(cents, sign) == text


def test_near_misses_surround_the_target_from_level_2_on():
    for seed in range(30):
        sample = make("find", seed, 2)
        colour, kind = sample.boxes[0].label.split()
        others = [s for s in sample.shapes if s.box != sample.boxes[0][:4]]
        assert len(others) >= 3
        assert all((s.kind == kind) != (s.colour == colour) for s in others)


def test_black_shapes_are_not_drawn_on_dark_paper():
    dark = 0
    for seed in range(60):
        sample = make("find", seed, 2)
        if np.asarray(sample.media[0])[0, 0].sum() < 384:
            dark += 1
            assert all(s.colour != "black" for s in sample.shapes)
    assert dark > 5


def test_grounding_and_point_json_are_the_models_own_form():
    box = Box(10, 20, 31, 44, "red circle")
    assert scenes.grounding_json([box]) == '[{"bbox_2d": [10, 20, 31, 44], "label": "red circle"}]'
    assert json.loads(screen.point_json(box)) == {"point_2d": [20, 32], "label": "red circle"}


def test_plural_of_cross():
    assert [scenes.plural(k) for k in ("cross", "star")] == ["crosses", "stars"]


def test_page_html_escapes_what_html_would_read_as_markup():
    text = html(
        [
            (Block("p", ("a < b &", "c")), (1, 2, 3, 4)),
            (Block("table", rows=(("x>y",), ("1",))), (5, 6, 7, 8)),
        ]
    )
    assert text == (
        '<html><body>\n<p data-bbox="1 2 3 4">a &lt; b &amp; c</p>\n'
        '<table data-bbox="5 6 7 8"><tr><th>x&gt;y</th></tr><tr><td>1</td></tr></table>\n</body></html>'
    )


def test_clips_differ_in_shape_colour_length_and_span():
    samples = [make("clip", seed) for seed in range(80)]
    labels = {s.extra["label"] for s in samples}
    assert len({label.split()[0] for label in labels}) == 8
    assert len({label.split()[1] for label in labels}) == 6
    assert {len(s.media[0].frames) for s in samples} == {8, 10, 12}
    assert len({s.answer for s in samples}) > 20


def test_a_clip_knows_its_seconds():
    assert Clip(np.zeros((9, 4, 4, 3), np.uint8), 2.0).seconds == 4.5


def test_pairs_from_level_1_on_also_differ_by_a_single_character():
    close = 0
    for seed in range(150):
        sample = make("pair", seed)
        first, second = sample.extra.get("texts", ("", ""))
        close += len(first) == len(second) and sum(a != b for a, b in zip(first, second, strict=True)) == 1
    assert close > 10
