"""Boxes, points and quads out of a reply of any generation, in pixels of the user's image; and back.

| generation | how it writes | what the numbers are |
|---|---|---|
| Qwen-VL | `<ref>cat</ref><box>(x1,y1),(x2,y2)</box>`, `<quad>` | parts of 1000 |
| Qwen2-VL | `<|object_ref_start|>cat<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>` | parts of 1000 |
| Qwen2.5-VL | JSON `bbox_2d`, `point_2d`; `<points>` tags; lines `x1,y1,x2,y2 name` | pixels of the resized image |
| Qwen3-VL, 3.5 | JSON `bbox_2d`, `point_2d` | parts of 1000 |

The family decides what the numbers mean. Where the text contradicts it, the result says so
(`warnings`, `suspected`) and the numbers are still read the family's way, or as `convention` says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qvl.catalog.generations import by_name
from qvl.catalog.generations.generation import (
    ORIGINAL_PIXELS,
    RELATIVE_1,
    RELATIVE_1000,
    SEEN_PIXELS,
    Convention,
    Generation,
    PlaceStyle,
)
from qvl.errors import OutputError
from qvl.outputs.mapping import PictureMap, Rect, clamp_rect
from qvl.outputs.repair import RepairLog, answer_text, find_json
from qvl.outputs.results import ParseResult


@dataclass(frozen=True, kw_only=True)
class Box:
    """Edges in pixels of the original image. `seen` are the same in the image the model saw, `written`
    the model's own numbers; `extra` holds further keys of its JSON (colour, type, …)."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""
    text: str = ""
    time: float | None = None
    seen: Rect
    written: tuple[float, ...]
    clamped: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rect(self) -> Rect:
        return Rect(self.x1, self.y1, self.x2, self.y2)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place in pixels of the original image; `seen`, `written` and `extra` as for a Box."""

    x: float
    y: float
    label: str = ""
    text: str = ""
    time: float | None = None
    seen: tuple[float, float]
    written: tuple[float, ...]
    clamped: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Quad:
    """Four corners in the order they were written, in pixels of the original image."""

    corners: tuple[tuple[float, float], ...]
    label: str = ""
    text: str = ""
    time: float | None = None
    seen: tuple[tuple[float, float], ...]
    written: tuple[float, ...]
    clamped: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rect(self) -> Rect:
        """The smallest upright box around the corners."""
        xs, ys = [x for x, _ in self.corners], [y for _, y in self.corners]
        return Rect(min(xs), min(ys), max(xs), max(ys))


Place = Box | Point | Quad


@dataclass(frozen=True, kw_only=True)
class Written:
    """A place as found in the text: 2, 4 or 8 numbers, not yet mapped."""

    numbers: tuple[float, ...]
    label: str = ""
    text: str = ""
    time: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------ finding places

_PAIR = r"\(\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*[,，]\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*\)"
_PAIRS = re.compile(rf"{_PAIR}(?:\s*[,，]?\s*{_PAIR})?(?:\s*[,，]?\s*{_PAIR}\s*[,，]?\s*{_PAIR})?")
_TOKEN = re.compile(
    r"<\|(object_ref|box|quad|point)_(start|end)\|>|<(/?)(ref|box|quad|point)>",
)
_NUM = r"-?\d{1,9}(?:\.\d{1,9})?"
_COMMA = r"[ \t]*[,，][ \t]*"
_LINE = re.compile(
    rf"^[ \t]*(?:[-*•][ \t]+|\d{{1,3}}[.)][ \t]+)?[\[(]?({_NUM}){_COMMA}({_NUM}){_COMMA}({_NUM}){_COMMA}({_NUM})"
    rf"[\])]?(?![\d.])[ \t]*[:：,，]?[ \t]*([^\n]{{0,200}})$",
    re.MULTILINE,
)
_POINTS = re.compile(r"<points?\s([^<>]{1,4000})/?>(?:([^<]{0,400})</points?>)?")
_ATTRIBUTE = re.compile(
    r"([A-Za-z]\w{0,20})\s*=\s*[\"“”']?([^\"“”'\s]{1,40}|(?<=[\"“'])[^\"“”']{0,200})[\"“”']?"
)
_BOX_KEYS = ("bbox_2d", "bbox", "box", "bounding_box", "box_2d_xyxy")
_POINT_KEYS = ("point_2d", "point", "points_2d", "points", "coordinate", "coordinates")
_QUAD_KEYS = ("quad_2d", "quad", "poly", "polygon")
_BOX_3D_KEYS = ("bbox_3d", "box_3d")
_LABEL_KEYS = ("label", "name", "category", "class", "object")
_TEXT_KEYS = ("text_content", "text", "content", "sub_label", "description")
_TIME_KEYS = ("time", "timestamp")
_PLACE_KEYS = frozenset(_BOX_KEYS + _POINT_KEYS + _QUAD_KEYS + _BOX_3D_KEYS)
_KNOWN_KEYS = _PLACE_KEYS | frozenset(_LABEL_KEYS + _TEXT_KEYS + _TIME_KEYS)
# keys that hold a list of findings and name none of them
_HOLDERS = frozenset(
    """objects object results result annotations detections items data answer output boxes bboxes places predictions
    instances regions elements image images frame frames extra""".split()
)
# `1. **Cat**:` or `- the cat -` before a place, or a bold name on the line above it
_LEAD = re.compile(
    r"[ \t]*(?P<mark>[-*•][ \t]+|\d{1,3}[.)][ \t]+)?"
    r"(?:\*\*(?P<bold>[^*\n]{1,80})\*\*|(?P<plain>[^*\[\]{}()<>`\n]{1,60}?))"
    r"[ \t]*(?P<end>[:：–—-]?)[ \t]*(?:is |at |box |bbox )?[ \t]*`?[ \t]*"
)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = value.strip()
        if not re.fullmatch(_NUM, value):
            return None
        value = float(value)
    if isinstance(value, (int, float)) and math.isfinite(value) and abs(value) < 1e9:
        return float(value)
    return None


def _numbers(value: Any) -> list[float] | None:
    """Flat numbers of [1, 2, 3, 4], [[1, 2], [3, 4]], "1,2,3,4" or {"x1": …}; None if anything else."""
    if isinstance(value, str):
        value = re.split(r"[\s,，]+", value.strip(" []()")) if len(value) < 200 else None
    if isinstance(value, dict):
        for names in (("x1", "y1", "x2", "y2"), ("x", "y")):
            if set(value) == set(names):
                return _numbers([value[n] for n in names])
        return None
    if not isinstance(value, list) or not value or len(value) > 8:
        return None
    if all(isinstance(v, list) and len(v) == 2 for v in value):
        value = [c for pair in value for c in pair]
    numbers = [_number(v) for v in value]
    return None if any(n is None for n in numbers) else [n for n in numbers if n is not None]


def _text_of(item: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    for key in keys:
        value = item.get(key)
        if isinstance(value, str):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
    return ""


def _named_objects(value: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every object in the order of the text, with the key that it, or the list that holds it, lies under."""
    stack = [(value, "")]
    while stack:
        item, name = stack.pop()
        if isinstance(item, dict):
            yield item, name
            stack += [
                (child, key if key not in _KNOWN_KEYS and key not in _HOLDERS else "")
                for key, child in reversed(item.items())
            ]
        elif isinstance(item, list):
            stack += [(child, name) for child in reversed(item)]


def _under_names(item: Mapping[str, Any], label: str) -> Iterator[Written]:
    """`{"cat": [1, 2, 3, 4]}` and `{"cats": [[1, 2, 3, 4], …]}`: the key names what is there."""
    for key, value in item.items():
        rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
        found = [_numbers(row) for row in rows if isinstance(row, (list, str))]
        if key not in _KNOWN_KEYS and found and all(n is not None and len(n) == 4 for n in found):
            for numbers in found:
                yield Written(
                    numbers=tuple(numbers or ()), label=label or ("" if key in _HOLDERS else str(key))
                )


def _lead(text: str, at: int) -> str:
    """The name that stands before a place on its line, or alone and bold on the line above."""
    line_start = text.rfind("\n", 0, at) + 1
    before = text[max(line_start, at - 200) : at]
    if before.strip() not in ("", "```json", "```"):
        match = _LEAD.fullmatch(before)
        if match and (match["bold"] or match["mark"] or match["end"] in (":", "：")):
            return (match["bold"] or match["plain"]).strip(" \t:：")
        return ""
    for line in reversed(text[:line_start].rstrip("\n").split("\n")[-4:]):
        if line.strip() in ("", "```json", "```"):
            continue
        match = _LEAD.fullmatch(line)
        return match["bold"].strip(" \t:：") if match and match["bold"] else ""
    return ""


def _from_json(value: Any, log: RepairLog, at: int, lead: str = "") -> Iterator[Written]:
    """Places of every object that holds some, and of bare lists of numbers. lead: a name that stands before them."""
    for item, name in _named_objects(value):
        label = _text_of(item, _LABEL_KEYS) or name
        if not _PLACE_KEYS & set(item):
            yield from _under_names(item, _text_of(item, _LABEL_KEYS))
            continue
        shared: dict[str, Any] = dict(
            label=label or lead,
            text=_text_of(item, _TEXT_KEYS),
            extra={k: v for k, v in item.items() if k not in _KNOWN_KEYS},
        )
        for key in _TIME_KEYS:
            seconds = _number(item.get(key))
            if seconds is not None:
                shared["time"] = seconds
                break
        for keys, counts in ((_BOX_KEYS, (4, 8)), (_POINT_KEYS, (2,)), (_QUAD_KEYS, (8,))):
            for key in keys:
                if key not in item:
                    continue
                whole = _numbers(item[key])
                if whole is not None and len(whole) in counts:
                    yield Written(numbers=tuple(whole), **shared)
                    continue
                several = item[key] if isinstance(item[key], list) else []
                each = [_numbers(v) for v in several if isinstance(v, (list, dict))]
                good = [n for n in each if n is not None and len(n) in counts]
                for numbers in good:
                    yield Written(numbers=tuple(numbers), **shared)
                if not good or len(good) < len(several):
                    wanted = " or ".join(str(c) for c in counts)
                    log.add(f"{key} without {wanted} numbers left out", at)
    if isinstance(value, list):
        rows = value if value and all(isinstance(v, list) for v in value) else [value]
        for row in rows:
            numbers_ = _numbers(row)
            if numbers_ is not None and len(numbers_) in (4, 8):
                yield Written(numbers=tuple(numbers_), label=lead)


def _pairs(text: str) -> list[tuple[float, ...]]:
    return [tuple(float(n) for n in m.groups() if n is not None) for m in _PAIRS.finditer(text)]


def _from_tokens(text: str, log: RepairLog) -> Iterator[Written]:
    """`<ref>…</ref><box>…</box>` of the first generation and the special tokens of the second; one phrase
    may have several boxes. Unclosed tags end where the next one begins."""
    tokens = list(_TOKEN.finditer(text))
    label = ""
    for token, following in zip(tokens, [*tokens[1:], None]):
        kind = {"object_ref": "ref"}.get(token[1] or token[4], token[1] or token[4])
        if token[2] == "end" or token[3]:
            continue
        end = following.start() if following else len(text)
        inside = text[token.end() : end]
        closed = following is not None and (following[2] == "end" or bool(following[3]))
        if kind == "ref":
            label = inside.strip()
            if not closed:
                log.add("unclosed phrase", token.start())
            continue
        found = _pairs(inside)
        if not closed:
            log.add(f"unclosed {kind}", token.start())
        wanted = {"box": 4, "quad": 8, "point": 2}[kind]
        good = [n for n in found if len(n) in (wanted, 2 if closed else wanted)]
        if not good:
            log.add(f"{kind} without {wanted} numbers left out", token.start())
        for numbers in good:
            yield Written(numbers=numbers, label=label)


def _from_points(text: str, log: RepairLog) -> Iterator[Written]:
    """`<points x="1" y="2" alt="…">name</points>`, also x1 y1 x2 y2 … for several places under one name."""
    for match in _POINTS.finditer(text):
        values = {m[1].lower(): m[2] for m in _ATTRIBUTE.finditer(match[1])}
        label = (match[2] or values.get("alt") or "").strip()
        xs = sorted(
            (k[1:] for k in values if k[0] == "x" and (k == "x" or k[1:].isdigit())),
            key=lambda k: (len(k), k),
        )
        good = 0
        for suffix in xs:
            x, y = _number(values["x" + suffix]), _number(values.get("y" + suffix))
            if x is not None and y is not None:
                good += 1
                yield Written(numbers=(x, y), label=label)
        if good < max(1, len(xs)):
            log.add("points without both numbers left out", match.start())


def _from_lines(text: str) -> Iterator[Written]:
    for match in _LINE.finditer(text):
        yield Written(numbers=tuple(float(match[i]) for i in range(1, 5)), label=match[5].strip())


def _from_bare_pairs(text: str) -> Iterator[Written]:
    """What remains of Qwen2-VL's boxes once special tokens were dropped: `the cat(10,20),(300,400)`."""
    end = 0
    for match in _PAIRS.finditer(text):
        numbers = tuple(float(n) for n in match.groups() if n is not None)
        label = text[max(end, match.start() - 200) : match.start()].rsplit("\n", 1)[-1].strip(" \t,，;:")
        label = re.sub(r"^(?:[-*•]|\d{1,3}[.)])[ \t]+", "", label).replace("**", "").strip(" \t:：")
        end = match.end()
        if len(numbers) in (4, 8):
            yield Written(numbers=numbers, label=label)


@dataclass(frozen=True)
class _Findings:
    places: list[Written]
    syntax: str  # tokens | json | points | lines | bare | none
    repairs: tuple[str, ...]


def find_places(text: str) -> _Findings:
    """All places in an answer as they are written, and the way in which they are."""
    log = RepairLog()
    places = list(_from_tokens(text, log))
    if places:
        return _Findings(places, "tokens", log.lines())
    repairs: list[str] = []
    for found in find_json(text):
        places += _from_json(found.value, log, found.start, _lead(text, found.start))
        repairs += found.repairs
    syntax = "json"
    if not places:
        places, syntax = list(_from_points(text, log)), "points"
    if not places and not repairs:
        places, syntax = list(_from_lines(text)), "lines"
        if not places:
            places, syntax = list(_from_bare_pairs(text)), "bare"
    return _Findings(places, syntax if places else "none", (*repairs, *log.lines()))


# ---------------------------------------------------------------------------------------- mapping them home


def parse_boxes(
    text: str, family: Generation | str, picture: PictureMap | None, *, convention: Convention | None = None
) -> ParseResult[Place]:
    """Every box, point and quad of a reply, in pixels of the original image.

    picture: from `picture_map`. convention: overrules the family's own (for a model tuned to another).
    Places that leave the image are clamped and marked; those wholly outside are left out; both are
    reported. Raises: OutputError without an image size or for an unknown family, never for the text.
    """
    generation = by_name(family)
    if picture is None:
        raise OutputError(
            "boxes can't be mapped without the image's size: pass picture=picture_map(size, family)"
        )
    own = convention or generation.coordinates
    answer = answer_text(text)
    if answer.reason:
        return ParseResult(reason=answer.reason)
    findings = find_places(answer.text)
    warnings: list[str] = []
    suspected, why = suspect(findings.places, own, picture)
    if suspected is not None:
        warnings.append(
            f"{why}: the numbers look like {suspected.name}, and are read as {own.name} ({generation}); check the "
            f"model family, the image's size and the server's pixel limits, or pass convention="
        )
    if findings.syntax == "tokens" and own == SEEN_PIXELS:
        suspected = suspected or RELATIVE_1000
        warnings.append(
            f"the boxes come in tags of the first two generations, whose numbers are {RELATIVE_1000.name}; "
            f"{generation} writes JSON in {own.name}, and the numbers are read so"
        )
    elif findings.syntax == "bare":
        warnings.append(
            "the boxes come without their tags: decode with skip_special_tokens=False to keep them apart safely"
        )
    if in_space := len(parse_boxes_3d(answer.text).items):
        warnings.append(
            f"{in_space} boxes in space (bbox_3d), which parse_boxes_3d reads, are not among these"
        )
    places: list[Place] = []
    for number, written in enumerate(findings.places, 1):
        place, notes = map_place(written, own, picture, number)
        warnings += notes
        if place is not None:
            places.append(place)
    reason = None
    if not places:
        reason = (
            "all places lie outside the image" if findings.places else "no box, point or quad in the text"
        )
    return ParseResult(
        items=tuple(places),
        warnings=_summed(warnings),
        repairs=findings.repairs,
        reason=reason,
        suspected=suspected,
    )


@dataclass(frozen=True, kw_only=True)
class Box3D:
    """A box in space, as the camera sees it: x to the right, y down, z away from it, in metres.

    rotation: roll, pitch and yaw in degrees. `written`: the model's nine numbers, whose last three are halves of a
    turn. Source: the 3-D grounding cookbook of Qwen3-VL.
    """

    center: tuple[float, float, float]
    size: tuple[float, float, float]
    rotation: tuple[float, float, float]
    label: str = ""
    written: tuple[float, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


def parse_boxes_3d(text: str) -> ParseResult[Box3D]:
    """Every `bbox_3d` of a reply. Never raises for the text."""
    answer = answer_text(text)
    if answer.reason:
        return ParseResult(reason=answer.reason)
    log = RepairLog()
    boxes: list[Box3D] = []
    repairs: list[str] = []
    for found in find_json(answer.text):
        repairs += found.repairs
        for item, name in _named_objects(found.value):
            for key in _BOX_3D_KEYS:
                if key not in item:
                    continue
                raw = item[key] if isinstance(item[key], list) else []
                numbers = [_number(value) for value in raw]
                kept = [n for n in numbers if n is not None]
                if len(kept) != 9 or len(numbers) != 9:
                    log.add(f"{key} without 9 numbers left out", found.start)
                    continue
                x, y, z, width, height, depth, roll, pitch, yaw = kept
                boxes.append(
                    Box3D(
                        center=(x, y, z),
                        size=(width, height, depth),
                        rotation=(roll * 180, pitch * 180, yaw * 180),
                        label=_text_of(item, _LABEL_KEYS) or name or _lead(answer.text, found.start),
                        written=tuple(kept),
                        extra={k: v for k, v in item.items() if k not in _KNOWN_KEYS},
                    )
                )
    return ParseResult(
        items=tuple(boxes),
        repairs=(*repairs, *log.lines()),
        reason=None if boxes else "no bbox_3d in the text",
    )


def _summed(warnings: list[str], most: int = 50) -> tuple[str, ...]:
    """At most `most` warnings and a line that counts the rest."""
    if len(warnings) <= most:
        return tuple(warnings)
    return (*warnings[:most], f"{len(warnings) - most} more warnings of this kind")


def suspect(places: Iterable[Written], own: Convention, picture: PictureMap) -> tuple[Convention | None, str]:
    """A convention that fits all numbers where the family's own doesn't, and what gave it away.

    A box may reach over the edge a little, so 2% are allowed before anything is suspected.
    """
    xs = [n for p in places for n in p.numbers[0::2]]
    ys = [n for p in places for n in p.numbers[1::2]]
    if not xs or min(xs) < 0 or min(ys) < 0:
        return None, ""
    top_x, top_y = max(xs), max(ys)
    parts = any(n != int(n) for n in (*xs, *ys))
    if max(top_x, top_y) <= 1 and parts and own != RELATIVE_1:
        return RELATIVE_1, f"no number exceeds 1 (largest {max(top_x, top_y):g})"

    def fits(convention: Convention) -> bool:
        if convention.scale is not None:
            return top_x <= convention.scale * 1.02 and top_y <= convention.scale * 1.02
        size = picture.seen if convention == SEEN_PIXELS else picture.upright
        return top_x <= size.width * 1.02 and top_y <= size.height * 1.02

    if fits(own):
        return None, ""
    limit = f"{own.scale:g}" if own.scale else f"{picture.seen.width}x{picture.seen.height}"
    why = f"numbers reach {top_x:g}, {top_y:g}, beyond {limit}"
    for other in (SEEN_PIXELS, RELATIVE_1000, ORIGINAL_PIXELS):
        if other != own and fits(other):
            return other, why
    return None, ""


def map_place(
    written: Written, convention: Convention, picture: PictureMap, number: int
) -> tuple[Place | None, list[str]]:
    """One place in the original image, and what had to be said about it."""
    notes: list[str] = []
    what = f"place {number}" + (f" ({written.label[:40]})" if written.label else "")
    numbers = written.numbers
    shared: dict[str, Any] = dict(
        label=written.label, text=written.text, time=written.time, written=numbers, extra=written.extra
    )
    seen = [
        picture.written_to_seen(x, y, convention) for x, y in zip(numbers[0::2], numbers[1::2], strict=True)
    ]
    size = picture.original
    if len(numbers) == 4:
        if numbers[0] > numbers[2] or numbers[1] > numbers[3]:
            notes.append(f"{what}: corners in the wrong order, swapped")
        box = picture.box_to_original((*seen[0], *seen[1]))
        inside = clamp_rect(box, size)
        limits = _sent_rect(picture)
        inside = Rect(
            max(inside.x1, limits.x1), max(inside.y1, limits.y1), min(inside.x2, limits.x2), min(inside.y2, limits.y2)
        )  # fmt: skip
        if inside.x2 < inside.x1 or inside.y2 < inside.y1 or (inside.area == 0 and box.area > 0):
            return None, [f"{what}: {_round(box)} lies outside the image of {_span(limits)}, left out"]
        clamped = _differs(inside, box)
        if clamped:
            notes.append(f"{what}: {_round(box)} clamped to {_round(inside)}, the image is {_span(limits)}")
        if inside.area == 0:
            notes.append(f"{what}: the box has no area")
        seen_box = Rect(min(seen[0][0], seen[1][0]), min(seen[0][1], seen[1][1]),
                        max(seen[0][0], seen[1][0]), max(seen[0][1], seen[1][1]))  # fmt: skip
        return Box(**inside._asdict(), seen=seen_box, clamped=clamped, **shared), notes
    limits = _sent_rect(picture)
    corners = [picture.to_original(x, y) for x, y in seen]
    kept = [(min(max(x, limits.x1), limits.x2), min(max(y, limits.y1), limits.y2)) for x, y in corners]
    clamped = any(_differs(k, c) for k, c in zip(kept, corners))
    if len(numbers) == 2:
        if clamped:
            return None, [f"{what}: {_round(corners[0])} lies outside the image of {_span(limits)}, left out"]
        (x, y), (sx, sy) = kept[0], seen[0]
        return Point(x=x, y=y, seen=(sx, sy), clamped=False, **shared), notes
    if clamped:
        notes.append(f"{what}: corners clamped to the image of {_span(limits)}")
        if len({x for x, _ in kept}) == 1 or len({y for _, y in kept}) == 1:
            return None, [f"{what}: lies outside the image of {_span(limits)}, left out"]
    return Quad(corners=tuple(kept), seen=tuple(seen), clamped=clamped, **shared), notes


def _sent_rect(picture: PictureMap) -> Rect:
    """The part of the original image that the model saw."""
    return picture.box_to_original((0, 0, picture.seen.width, picture.seen.height))


def _differs(a: Iterable[float], b: Iterable[float]) -> bool:
    return any(abs(x - y) > 1e-6 for x, y in zip(a, b))  # beyond the rounding of a float


def _round(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{v:.1f}" for v in values) + ")"


def _span(rect: Rect) -> str:
    if rect.x1 == 0 and rect.y1 == 0:
        return f"{rect.x2:g}x{rect.y2:g} pixels"
    return f"x {rect.x1:g} to {rect.x2:g}, y {rect.y1:g} to {rect.y2:g}"


# ------------------------------------------------------------------------------------------------- writing


def write_boxes(
    boxes: Iterable[tuple[str, Iterable[float]]], family: Generation | str, picture: PictureMap
) -> str:
    """What a model of this family would answer for these (label, box or point or quad) places given in pixels
    of the original picture: 4, 2 or 8 numbers. The inverse of parse_boxes, for training data and tests.

    Numbers are rounded to whole ones, as the models write them.
    """
    generation = by_name(family)
    own = generation.coordinates
    lines: list[str] = []
    for label, numbers in boxes:
        flat = [float(n) for n in numbers]
        if len(flat) not in (2, 4, 8):
            raise OutputError(f"a place has 2, 4 or 8 numbers, {label!r} has {len(flat)}")
        seen: list[tuple[float, float]]
        if len(flat) == 4:
            rect = picture.box_to_seen(flat)
            seen = [(rect.x1, rect.y1), (rect.x2, rect.y2)]
        else:
            seen = [picture.to_seen(x, y) for x, y in zip(flat[0::2], flat[1::2], strict=True)]
        whole = [tuple(round(n) for n in picture.seen_to_written(x, y, own)) for x, y in seen]
        lines.append(_write_one(generation.place_style, label, whole))
    if generation.place_style != "json":
        return "".join(lines)
    return "```json\n[" + "".join(f"\n\t{line}," for line in lines).removesuffix(",") + "\n]\n```"


def _write_one(style: PlaceStyle, label: str, points: list[tuple[int, ...]]) -> str:
    kind = "quad" if len(points) == 4 else "box"
    if style == "ref tags":  # whose grid ends at 999
        inner = ",".join(f"({min(max(x, 0), 999)},{min(max(y, 0), 999)})" for x, y in points)
        return f"<ref>{label}</ref><{kind}>{inner}</{kind}>"
    if style == "special tokens":
        inner = ",".join(f"({x},{y})" for x, y in points)
        return f"<|object_ref_start|>{label}<|object_ref_end|><|{kind}_start|>{inner}<|{kind}_end|>"
    import json

    key = {1: "point_2d", 2: "bbox_2d", 4: "quad_2d"}[len(points)]
    flat = ", ".join(str(n) for p in points for n in p)
    return f'{{"{key}": [{flat}], "label": {json.dumps(label, ensure_ascii=False)}}}'
