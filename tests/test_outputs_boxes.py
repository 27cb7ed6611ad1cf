"""outputs.boxes: each generation's way of writing places, mapped home; contradictions and clamping said."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from qvl.catalog import generations
from qvl.catalog.generations.generation import ORIGINAL_PIXELS, RELATIVE_1, RELATIVE_1000, SEEN_PIXELS
from qvl.errors import OutputError
from qvl.geometry import PixelLimits, Size
from qvl.outputs.boxes import Box, Point, Quad, parse_boxes, parse_boxes_3d, write_boxes
from qvl.outputs.mapping import Rect, iou, picture_map

FAMILIES = sorted(generations.names())
PAGE = Size(1532, 1014)


def parse(text, family="qwen2_5_vl", size=PAGE, **options):
    return parse_boxes(text, family, picture_map(size, family), **options)


def rects(result):
    return [tuple(round(v, 1) for v in b.rect) for b in result]


# ---------------------------------------------------------------------------------- each generation's way


def test_qwen25_json_is_in_pixels_of_the_resized_picture():
    result = parse('```json\n[\n\t{"bbox_2d": [310, 94, 658, 132], "label": "title"}\n]\n```')
    (box,) = result
    # x by 1014 / 1008, y by 1532 / 1540
    assert box.rect == pytest.approx(
        (310 * 1014 / 1008, 94 * 1532 / 1540, 658 * 1014 / 1008, 132 * 1532 / 1540)
    )
    assert box.label == "title"
    assert box.seen == (310, 94, 658, 132)
    assert box.written == (310, 94, 658, 132)
    assert result.warnings == result.repairs == ()


def test_qwen3_json_is_in_thousandths():
    (box,) = parse('[{"bbox_2d": [100, 200, 500, 1000], "label": "x"}]', "qwen3_vl")
    assert box.rect == pytest.approx((101.4, 306.4, 507, 1532))


def test_the_same_numbers_mean_other_places_to_other_generations():
    text = '[{"bbox_2d": [100, 200, 500, 600], "label": "x"}]'
    assert rects(parse(text, "qwen2_5_vl")) != rects(parse(text, "qwen3_vl"))


def test_first_generation_boxes_share_their_phrase():
    result = parse("<ref>two cats</ref><box>(0,0),(500,500)</box><box>(500,500),(999,999)</box>", "qwen_vl")
    assert [b.label for b in result] == ["two cats", "two cats"]
    assert rects(result)[0] == (0, 0, 507, 766)


def test_first_generation_quads_keep_their_corners():
    (quad,) = parse("<ref>sign</ref><quad>(0,0),(500,0),(500,500),(0,500)</quad>", "qwen_vl")
    assert isinstance(quad, Quad)
    assert quad.corners == ((0, 0), (507, 0), (507, 766), (0, 766))
    assert quad.rect == Rect(0, 0, 507, 766)


def test_second_generation_tokens():
    text = "<|object_ref_start|>the cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>"
    (box,) = parse(text, "qwen2_vl")
    assert box.label == "the cat"
    assert box.rect == pytest.approx((101.4, 306.4, 304.2, 612.8))


def test_second_generation_without_its_special_tokens_is_read_with_a_warning():
    result = parse("the cat(100,200),(300,400) the dog(1,2),(3,4)", "qwen2_vl")
    assert [b.label for b in result] == ["the cat", "the dog"]
    assert any("skip_special_tokens" in w for w in result.warnings)


def test_tags_inside_a_sentence():
    result = parse(
        "A <ref>dog</ref><box>(1,2),(30,40)</box> chases <ref>a cat</ref><box>(5,6),(70,80)</box>.", "qwen_vl"
    )
    assert [b.label for b in result] == ["dog", "a cat"]


def test_points_in_json():
    (point,) = parse('[{"point_2d": [504, 770], "label": "key", "color": "red"}]')
    assert isinstance(point, Point)
    assert (point.x, point.y) == pytest.approx((507, 766))
    assert point.extra == {"color": "red"}


def test_points_as_tags():
    result = parse(
        '<points x="504" y="770" alt="k">key</points> <points x1="1" y1="2" x2="3.5" y2="4">two</points>'
    )
    assert [(p.label, p.written) for p in result] == [("key", (504, 770)), ("two", (1, 2)), ("two", (3.5, 4))]


def test_plain_lines():
    result = parse("1. 10,20,300,400 a cat\n- 1, 2, 30, 40: a dog")
    assert [(b.label, b.written) for b in result] == [
        ("a cat", (10, 20, 300, 400)),
        ("a dog", (1, 2, 30, 40)),
    ]


def test_text_spotting_keeps_what_was_read():
    (box,) = parse('[{"bbox_2d": [1, 2, 30, 40], "text_content": "Total: 5"},]')
    assert box.text == "Total: 5"
    assert box.label == ""


def test_time_of_a_box_in_a_video():
    (box,) = parse('[{"time": 1.5, "bbox_2d": [1, 2, 30, 40], "label": "dog"}]', "qwen3_vl")
    assert box.time == 1.5


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ([[1, 2, 30, 40], [5, 6, 70, 80]], 2),
        (["1", "2", "30", "40"], 1),
        ("1, 2, 30, 40", 1),
        ([[1, 2], [30, 40]], 1),
        ({"x1": 1, "y1": 2, "x2": 30, "y2": 40}, 1),
        ([1, 2, 30, 2, 30, 40, 1, 40], 1),
    ],
)
def test_bbox_values_that_models_vary(value, count):
    assert len(parse(json.dumps([{"bbox_2d": value, "label": "x"}]))) == count


@pytest.mark.parametrize(
    "value", [[1, 2, 3], [1, 2, 3, None], [1, 2, 3, "x"], [], "wide", [1, 2, 3, 4, 5], None, True]
)
def test_bbox_values_that_are_none_are_left_out_and_said(value):
    result = parse(json.dumps([{"bbox_2d": value, "label": "x"}]))
    assert len(result) == 0
    assert any("bbox_2d without" in r for r in result.repairs)
    assert result.reason == "no box, point or quad in the text"


def test_numbers_beyond_floats_are_left_out():
    assert len(parse('[{"bbox_2d": [1e999, 0, 5, 5], "label": "x"}]')) == 0


def test_nested_objects_are_found():
    cup, mug = '{"name": "cup", "bbox": [1, 2, 30, 40]}', '{"class": "mug", "bbox": [5, 6, 70, 80]}'
    text = f'{{"image": "a", "objects": [{cup}, {mug}]}}'
    assert [b.label for b in parse(text)] == ["cup", "mug"]


def test_a_bare_list_of_four_numbers_is_a_box():
    assert rects(parse("[0, 0, 1008, 1540]")) == [(0, 0, 1014, 1532)]


# -------------------------------------------------------------------------------------------- truth by drawing


def _bounds_of_red(image):
    """The box around red pixels, as a model would see them: edges in pixels."""
    pixels = image.load()
    xs, ys = [], []
    for y in range(image.height):
        for x in range(image.width):
            r, g, b = pixels[x, y]
            if r > 128 and g < 128 and b < 128:
                xs.append(x)
                ys.append(y)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_drawn_box_told_in_each_convention_lands_on_itself(family, orientation):
    """A picture is drawn, turned, resized as the model gets it; the box found in what it sees is written its way,
    and must land where it was drawn."""
    stored = Size(420, 560)
    truth = Rect(130, 90, 470, 350)
    image = Image.new("RGB", (stored.width, stored.height), "white")
    ImageDraw.Draw(image).rectangle([truth.x1, truth.y1, truth.x2 - 1, truth.y2 - 1], fill="red")
    limits = PixelLimits(28 * 28, 400 * 28 * 28) if family.startswith("qwen2") else None
    picture = picture_map(stored, family, limits, orientation=orientation)
    upright = image.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else image
    seen = upright.resize((picture.seen.width, picture.seen.height), Image.Resampling.BICUBIC)
    found = _bounds_of_red(seen)
    written = [
        picture.seen_to_written(x, y, generations.by_name(family).coordinates)
        for x, y in (found[:2], found[2:])
    ]
    (x1, y1), (x2, y2) = [(round(x), round(y)) for x, y in written]
    if family == "qwen_vl":
        text = f"<ref>red</ref><box>({x1},{y1}),({x2},{y2})</box>"
    elif family == "qwen2_vl":
        text = f"<|object_ref_start|>red<|object_ref_end|><|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"
    else:
        text = f'```json\n[{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}], "label": "red"}}]\n```'
    (box,) = parse_boxes(text, family, picture)
    assert iou(box.rect, truth) >= 0.99


@given(st.sampled_from(FAMILIES), st.integers(1000, 2500), st.integers(1000, 2500), st.data())
@settings(max_examples=150, deadline=None)
def test_written_and_read_again_a_box_overlaps_itself_by_99_percent(family, height, width, data):
    # Whole numbers place an edge to half a unit of the grid (a thousandth, or a pixel of the seen picture). Each of
    # four edges off by 1/2 of 300 units or more costs at most 4 / 600 of the area; the first generation can't say
    # the last thousandth.
    x1 = data.draw(st.integers(0, width * 6 // 10))
    y1 = data.draw(st.integers(0, height * 6 // 10))
    x2 = data.draw(st.integers(x1 + width * 3 // 10, width * 998 // 1000))
    y2 = data.draw(st.integers(y1 + height * 3 // 10, height * 998 // 1000))
    picture = picture_map(Size(height, width), family)
    text = write_boxes([("thing", (x1, y1, x2, y2))], family, picture)
    (box,) = parse_boxes(text, family, picture)
    assert iou(box.rect, (x1, y1, x2, y2)) >= 0.99
    assert box.label == "thing"


@given(st.sampled_from(FAMILIES), st.integers(60, 2500), st.integers(60, 2500), st.data())
@settings(max_examples=150, deadline=None)
def test_written_and_read_again_an_edge_is_off_by_half_a_unit_at_most(family, height, width, data):
    x1 = data.draw(st.integers(0, width - 2))
    y1 = data.draw(st.integers(0, height - 2))
    truth = (x1, y1, data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height)))
    picture = picture_map(Size(height, width), family)
    (box,) = parse_boxes(write_boxes([("", truth)], family, picture), family, picture)
    own = generations.by_name(family).coordinates
    units = (own.scale or picture.seen.width, own.scale or picture.seen.height)
    most = 1.0 if family == "qwen_vl" else 0.5  # its grid ends at 999
    for edge, true, unit, side in zip(box.rect, truth, units * 2, (width, height) * 2, strict=True):
        assert abs(edge - true) <= most * side / unit + 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_points_and_quads_survive_writing_and_reading(family):
    picture = picture_map(PAGE, family)
    places = [("a", (100, 100, 600, 700)), ("b", (10, 10, 900, 20, 880, 1200, 30, 1000))]
    if family not in ("qwen_vl", "qwen2_vl"):
        places.append(("c", (500, 600)))
    result = parse_boxes(write_boxes(places, family, picture), family, picture)
    assert [type(p) for p in result] == [Box, Quad, Point][: len(places)]
    assert [p.label for p in result] == ["a", "b", "c"][: len(places)]


def test_labels_with_quotes_survive():
    picture = picture_map(PAGE, "qwen3_vl")
    label = 'he said "hi" \\ 안녕'
    (box,) = parse_boxes(write_boxes([(label, (1, 2, 300, 400))], "qwen3_vl", picture), "qwen3_vl", picture)
    assert box.label == label


def test_a_place_of_three_numbers_cannot_be_written():
    with pytest.raises(OutputError, match="has 3"):
        write_boxes([("a", (1, 2, 3))], "qwen3_vl", picture_map(PAGE, "qwen3_vl"))


# --------------------------------------------------------------------------------------------- contradictions


def test_pixels_under_a_relative_family_are_suspected():
    result = parse('[{"bbox_2d": [100, 100, 900, 1500], "label": "x"}]', "qwen3_vl")
    assert result.suspected == SEEN_PIXELS
    assert "1500" in result.warnings[0]
    assert "0-1000" in result.warnings[0]


def test_relative_numbers_under_a_pixel_family_are_suspected_on_a_small_picture():
    result = parse('[{"bbox_2d": [100, 100, 900, 950], "label": "x"}]', "qwen2_5_vl", Size(300, 300))
    assert result.suspected == RELATIVE_1000


def test_numbers_of_the_original_picture_are_suspected():
    limits = PixelLimits(28 * 28, 100 * 28 * 28)
    picture = picture_map(Size(3000, 2000), "qwen2_5_vl", limits)
    result = parse_boxes('[{"bbox_2d": [100, 100, 1900, 2900]}]', "qwen2_5_vl", picture)
    assert result.suspected == ORIGINAL_PIXELS


def test_numbers_below_one_are_suspected():
    result = parse('[{"bbox_2d": [0.1, 0.2, 0.9, 0.8]}]', "qwen3_vl")
    assert result.suspected == RELATIVE_1


def test_tags_of_old_generations_under_a_new_family_are_suspected():
    result = parse("<ref>a</ref><box>(1,2),(300,400)</box>", "qwen2_5_vl")
    assert result.suspected == RELATIVE_1000
    assert any("tags of the first two generations" in w for w in result.warnings)


def test_a_given_convention_is_followed_without_suspicion():
    result = parse('[{"bbox_2d": [0.5, 0.5, 1, 1]}]', "qwen3_vl", convention=RELATIVE_1)
    assert rects(result) == [(507, 766, 1014, 1532)]
    assert result.suspected is None
    assert result.warnings == ()


def test_numbers_that_fit_are_not_suspected():
    assert parse('[{"bbox_2d": [1, 2, 999, 1000]}]', "qwen3_vl").suspected is None
    assert parse('[{"bbox_2d": [1, 2, 1008, 1540]}]', "qwen2_5_vl").suspected is None


# ---------------------------------------------------------------------------------------------------- edges


def test_a_box_over_the_edge_is_clamped_and_said():
    result = parse('[{"bbox_2d": [-20, 10, 1010, 700], "label": "x"}]', "qwen2_5_vl")
    (box,) = result
    assert box.clamped
    assert (box.x1, box.x2) == (0, 1014)
    assert any("clamped" in w and "1014x1532" in w for w in result.warnings)


def test_a_box_outside_is_left_out_and_said():
    result = parse('[{"bbox_2d": [1100, 10, 1200, 70], "label": "x"}]', "qwen2_5_vl")
    assert len(result) == 0
    assert "outside" in result.warnings[-1]
    assert result.reason == "all places lie outside the image"


def test_a_point_outside_is_left_out():
    assert parse('[{"point_2d": [1100, 10]}]').reason == "all places lie outside the image"


def test_a_box_inside_is_never_clamped():
    for family in FAMILIES:
        picture = picture_map(Size(333, 777), family)
        text = write_boxes([("all", (0, 0, 776, 332))], family, picture)
        (box,) = parse_boxes(text, family, picture)
        assert not box.clamped, family


def test_swapped_corners_are_put_right_and_said():
    result = parse('[{"bbox_2d": [300, 400, 10, 20]}]')
    assert result.items[0].seen == (10, 20, 300, 400)
    assert "wrong order" in result.warnings[0]


def test_a_box_without_area_is_kept_and_said():
    result = parse('[{"bbox_2d": [10, 20, 10, 40]}]')
    assert len(result) == 1
    assert "no area" in result.warnings[0]


def test_a_crops_boxes_land_in_the_whole_picture_and_inside_the_crop():
    picture = picture_map(Size(1000, 2000), "qwen3_vl", crop=(1000, 500, 2000, 1000))
    result = parse_boxes(
        '[{"bbox_2d": [0, 0, 500, 500]}, {"bbox_2d": [500, 500, 1200, 900]}]', "qwen3_vl", picture
    )
    assert rects(result)[0] == (1000, 500, 1500, 750)
    assert rects(result)[1] == (1500, 750, 2000, 950)
    assert result.items[1].clamped


def test_many_warnings_are_summed_up():
    text = json.dumps([{"bbox_2d": [2000, 2000, 2100, 2100]}] * 500)
    result = parse(text)
    assert len(result.warnings) <= 51
    assert "more warnings" in result.warnings[-1]


# ----------------------------------------------------------------------------------------------- nothing there


def test_a_missing_picture_is_an_error_not_a_guess():
    with pytest.raises(OutputError, match="picture_map"):
        parse_boxes('[{"bbox_2d": [1, 2, 3, 4]}]', "qwen3_vl", None)


def test_an_unknown_family_is_an_error():
    with pytest.raises(OutputError, match="gpt"):
        parse_boxes("", "gpt", picture_map(PAGE, "qwen3_vl"))


@pytest.mark.parametrize(
    "text", ["", "   ", "There is no cat.", "In 2024, 3 cats, 5 dogs", "{}", "[]", "[1, 2, 3]", "(5, 6)"]
)
def test_text_without_boxes_gives_none_and_a_reason(text):
    result = parse(text)
    assert len(result) == 0
    assert result.reason


def test_boxes_of_the_thinking_are_not_answers():
    result = parse('maybe [{"bbox_2d": [1, 2, 3, 4]}]</think>[{"bbox_2d": [10, 20, 300, 400]}]', "qwen3_vl")
    assert [b.written for b in result] == [(10, 20, 300, 400)]


def test_a_truncated_answer_keeps_its_whole_boxes():
    result = parse('[{"bbox_2d": [1, 2, 30, 40], "label": "a"}, {"bbox_2d": [5, 6, 7')
    assert [b.label for b in result] == ["a"]
    assert any("cut off" in r for r in result.repairs)


@pytest.mark.parametrize("text", ["<ref>a</ref><box>(1,2),(3", "<|box_start|>(1,2),(30,4", "<ref>a", "<box>"])
def test_cut_off_tags_give_no_box(text):
    result = parse(text, "qwen_vl")
    assert len(result) == 0
    assert result.repairs


def test_the_result_turns_into_json():
    result = parse('[{"bbox_2d": [1, 2, 30, 40], "label": "a", "extra": [1]}]')
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["items"][0]["kind"] == "box"
    assert plain["items"][0]["label"] == "a"
    assert plain["reason"] is None


# ------------------------------------------------------------------------------------------------------- fuzz

PIECES = st.lists(
    st.sampled_from(
        [
            "<ref>",
            "</ref>",
            "<box>",
            "</box>",
            "<quad>",
            "(1,2)",
            "(300,400)",
            ",",
            "<|box_start|>",
            "<|box_end|>",
            "[",
            "{",
            '"bbox_2d"',
            ":",
            "[1,2,30,40]",
            '"label"',
            '"a"',
            "}",
            "]",
            "<points x=",
            '"5"',
            " y=",
            ">",
            "</think>",
            "\n",
            "1,2,3,4",
            "-9",
            "1e9",
            "cat",
            "```json",
            "null",
            "<|object_ref_start|>",
        ]
    ),
    max_size=30,
).map("".join)


@given(PIECES, st.sampled_from(FAMILIES))
@settings(max_examples=300, deadline=None)
def test_scrambled_answers_never_raise_and_never_leave_the_picture(text, family):
    result = parse(text, family)
    assert (len(result) == 0) == (result.reason is not None)
    for place in result:
        if isinstance(place, Point):
            assert 0 <= place.x <= PAGE.width
            assert 0 <= place.y <= PAGE.height
        else:
            assert 0 <= place.rect.x1 <= place.rect.x2 <= PAGE.width
            assert 0 <= place.rect.y1 <= place.rect.y2 <= PAGE.height
        # no number that isn't in the text
        assert all(f"{abs(n):g}" in text.replace("1e9", "1000000000") or n >= 1000 for n in place.written)


@given(st.text(max_size=200), st.sampled_from(FAMILIES))
@settings(max_examples=150, deadline=None)
def test_no_text_raises(text, family):
    parse(text, family)


# --- names that stand elsewhere than under "label"


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('{"cat": [10, 20, 30, 40]}', ["cat"]),
        ('{"cat": [[10, 20, 30, 40], [50, 60, 70, 80]], "dog": [1, 2, 3, 4]}', ["cat", "cat", "dog"]),
        ('{"cat": {"bbox": [10, 20, 30, 40]}}', ["cat"]),
        ('{"cat": [{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [1, 2, 3, 4], "label": "kitten"}]}', ["cat", "kitten"]),
        ('{"objects": [{"bbox_2d": [10, 20, 30, 40]}]}', [""]),
        ('{"boxes": [[10, 20, 30, 40]]}', [""]),
        ('{"label": "cat", "rectangle": [10, 20, 30, 40]}', ["cat"]),
        ('{"bbox_2d": [10, 20, 30, 40], "label": "cat", "colour": [1, 2, 3, 4]}', ["cat"]),
        ("1. **Cat**: [10, 20, 30, 40]\n2. **Black dog** [50, 60, 70, 80]", ["Cat", "Black dog"]),
        ("- cat: [10, 20, 30, 40]\n- dog: [50, 60, 70, 80]", ["cat", "dog"]),
        ('1. **Cat**\n```json\n{"bbox_2d": [10, 20, 30, 40]}\n```\n', ["Cat"]),
        ("1. **Cat**: (10,20),(30,40)\n2. **Dog**: (50,60),(70,80)", ["Cat", "Dog"]),
        ("I see it at [10, 20, 30, 40]", [""]),
    ],
)  # fmt: skip
def test_a_name_is_kept_wherever_it_stands(text, labels):
    found = parse_boxes(text, "qwen3_vl", picture_map(Size(480, 640), "qwen3_vl"))
    assert [place.label for place in found.items] == labels
    assert all(isinstance(place, Box) for place in found.items)


def test_boxes_in_space_are_typed_and_said_beside_flat_ones():
    text = '```json\n[{"bbox_3d": [0.5, -0.2, 4.0, 1.8, 1.5, 4.2, 0, 0.01, -0.5], "label": "car", "seen": 1}]\n```'
    (car,) = parse_boxes_3d(text).items
    assert (car.center, car.size, car.label) == ((0.5, -0.2, 4.0), (1.8, 1.5, 4.2), "car")
    assert car.rotation == pytest.approx((0, 1.8, -90))
    assert car.extra == {"seen": 1}
    flat = parse_boxes(text, "qwen3_vl", picture_map(Size(480, 640), "qwen3_vl"))
    assert not flat.items
    assert any("1 boxes in space" in line for line in flat.warnings)
    broken = parse_boxes_3d('[{"bbox_3d": [1, 2, 3]}]')
    assert (broken.reason, broken.repairs != ()) == ("no bbox_3d in the text", True)
