"""outputs.mapping: one seen size, exact both ways, through EXIF, crops and tiles."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from qvl.catalog import generations
from qvl.catalog.generations import by_name
from qvl.catalog.generations.generation import ORIGINAL_PIXELS, RELATIVE_1000, SEEN_PIXELS
from qvl.catalog.generations.qwen2_vl import QWEN2_IMAGE
from qvl.catalog.generations.qwen3_vl import QWEN3_IMAGE
from qvl.catalog.generations.qwen_vl import GEN1_SIZE
from qvl.errors import MediaError, OutputError
from qvl.geometry import PixelLimits, Size, smart_resize
from qvl.outputs.mapping import (
    PictureMap,
    Rect,
    clamp_rect,
    iou,
    merge_overlapping,
    picture_map,
    seen_size,
    tiles,
    upright_size,
)

FAMILIES = sorted(generations.names())
sides = st.integers(20, 3000)
families = st.sampled_from(FAMILIES)
orientations = st.integers(1, 8)
parts = st.floats(0, 1, allow_nan=False)


# ---------------------------------------------------------------------------------------------- seen size


def test_cookbook_page_is_seen_at_its_documented_size():
    # the document cookbook's page: 1014 x 1532 pixels become 1008 x 1540
    assert seen_size(Size(1532, 1014), "qwen2_5_vl") == Size(1540, 1008)


def test_cookbook_phone_screen_is_seen_at_its_documented_size():
    # the mobile agent cookbook: a 1080 x 2400 screenshot is described as 1092 x 2408
    assert seen_size(Size(2400, 1080), "qwen2_5_vl") == Size(2408, 1092)


def test_first_generation_sees_a_square_whatever_the_picture():
    assert seen_size(Size(1000, 30), "qwen_vl") == GEN1_SIZE == Size(448, 448)


@pytest.mark.parametrize(
    ("family", "limits"), [("qwen2_vl", QWEN2_IMAGE), ("qwen2_5_vl", QWEN2_IMAGE), ("qwen3_vl", QWEN3_IMAGE)]
)
def test_seen_size_is_smart_resize_with_the_published_limits(family, limits):
    for height, width in ((480, 640), (37, 2000), (5000, 4000)):
        assert seen_size(Size(height, width), family) == smart_resize(height, width, limits)


def test_given_limits_overrule_the_published_ones():
    limits = PixelLimits(min_pixels=28 * 28, max_pixels=100 * 28 * 28)
    seen = seen_size(Size(1532, 1014), "qwen2_5_vl", limits)
    assert seen.height * seen.width <= 100 * 28 * 28
    assert seen != seen_size(Size(1532, 1014), "qwen2_5_vl")


def test_families_differ_in_what_they_see():
    size = Size(1532, 1014)
    assert len({seen_size(size, f) for f in ("qwen_vl", "qwen2_5_vl", "qwen3_vl")}) == 3


def test_unknown_family_is_named_with_the_known_ones():
    with pytest.raises(OutputError, match=r"llava.*qwen2_5_vl"):
        seen_size(Size(10, 10), "llava")


def test_impossible_aspect_ratio_is_refused():
    with pytest.raises(MediaError, match="aspect ratio"):
        seen_size(Size(10, 4000), "qwen3_vl")


def test_check_family_gives_back_every_known_family():
    assert [by_name(f).name for f in FAMILIES] == FAMILIES


# ------------------------------------------------------------------------------------------------ mapping


@given(sides, sides, families, orientations, parts, parts)
@settings(max_examples=200, deadline=None)
def test_seen_to_original_to_seen_is_the_identity(height, width, family, orientation, u, v):
    picture = picture_map(Size(height, width), family, orientation=orientation)
    x, y = u * picture.seen.width, v * picture.seen.height
    back = picture.to_seen(*picture.to_original(x, y))
    assert back == pytest.approx((x, y), abs=1e-6)


@given(sides, sides, families, orientations, parts, parts)
@settings(max_examples=100, deadline=None)
def test_a_place_in_the_seen_picture_lies_in_the_original(height, width, family, orientation, u, v):
    picture = picture_map(Size(height, width), family, orientation=orientation)
    x, y = picture.to_original(u * picture.seen.width, v * picture.seen.height)
    assert -1e-6 <= x <= width + 1e-6
    assert -1e-6 <= y <= height + 1e-6


@given(sides, sides, families, st.data())
@settings(max_examples=100, deadline=None)
def test_crop_maps_both_ways(height, width, family, data):
    x1 = data.draw(st.integers(0, width - 10))
    y1 = data.draw(st.integers(0, height - 10))
    x2 = data.draw(st.integers(x1 + 10, width))
    y2 = data.draw(st.integers(y1 + 10, height))
    if max(x2 - x1, y2 - y1) / min(x2 - x1, y2 - y1) > 190:
        return
    picture = picture_map(Size(height, width), family, crop=(x1, y1, x2, y2))
    assert picture.to_original(0, 0) == pytest.approx((x1, y1))
    assert picture.to_original(picture.seen.width, picture.seen.height) == pytest.approx((x2, y2))
    assert picture.to_seen(*picture.to_original(3, 4)) == pytest.approx((3, 4), abs=1e-6)
    assert picture.seen == seen_size(Size(y2 - y1, x2 - x1), family)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turning_agrees_with_pillow(orientation):
    """One white pixel in a stored picture is found in Pillow's turned picture where the map says."""
    stored = Size(5, 7)
    image = Image.new("L", (stored.width, stored.height))
    image.putpixel((1, 3), 255)
    image.getexif()[274] = orientation
    exif = image.getexif()
    exif[274] = orientation
    image.info["exif"] = exif.tobytes()
    turned = ImageOps.exif_transpose(image)
    assert (turned.height, turned.width) == tuple(upright_size(stored, orientation))
    where = [(x, y) for x in range(turned.width) for y in range(turned.height) if turned.getpixel((x, y))]
    same = PictureMap(stored, upright_size(stored, orientation), orientation)
    x, y = same.to_seen(1.5, 3.5)  # the pixel's centre
    assert where == [(int(x), int(y))]
    assert same.to_original(x, y) == pytest.approx((1.5, 3.5))


def test_a_box_keeps_its_corners_in_order_when_the_picture_is_turned():
    picture = PictureMap(Size(100, 200), Size(200, 100), 6)
    box = picture.box_to_original((10, 20, 30, 60))
    assert box.x1 < box.x2
    assert box.y1 < box.y2
    assert picture.box_to_seen(box) == pytest.approx((10, 20, 30, 60))


def test_a_box_known_in_pixels_maps_to_half_a_pixel():
    picture = picture_map(Size(1532, 1014), "qwen2_5_vl")
    x, y = picture.to_original(504, 770)  # the middle of 1008 x 1540
    assert x == pytest.approx(507.0, abs=0.5)
    assert y == pytest.approx(766.0, abs=0.5)


@pytest.mark.parametrize("convention", [RELATIVE_1000, SEEN_PIXELS, ORIGINAL_PIXELS], ids=lambda c: c.name)
def test_written_numbers_map_both_ways(convention):
    picture = picture_map(Size(300, 500), "qwen3_vl")
    seen = picture.written_to_seen(120, 70, convention)
    assert picture.seen_to_written(*seen, convention) == pytest.approx((120, 70))


def test_a_thousand_is_the_far_edge():
    picture = picture_map(Size(300, 500), "qwen3_vl")
    assert picture.to_original(*picture.written_to_seen(1000, 1000, RELATIVE_1000)) == (500, 300)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5.5, 3), (5,)])
def test_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(OutputError, match="height and a width"):
        PictureMap(size, Size(28, 28))


def test_orientation_outside_1_to_8_is_refused():
    with pytest.raises(OutputError, match="orientation is 9"):
        picture_map(Size(10, 10), "qwen3_vl", orientation=9)


@pytest.mark.parametrize("crop", [(0, 0, 11, 5), (5, 5, 5, 9), (-1, 0, 5, 5), (8, 1, 3, 5)])
def test_a_crop_outside_the_picture_is_refused(crop):
    with pytest.raises(OutputError, match="crop"):
        picture_map(Size(10, 10), "qwen3_vl", crop=crop)


def test_a_crop_between_pixels_is_refused():
    with pytest.raises(OutputError, match="whole pixels"):
        picture_map(Size(100, 100), "qwen3_vl", crop=(0, 0, 50.5, 50))


def test_a_crop_counts_in_the_upright_picture():
    picture = picture_map(Size(100, 200), "qwen3_vl", orientation=6, crop=(0, 150, 100, 200))
    # upright is 100 wide and 200 high; its last rows are the stored picture's last columns
    box = picture.box_to_original((0, 0, picture.seen.width, picture.seen.height))
    assert box == pytest.approx((150, 0, 200, 100))


# --------------------------------------------------------------------------------------- iou, tiles, merge


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),
        ((0, 0, 10, 10), (20, 20, 30, 30), 0.0),
        ((3, 3, 3, 3), (3, 3, 3, 3), 0.0),
    ],
)
def test_iou(a, b, expected):
    assert iou(a, b) == pytest.approx(expected)


def test_clamping_keeps_the_inner_part():
    assert clamp_rect(Rect(-5, 2, 50, 12), Size(10, 40)) == Rect(0, 2, 40, 10)


@given(sides, sides, st.integers(50, 900), st.integers(50, 900), st.integers(0, 49))
@settings(max_examples=100, deadline=None)
def test_tiles_cover_the_picture_and_stay_inside(height, width, tile_h, tile_w, overlap):
    cut = tiles(Size(height, width), Size(tile_h, tile_w), overlap)
    for t in cut:
        assert 0 <= t.x1 < t.x2 <= width
        assert 0 <= t.y1 < t.y2 <= height
        assert t.width <= tile_w
        assert t.height <= tile_h
    for axis, length in ((0, width), (1, height)):
        spans = sorted({(t[axis], t[axis + 2]) for t in cut})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        for (_, end), (start, _) in pairwise(spans):
            assert start + overlap <= end + 1e-9, "neighbours share at least the overlap"


def test_tiles_that_overlap_wholly_are_refused():
    with pytest.raises(OutputError, match="smaller than the tile"):
        tiles(Size(100, 100), Size(20, 20), 20)


class _Labelled(Rect):
    label = "a"


class _Other(Rect):
    label = "b"


def test_merging_tiles_keeps_the_whole_box_and_drops_the_cut_one():
    whole, cut, far = _Labelled(0, 0, 10, 10), _Labelled(0, 0, 10, 7), _Labelled(50, 50, 60, 60)
    kept, dropped = merge_overlapping([cut, whole, far])
    assert kept == (whole, far)
    assert dropped == (cut,)


def test_merging_keeps_boxes_with_different_labels():
    kept, dropped = merge_overlapping([_Labelled(0, 0, 10, 10), _Other(0, 0, 10, 10)])
    assert len(kept) == 2
    assert dropped == ()
