"""Videos at the API: tokens by each provider's rule against that rule written out again, tiers, refusals, words."""

import dataclasses
import json
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qvl.catalog.models import config_of, find_model
from qvl.catalog.prices import price_book
from qvl.cli.main import main
from qvl.errors import CapacityError, ConfigError, PlanError
from qvl.plan.cost import Traffic, api_bill, video_tokens
from qvl.plan.workload import Image, Video, Workload, media_of, parse_videos

BOOK = price_book()
PLUS3, FLASH3, MAX, MAX_2025 = (
    BOOK.api_price(n) for n in ("qwen3-vl-plus", "qwen3-vl-flash", "qwen-vl-max", "qwen-vl-max@2025-07")
)
HOSTED = {p.image_rule.key: p.image_rule for p in BOOK.api.values() if p.image_rule.video}


def provider_tokens(rule, video, source_fps=30):
    """The provider's page in plain float arithmetic: sample, bound one frame, round to squares, two frames a layer."""
    v, f = rule.video, rule.factor
    duration = video.seconds
    if duration - int(duration) <= 1 / video.fps:
        duration = int(duration)
    frames = min(duration * video.fps, duration * source_fps)
    n = int(min(max(frames, v.min_frames), v.max_frames))
    low, high = v.min_tokens * f * f, v.max_tokens * f * f
    high = max(min(high, v.total_tokens * f * f / n * 2), int(low * 1.05))
    h, w = max(f, round(video.height / f) * f), max(f, round(video.width / f) * f)
    if h * w > high:
        beta = math.sqrt(video.height * video.width / high)
        h, w = (max(f, math.floor(side / beta / f) * f) for side in (video.height, video.width))
    elif h * w < low:
        beta = math.sqrt(low / (video.height * video.width))
        h, w = (math.ceil(side * beta / f) * f for side in (video.height, video.width))
    return math.ceil(n / 2) * (h // f) * (w // f) + 2


def traffic(*videos, **changes):
    base = {"requests_per_month": 1000, "prompt_tokens": 100, "answer_tokens": 50}
    return Traffic(videos=videos, **{**base, **changes})


# Tokens


def test_a_minute_at_720p_is_sixty_layers_of_bounded_frames():
    # 120 frames; 1280x720 in 32-pixel squares is 40x22 = 880, more than 640: 33x18 = 594 (page's bound for Qwen3-VL)
    assert video_tokens(PLUS3.image_rule, Video(60, 2)).tokens == 60 * 33 * 18 + 2


def test_the_older_grid_bounds_a_frame_by_768_squares_of_28():
    # 46x26 = 1,196 squares are too many: 36x20 = 720
    assert video_tokens(MAX_2025.image_rule, Video(60, 2)).tokens == 60 * 36 * 20 + 2


def test_a_long_clip_shares_the_total_among_its_layers():
    hour = video_tokens(PLUS3.image_rule, Video(3600, 2))
    assert hour.tokens <= 131_072 + 2
    assert hour.tokens > 0.8 * 131_072  # 2,000 frames, 1,000 layers of at most 131 squares
    assert hour.uncut == 3600 * 40 * 22 + 2


def test_no_more_frames_are_taken_than_the_provider_takes():
    ten, hundred = (video_tokens(MAX_2025.image_rule, Video(s, 10)).tokens for s in (52, 3000))
    assert ten == hundred  # both 512 frames


def test_a_short_clip_still_gives_four_frames():
    assert video_tokens(PLUS3.image_rule, Video(1, 1, 320, 320)).tokens == 2 * 10 * 10 + 2


def test_part_of_a_second_counts_only_beyond_one_frame_gap():
    rule = PLUS3.image_rule
    at = {s: video_tokens(rule, Video(s, 2, 320, 320)).tokens for s in (10.0, 10.4, 10.8)}
    assert at[10.0] == at[10.4] == 10 * 100 + 2
    assert at[10.8] == 11 * 100 + 2  # 21 frames make eleven layers


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(HOSTED)),
    st.floats(1, 7200),
    st.sampled_from([0.2, 0.5, 1.0, 2.0, 3.0, 7.5, 10.0]),
    st.integers(32, 3840),
    st.integers(32, 2160),
)
def test_every_hosted_rule_gives_the_pages_own_number(key, seconds, fps, width, height):
    assume(max(width, height) / min(width, height) < 150)
    video = Video(seconds, fps, width, height)
    counted = video_tokens(HOSTED[key], video)
    expected = provider_tokens(HOSTED[key], video)
    assert counted.tokens == expected


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(HOSTED)), st.floats(1, 3600), st.floats(1, 3600), st.sampled_from([1.0, 2.0]))
def test_a_clip_is_never_billed_above_its_uncut_count(key, seconds, more, fps):
    rule = HOSTED[key]
    t = video_tokens(rule, Video(seconds, fps))
    assert 0 < t.tokens <= t.uncut
    assert t.uncut <= video_tokens(rule, Video(seconds + more, fps)).uncut


@pytest.mark.parametrize(
    ("hosted", "model"),
    [("qwen3-vl-8b-instruct", "qwen3-vl-8b"), ("qwen3-vl-235b-a22b-instruct", "qwen3-vl-235b-a22b")],
)
def test_open_weights_at_a_host_count_what_fit_counts(hosted, model):
    video = Video(45, 2, 1920, 1080)
    media = media_of(config_of(find_model(model)), Workload(videos=(video,)))
    tokens = video_tokens(BOOK.api_price(hosted).image_rule, video)
    assert tokens.tokens == tokens.uncut == media.visual_tokens + media.extra_tokens


def test_the_open_grid_of_28_counts_what_fit_counts():
    rule = dataclasses.replace(BOOK.api_price("qwen3-vl-8b-instruct").image_rule, key="own-28", factor=28)
    video = Video(45, 2, 1920, 1080)
    media = media_of(config_of(find_model("qwen2.5-vl-7b")), Workload(videos=(video,)))
    assert video_tokens(rule, video).tokens == media.visual_tokens + media.extra_tokens


# Bills


def test_a_bill_counts_clips_beside_pictures_and_text():
    bill = api_bill(traffic(Video(60, 2), images=(Image(1280, 720, 2),)), PLUS3)
    assert bill.video_tokens == 60 * 33 * 18 + 2
    assert bill.image_tokens == 2 * 882
    assert bill.input_tokens == bill.video_tokens + bill.image_tokens + 100


def test_two_equal_clips_cost_twice_one():
    one, two = (api_bill(traffic(Video(30, 1, count=n)), PLUS3).video_tokens for n in (1, 2))
    assert two == 2 * one


def test_a_clip_lifts_the_whole_request_into_its_tier():
    short = api_bill(traffic(Video(30, 2), prompt_tokens=0, answer_tokens=0), PLUS3)
    long = api_bill(traffic(Video(60, 2), prompt_tokens=0, answer_tokens=0), PLUS3)
    assert short.tier.input == 1.0
    assert long.tier.input == 1.5
    assert long.per_request == pytest.approx(long.input_tokens * 1.5e-6)


def test_a_clip_too_long_for_the_model_is_refused_with_what_fills_it():
    with pytest.raises(CapacityError, match=r"125,402 of videos.*takes 32,768"):
        api_bill(traffic(Video(600, 2)), FLASH3)


def test_a_clip_under_a_second_gives_the_provider_no_frame():
    with pytest.raises(PlanError, match=r"0\.4 s.*send 1 s or more"):
        api_bill(traffic(Video(0.4, 2)), PLUS3)


@pytest.mark.parametrize(
    ("images", "high", "said"),
    [
        ((), False, "shrinks videos to"),
        ((Image(4000, 4000),), False, "shrinks images and videos"),
        ((Image(100, 100),), False, "shrinks videos to"),
        ((Image(3000, 3000),), True, "shrinks videos to"),
    ],
)
def test_the_note_says_what_is_shrunk(images, high, said):
    notes = api_bill(traffic(Video(60, 2), images=images, high_resolution=high), PLUS3).notes
    assert len(notes) == 1
    assert said in notes[0]


def test_the_switch_is_offered_only_where_it_would_help():
    (clips,) = api_bill(traffic(Video(60, 2)), PLUS3).notes
    (both,) = api_bill(traffic(Video(60, 2), images=(Image(4000, 4000),)), PLUS3).notes
    assert "switch" not in clips
    assert "unless the high-resolution switch is on" in both


# The catalogue and the command


def test_qwen3_names_and_older_names_have_the_pages_two_sets_of_bounds():
    assert (PLUS3.image_rule.video.max_tokens, PLUS3.image_rule.video.total_tokens) == (640, 131_072)
    assert (MAX.image_rule.video.max_tokens, MAX.image_rule.video.total_tokens) == (768, 65_536)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ("{ min_tokens = 4 }", "missing max_tokens"),
        ("{ min_tokens = 9, max_tokens = 4, total_tokens = 9, min_frames = 4, max_frames = 9 }", "exceeds"),
        (
            "{ min_tokens = 1, max_tokens = 4, total_tokens = 9, min_frames = 4, max_frames = 0 }",
            "max_frames",
        ),
        ("7", "must be a table"),
    ],
)
def test_a_broken_rule_for_clips_in_a_users_file_is_named(tmp_path, video, message):
    path = tmp_path / "mine.toml"
    path.write_text(
        "[image_rules.mine]\nfactor = 28\nextra = 2\nmin_tokens = 4\ndefault_max_tokens = 1280\n"
        f"high_resolution_max_tokens = 1280\nvideo = {video}\n"
    )
    with pytest.raises(ConfigError, match=message):
        price_book(path)


def run(capsys, *words):
    code = main(["cost", *words, "--requests", "1k", "--allow-stale", "--today", "2026-11-23"])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_verb_prices_a_clip(capsys):
    code, out, _ = run(capsys, "--model", "qwen3-vl-plus", "--video", "60s@2fps", "--currency", "cny")
    assert code == 0
    assert "35,898 tokens in (35,642 of videos)" in out  # with 256 of text
    assert "¥57.69 per 1,000 requests" in out  # 35,898 x 1.5 + 256 x 15 yuan per million


def test_json_tells_clips_from_pictures(capsys):
    code, out, _ = run(capsys, "--model", "qwen3-vl-plus", "--video", "60@2", "--image", "640x480", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["video_tokens"] == 35_642
    assert found["image_tokens"] == 302
    assert found["uncut_tokens"] == 60 * 880 + 2 + 302


def test_the_size_of_a_clip_can_be_said_and_its_count_can_not(capsys):
    small = run(capsys, "--model", "qwen3-vl-plus", "--video", "60@2", "--video-size", "320x240")[1]
    assert "5,058 tokens in" in small  # 60 layers of 10x8, two marks, 256 of text
    code, _, err = run(capsys, "--model", "qwen3-vl-plus", "--video", "60@2", "--video-size", "320x240x2")
    assert code == 2
    assert "--video again" in err


def test_own_hardware_is_planned_for_the_clip_too(capsys):
    words = ["--model", "qwen3-vl-plus", "--gpu", "h100", "--self-model", "qwen3-vl-8b", "--json"]
    rate = {
        clip: json.loads(run(capsys, *words, *clip)[1])["capacity"]["requests_per_s"]
        for clip in ((), ("--video", "60@2"))
    }
    assert rate["--video", "60@2"] < rate[()] / 5


def test_a_model_that_takes_no_clips_is_not_planned_for_them(capsys):
    code, _, err = run(
        capsys, "--model", "qwen3-vl-plus", "--gpu", "h100", "--self-model", "qwen-vl", "--video", "60@2"
    )
    assert code == 2
    assert "Qwen-VL takes images only" in err


def test_clips_are_parsed_with_one_size():
    assert parse_videos(["10@1", "20"], "640x360") == (Video(10, 1, 640, 360), Video(20, 2, 640, 360))
