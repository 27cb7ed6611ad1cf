"""Is a model's text right about a synthetic sample? One function per kind; the intervals beside them.

    right = score(sample, text)          True or False
    low, high = wilson(num_right, num)   95 percent interval

Boxes, points and times are read from text by small patterns that forgive code fences, missing quotes and words
around the answer; a text without the asked thing is simply wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from qvl.evaluate.statistics import wilson as wilson  # its name here since 0.1
from qvl.synth import resolve_kind

if TYPE_CHECKING:
    from qvl.synth import Sample

IOU_NEEDED = 0.5
NUMBER = r"-?\d+(?:\.\d+)?"
_BOX = re.compile(rf"bbox_2d\W*({NUMBER})\s*[, ]\s*({NUMBER})\s*[, ]\s*({NUMBER})\s*[, ]\s*({NUMBER})")
_FOUR = re.compile(rf"[\[(]\s*({NUMBER})\s*[, ]\s*({NUMBER})\s*[, ]\s*({NUMBER})\s*[, ]\s*({NUMBER})\s*[\])]")
_TWO = re.compile(rf"[\[(]\s*({NUMBER})\s*[, ]\s*({NUMBER})\s*[\])]")
_SPAN = re.compile(
    rf"({NUMBER})\s*(?:s|sec|seconds)?\s*(?:to|until|till|and|-|–)\s*({NUMBER})", re.IGNORECASE
)
_BLOCK = re.compile(
    r"<(h[1-6]|p|table)\b[^>]*data-bbox\s*=\s*[\"']([^\"']*)[\"'][^>]*>(.*?)</\1\s*>",
    re.IGNORECASE | re.DOTALL,
)

Quad = tuple[float, float, float, float]


def iou(a: Quad, b: Quad) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2); 0 for a box without area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def normal(text: str, fold: bool = True) -> str:
    """White space as single blanks, none at the ends, and (with `fold`) no difference of case."""
    text = " ".join(text.split())
    return text.casefold() if fold else text


def find_box(text: str) -> Quad | None:
    """The first box in a model's text, or None."""
    match = _BOX.search(text) or _FOUR.search(text)
    if not match:
        return None
    x1, y1, x2, y2 = map(float, match.groups())
    return x1, y1, x2, y2


def find_point(text: str) -> tuple[float, float] | None:
    """The first point in a model's text; the centre when it gave a box. None without either."""
    if match := _TWO.search(text):
        return float(match[1]), float(match[2])
    if box := find_box(text):
        return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return None


def find_span(text: str) -> tuple[float, float] | None:
    """The first "2.0 to 5.0" in a model's text, in seconds, or None."""
    match = _SPAN.search(text)
    return (float(match[1]), float(match[2])) if match else None


def _score_exact(sample: Sample, text: str) -> bool:
    return normal(text) == normal(sample.answer)


def _score_read(sample: Sample, text: str) -> bool:
    # Case is part of what was printed: "Ab" is not a reading of "AB".
    return normal(text, fold=False) == normal(sample.answer, fold=False)


def _score_find(sample: Sample, text: str) -> bool:
    box = find_box(text)
    target = sample.boxes[0]
    return box is not None and iou(box, (target.x1, target.y1, target.x2, target.y2)) >= IOU_NEEDED


def _score_screen(sample: Sample, text: str) -> bool:
    point = find_point(text)
    target = sample.boxes[0]
    return point is not None and target.x1 <= point[0] < target.x2 and target.y1 <= point[1] < target.y2


def _score_clip(sample: Sample, text: str) -> bool:
    """Overlap in time over union in time at least 0.5."""
    span = find_span(text)
    if span is None:
        return False
    start, end = sample.extra["start_seconds"], sample.extra["end_seconds"]
    return iou((span[0], 0, span[1], 1), (start, 0, end, 1)) >= IOU_NEEDED


def _page_blocks(html: str) -> list[tuple[str, Quad | None, str]]:
    """(tag, box, words) of every block of QwenVL HTML; the words without inner tags."""
    blocks = []
    for tag, place, inside in _BLOCK.findall(html):
        numbers = [float(n) for n in re.findall(NUMBER, place)]
        box = (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None
        blocks.append((tag.lower(), box, normal(re.sub(r"<[^>]*>", " ", inside), fold=False)))
    return blocks


def _score_page(sample: Sample, text: str) -> bool:
    """Every block in order with its tag, its words, and its box at IoU 0.5."""
    truth, found = _page_blocks(sample.answer), _page_blocks(text)
    return len(truth) == len(found) and all(
        t[0] == f[0] and t[2] == f[2] and t[1] and f[1] and iou(t[1], f[1]) >= IOU_NEEDED
        for t, f in zip(truth, found)
    )


SCORERS: dict[str, Callable[[Sample, str], bool]] = {
    "read": _score_read,
    "field": _score_exact,
    "find": _score_find,
    "count": _score_exact,
    "chart": _score_exact,
    "page": _score_page,
    "screen": _score_screen,
    "clip": _score_clip,
    "pair": _score_exact,
}
# What "right" means, for the table a person reads.
RULES: dict[str, str] = {
    "read": "exact text, case too",
    "field": "exact value",
    "find": "IoU >= 0.5",
    "count": "exact number",
    "chart": "exact value",
    "page": "every block: tag, words, IoU >= 0.5",
    "screen": "point inside the target",
    "clip": "IoU in time >= 0.5",
    "pair": "exact answer",
}


def score(sample: Sample, text: str) -> bool:
    """Whether the model's text answers the sample, by the rule of its kind (RULES)."""
    return SCORERS[resolve_kind(sample.kind)](sample, text)
