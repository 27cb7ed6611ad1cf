"""Stops a reply that has begun to repeat itself without end, while it streams.

Documents are full of honest repeats (a table of zeros, a form's blank lines, a refrain), so a blanket penalty
on repeats ruins them. Here repeats are counted instead, and how many are too many depends on what repeats:
see `LIMITS`. Found are cycles of any text up to 4096 tokens long (words, lines, table rows; list numbers that
count up don't hide them), boxes written again and again, and boxes that walk on by the same step.

Constant work per character: a cycle of period p shows in that the last few tokens last occurred p tokens ago,
again and again, with the same p.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from qvl import moved
from qvl.geometry import Size
from qvl.outputs.mapping import Rect, tiles

Pattern = Literal["text", "form", "table", "blank", "box", "drift"]


class Limit(NamedTuple):
    """A cycle is one too many at this many copies that together have this many characters. Where a copy holds
    several rows or lines, this many `rows` in at least six copies are as bad as `copies`."""

    copies: int
    characters: int
    rows: int = 0  # 0: rows aren't counted


LIMITS: dict[Pattern, Limit] = {
    "text": Limit(6, 300),  # a paragraph or sentence; short ones need more copies, see _copies_needed
    "form": Limit(50, 1200, 75),  # text with room to fill in: a sheet of signature lines is real
    "table": Limit(50, 3000, 75),  # rows or cells with words: N/A, yes, no
    "blank": Limit(400, 8000, 200),  # rows or cells without a word: zeros, dashes, empty
    "box": Limit(4, 0),  # the same box with the same label: never real four times
    "drift": Limit(40, 0),  # the same label at equal steps; real rows of seats are shorter
}
_LEADER = Limit(300, 800)  # dots, underscores or dashes without rows: leaders and rules across a page

_GRAMS = (4, 24, 96, 400, 1200)  # the longer, the longer the repeats that a cycle may have inside
_MEMORY = 4096  # tokens; the longest period found
_HELD = 24  # characters held back, so that a token never depends on how the stream is cut
_TOKEN = re.compile(r"\n[ \t]{0,8}\d{1,4}[.):](?=\s)|[A-Za-z]{1,16}|\d{1,12}|[ \t]{1,16}|.", re.DOTALL)
_COUNTED = re.compile(r"\n[ \t]*\d+[.):]\Z")
_TAG = re.compile(r"<[^<>]{0,400}>")
_HALF_TAG = re.compile(r"\A/?[a-z0-9]{0,10}/?>|</?[a-z0-9]{0,10}\Z")
_LETTER = re.compile(r"[^\W\d_]")
_STRUCTURE = re.compile(r"</?t[dhr]\b|\||\n|&|,|\t")
_ROOM = re.compile(r"_{2,}|\.{3,}|…|-{3,}|[☐□○◯]|\[ {0,2}\]|\( {0,3}\)")
# one box with what is said of it, as a tag with data-bbox and its text, or between box tokens
_RECORD = re.compile(
    r"<[a-z][^<>]{0,200}data-bbox=\"[^\"<>]{0,80}\"[^<>]{0,200}>[^<]{0,300}(?=<)"
    r"|<(?:ref|\|object_ref_start\|)>[^<]{0,200}<[^<>]{1,24}><(?:box|\|box_start\|)>[^<>]{0,80}<"
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_COORDINATES = re.compile(r"[\[(\"][-\d.,\s()\[\]]{3,200}[\])\"]")
_BOX_HINT = re.compile(r"bbox|point|<box>|box_start|quad")


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Why a stream was stopped. `keep`: how many characters of the reply are worth keeping (up to the end of
    the first copy); `unit` is what repeats, `copies` how often it had come."""

    pattern: Pattern
    unit: str
    copies: int
    keep: int
    at: int

    @property
    def reason(self) -> str:
        shown = self.unit.strip() if len(self.unit.strip()) <= 60 else self.unit.strip()[:57] + "…"
        how = {
            "box": "the same box came",
            "drift": "boxes with the same label moved on by the same step",
        }.get(self.pattern, "the same text came")
        return f"{how} {self.copies} times: {shown!r}; stopped at character {self.at}, the first {self.keep} are kept"


class _Cycle:
    """Watches for one gram length. `period` and `run`: for how many tokens the last gram has lain one period
    back; `first` is the character where the cycle began."""

    def __init__(self, gram: int) -> None:
        self.gram = gram
        self.power = pow(_BASE, gram, _PRIME)
        self.hash = 0
        self.last: dict[int, int] = {}
        self.order: deque[int] = deque()
        self.period = 0
        self.run = 0
        self.first = 0

    def push(self, index: int, ids: deque[int], starts: deque[int]) -> None:
        """`ids` and `starts` end with token `index`; they hold the last _MEMORY + _GRAMS[-1] tokens."""
        self.hash = (self.hash * _BASE + ids[-1]) % _PRIME
        if len(ids) > self.gram:
            self.hash = (self.hash - ids[-1 - self.gram] * self.power) % _PRIME
        if index < self.gram - 1:
            return
        before = self.last.get(self.hash)
        period = index - before if before is not None else 0
        if period and period == self.period:
            self.run += 1
        else:
            self.period, self.run = period, 1 if period else 0
            if period:
                self.first = starts[-min(len(starts), self.gram + period)]
        self.last[self.hash] = index
        self.order.append(self.hash)
        if len(self.order) > _MEMORY:
            old = self.order.popleft()
            if self.last.get(old) == index - _MEMORY:
                del self.last[old]


_BASE, _PRIME = 1_000_003, (1 << 61) - 1


class RepetitionGuard:
    """Feed it the stream; it answers with a Stop as soon as there is one, and stays with it.

    seen: the size in the numbers that the model writes (1000 x 1000 for relative ones). When given, boxes that
    walk out of it stop at once instead of after 40 steps.
    """

    def __init__(self, seen: Size | None = None) -> None:
        self.stop: Stop | None = None
        self._size = seen
        self._buffer = ""  # fed but not yet cut into tokens
        self._offset = 0  # characters before the buffer
        self._index = -1
        self._ids: deque[int] = deque(maxlen=_MEMORY + _GRAMS[-1])
        self._texts: deque[str] = deque(maxlen=_MEMORY + _GRAMS[-1])
        self._starts: deque[int] = deque(maxlen=_MEMORY + _GRAMS[-1])
        self._cycles = tuple(_Cycle(g) for g in _GRAMS)
        self._tail = ""  # since the last record's end, for boxes
        self._boxes: dict[tuple[str, tuple[str, ...]], int] = {}
        self._skeleton = ""
        self._numbers: tuple[float, ...] = ()
        self._step: tuple[float, ...] = ()
        self._steps = 0
        self._drift_keep = 0

    def feed(self, text: str) -> Stop | None:
        """Takes the next piece of the reply."""
        if self.stop is None and text:
            self._buffer += text
            self._consume(len(self._buffer) - _HELD)
        return self.stop

    def finish(self) -> Stop | None:
        """The stream is over: looks at what was held back."""
        if self.stop is None:
            self._consume(len(self._buffer))
        return self.stop

    def _consume(self, limit: int) -> None:
        at = 0
        while at < limit and self.stop is None:
            match = _TOKEN.match(self._buffer, at)
            assert match is not None  # any character matches
            token = match.group()
            self._push(token, self._offset + at)
            if self.stop is None:
                self._watch_boxes(token, self._offset + match.end())
            at = match.end()
        self._buffer = self._buffer[at:]
        self._offset += at

    # -- cycles of text

    def _push(self, token: str, start: int) -> None:
        self._index += 1
        same = "\n#." if _COUNTED.match(token) else token
        self._ids.append(hash(same) & 0xFFFFFFFFFFFF)
        self._texts.append(token)
        self._starts.append(start)
        end = start + len(token)
        for cycle in self._cycles:
            cycle.push(self._index, self._ids, self._starts)
            # cheap tests first: no limit is below 300 characters and 6 copies
            if cycle.run > 4 * cycle.period and end - cycle.first >= 160:
                self._judge(cycle, end)
                if self.stop:
                    return

    def _judge(self, cycle: _Cycle, end: int) -> None:
        length = cycle.run + cycle.gram - 1 + cycle.period
        copies = length // cycle.period
        # look only now and then: each look reads the unit
        if copies != 5 and length % cycle.period:
            return
        size = len(self._texts)
        unit = "".join(self._texts[i] for i in range(max(0, size - cycle.period), size))
        pattern, limit = classify(unit)
        if copies >= limit.copies and end - cycle.first >= limit.characters:
            keep = min(end, cycle.first + len(unit))
            self.stop = Stop(pattern=pattern, unit=unit, copies=copies, keep=keep, at=end)

    # -- boxes

    def _watch_boxes(self, token: str, end: int) -> None:
        self._tail = (self._tail + token)[-1000:]
        if token == "}":
            record = self._tail[max(0, self._tail.rfind("{")) :]
            self._tail = ""
            if _BOX_HINT.search(record):
                self._record(record, end)
        elif token == "<" and "box" in self._tail:
            match = None
            for match in _RECORD.finditer(self._tail):
                if match.end() >= len(self._tail) - 1:
                    self._record(match.group(), end)
            if match is not None:
                self._tail = "<"

    def _record(self, record: str, end: int) -> None:
        place = _COORDINATES.search(record)
        written = tuple(_NUMBER.findall(place.group())) if place else ()
        if place is None or len(written) < 2:
            return
        skeleton = record[: place.start()] + "#" + record[place.end() :]
        key = (skeleton, written)
        count = self._boxes.get(key, 0) + 1
        if len(self._boxes) < 20_000:
            self._boxes[key] = count
        if count >= LIMITS["box"].copies:
            keep = end if count == 1 else self._first_box_end(record, end)
            self.stop = Stop(pattern="box", unit=record, copies=count, keep=keep, at=end)
            return
        numbers = tuple(float(n[:12]) for n in written)
        step = tuple(b - a for a, b in zip(self._numbers, numbers))
        moved = skeleton == self._skeleton and any(step) and len(step) == len(self._step or step)
        if moved and step == self._step:
            self._steps += 1
        else:
            self._steps = 1 if moved else 0
            self._drift_keep = end
        self._step = step if moved else ()
        self._skeleton, self._numbers = skeleton, numbers
        # the fourth equal step outside the image is no slip of one box any more
        outside = self._size is not None and (
            max(numbers[0::2]) > self._size.width * 1.1 or max(numbers[1::2]) > self._size.height * 1.1
        )
        if self._steps >= LIMITS["drift"].copies or (self._steps >= 4 and outside):
            self.stop = Stop(
                pattern="drift", unit=record, copies=self._steps + 1, keep=self._drift_keep, at=end
            )

    def _first_box_end(self, record: str, end: int) -> int:
        """Where the reply began to repeat: the tokens in memory say where this box stood before the last copies."""
        text = "".join(self._texts)
        begin = self._starts[0]
        found = text.find(record)
        return min(end, begin + found + len(record)) if found >= 0 else begin


def classify(unit: str) -> tuple[Pattern, Limit]:
    """What kind of text repeats, and how much of it is too much."""
    pattern, limit = _kind(unit)
    rows = unit.count("\n") + unit.count("</tr")
    if rows < 2 or not limit.rows:
        return pattern, limit
    fewest = LIMITS["text"].copies
    return pattern, limit._replace(copies=min(limit.copies, max(fewest, -(-limit.rows // rows))))


def _kind(unit: str) -> tuple[Pattern, Limit]:
    bare = _TAG.sub("", _HALF_TAG.sub("", unit))  # a cycle may be caught in the middle of a tag
    words = _LETTER.search(bare) is not None
    structured = _STRUCTURE.search(unit) is not None
    if not words:
        return ("blank", LIMITS["blank"]) if structured else ("blank", _LEADER)
    if _ROOM.search(bare):
        return "form", LIMITS["form"]
    if "<t" in unit or "</t" in unit or unit.count("|") >= 2 or "&" in bare:
        return "table", LIMITS["table"]
    return "text", Limit(_copies_needed(len(bare.strip())), LIMITS["text"].characters)


def _copies_needed(length: int) -> int:
    """A refrain of a few words may come often, a paragraph may not."""
    if length >= 60:
        return LIMITS["text"].copies
    return 12 if length >= 15 else 60


def guarded(chunks: Iterable[str], guard: RepetitionGuard) -> Iterator[str]:
    """Passes a stream on until the guard stops it; `guard.stop` then says why. Closing a generator given as
    `chunks` is how the engine or server learns that the reader has gone."""
    try:
        for chunk in chunks:
            yield chunk
            if guard.feed(chunk):
                return
        guard.finish()
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()


OVERLAP = 32  # pixels that both halves show, about a line of text


def halves(size: Size) -> tuple[Rect, ...]:
    """The two parts of an image across its longer side; none of an image too small to cut."""
    if max(size) <= 2 * OVERLAP:
        return ()
    tall = size.height >= size.width
    side = -(-max(size) // 2) + OVERLAP // 2
    return tiles(size, Size(side, size.width) if tall else Size(size.height, side), 0)


__getattr__ = moved.names(__name__)
