"""Parses the JSON that models write in practice, and reports what it repaired.

Only what is in the text is returned: an unfinished number, string or list of plain values at a cut is
dropped and reported, never completed. One pass, no recursion, no backing up: time grows with the text's length
whatever it holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 64  # deeper nesting isn't an answer but noise
MAX_NUMBER = 40  # digits; longer ones are noise too, and int() refuses them past 4300
_STRICT_TRIES = 8  # each may read the rest of the text, so their number must not grow with it

_SPACE = re.compile(r"[\s\ufeff\u200b]*")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_CLEAN_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?\Z")
_WORD = re.compile(r"[A-Za-z_$][\w$-]*")
_OPEN = re.compile(r"[\[{]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LITERALS = {
    "true": True, "false": False, "null": None, "True": True, "False": False, "None": None,
    "nil": None, "undefined": None, "NaN": None, "nan": None, "Infinity": None, "inf": None,
}  # fmt: skip
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u201d": "\u201d", "\uff02": "\uff02"}
_STRING_STOP = {close: re.compile(f"[{re.escape(close)}\\\\]") for close in set(_QUOTES.values())}
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "'": "'"}
_HEX4 = re.compile(r"[0-9a-fA-F]{4}")
_THINK = re.compile(r"</?think>")


class RepairLog:
    """Counts repairs by kind, so that a megabyte of garbage gives a few lines and not a million."""

    def __init__(self) -> None:
        self._kinds: dict[str, list[int]] = {}

    def add(self, kind: str, at: int) -> None:
        entry = self._kinds.setdefault(kind, [0, at])
        entry[0] += 1

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def lines(self) -> tuple[str, ...]:
        """`extra comma dropped (at 12)`, `missing comma (3 times, first at 40)`; offsets are characters."""
        return tuple(
            f"{kind} (at {first})" if count == 1 else f"{kind} ({count} times, first at {first})"
            for kind, (count, first) in self._kinds.items()
        )


@dataclass(frozen=True)
class Found:
    """A JSON value in a text. `repairs` is empty where the text was valid JSON; `complete` is False where
    it was cut off or became unreadable."""

    value: Any
    start: int
    end: int
    repairs: tuple[str, ...] = ()
    complete: bool = True


@dataclass(frozen=True)
class Answer:
    """The part of a reply after its thinking. Templates of thinking models open `<think>` themselves, so only
    the closing tag can be relied on."""

    text: str
    offset: int
    thinking: str = ""
    reason: str | None = None  # why text is empty


def clean_text(text: str) -> str:
    """Lone surrogates (halves of characters cut by a tokenizer) as U+FFFD, so that all can be written out."""
    return _SURROGATE.sub("\ufffd", text)


def answer_text(text: str) -> Answer:
    """Cuts a reply into thinking and answer."""
    text = clean_text(text)
    tags = list(_THINK.finditer(text))
    if not tags:
        return Answer(text, 0, "", None if text.strip() else "the reply is empty")
    last = tags[-1]
    if last.group() == "<think>":
        return Answer(
            "",
            len(text),
            text[last.end() :],
            "the reply ends while the model is still thinking: raise max_tokens",
        )
    answer = text[last.end() :]
    return Answer(
        answer, last.end(), text[: last.start()].removeprefix("<think>"),
        None if answer.strip() else "nothing follows the thinking: raise max_tokens",
    )  # fmt: skip


class _RepeatedKey(ValueError):
    pass


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _RepeatedKey
    return made


def _strict_int(digits: str) -> int | float:
    if len(digits) > MAX_NUMBER:
        raise ValueError("number too long")
    return int(digits)


def _reject(constant: str) -> Any:
    raise ValueError(constant)


_STRICT = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_strict_int, parse_constant=_reject)
# JSON escapes that a LaTeX command turns into by accident: \frac, \beta → form feed + "rac", backspace + "eta"
_ACCIDENTS = ("\\f", "\\b", "\\ud", "\\uD")


def find_json(text: str) -> list[Found]:
    """Every JSON array or object in a text, in order; prose, fences and tags around them are passed over.

    Valid JSON comes back as json.loads reads it. Otherwise the text is mended: trailing, missing and doubled
    commas, missing colons and brackets, single, doubled, curly and unescaped quotes, Python's literals,
    comments, keys without quotes, a cut-off end. Values nested deeper than 64 are not read.
    """
    text = clean_text(text)
    found: list[Found] = []
    pos, tries = 0, 0
    while (opening := _OPEN.search(text, pos)) is not None:
        start = opening.start()
        if tries < _STRICT_TRIES:
            try:
                value, end = _STRICT.raw_decode(text, start)
                if not _depth_over(value, MAX_DEPTH) and not _has_accident(text, start, end):
                    found.append(Found(value, start, end))
                    pos = end
                    continue
            except (ValueError, RecursionError):
                pass
            tries += 1
        reader = _Reader(text, start)
        reader.run()
        if reader.read_anything:
            found.append(Found(reader.root, start, reader.pos, reader.log.lines(), reader.complete))
        pos = max(reader.pos, start + 1)
    return found


def _has_accident(text: str, start: int, end: int) -> bool:
    return any(text.find(a, start, end) >= 0 for a in _ACCIDENTS)


def _depth_over(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for item in level for child in _children(item)]
        if not level:
            return False
    return True


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [v for v in value.values() if isinstance(v, (dict, list))]
    if isinstance(value, list):
        return [v for v in value if isinstance(v, (dict, list))]
    return []


def walk_objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a value, parents before children, in the order they are written."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
        stack.extend(reversed(_children(item)))


class _Frame:
    """One open bracket. `state` is what may come next: key, colon or value; `after` says a value just came."""

    __slots__ = ("after", "container", "is_object", "key", "start", "state")

    def __init__(self, is_object: bool, start: int) -> None:
        self.container: Any = {} if is_object else []
        self.is_object = is_object
        self.key: str | None = None
        self.state = "key" if is_object else "value"
        self.after = False
        self.start = start


class _Reader:
    """Reads one value from `start` on, mending as it goes; `pos` only ever moves forward."""

    def __init__(self, text: str, start: int) -> None:
        self.text, self.pos, self.n = text, start, len(text)
        self.log = RepairLog()
        self.frames: list[_Frame] = []
        self.root: Any = None
        self.complete = False
        self.read_anything = False

    def run(self) -> None:
        self._push()
        while self.frames:
            if not self._skip() or not self._step():
                self._abandon()
                return
        self.complete = True

    # -- small parts

    def _skip(self) -> bool:
        """Moves past blanks and comments; False at the end of the text."""
        text = self.text
        while True:
            self.pos = _SPACE.match(text, self.pos).end()  # type: ignore[union-attr]
            if text.startswith("//", self.pos):
                end = text.find("\n", self.pos)
            elif text.startswith("/*", self.pos):
                end = text.find("*/", self.pos)
                end = end + 2 if end >= 0 else -1
            else:
                return self.pos < self.n
            self.log.add("comment skipped", self.pos)
            self.pos = end if end >= 0 else self.n

    def _push(self) -> None:
        self.frames.append(_Frame(self.text[self.pos] == "{", self.pos))
        self.pos += 1

    def _pop(self) -> None:
        """Closes the innermost bracket and hands its value to the one around it."""
        frame = self.frames.pop()
        self.read_anything = True
        if frame.key is not None:
            self.log.add(f"key {frame.key[:40]!r} without a value dropped", self.pos)
        if self.frames:
            self._give(frame.container)
        else:
            self.root = frame.container

    def _give(self, value: Any) -> None:
        frame = self.frames[-1]
        if frame.is_object:
            assert frame.key is not None
            if frame.key in frame.container:
                self._repeated(frame)
            frame.container[frame.key] = value
            frame.key, frame.state = None, "key"
        else:
            frame.container.append(value)
        frame.after = True

    def _repeated(self, frame: _Frame) -> None:
        """`[{"bbox_2d": …, "bbox_2d": …}]`: the model forgot to start a new object, and JSON's own rule (the last
        one wins) would lose the first."""
        if len(self.frames) >= 2 and not self.frames[-2].is_object:
            self.log.add(f"new object begun where key {str(frame.key)[:40]!r} repeats", self.pos)
            self.frames[-2].container.append(frame.container)
            frame.container = {}
        else:
            self.log.add(f"key {str(frame.key)[:40]!r} repeated, the last value kept", self.pos)

    def _abandon(self) -> None:
        """The text ended or can't be read on: keep what is whole.

        A list of plain values is whole only when closed: half of a box would pass for a point.
        """
        at_end = self.pos >= self.n
        where = "the text was cut off" if at_end else "unreadable text"
        for depth in range(len(self.frames), 0, -1):
            frame = self.frames[depth - 1]
            plain = not any(isinstance(v, (dict, list)) for v in frame.container)
            unfinished = depth > 1 and not frame.is_object and plain and bool(frame.container)
            self.frames.pop()
            self.log.add(f"closed a bracket where {where}", self.pos)
            if not self.frames:
                self.root = frame.container
                if frame.container and not (plain and not frame.is_object):
                    self.read_anything = True
                return
            parent = self.frames[-1]
            empty = not frame.container
            if unfinished:
                self.log.add("unfinished list of values dropped", frame.start)
            if unfinished or empty:
                parent.key = None
                continue
            self._give(frame.container)
            self.read_anything = True

    # -- one token

    def _step(self) -> bool:
        """Reads one token; False when what follows can't belong to a value."""
        frame = self.frames[-1]
        char = self.text[self.pos]
        if char in "]}":
            return self._close(frame, char)
        if char in ",，;、" and (char == "," or frame.after or frame.state == "value"):
            if not frame.after or char != ",":
                self.log.add(
                    "extra comma dropped" if not frame.after else f"{char!r} read as a comma", self.pos
                )
            if frame.is_object and frame.state != "key":
                self.log.add(f"key {str(frame.key)[:40]!r} without a value dropped", self.pos)
                frame.key, frame.state = None, "key"
            frame.after = False
            self.pos += 1
            if self._skip() and self.text[self.pos] in "]}":
                self.log.add("trailing comma dropped", self.pos)
            return True
        if frame.state == "key":
            return self._key(frame, char)
        if frame.state == "colon":
            if char in ":：=":
                if char != ":":
                    self.log.add(f"{char!r} read as a colon", self.pos)
                self.pos += 1
            else:
                self.log.add("missing colon", self.pos)
            frame.state = "value"
            return True
        return self._value(frame, char)

    def _close(self, frame: _Frame, char: str) -> bool:
        if (char == "}") == frame.is_object:
            self.pos += 1
            self._pop()
            return True
        if any(f.is_object == (char == "}") for f in self.frames):
            self.log.add("missing " + ("}" if frame.is_object else "]"), self.pos)
            self._pop()  # and look at the bracket again
            return True
        self.log.add(f"stray {char} skipped", self.pos)
        self.pos += 1
        return True

    def _key(self, frame: _Frame, char: str) -> bool:
        # only a key may follow; a bracket means that this object was never closed and the next one begins
        if char in "{[":
            if frame.container and len(self.frames) >= 2:
                self.log.add("missing }", self.pos)
                self._pop()
                return True
            return False
        if frame.after and (char in _QUOTES or _WORD.match(self.text, self.pos)):
            self.log.add("missing comma", self.pos)
        if char in _QUOTES:
            key = self._string(in_key=True, in_object=True)
            if key is None:
                return False
        else:
            word = _WORD.match(self.text, self.pos)
            if word is None:
                return False
            after = _SPACE.match(self.text, word.end()).end()  # type: ignore[union-attr]
            if self.text[after : after + 1] not in (":", "："):
                return False
            key = word.group()
            self.log.add("key without quotes", self.pos)
            self.pos = word.end()
        frame.key, frame.state, frame.after = key, "colon", False
        return True

    def _value(self, frame: _Frame, char: str) -> bool:
        if frame.after:
            self.log.add("missing comma", self.pos)
            frame.after = False
        if char in "[{":
            if len(self.frames) >= MAX_DEPTH:
                self.log.add(f"nested deeper than {MAX_DEPTH}", self.pos)
                return False
            self._push()
            return True
        if char in _QUOTES:
            text = self._string(in_key=False, in_object=frame.is_object)
            if text is None:
                frame.key = None
                return False
            return self._scalar(text)
        number = _NUMBER.match(self.text, self.pos)
        if number is not None:
            return self._number(number.group(), number.end())
        word = _WORD.match(self.text, self.pos)
        if word is not None and word.group() in _LITERALS:
            if word.end() == self.n:  # could go on
                self.pos = self.n
                return False
            if word.group() not in ("true", "false", "null"):
                self.log.add(f"{word.group()} read as JSON", self.pos)
            self.pos = word.end()
            return self._scalar(_LITERALS[word.group()])
        frame.key = None
        if word is not None and word.end() == self.n:
            self.pos = self.n
        return False

    def _scalar(self, value: Any) -> bool:
        self.read_anything = True
        self._give(value)
        return True

    def _number(self, digits: str, end: int) -> bool:
        if end == self.n:  # 12 may have been about to become 128
            self.log.add("unfinished number dropped", self.pos)
            self.pos = end
            self.frames[-1].key = None
            return False
        if len(digits) > MAX_NUMBER:
            self.log.add(f"number of {len(digits)} characters skipped", self.pos)
            value: Any = None
        else:
            if not _CLEAN_NUMBER.match(digits):
                self.log.add(f"number {digits} read as JSON", self.pos)
            value = float(digits) if set(digits) & set(".eE") else int(digits)
        self.pos = end
        return self._scalar(value)

    # -- strings

    def _string(self, *, in_key: bool, in_object: bool) -> str | None:
        """Reads a quoted string; None when the text ends before it does."""
        text, begin = self.text, self.pos
        close = _QUOTES[text[begin]]
        if text[begin] != '"':
            self.log.add(f"{text[begin]} quotes read as double quotes", begin)
        at = begin + 1
        doubled = text.startswith('""', begin) and not self._ends_string(begin + 2, in_key, in_object)
        if doubled:
            self.log.add("doubled quotes", begin)
            at += 1
        stop = _STRING_STOP[close]
        parts: list[str] = []
        while (hit := stop.search(text, at)) is not None:
            parts.append(text[at : hit.start()])
            at = hit.end()
            if hit.group() == "\\":
                at = self._escape(at, parts)
                continue
            if doubled and text.startswith(close, at) and self._ends_string(at + 1, in_key, in_object):
                at += 1
            elif not self._ends_string(at, in_key, in_object):
                self.log.add("unescaped quote inside a string", at - 1)
                parts.append(close)
                continue
            elif at == self.n:
                break  # a quote as the very last character may be an inner one; the string is whole enough
            self.pos = at
            made = "".join(parts)
            if "\n" in made and "\n" in text[begin:at]:
                self.log.add("line break inside a string", begin)
            return made
        else:
            self.log.add("unfinished string dropped", begin)
            self.pos = self.n
            return None
        self.pos = at
        return "".join(parts)

    def _ends_string(self, at: int, in_key: bool, in_object: bool) -> bool:
        """Whether a quote before `at` can be a closing one, by what follows it."""
        text = self.text
        after = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if after >= self.n:
            return True
        char = text[after]
        if in_key:
            return char in ":：=}" or (after > at and (char in '"[{-' or char.isdigit()))
        if char in "]}" or text.startswith("//", after):
            return True
        if char in ",，":
            then = _SPACE.match(text, after + 1).end()  # type: ignore[union-attr]
            if then >= self.n or text[then] in "]}\"'\u201c":
                return True
            if in_object:
                return _WORD.match(text, then) is not None and _looks_like_key(text, then)
            return (
                text[then] in "[{-"
                or text[then].isdigit()
                or text.startswith(("true", "false", "null"), then)
            )
        # a missing comma: the next string or bracket begins on a new line
        return char in '"{[' and "\n" in text[at:after]

    def _escape(self, at: int, parts: list[str]) -> int:
        """Reads what follows a backslash into `parts`; returns where to go on."""
        text = self.text
        char = text[at : at + 1]
        if char == "u":
            first = _HEX4.match(text, at + 1)
            if first is None:
                self.log.add("broken \\u escape kept as it stands", at)
                parts.append("\\u")
                return at + 1
            code, end = int(first.group(), 16), at + 5
            if 0xD800 <= code < 0xDC00 and text.startswith("\\u", end):
                low = _HEX4.match(text, end + 2)
                if low is not None and 0xDC00 <= int(low.group(), 16) < 0xE000:
                    code = 0x10000 + ((code - 0xD800) << 10) + int(low.group(), 16) - 0xDC00
                    end += 6
            if 0xD800 <= code < 0xE000:
                self.log.add("half of a character replaced by U+FFFD", at)
                code = 0xFFFD
            parts.append(chr(code))
            return end
        latex = char in ("b", "f") and text[at + 1 : at + 2].isalpha()
        if char in _ESCAPES and char and not latex:
            parts.append(_ESCAPES[char])
            return at + 1
        self.log.add("single backslash kept as it stands", at)
        parts.append("\\")
        return at


def _looks_like_key(text: str, at: int) -> bool:
    word = _WORD.match(text, at)
    assert word is not None
    after = _SPACE.match(text, word.end()).end()  # type: ignore[union-attr]
    return text[after : after + 1] in (":", "：")
