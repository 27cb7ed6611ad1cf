"""What a request comes to in tokens and patches, and which numbers are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plan_shapes import MODELS
from qvl.errors import PlanError
from qvl.plan.request import FitRequest
from qvl.plan.resolve import resolve
from qvl.plan.workload import (
    Image,
    Media,
    MediaItem,
    Video,
    Workload,
    media_of,
    parse_image,
    parse_video,
    prompt_length,
)

SEVEN_B, THREE = MODELS["Qwen2.5-VL-7B"], MODELS["Qwen3-VL-8B"]


def tokens(config, *images, **more):
    return media_of(config, Workload(images=images, **more)).visual_tokens


@pytest.mark.parametrize(
    ("width", "height", "second", "third"),
    # known sizes: 28-pixel grid, 32-pixel grid
    [
        (640, 480, 391, 300),
        (1280, 720, 1196, 880),
        (1920, 1080, 2691, 2040),
        (3840, 2160, 10549, 8160),
    ],
)
def test_tokens_of_common_pictures_by_generation(width, height, second, third):
    assert tokens(SEVEN_B, Image(width, height)) == second
    assert tokens(THREE, Image(width, height)) == third


def test_first_generation_pictures_are_always_256_tokens_of_1024_patches():
    media = media_of(MODELS["Qwen-VL"], Workload(images=(Image(30, 20), Image(4000, 3000, 2))))
    assert media.visual_tokens == 3 * 256
    assert media.patches == 3 * 1024


def test_first_generation_refuses_clips():
    with pytest.raises(PlanError, match="images only"):
        media_of(MODELS["Qwen-VL"], Workload(videos=(Video(10),)))


def test_max_pixels_caps_a_picture_and_min_pixels_enlarges_it():
    assert tokens(SEVEN_B, Image(3840, 2160), max_pixels=1280 * 28 * 28) <= 1280
    assert tokens(SEVEN_B, Image(56, 56), min_pixels=100 * 28 * 28) >= 100


def test_a_clip_counts_pairs_of_frames():
    media = media_of(SEVEN_B, Workload(videos=(Video(10, 2.0),)))
    (item,) = media.items
    assert item.patches == 10 * item.segment  # 20 frames, two to a temporal patch
    assert item.tokens * 4 == item.patches


def test_third_generation_clips_spend_tokens_on_timestamps():
    media = media_of(THREE, Workload(videos=(Video(4, 2.0),)))
    assert media.extra_tokens == 4 * 8  # four pairs, "<0.3 seconds>" is six tokens, and two marks


def test_third_generation_clips_share_one_volume():
    assert media_of(THREE, Workload(videos=(Video(600, 2.0),))).visual_tokens <= 25_165_824 // (2 * 32 * 32)


def test_patches_are_four_times_the_tokens_and_a_frame_is_one_segment():
    (item,) = media_of(SEVEN_B, Workload(images=(Image(1280, 720, 3),))).items
    assert (item.patches, item.segment, item.count) == (4 * item.tokens, item.patches, 3)


def test_prompt_and_context_add_words_pictures_marks_and_answer():
    work = Workload(images=(Image(640, 480, 2),), prompt_tokens=100, answer_tokens=50)
    assert prompt_length(work, media_of(SEVEN_B, work)) == 100 + 2 * (391 + 2)
    setup = resolve(FitRequest(config=SEVEN_B, workload=work))
    assert (setup.prompt_tokens, setup.context_tokens) == (100 + 2 * (391 + 2), setup.prompt_tokens + 50)


def test_windows_make_attention_linear():
    media = Media((MediaItem("image", 256, 1024, 1024, 2, 2), MediaItem("video", 32, 128, 32, 2, 1)))
    assert media.attention_pairs() == 2 * 1024**2 + 4 * 32**2
    assert media.attention_pairs(64) == 2 * 1024 * 64 + 4 * 32**2
    assert media.largest_segment == 1024


@given(st.integers(28, 4000), st.integers(28, 4000), st.integers(1, 4000), st.integers(1, 4000))
def test_a_larger_pixel_limit_never_means_fewer_tokens_than_half(width, height, a, b):
    # monotone up to the rounding of sides: a limit twice as large can't give fewer tokens
    if max(width, height) / min(width, height) > 100:
        return
    small, large = sorted((a, b))
    if large < 4 * small:
        return
    few = tokens(SEVEN_B, Image(width, height), max_pixels=small * 784)
    assert tokens(SEVEN_B, Image(width, height), max_pixels=large * 784) >= few


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Image(0, 10), "image width is 0"),
        (lambda: Image(10, -1), "image height is -1"),
        (lambda: Image(10, 10, 0), "number of images is 0"),
        (lambda: Image(40000, 25000), "1,000,000,000 pixels"),
        (lambda: Video(-1), "-1 s"),
        (lambda: Video(float("nan")), "nan s"),
        (lambda: Video(10, 0), "0 fps"),
        (lambda: Workload(prompt_tokens=-5), "prompt_tokens is -5"),
        (lambda: Workload(answer_tokens=10**9), "answer_tokens is 1000000000"),
        (lambda: Workload(concurrency=0), "concurrency is 0"),
        (lambda: Workload(max_pixels=10**9), "max_pixels is 1000000000"),
        (lambda: Workload(min_pixels=2000, max_pixels=1000), "min_pixels 2,000 exceeds max_pixels 1,000"),
        (lambda: parse_image("12"), "WIDTHxHEIGHT"),
        (lambda: parse_image("12x-3"), "height is -3"),
        (lambda: parse_video("long"), "SECONDS@FPS"),
    ],
)
def test_impossible_numbers_are_named_and_refused(make, words):
    with pytest.raises(PlanError, match=words.replace("(", r"\(")):
        make()


def test_a_pixel_limit_beyond_the_context_is_refused_with_both_numbers():
    with pytest.raises(PlanError, match=r"127,551 tokens an image, the model's context is 32,768"):
        tokens(MODELS["Qwen2-VL-2B"], Image(100, 100), max_pixels=100_000_000)


def test_min_pixels_over_the_models_maximum_is_refused():
    with pytest.raises(PlanError, match="give both"):
        tokens(SEVEN_B, Image(100, 100), min_pixels=20_000_000)


def test_an_aspect_ratio_the_model_refuses_is_refused_here():
    with pytest.raises(PlanError, match="aspect ratio"):
        tokens(SEVEN_B, Image(10, 5000))


def test_pictures_and_clips_are_read_from_words():
    assert parse_image("1240x1754x3") == Image(1240, 1754, 3)
    assert parse_image("640X480") == Image(640, 480)
    assert parse_video("600s@2fps") == Video(600, 2)
    assert parse_video("12.5@1") == Video(12.5, 1)
    assert parse_video("60") == Video(60, 2)
