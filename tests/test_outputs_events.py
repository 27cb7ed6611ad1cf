"""outputs.events: every way of writing time → seconds, checked against the clip."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.errors import OutputError
from qvl.outputs.events import Clip, parse_events, parse_time

CLIP = Clip(duration=200.0, fps=2.0)


def spans(text, clip=CLIP):
    return [(round(e.start, 3), round(e.end, 3)) for e in parse_events(text, clip)]


# ----------------------------------------------------------------------------------------------- single times


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("01:32.40", 92.4),
        ("00:05", 5),
        ("01:02:03", 3723),
        ("01:02:03.5", 3723.5),
        ("90:00", 5400),
        ("12.5 seconds", 12.5),
        ("<3.0 seconds>", 3.0),
        ("7s", 7),
        ("12.25", 12.25),
        ("3 秒", 3),
        ("4초", 4),
        (9, 9),
        (2.5, 2.5),
        ("frame 7", 3.5),
        ("Frame #10", 5.0),
        ("1:05", 65),
        ("00：07", 7),
        ("01:02,250", 62.25),
        ("01:02:45:50", 3765.5),
        ("00:01:30:250", 90.25),
    ],
)
def test_time_in_seconds(written, seconds):
    assert parse_time(written, CLIP) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written",
    ["", "soon", "1:75", "25:99:10", -3, float("nan"), float("inf"), True, None, "1:2", [], "9" * 99],
)
def test_what_is_no_time_gives_none(written):
    assert parse_time(written, CLIP) is None


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 99))
def test_minutes_seconds_and_hundredths(minutes, seconds, hundredths):
    written = f"{minutes:02d}:{seconds:02d}.{hundredths:02d}"
    assert parse_time(written) == pytest.approx(minutes * 60 + seconds + hundredths / 100)


@given(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_hours_minutes_seconds(hours, minutes, seconds):
    assert parse_time(f"{hours:02d}:{minutes:02d}:{seconds:02d}") == hours * 3600 + minutes * 60 + seconds


# ------------------------------------------------------------------------------------------------------ replies


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The event happens in 01:32.40 - 01:35.60.", [(92.4, 95.6)]),
        ("From 12.5 seconds to 15 seconds the ball rolls.", [(12.5, 15)]),
        ("between 12 and 15 seconds", [(12, 15)]),
        ("12s-15s: ball\n20s: dog", [(12, 15), (20, 20)]),
        ("frames 3 to 9", [(1.5, 4.5)]),
        ("Frame 12 - Frame 14", [(6, 7)]),
        ("at <3.0 seconds> it jumps", [(3, 3)]),
        ("在00:05到00:09之间", [(5, 9)]),
        ("00:05~00:09", [(5, 9)]),
        ("00:01:05 --> 00:01:09", [(65, 69)]),
        ("- **00:05 – 00:09**: a ball falls", [(5, 9)]),
        ('[{"start_time": "00:01.20", "end_time": "00:03.50", "description": "x"}]', [(1.2, 3.5)]),
        ('[{"start": 1, "end": 2.5}, {"start": 3, "end": 4}]', [(1, 2.5), (3, 4)]),
        ('{"00:01.20 - 00:03.00": "a ball falls", "01:00 - 01:10": {"event": "b"}}', [(1.2, 3), (60, 70)]),
        ('[{"time": 1.0, "bbox_2d": [1, 2, 3, 4], "label": "dog"}]', [(1, 1)]),
        ('{"timestamp": "00:05.0 - 00:07.0", "event": "jump"}', [(5, 7)]),
        ('{"timestamps": [1.5, 2.5], "event": "jump"}', [(1.5, 2.5)]),
        ('{"interval": ["00:05", "00:07"]}', [(5, 7)]),
        ('{"start_frame": 4, "end_frame": 8}', [(2, 4)]),
        ('{"events": [{"start_time": "1 s", "end_time": "2 s"}]}', [(1, 2)]),
        ("thinking about 00:50</think>It is at 00:20.", [(20, 20)]),
    ],
)
def test_reply(text, expected):
    assert spans(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No such event occurs.",
        "Chapter 3 - 5 has 10 people.",
        "a ratio of 4:3",
        "{}",
        "[]",
        "1,2,3",
        '{"a": 1}',
    ],
)
def test_a_reply_without_times_gives_none_and_a_reason(text):
    result = parse_events(text, CLIP)
    assert len(result) == 0
    assert result.reason


def test_descriptions_come_along():
    assert [e.text for e in parse_events('[{"start": 1, "end": 2, "caption": "a"}]', CLIP)] == ["a"]
    assert [e.text for e in parse_events("00:05 - 00:09: a ball falls", CLIP)] == ["a ball falls"]
    assert [e.text for e in parse_events('{"00:01 - 00:02": "b"}', CLIP)] == ["b"]


def test_what_was_written_is_kept():
    (event,) = parse_events("in 01:32.40 - 01:35.60", CLIP)
    assert event.written == "01:32.40 - 01:35.60"


# ------------------------------------------------------------------------------------------------- the clip


def test_an_end_after_the_clip_is_clamped_and_said():
    result = parse_events("02:00 - 04:00", CLIP)
    assert [(e.start, e.end, e.clamped) for e in result] == [(120, 200, True)]
    assert "240.00 s" in result.warnings[0]
    assert "200.00 s" in result.warnings[0]


def test_an_event_after_the_clip_is_left_out_and_said():
    result = parse_events("05:00 - 06:00", CLIP)
    assert len(result) == 0
    assert "after the video's end" in result.warnings[0]
    assert result.reason == "all times lie after the video's end"


def test_an_end_before_the_start_is_swapped_and_said():
    result = parse_events("01:40 - 01:20", CLIP)
    assert [(e.start, e.end) for e in result] == [(80, 100)]
    assert "swapped" in result.warnings[0]


def test_an_unknown_length_is_said():
    result = parse_events("05:00 - 06:00")
    assert [(e.start, e.end) for e in result] == [(300, 360)]
    assert "not checked" in result.warnings[0]


def test_hours_that_no_clip_has_are_read_as_hundredths_and_said():
    result = parse_events("01:05:20 - 01:09:40", CLIP)
    assert spans("01:05:20 - 01:09:40") == [(65.2, 69.4)]
    assert "hundredths" in result.warnings[0]


def test_hours_that_the_clip_has_stay_hours():
    assert spans("01:05:20 - 01:09:40", Clip(duration=5000)) == [(3920, 4180)]


def test_frames_without_a_rate_are_an_error():
    with pytest.raises(OutputError, match="fps or frame_times"):
        parse_events("frame 7", Clip(duration=10))


def test_frame_times_overrule_the_rate():
    clip = Clip(duration=10, fps=30, frame_times=(0.0, 2.5, 5.0))
    assert spans("frame 1", clip) == [(2.5, 2.5)]


def test_a_frame_never_shown_is_left_out():
    assert len(parse_events("frame 9", Clip(duration=10, frame_times=(0.0, 1.0)))) == 0
    assert len(parse_events("frame 9", Clip(frame_times=(0.0, 1.0)))) == 0


@pytest.mark.parametrize("field", ["duration", "fps"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_an_impossible_clip_is_refused(field, value):
    with pytest.raises(OutputError, match=field):
        Clip(**{field: value})


@pytest.mark.parametrize(
    "text",
    ['[{"start_time": "00:00.00", "end_time": "00:0', '[{"start_time": "00:01', '[{"start": 1, "end": 2'],
)
def test_cut_off_json_gives_no_made_up_time(text):
    result = parse_events(text, CLIP)
    assert len(result) == 0


def test_cut_off_json_keeps_whole_events():
    result = parse_events('[{"start": 1, "end": 2}, {"start": 3, "end": 1', CLIP)
    assert [(e.start, e.end) for e in result] == [(1, 2)]
    assert result.repairs


PIECES = st.lists(
    st.sampled_from(
        [
            "00:05",
            "01:02.5",
            "-",
            " to ",
            "12",
            "s",
            " seconds",
            "frame ",
            "{",
            '"start"',
            ":",
            "}",
            "[",
            "]",
            ",",
            "\n",
            "<",
            ">",
            "9999999",
        ]
    ),
    max_size=25,
).map("".join)


@given(PIECES | st.text(max_size=100))
@settings(max_examples=300, deadline=None)
def test_no_text_raises_and_every_event_lies_in_the_clip(text):
    result = parse_events(text, CLIP)
    assert (len(result) == 0) == (result.reason is not None)
    for event in result:
        assert 0 <= event.start <= event.end <= CLIP.duration
