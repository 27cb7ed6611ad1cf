"""The dense truth of samples against their pixels: boxes enclose the ink they claim, and no ink is unclaimed."""

from collections import Counter

import numpy as np
import pytest

from qvl.synth import make
from qvl.synth.canvas import SHAPES, Canvas, shape_mask, wear
from qvl.synth.rng import Rng
from qvl.synth.sample import Box
from qvl.synth.text import BOLD, FACES, fit_size, glyph_mask, lacks, set_line

SEEDS = range(25)


def seeds(level: int) -> range:
    """Fewer at level 3, where rotation, blur and noise take most of the time."""
    return SEEDS if level < 3 else SEEDS[:12]


def paper_of(picture: np.ndarray) -> tuple[int, ...]:
    """The commonest colour."""
    return Counter(map(tuple, picture.reshape(-1, 3).tolist())).most_common(1)[0][0]


def ink_of(picture: np.ndarray) -> np.ndarray:
    """bool (H, W): every pixel that isn't exactly paper."""
    return (picture != np.array(paper_of(picture), np.uint8)).any(axis=2)


def assert_tight(ink: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """Ink touches all four sides of the box from inside."""
    x1, y1, x2, y2 = box
    inside = ink[y1:y2, x1:x2]
    assert inside[0].any(), box
    assert inside[-1].any(), box
    assert inside[:, 0].any(), box
    assert inside[:, -1].any(), box


def uncovered(ink: np.ndarray, boxes) -> int:
    """Ink pixels outside all boxes."""
    rest = ink.copy()
    for x1, y1, x2, y2 in boxes:
        rest[y1:y2, x1:x2] = False
    return int(rest.sum())


@pytest.mark.parametrize("level", [0, 1])
def test_glyph_boxes_cover_all_ink_of_a_clean_reading_tightly(level):
    for seed in seeds(level):
        sample = make("read", seed, level)
        ink = ink_of(np.asarray(sample.media[0]))
        boxes = [(g.x0, g.y0, g.x1, g.y1) for g in sample.glyphs]
        assert uncovered(ink, boxes) == 0
        for box in boxes:
            assert_tight(ink, box)
        line = sample.boxes[0]
        assert_tight(ink, line[:4])
        assert line[:4] == (
            min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)
        )  # fmt: skip


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_glyphs_spell_the_answer_of_a_reading(level):
    for seed in seeds(level):
        sample = make("read", seed, level)
        lines = sample.answer.split("\n")
        for glyph in sample.glyphs:
            assert lines[glyph.line][glyph.column] == glyph.char
        assert len(sample.glyphs) == len("".join(sample.answer.split()))


@pytest.mark.parametrize("level", [0, 1])
def test_glyph_boxes_of_a_document_are_tight_on_their_ink(level):
    for seed in range(12):
        sample = make("field", seed, level)
        picture = np.asarray(sample.media[0])
        for glyph in sample.glyphs:
            around = picture[max(0, glyph.y0 - 3) : glyph.y1 + 3, max(0, glyph.x0 - 4) : glyph.x1 + 4]
            edge = np.array(paper_of(around), np.uint8)
            ink = (picture != edge).any(axis=2)
            if ink[glyph.y0 : glyph.y1, glyph.x0 : glyph.x1].all():
                continue  # the mark is a full block, such as a dash: its ink was the commonest colour
            assert_tight(ink, (glyph.x0, glyph.y0, glyph.x1, glyph.y1))


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_value_box_of_a_document_holds_exactly_the_answers_glyphs(level):
    for seed in seeds(level):
        sample = make("field", seed, level)
        box = sample.boxes[0]
        assert box.text == sample.answer
        inside = [
            g
            for g in sample.glyphs
            if box.x1 <= (g.x0 + g.x1) / 2 < box.x2 and box.y1 <= (g.y0 + g.y1) / 2 < box.y2
        ]
        spelled = "".join(g.char for g in sorted(inside, key=lambda g: (g.line, g.column)))
        assert spelled == sample.answer.replace(" ", "")


@pytest.mark.parametrize("level", [0, 1, 2])
def test_no_two_glyph_boxes_of_different_lines_overlap(level):
    for kind in ("read", "field", "page", "chart", "screen"):
        for seed in range(10):
            glyphs = make(kind, seed, level).glyphs
            for a in glyphs:
                for b in glyphs:
                    apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
                    assert a.line == b.line or apart, (kind, seed, a, b)


@pytest.mark.parametrize("kind", ["find", "count"])
@pytest.mark.parametrize("level", [0, 1])
def test_shape_boxes_cover_all_ink_tightly_and_stay_apart(kind, level):
    for seed in seeds(level):
        sample = make(kind, seed, level)
        boxes = [s.box for s in sample.shapes]
        ink = ink_of(np.asarray(sample.media[0]))
        assert uncovered(ink, boxes) == 0
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            assert_tight(ink, (x1, y1, x2, y2))
            for a1, b1, a2, b2 in boxes[:i]:
                assert a2 < x1 or x2 < a1 or b2 < y1 or y2 < b1


def test_crowded_pictures_keep_their_shapes_apart():
    for seed in range(40):
        boxes = [s.box for s in make("count", seed, 2).shapes]
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            assert all(a2 < x1 or x2 < a1 or b2 < y1 or y2 < b1 for a1, b1, a2, b2 in boxes[:i])


def test_shape_marks_name_the_colour_that_was_drawn():
    from qvl.synth.canvas import COLOURS

    for seed in SEEDS:
        sample = make("count", seed, 1)
        picture = np.asarray(sample.media[0]).astype(int)
        for mark in sample.shapes:
            x1, y1, x2, y2 = mark.box
            # a little below the middle: inside every kind of shape
            seen = picture[y1 + (y2 - y1) * 55 // 100, (x1 + x2) // 2]
            nearest = min(COLOURS, key=lambda name: int(np.abs(seen - np.array(COLOURS[name])).sum()))
            assert nearest == mark.colour, (seed, mark, seen)


def test_shape_area_tells_its_kind():
    # Share of its box that each shape fills: π/4, 1, 1/2, the star's and the cross's own, 1/2.
    shares = {k: np.asarray(shape_mask(k, 60)).mean() / 255 for k in SHAPES}
    assert shares["circle"] == pytest.approx(np.pi / 4, abs=0.02)
    assert shares["square"] == pytest.approx(1, abs=0.001)
    assert shares["triangle"] == pytest.approx(0.5, abs=0.02)
    assert shares["diamond"] == pytest.approx(0.5, abs=0.02)
    assert shares["cross"] == pytest.approx(1 - 4 * 0.33**2, abs=0.03)
    assert 0.25 < shares["star"] < 0.4


@pytest.mark.parametrize("degrees", [0.0, 5.0])
def test_wear_carries_glyph_boxes_along_with_the_ink(degrees):
    for seed in range(10):
        canvas = Canvas(240, 120, (250, 250, 250))
        box = Box(*canvas.text(30, 70, "Hg4Wq8", "DejaVuSans", 28, (0, 0, 0)), "line", "Hg4Wq8")
        worn = wear(canvas, (box,), Rng("wear", seed), degrees=degrees)
        ink = (np.asarray(worn.image).astype(int).sum(axis=2)) < 400  # clearly dark
        assert ink.sum() > 300
        assert uncovered(ink, [(g.x0, g.y0, g.x1, g.y1) for g in worn.glyphs]) == 0
        assert uncovered(ink, [worn.boxes[0][:4]]) == 0
        for g in worn.glyphs:
            assert ink[g.y0 : g.y1, g.x0 : g.x1].any()


def test_wear_without_wear_changes_nothing():
    canvas = Canvas(56, 56, (9, 9, 9))
    canvas.shape(5, 6, "star", "red", 20, (200, 0, 0))
    worn = wear(canvas, (), Rng("none"))
    assert worn.image is canvas.image
    assert worn.shapes == tuple(canvas.shapes)


def test_noise_leaves_the_mean_and_spreads_by_no_more_than_asked():
    canvas = Canvas(140, 140, (128, 128, 128))
    noisy = np.asarray(wear(canvas, (), Rng("n"), noise=12).image).astype(float)
    assert abs(noisy.mean() - 128) < 0.5
    assert 12 / 3 * 0.9 < noisy.std() < 12 * 1.1


@pytest.mark.parametrize("face", FACES)
def test_every_face_has_ascii_and_the_signs_we_print(face):
    printable = [chr(c) for c in range(33, 127)] + list("£€¥×÷°–—•")
    assert [char for char in printable if lacks(face, char)] == []
    assert lacks(face, "서")


def test_bold_of_a_face_has_more_ink():
    for face, bold in BOLD.items():
        assert bold in FACES
        weight = [sum(np.asarray(glyph_mask(f, 40, c).mask).sum() for c in "HAM") for f in (face, bold)]
        assert weight[1] > weight[0] * 1.1


def test_space_moves_the_pen_and_leaves_no_glyph():
    setting = set_line("A B", "DejaVuSansMono", 20)
    assert [(g.char, g.column) for g in setting.glyphs] == [("A", 0), ("B", 2)]
    assert glyph_mask("DejaVuSansMono", 20, " ").mask is None
    assert setting.glyphs[1].x - setting.glyphs[0].x > glyph_mask("DejaVuSansMono", 20, "A").advance


def test_tracking_widens_a_line_by_its_gaps():
    plain, wide = (set_line("HEAD", "DejaVuSans", 20, tracking) for tracking in (0, 2))
    assert wide.ink[2] - plain.ink[2] == 2 * 3
    assert wide.ink[1::2] == plain.ink[1::2]


def test_fit_size_is_the_largest_that_fits():
    size = fit_size("WWWWWW", "DejaVuSans-Bold", 30, 100)
    assert set_line("WWWWWW", "DejaVuSans-Bold", size).width <= 100
    assert set_line("WWWWWW", "DejaVuSans-Bold", size + 1).width > 100
    assert fit_size("I", "DejaVuSans", 30, 100) == 30
