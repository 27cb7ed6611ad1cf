"""Moments and spans of a video in a reply, in seconds, checked against the video's length.

Read are `mm:ss`, `mm:ss.ff` (ff: a decimal fraction of a second), `HH:MM:SS(.ff)`, `12.5 s`, `12.5 seconds`,
`<12.5 seconds>`, `frame 37`, and plain numbers (seconds) where JSON names them as times.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qvl.errors import OutputError
from qvl.outputs.repair import answer_text, find_json, walk_objects
from qvl.outputs.results import ParseResult


@dataclass(frozen=True, kw_only=True)
class Event:
    """From `start` to `end` seconds of the video; both are the same for a single moment."""

    start: float
    end: float
    text: str = ""
    written: str
    clamped: bool = False


@dataclass(frozen=True)
class Clip:
    """What is known of the video. `frame_times` are the seconds of the frames that the model was shown (frame
    numbers in replies count these); without them frame numbers count the file's own frames at `fps`."""

    duration: float | None = None
    fps: float | None = None
    frame_times: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name in ("duration", "fps"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise OutputError(f"the video's {name} is {value}; it must be above 0")


_CLOCK = r"(?:\d{1,3}[:：])?\d{1,3}[:：]\d{2}(?:[.,:：]\d{1,3})?"
_SECONDS = r"\d{1,7}(?:\.\d{1,6})?\s{0,2}(?:seconds?|secs?|s|秒|초)(?![a-zA-Z])"
_FRAME = r"[Ff]rames?\s{0,2}#?\d{1,8}"
_TIME = rf"(?:{_CLOCK}|{_FRAME}|<?{_SECONDS}>?)"
_BARE = r"\d{1,7}(?:\.\d{1,6})?"
_TO = r"\s{0,3}(?:-{1,2}>?|–|—|~|～|to|until|and|through|到|至|에서|부터)\s{0,3}"
_EDGE = r"(?<![\d.:])"
_STOP = r"(?!\d|[:：]\d)"
_SPAN = re.compile(rf"{_EDGE}({_TIME}|{_BARE}){_TO}({_TIME}|\d{{1,8}}(?!\s{{0,2}}\w)){_STOP}")
_MOMENT = re.compile(rf"{_EDGE}({_TIME}){_STOP}")
_CLOCK_PARTS = re.compile(r"(?:(\d{1,3})[:：])?(\d{1,3})[:：](\d{2})(?:([.,:：])(\d{1,3}))?\Z")
_JSON_BEGINS = re.compile(r"\[\s{0,20}\{|\{\s{0,20}\"")
_DIGITS = re.compile(r"\d+(?:\.\d+)?")

_START_KEYS = ("start_time", "start", "begin", "from", "start_timestamp", "start_seconds", "start_frame")
_END_KEYS = ("end_time", "end", "to", "end_timestamp", "end_seconds", "end_frame")
_MOMENT_KEYS = ("time", "timestamp", "timestamps", "time_range", "moment", "interval", "frame")
_TEXT_KEYS = ("description", "event", "caption", "text", "label", "content", "action", "activity")


@dataclass(frozen=True)
class _Reading:
    """One written time: its seconds, and the reading as mm:ss:ff where three parts leave that open."""

    seconds: float
    other: float | None = None


def parse_time(written: str | float, clip: Clip | None = None) -> float | None:
    """Seconds of one written time; None if it isn't one. Raises: OutputError for a frame number without fps."""
    reading = _read(written, clip or Clip())
    return reading.seconds if reading else None


def _read(written: Any, clip: Clip, as_frame: bool = False) -> _Reading | None:
    if isinstance(written, bool):
        return None
    if isinstance(written, (int, float)):
        if not math.isfinite(written) or written < 0:
            return None
        return _Reading(_frame_seconds(int(written), clip)) if as_frame else _Reading(float(written))
    if not isinstance(written, str) or len(written) > 60:
        return None
    text = written.strip().strip("<>[]() ")
    if as_frame and text.isdecimal():
        return _Reading(_frame_seconds(int(text), clip))
    clock = _CLOCK_PARTS.match(text)
    if clock is not None:
        return _clock(*clock.groups())
    digits = _DIGITS.search(text)
    if digits is None:
        return None
    if re.fullmatch(_FRAME, text):
        return _Reading(_frame_seconds(int(digits.group()), clip))
    if re.fullmatch(_SECONDS, text) or _DIGITS.fullmatch(text):
        return _Reading(float(digits.group()))
    return None


def _clock(
    hours: str | None, minutes: str, seconds: str, mark: str | None, part: str | None
) -> _Reading | None:
    if int(seconds) >= 60:
        return None
    if mark in (":", "：") and part is not None:
        if hours is not None:  # HH:MM:SS:ff
            return _Reading(int(hours) * 3600 + int(minutes) * 60 + int(seconds) + _fraction(part))
        # a:bb:cc is hours, minutes, seconds; whether minutes, seconds and hundredths are meant the video decides
        short = int(minutes) * 60 + int(seconds) + _fraction(part)
        if len(part) != 2 or int(part) >= 60:
            return _Reading(short)
        return _Reading(int(minutes) * 3600 + int(seconds) * 60 + int(part), other=short)
    fraction = _fraction(part) if part else 0.0
    if hours is None:
        return _Reading(int(minutes) * 60 + int(seconds) + fraction)
    if int(minutes) >= 60:
        return None
    long = int(hours) * 3600 + int(minutes) * 60 + int(seconds) + fraction
    if part is not None:
        return _Reading(long)
    return _Reading(long, other=int(hours) * 60 + int(minutes) + _fraction(seconds))


def _fraction(digits: str) -> float:
    return float(int(digits) / 10 ** len(digits))


def _frame_seconds(number: int, clip: Clip) -> float:
    """Raises: OutputError when neither frame_times nor fps are known."""
    if clip.frame_times is not None:
        if number < len(clip.frame_times):
            return float(clip.frame_times[number])
        return math.inf  # said to lie after the video's end
    if clip.fps is None:
        raise OutputError(
            f"the reply names frame {number}: give the video's fps or frame_times to turn frames into seconds"
        )
    return number / clip.fps


@dataclass(frozen=True)
class _Raw:
    start: _Reading
    end: _Reading
    text: str
    written: str


def parse_events(text: str, clip: Clip | None = None) -> ParseResult[Event]:
    """Every span and moment of a reply in the order it names them.

    What reaches over the video's end is clamped and marked, what lies wholly after it is left out, both are
    reported; without a known length nothing is checked, and the result says so.
    Raises: OutputError for frame numbers without fps, never for a malformed text.
    """
    clip = clip or Clip()
    answer = answer_text(text)
    if answer.reason:
        return ParseResult(reason=answer.reason)
    raw: list[_Raw] = []
    repairs: list[str] = []
    for found in find_json(answer.text):
        raw += _from_json(found.value, clip)
        repairs += found.repairs
    if not raw and not _JSON_BEGINS.search(answer.text):  # times of broken JSON have lost their meaning
        raw = list(_from_prose(answer.text, clip))
    events: list[Event] = []
    warnings: list[str] = []
    for number, item in enumerate(raw, 1):
        event, notes = _check(item, clip, number)
        warnings += notes
        if event is not None:
            events.append(event)
    if events and clip.duration is None:
        warnings.append("the video's length is unknown: times are not checked against it")
    reason = None
    if not events:
        reason = "all times lie after the video's end" if raw else "no time in the text"
    return ParseResult(items=tuple(events), warnings=tuple(warnings), repairs=tuple(repairs), reason=reason)


def _from_json(value: Any, clip: Clip) -> Iterator[_Raw]:
    for item in walk_objects(value):
        start_key = next((k for k in _START_KEYS if k in item), None)
        end_key = next((k for k in _END_KEYS if k in item), None)
        text = next((item[k] for k in _TEXT_KEYS if isinstance(item.get(k), str)), "")
        if start_key and end_key:
            start = _read(item[start_key], clip, as_frame=start_key.endswith("frame"))
            end = _read(item[end_key], clip, as_frame=end_key.endswith("frame"))
            if start and end:
                yield _Raw(start, end, text, f"{item[start_key]} - {item[end_key]}")
            continue
        moment_key = next((k for k in _MOMENT_KEYS if k in item), None)
        if moment_key:
            yield from _moment(item[moment_key], text, clip, moment_key == "frame")
            continue
        for key, content in item.items():  # {"00:01.20 - 00:03.00": "a ball falls"}
            span = _SPAN.fullmatch(key.strip())
            moment = _MOMENT.fullmatch(key.strip())
            if not isinstance(content, (str, dict)) or not (span or moment):
                continue
            words = content if isinstance(content, str) else _first_text(content)
            if span:
                yield from _span(span[1], span[2], words, clip, key)
            elif moment:
                yield from _moment(key, words, clip, False)


def _first_text(item: Mapping[str, Any]) -> str:
    return next((item[k] for k in _TEXT_KEYS if isinstance(item.get(k), str)), "")


def _moment(value: Any, text: str, clip: Clip, as_frame: bool) -> Iterator[_Raw]:
    """A time, a pair of times, a list of such, or a written span under one key."""
    if isinstance(value, list):
        pair = [_read(v, clip, as_frame) for v in value]
        if len(pair) == 2 and pair[0] and pair[1]:
            yield _Raw(pair[0], pair[1], text, f"{value[0]} - {value[1]}")
            return
        for part in value:
            if not isinstance(part, list):
                yield from _moment(part, text, clip, as_frame)
        return
    if isinstance(value, str):
        span = _SPAN.fullmatch(value.strip())
        if span:
            yield from _span(span[1], span[2], text, clip, value)
            return
    one = _read(value, clip, as_frame)
    if one:
        yield _Raw(one, one, text, str(value))


def _span(first: str, second: str, text: str, clip: Clip, written: str) -> Iterator[_Raw]:
    """`12 - 15 seconds` and `frames 3 to 9` give the unit once, for both."""
    as_frame = "rame" in first or "rame" in second
    bare_first, bare_second = (bool(_DIGITS.fullmatch(t.strip())) for t in (first, second))
    if bare_first and bare_second:
        return  # `3 - 5` alone isn't a time
    if (bare_first and ":" in second) or (bare_second and ":" in first):
        return
    start, end = _read(first, clip, as_frame), _read(second, clip, as_frame)
    if start and end:
        yield _Raw(start, end, text, written)


def _from_prose(text: str, clip: Clip) -> Iterator[_Raw]:
    """Line by line: the spans of a line, or its moments when it has no span."""
    for line in text.splitlines():
        spans = [(m, raw) for m in _SPAN.finditer(line) for raw in _span(m[1], m[2], "", clip, m[0])]
        if not spans:
            for m in _MOMENT.finditer(line):
                spans += [(m, raw) for raw in _moment(m[1], "", clip, False)]
        for index, (match, raw) in enumerate(spans):
            yield _Raw(raw.start, raw.end, _beside(line, match, len(spans), index), raw.written)


def _beside(line: str, match: re.Match[str], count: int, index: int) -> str:
    """What a line says of its only time: `00:05 - 00:09: a ball falls` → `a ball falls`. Several times in
    one line can't be told apart safely, so they get the whole line."""
    if count > 1:
        return line.strip()[:400]
    after = line[match.end() :].strip(" \t:：-–—>])*.")
    before = line[: match.start()].strip(" \t:：-–—<[(*")
    return (after if len(after) >= len(before) else line.strip())[:400]


def _check(raw: _Raw, clip: Clip, number: int) -> tuple[Event | None, list[str]]:
    notes: list[str] = []
    start, end = raw.start.seconds, raw.end.seconds
    length = clip.duration
    what = f"time {number} ({raw.written[:40]})"
    if length is not None and max(start, end) > length:
        others = [r.seconds if r.other is None else r.other for r in (raw.start, raw.end)]
        if max(others) <= length and (raw.start.other is not None or raw.end.other is not None):
            notes.append(
                f"{what}: read as minutes, seconds and hundredths, since the video has {length:.2f} s"
            )
            start, end = others
    if start > end:
        notes.append(f"{what}: ends before it starts, swapped")
        start, end = end, start
    if length is None:
        if not math.isfinite(end):
            return None, [f"{what}: no such frame was shown, left out"]
        return Event(start=start, end=end, text=raw.text, written=raw.written), notes
    if start > length or (start == length and end > length):
        return None, [
            *notes,
            f"{what}: starts at {start:.2f} s, after the video's end at {length:.2f} s, left out",
        ]
    clamped = end > length
    if clamped:
        notes.append(f"{what}: ends at {end:.2f} s, clamped to the video's end at {length:.2f} s")
        end = length
    return Event(start=start, end=end, text=raw.text, written=raw.written, clamped=clamped), notes
