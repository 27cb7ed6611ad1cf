"""outputs.draw: lines where the places are, labels readable on any ground and in any script."""

from __future__ import annotations

import pytest
from PIL import Image

from qvl.errors import OutputError
from qvl.geometry import Size
from qvl.outputs import draw
from qvl.outputs.actions import Click, Drag, LongPress, Move, Scroll, Swipe, TypeText
from qvl.outputs.boxes import Box, parse_boxes, write_boxes
from qvl.outputs.documents import parse_document
from qvl.outputs.draw import ENDINGS, draw_actions, draw_places, draw_regions, font_for, save
from qvl.outputs.mapping import picture_map

SIZE = Size(300, 400)
MAP = picture_map(SIZE, "qwen3_vl")


def picture(colour="white"):
    return Image.new("RGB", (SIZE.width, SIZE.height), colour)


def places(*items):
    return parse_boxes(write_boxes(items, "qwen3_vl", MAP), "qwen3_vl", MAP)


def changed(image, ground):
    """The box around all pixels that differ from the ground."""
    from PIL import ImageChops

    return ImageChops.difference(image, Image.new("RGB", image.size, ground)).getbbox()


def contrast(a, b):
    """WCAG contrast ratio of two colours, 1 to 21."""

    def luminance(colour):
        parts = [c / 255 for c in colour]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_lines_lie_on_the_boxes_edges():
    image = draw_places(picture(), places(("", (100, 60, 300, 240)))).image
    left, top, right, bottom = changed(image, "white")
    assert (left, top, right, bottom) == pytest.approx((100, 60, 300, 240), abs=5)
    for x, y in ((100, 150), (299, 150), (200, 60), (200, 239)):
        assert image.getpixel((x, y)) != (255, 255, 255)
    assert image.getpixel((200, 150)) == (255, 255, 255), "the inside stays as it was"


@pytest.mark.parametrize("ground", ["white", "black", (128, 128, 128), *draw.PALETTE])
def test_a_box_is_visible_on_any_ground(ground):
    image = draw_places(picture(ground), places(("", (100, 60, 300, 240)))).image
    background = picture(ground).getpixel((0, 0))
    across = [image.getpixel((x, 150)) for x in range(92, 110)]
    assert max(contrast(c, background) for c in across) >= 4.5


@pytest.mark.parametrize("index", range(len(draw.PALETTE)))
def test_labels_contrast_with_their_own_ground(index):
    labels = [(f"label {i}", (10 + i, 10 + i, 300, 240)) for i in range(index + 1)]
    canvas = draw._Canvas(picture(), ())
    colour = [canvas.colour(name) for name, _ in labels][index]
    assert contrast(colour, draw.ink_on(colour)) >= 4.5


def test_the_same_label_has_the_same_colour():
    canvas = draw._Canvas(picture(), ())
    assert canvas.colour("cat") == canvas.colour("cat") != canvas.colour("dog")


@pytest.mark.parametrize(
    "corner", [(0, 0, 40, 30), (360, 0, 400, 30), (0, 270, 40, 300), (360, 270, 400, 300)]
)
def test_labels_stay_inside_the_picture(corner):
    plain = draw_places(picture(), places(("", corner))).image
    labelled = draw_places(picture(), places(("a rather long label", corner))).image
    assert labelled.size == (SIZE.width, SIZE.height)
    assert plain.tobytes() != labelled.tobytes()
    canvas = draw._Canvas(picture(), ())
    canvas.box(places(("", corner)).items[0].rect, draw.PALETTE[0], "a rather long label")
    canvas.finish()
    (ground,) = canvas.taken
    assert ground.x1 >= 0
    assert ground.y1 >= 0
    assert ground.x2 <= SIZE.width
    assert ground.y2 <= SIZE.height


def test_labels_of_boxes_at_one_place_do_not_cover_each_other():
    canvas = draw._Canvas(picture(), ())
    for name in ("one", "two", "three"):
        canvas.box(places(("", (100, 100, 200, 200))).items[0].rect, draw.PALETTE[0], name)
    canvas.finish()
    a, b, c = canvas.taken
    assert not draw._overlap(a, b)
    assert not draw._overlap(b, c)
    assert not draw._overlap(a, c)


def test_the_given_picture_is_left_alone():
    image = picture()
    draw_places(image, places(("x", (10, 10, 200, 200))))
    assert changed(image, "white") is None


def test_points_and_quads_are_drawn():
    image = draw_places(picture(), places(("p", (200, 150)))).image
    assert image.getpixel((200, 150)) != (255, 255, 255)
    image = draw_places(picture(), places(("q", (100, 100, 300, 120, 290, 250, 90, 240)))).image
    assert image.getpixel((200, 110)) != (255, 255, 255)


# ------------------------------------------------------------------------------------------------------- fonts


def test_latin_labels_need_no_font_of_the_machine():
    assert font_for("Total: 5 EUR…", 20, files=()) is not None
    assert draw_places(picture(), places(("cat", (10, 40, 200, 200))), files=()).notes == ()


@pytest.mark.parametrize("label", ["빨간 공", "红色汽车", "赤い車"])
def test_a_label_without_a_font_is_a_number_and_the_note_says_which(label):
    drawing = draw_places(
        picture(), places(("cat", (10, 40, 90, 90)), (label, (100, 100, 300, 250))), files=()
    )
    (note,) = drawing.notes
    assert note.startswith("#2 stands for")
    assert label in note
    assert "fonts-noto-cjk" in note
    assert changed(drawing.image.crop((100, 60, 300, 250)), "white") is not None


@pytest.mark.parametrize("label", ["빨간 공", "红色汽车"])
def test_a_label_is_written_out_when_a_font_is_there(label):
    font = font_for(label, 20)
    if font is None:
        pytest.skip("no font with these letters on this machine")
    drawing = draw_places(picture(), places((label, (100, 100, 300, 250))))
    assert drawing.notes == ()


def test_a_missing_character_is_noticed():
    assert not draw._has("", "빨")
    assert draw._has("", "A")
    assert draw._has("", " ")
    assert not draw._has("no such font file.ttf", "A")


# --------------------------------------------------------------------------------------- regions and actions


def test_regions_are_numbered_in_reading_order():
    page = parse_document(
        '<h1 data-bbox="10 10 500 100">a</h1><p>no box</p><p data-bbox="10 200 500 300">b</p>',
        "qwen3_vl",
        MAP,
    )
    drawing = draw_regions(picture(), page)
    box = page.blocks[2].box
    assert drawing.image.getpixel((round((box.x1 + box.x2) / 2), round(box.y2) - 1)) != (255, 255, 255)
    assert changed(drawing.image, "white") is not None


def test_actions_are_drawn_where_they_act():
    actions = [Click(50, 50), Drag(150, 200), Swipe(300, 250, 300, 100), LongPress(350, 40, 1), Move(20, 280)]
    image = draw_actions(picture(), actions).image
    for x, y in ((50, 50), (150, 200), (100, 125), (300, 250), (300, 175), (350, 40), (20, 280)):
        assert image.getpixel((x, y)) != (255, 255, 255), (x, y)


def test_actions_without_a_place_are_listed():
    image = draw_actions(picture(), [TypeText("hello"), Scroll(up=-5)]).image
    left, top, _, bottom = changed(image, "white")
    assert (left, top) == (0, 0)
    assert bottom < 80


def test_a_drag_without_a_pointer_marks_its_end():
    assert draw_actions(picture(), [Drag(200, 150)]).image.getpixel((200, 150)) != (255, 255, 255)


def test_a_drawing_is_saved(tmp_path):
    path = tmp_path / "out.png"
    save(draw_places(picture(), places(("x", (10, 10, 99, 99)))), str(path))
    assert Image.open(path).size == (SIZE.width, SIZE.height)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_that_is_offered_can_be_written(tmp_path, ending):
    save(draw_places(picture(), places(("x", (10, 10, 99, 99)))), str(tmp_path / f"drawn{ending}"))
    assert (tmp_path / f"drawn{ending}").stat().st_size > 100


@pytest.mark.parametrize("name", ["out.nothing", "no/such/folder/out.png"])
def test_a_drawing_that_cannot_be_saved_is_an_error_with_the_way_out(tmp_path, name):
    with pytest.raises(OutputError, match=r"\.png"):
        save(draw_places(picture(), places(("x", (10, 10, 99, 99)))), str(tmp_path / name))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (16, 16), (2000, 30)])
def test_tiny_and_narrow_pictures_can_be_drawn_on(size):
    image = Image.new("RGB", size, "white")
    mapping = picture_map(Size(size[1], size[0]), "qwen_vl")
    result = parse_boxes("<ref>a label</ref><box>(0,0),(900,900)</box>", "qwen_vl", mapping)
    drawn, times = draw_places(image, result).image, draw.enlargement(size)
    assert drawn.size == (size[0] * times, size[1] * times)


@pytest.mark.parametrize(
    ("size", "times"), [((256, 256), 1), ((224, 252), 3), ((168, 196), 3), ((20, 20), 4), ((20, 4000), 1)]
)
def test_small_pictures_are_drawn_larger(size, times):
    assert draw.enlargement(size) == times


def test_places_on_an_enlarged_picture_are_where_they_were():
    image = Image.new("RGB", (120, 90), "white")
    drawn = draw_actions(image, [Swipe(20, 40, 100, 40)]).image
    assert drawn.size == (480, 360)
    assert changed(drawn.crop((0, 140, 480, 180)), "white") is not None
    box = draw_places(image, [Box(x1=30, y1=20, x2=90, y2=70, seen=(0,) * 4, written=())]).image
    assert changed(box, "white") == pytest.approx((120, 80, 360, 280), abs=6)
