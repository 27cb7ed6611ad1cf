"""Sizes, grids and token counts against published answers and both reference implementations."""

import subprocess
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.catalog.generations.qwen2_vl import QWEN2_IMAGE
from qvl.catalog.generations.qwen3_vl import QWEN3_IMAGE, QWEN3_VIDEO
from qvl.errors import MediaError
from qvl.geometry import (
    Grid,
    PixelLimits,
    Size,
    VideoLimits,
    default_video_limits,
    frame_indices,
    frame_size,
    grid_timestamps,
    image_grid,
    sampled_fps,
    sampled_frame_count,
    seconds_per_grid,
    smart_resize,
    smart_resize_volume,
    visual_token_count,
)

SMALL = PixelLimits(min_pixels=3136, max_pixels=1280 * 28**2)

# original (h, w) → seen with the hub's limits, with at most 1280 tokens, with Qwen3-VL's limits
KNOWN = [
    ((1080, 1920), (1092, 1932), (728, 1316), (1088, 1920)),
    ((2160, 3840), (2156, 3836), (728, 1316), (2176, 3840)),
    ((480, 640), (476, 644), (476, 644), (480, 640)),
    ((1532, 1014), (1540, 1008), (1204, 812), (1536, 1024)),
    ((20, 30), (56, 84), (56, 84), (224, 320)),
    ((10, 1000), (28, 560), (28, 560), (32, 2560)),
    ((42, 70), (56, 56), (56, 56), (224, 352)),
    ((6000, 8000), (3080, 4116), (840, 1148), (3520, 4704)),
    ((14, 14), (56, 56), (56, 56), (256, 256)),
]


@pytest.fixture(scope="module")
def vision_process():
    """qwen-vl-utils' module; it imports torchvision, of which its arithmetic needs nothing."""
    if "torchvision" not in sys.modules:
        stub = types.ModuleType("torchvision")
        stub.__version__ = "0.19.0"
        stub.io = types.ModuleType("torchvision.io")
        stub.transforms = types.ModuleType("torchvision.transforms")
        stub.transforms.InterpolationMode = types.SimpleNamespace(BICUBIC=3)
        names = {
            "torchvision": stub,
            "torchvision.io": stub.io,
            "torchvision.transforms": stub.transforms,
        }
    else:
        names = {}
    sys.modules.update(names)
    try:
        import qwen_vl_utils.vision_process as module
    finally:
        for name in names:  # others in this process must not take the stub for the real thing
            del sys.modules[name]
    return module


@pytest.mark.parametrize(("original", "hub", "small", "qwen3"), KNOWN)
def test_known_sizes(original, hub, small, qwen3):
    assert smart_resize(*original, QWEN2_IMAGE) == hub
    assert smart_resize(*original, SMALL) == small
    assert smart_resize(*original, QWEN3_IMAGE) == qwen3


def test_sizes_printed_in_the_published_cookbooks():
    assert smart_resize(1398, 870, QWEN2_IMAGE) == (1400, 868)
    assert smart_resize(2400, 1080, QWEN2_IMAGE) == (2408, 1092)


def test_a_half_rounds_to_even():
    assert smart_resize(70, 70, PixelLimits(784, 10**6)) == (56, 56)  # 70 / 28 = 2.5


def test_a_full_hd_picture_costs_2691_tokens():
    assert image_grid(1080, 1920, QWEN2_IMAGE) == Grid(1, 78, 138)
    assert visual_token_count(image_grid(1080, 1920, QWEN2_IMAGE)) == 39 * 69
    assert visual_token_count(image_grid(1080, 1920, QWEN3_IMAGE)) == 34 * 60


def test_an_aspect_ratio_over_200_is_refused_with_its_numbers():
    with pytest.raises(MediaError, match=r"2010x10 pixels has an aspect ratio of 201\.0.*200"):
        smart_resize(10, 2010, QWEN2_IMAGE)
    assert smart_resize(10, 2000, QWEN2_IMAGE).height == 28


@pytest.mark.parametrize("sides", [(0, 5), (5, 0), (-1, 5)])
def test_a_picture_without_pixels_is_refused(sides):
    with pytest.raises(MediaError, match="no content"):
        smart_resize(*sides, QWEN2_IMAGE)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (dict(min_pixels=100, max_pixels=99), "min_pixels 100 exceeds max_pixels 99"),
        (dict(min_pixels=0, max_pixels=99), "min_pixels is 0"),
        (dict(min_pixels=1, max_pixels=99.5), "max_pixels is 99.5"),
        (dict(min_pixels=1, max_pixels=99, patch_size=0), "patch_size is 0"),
    ],
)
def test_impossible_limits_are_refused(values, reason):
    with pytest.raises(MediaError, match=reason):
        PixelLimits(**values)


def test_a_limit_below_one_token_still_gives_one_token():
    assert smart_resize(500, 500, PixelLimits(1, 100)) == (28, 28)


sides = st.integers(1, 9000)
areas = st.tuples(st.integers(1, 10**6), st.integers(0, 10**7)).map(lambda a: (a[0], a[0] + a[1]))


@settings(max_examples=300, deadline=None)
@given(sides, sides, areas, st.sampled_from([14, 16]))
def test_smart_resize_equals_transformers(height, width, area, patch_size):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference

    limits = PixelLimits(*area, patch_size=patch_size)
    try:
        expected = reference(height, width, limits.factor, *area)
    except ValueError:
        with pytest.raises(MediaError, match="aspect ratio"):
            smart_resize(height, width, limits)
    else:
        assert smart_resize(height, width, limits) == expected


@settings(max_examples=200, deadline=None)
@given(h=st.integers(20, 4000), w=st.integers(20, 4000), n=st.integers(1, 384).map(lambda n: 2 * n))
def test_frame_size_equals_qwen_vl_utils(vision_process, h, w, n):
    limits = default_video_limits()
    if max(h, w) / min(h, w) > 200:
        return
    total = vision_process.MODEL_SEQ_LEN * 28 * 28 * 0.9
    most = max(min(768 * 784, total / n * 2), int(128 * 784 * 1.05))
    assert frame_size(n, h, w, limits) == vision_process.smart_resize(h, w, 28, 128 * 784, most)


def test_more_frames_mean_smaller_frames_down_to_the_minimum():
    limits = default_video_limits()
    few, many = frame_size(16, 1080, 1920, limits), frame_size(768, 1080, 1920, limits)
    assert few.height * few.width <= 768 * 784
    assert 128 * 784 <= many.height * many.width < few.height * few.width


def test_a_users_frame_limit_is_capped_by_the_share_of_the_total():
    token = 784
    generous = VideoLimits(min_pixels=token, max_pixels=5000 * token, total_pixels=8000 * token)
    size = frame_size(80, 1080, 1920, generous)
    assert size.height * size.width <= 8000 * token / 80 * 2


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        ((20, 720, 1280), (704, 1280)),
        ((768, 720, 1280), (128, 224)),
        ((120, 1080, 1920), (320, 608)),
        ((4, 32, 32), (32, 32)),
    ],
)
def test_known_qwen3_video_sizes(volume, expected):
    assert frame_size(*volume, QWEN3_VIDEO) == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 800), st.integers(32, 3000), st.integers(32, 3000))
def test_volume_rule_equals_transformers(frames, height, width):
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as reference

    limits = QWEN3_VIDEO.pixels(4096, 25_165_824)
    expected = reference(frames, height, width, 2, 32, 4096, 25_165_824)
    assert smart_resize_volume(frames, height, width, limits) == expected


def test_volume_rule_enlarges_frames_below_one_token():
    assert smart_resize_volume(4, 16, 40, QWEN3_VIDEO.pixels(4096, 25_165_824)) == (32, 64)


@settings(max_examples=300, deadline=None)
@given(
    total=st.integers(1, 200_000), fps=st.floats(0.5, 240), wanted=st.sampled_from([0.1, 0.5, 1, 2, 3.7, 30])
)
def test_frame_count_equals_qwen_vl_utils(vision_process, total, fps, wanted):
    limits = replace(default_video_limits(), fps=wanted)
    try:
        expected = vision_process.smart_nframes({"fps": wanted}, total, fps)
    except ValueError:  # the reference takes no video of a single frame
        assert total == 1
        expected = 1
    assert sampled_frame_count(total, fps, limits) == expected


@pytest.mark.parametrize(("asked", "taken"), [(7, 8), (5, 4), (1, 2), (64, 64)])
def test_a_given_number_of_frames_is_rounded_to_pairs(asked, taken):
    limits = VideoLimits(min_pixels=1, max_pixels=9, total_pixels=9, num_frames=asked)
    assert sampled_frame_count(100, 25.0, limits) == taken


def test_more_frames_than_the_video_has_are_refused_with_both_numbers():
    limits = VideoLimits(min_pixels=1, max_pixels=9, total_pixels=9, num_frames=64)
    with pytest.raises(MediaError, match="64 frames, the video has 10"):
        sampled_frame_count(10, 25.0, limits)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(fps=2.0, num_frames=8), "exclude each other"),
        (dict(fps=0.0), "fps is 0.0"),
        (dict(fps=float("nan")), "fps is nan"),
        (dict(num_frames=0), "num_frames is 0"),
        (dict(min_frames=9, max_frames=8), "min_frames 9 and max_frames 8"),
        (dict(total_pixels=0), "total_pixels is 0"),
        (dict(min_pixels=10), "min_pixels 10 exceeds"),
    ],
)
def test_contradicting_video_settings_are_refused(change, reason):
    with pytest.raises(MediaError, match=reason):
        VideoLimits(**{**dict(min_pixels=1, max_pixels=9, total_pixels=9), **change})


@pytest.mark.parametrize(("total", "fps"), [(0, 25.0), (10, 0.0), (10, float("inf"))])
def test_an_empty_video_or_rate_is_refused(total, fps):
    with pytest.raises(MediaError):
        sampled_frame_count(total, fps, default_video_limits())


def test_qwen3_keeps_an_odd_number_of_frames():
    assert sampled_frame_count(75, 10.0, QWEN3_VIDEO) == 15
    assert sampled_frame_count(75, 10.0, default_video_limits()) == 14


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 100_000), st.data())
def test_frame_indices_equal_numpy_linspace(total, data):
    count = data.draw(st.integers(2, min(total, 768)))
    assert frame_indices(total, count) == np.linspace(0, total - 1, count).round().astype(int).tolist()


def test_a_single_index_is_the_first_frame():
    assert frame_indices(9, 1) == [0]


def test_sampling_a_30_fps_minute_at_2_fps_gives_one_second_per_grid():
    count = sampled_frame_count(1800, 30.0, default_video_limits())
    assert count == 120
    assert seconds_per_grid(sampled_fps(1800, 30.0, count)) == 1.0


def test_timestamps_are_the_middle_of_each_pair_and_the_last_frame_fills_up():
    assert grid_timestamps([0.0, 0.5, 1.0, 1.5, 2.0]) == (0.25, 1.25, 2.0)


def test_timestamps_equal_transformers():
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    indices = [0, 7, 15, 22, 29]
    expected = Qwen3VLProcessor._calculate_timestamps(None, list(indices), 25.0, 2)
    assert grid_timestamps([i / 25.0 for i in indices]) == pytest.approx(expected)


def test_geometry_needs_no_numpy():
    code = "import sys, qvl.geometry; print('numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_sizes_name_their_sides():
    assert Size(2, 3).height == 2
    assert Grid(2, 3, 4).num_patches == 24
