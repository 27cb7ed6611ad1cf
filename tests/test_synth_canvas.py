"""The drawing tools under the kinds: text, shapes, wear, and places for shapes."""

import math

import numpy as np
import pytest

from qvl.synth.canvas import (
    COLOURS,
    SHAPES,
    Canvas,
    dark,
    gradient,
    ink_and_paper,
    jitter,
    light,
    shape_mask,
    wear,
)
from qvl.synth.rng import Rng
from qvl.synth.sample import Box, Glyph
from qvl.synth.scenes import GAP, Thing, plan, scatter
from qvl.synth.text import FACES, set_line, system_font

WHITE = (255, 255, 255)


def sheet(width: int = 168, height: int = 112) -> Canvas:
    return Canvas(width, height, WHITE)


def ink(canvas: Canvas) -> np.ndarray:
    return (np.asarray(canvas.image) != 255).any(axis=2)


def ink_box(canvas: Canvas) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(ink(canvas))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


# text


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("size", [9, 16, 30])
def test_text_returns_the_box_of_its_ink(face, size):
    canvas = sheet(280, 84)
    assert canvas.text(12, 50, "Jagd_fW,", face, size) == ink_box(canvas)


def test_text_is_printed_in_its_colour_at_full_strength_somewhere():
    canvas = sheet()
    canvas.text(10, 60, "HHH", "DejaVuSans-Bold", 30, (10, 200, 30))
    assert (np.asarray(canvas.image) == (10, 200, 30)).all(axis=2).sum() > 100


def test_lines_are_numbered_in_the_order_they_are_printed():
    canvas = sheet()
    for baseline in (30, 60, 90):
        canvas.text(5, baseline, "AB", FACES[0], 16)
    assert [(g.char, g.line, g.column) for g in canvas.glyphs] == [
        (char, line, column) for line in range(3) for column, char in enumerate("AB")
    ]


def test_label_and_value_may_share_a_line_and_count_on():
    canvas = sheet()
    canvas.text(5, 30, "NO", FACES[0], 16, line=4)
    canvas.text(80, 30, "71", FACES[0], 16, line=4, first_column=3)
    canvas.text(5, 60, "X", FACES[0], 16)
    assert [(g.char, g.line, g.column) for g in canvas.glyphs] == [
        ("N", 4, 0), ("O", 4, 1), ("7", 4, 3), ("1", 4, 4), ("X", 5, 0)
    ]  # fmt: skip


def test_glyphs_carry_the_picture_they_are_on():
    canvas = Canvas(56, 56, WHITE, picture=1)
    canvas.text(5, 30, "Q", FACES[0], 16)
    canvas.shape(2, 40, "square", "red", 8, COLOURS["red"])
    assert canvas.glyphs[0].picture == canvas.shapes[0].picture == 1


def test_a_setting_can_be_measured_then_printed_unchanged():
    setting = set_line("Wave", FACES[4], 22)
    canvas = sheet()
    x1, y1, x2, y2 = canvas.text(20, 50, setting)
    assert (x1 - 20, y1 - 50, x2 - 20, y2 - 50) == setting.ink


def test_ink_never_starts_left_of_the_pen():
    for face in FACES:
        for char in "jJfWT":
            assert set_line(char, face, 28).ink[0] >= 0


def test_empty_and_blank_lines_have_no_ink():
    assert set_line("", FACES[0], 16).glyphs == ()
    blank = set_line("   ", FACES[0], 16)
    assert blank.glyphs == ()
    assert blank.width > 6


def test_mono_faces_give_every_character_the_same_width():
    lines = [set_line(f"|{char}|", "DejaVuSansMono", 18).glyphs for char in "iWm0."]
    assert len({glyphs[-1].x - glyphs[0].x for glyphs in lines}) == 1


def test_a_script_without_known_places_has_no_font():
    assert system_font("klingon") is None


# shapes


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("size", [8, 21, 64])
def test_shape_returns_the_box_of_its_ink_and_is_about_as_wide_as_asked(kind, size):
    canvas = sheet(112, 112)
    box = canvas.shape(20, 30, kind, "blue", size, COLOURS["blue"])
    assert box == ink_box(canvas) == canvas.shapes[0].box
    assert size - 4 <= box[2] - box[0] <= size
    assert size * 0.85 - 3 <= box[3] - box[1] <= size


@pytest.mark.parametrize("kind", SHAPES)
def test_shapes_are_symmetric_left_to_right(kind):
    mask = np.asarray(shape_mask(kind, 40)).astype(int)
    assert np.abs(mask - mask[:, ::-1]).mean() < 12  # the edge may fall half a pixel to one side


def test_shape_kinds_look_different_at_the_smallest_size():
    masks = {k: np.asarray(shape_mask(k, 16).resize((16, 16))).astype(int) for k in SHAPES}
    for a in SHAPES:
        for b in SHAPES:
            assert a == b or np.abs(masks[a] - masks[b]).mean() > 20, (a, b)


def test_named_colours_stay_apart_after_jitter():
    # Jitter moves a channel by 14; two names closer than twice that in all channels could be confused.
    names = list(COLOURS)
    for a in names:
        for b in names:
            assert a == b or max(abs(x - y) for x, y in zip(COLOURS[a], COLOURS[b], strict=True)) > 56, (a, b)


# colours


def test_light_dark_and_jitter_keep_their_ranges():
    rng = Rng("colours")
    for _ in range(200):
        assert all(205 <= c <= 255 for c in light(rng))
        assert all(0 <= c <= 80 for c in dark(rng))
        moved = jitter(rng, (250, 128, 3), 14)
        assert 236 <= moved[0] <= 255
        assert 114 <= moved[1] <= 142
        assert 0 <= moved[2] <= 17


def test_ink_always_contrasts_with_its_paper():
    rng = Rng("contrast")
    for _ in range(300):
        ink_colour, paper = ink_and_paper(rng)
        assert abs(sum(ink_colour) - sum(paper)) > 3 * 110


# wear


def test_gradient_shades_by_no_more_than_its_strength_and_keeps_the_middle():
    for seed in range(10):
        canvas = Canvas(140, 84, (128, 128, 128))
        gradient(canvas, Rng("gradient", seed), 20)
        pixels = np.asarray(canvas.image).astype(int)
        assert np.abs(pixels - 128).max() <= 20
        assert abs(int(pixels[42, 70, 0]) - 128) <= 1
        assert (pixels[..., 0] == pixels[..., 2]).all()


def test_rotation_moves_a_mark_to_where_its_box_says():
    for seed in range(12):
        canvas = Canvas(200, 160, WHITE)
        box = canvas.shape(150, 20, "square", "black", 10, (0, 0, 0))
        worn = wear(canvas, (Box(*box, "mark"),), Rng("turn", seed), degrees=10)
        rows, columns = np.nonzero(np.asarray(worn.image).sum(axis=2) < 300)
        moved = worn.boxes[0]
        assert worn.shapes[0].box == moved[:4]
        assert abs(columns.mean() + 0.5 - (moved.x1 + moved.x2) / 2) < 1
        assert abs(rows.mean() + 0.5 - (moved.y1 + moved.y2) / 2) < 1
        # the upright box around a square of side 10 turned by at most 10 degrees, and a pixel of rounding each way
        assert moved.x2 - moved.x1 <= math.ceil(10 * (math.cos(0.1746) + math.sin(0.1746))) + 2


def test_rotated_boxes_are_cut_to_the_picture():
    for seed in range(12):
        canvas = Canvas(100, 60, WHITE)
        canvas.glyphs.append(Glyph("A", 0, 0, 100, 60, 0, 0))
        glyph = wear(canvas, (), Rng("cut", seed), degrees=8).glyphs[0]
        assert (glyph.x0, glyph.y0, glyph.x1, glyph.y1) == (0, 0, 100, 60)


def test_blur_softens_edges_and_keeps_the_amount_of_ink():
    canvas = sheet()
    canvas.text(20, 60, "BLUR", "DejaVuSans-Bold", 28)
    sharp = np.asarray(canvas.image).astype(float)
    soft = np.asarray(wear(canvas, (), Rng("blur", 3), blur=2.0).image).astype(float)
    assert np.abs(np.diff(soft, axis=1)).max() < np.abs(np.diff(sharp, axis=1)).max()
    assert soft.mean() == pytest.approx(sharp.mean(), rel=0.01)


# places


def test_plan_draws_nothing_and_scatter_draws_what_it_planned():
    things = [Thing("circle", "red"), Thing("cross", "blue"), Thing("star", "green")]
    planned, drawn = sheet(), sheet()
    spots = plan(planned, Rng("same"), things, (20, 30))
    assert not ink(planned).any()
    boxes = scatter(drawn, Rng("same"), things, (20, 30))
    assert [(s.x, s.y) for s in spots] == [b[:2] for b in boxes]
    assert [(s.kind, s.colour) for s in drawn.shapes] == things


def test_crowding_makes_shapes_smaller_and_never_closer_than_the_gap():
    canvas = sheet(112, 112)
    boxes = scatter(canvas, Rng("crowd"), [Thing("square", "red")] * 12, (40, 40))
    assert min(x2 - x1 for x1, _, x2, _ in boxes) < 40
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        for a1, b1, a2, b2 in boxes[:i]:
            assert a2 + GAP <= x1 or x2 + GAP <= a1 or b2 + GAP <= y1 or y2 + GAP <= b1


def test_a_shape_larger_than_the_picture_is_drawn_smaller():
    ((x1, y1, x2, y2),) = scatter(sheet(56, 56), Rng("big"), [Thing("circle", "red")], (90, 90))
    assert x1 >= 3
    assert y1 >= 3
    assert x2 <= 53
    assert y2 <= 53
