"""Rules for boxes and points. Truth is in pixels of the original image; the answer in the family's own numbers."""

from __future__ import annotations

from typing import Any

from qvl.errors import OutputError
from qvl.evaluate.samples import Sample
from qvl.evaluate.score_synth import iou as overlap
from qvl.evaluate.scorers.base import Grade, Reply
from qvl.outputs.boxes import Box, Point, Quad, parse_boxes
from qvl.outputs.mapping import PictureMap

Rect = tuple[float, float, float, float]


def boxes(answer: Any, sample: Sample) -> tuple[Rect, ...]:
    """[x1, y1, x2, y2] or a list of such, in pixels of the original image. Raises: ValueError."""
    several = answer if isinstance(answer, list) and answer and isinstance(answer[0], list) else [answer]
    found: list[Rect] = []
    for box in several:
        numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
        if not numbers or not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"{box!r} is no box [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
        found.append((float(box[0]), float(box[1]), float(box[2]), float(box[3])))
    return tuple(found)


def places(reply: Reply) -> list[Any]:
    """Boxes, points and quads of an answer, in pixels of the first image. Raises: OutputError without its size."""
    if reply.family is None or not reply.sizes:
        raise OutputError(
            "a place in an answer can't be mapped without the model's family and the image's size"
        )
    return list(parse_boxes(reply.text, reply.family, PictureMap(*reply.sizes[0])))


def _rect(place: Any) -> Rect | None:
    if isinstance(place, Box):
        x1, y1, x2, y2 = place.rect
        return x1, y1, x2, y2
    if isinstance(place, Quad):
        xs, ys = [c[0] for c in place.corners], [c[1] for c in place.corners]
        return min(xs), min(ys), max(xs), max(ys)
    return None


def iou(reply: Reply, truth: tuple[Rect, ...], sample: Sample, *, at: float = 0.5) -> Grade:
    """F1 of boxes that meet at an IoU of at least `at`, best pairs first, each box once; with one box on both sides,
    right or wrong. at=0: the mean IoU of the pairs over the larger number of boxes.

    Source: RefCOCO's accuracy at IoU 0.5, widened to several boxes.
    """
    said = [r for r in map(_rect, places(reply)) if r is not None]
    if not said:
        return Grade(0.0)
    pairs = sorted(
        ((overlap(s, t), i, j) for i, s in enumerate(said) for j, t in enumerate(truth)), reverse=True
    )
    used: set[tuple[str, int]] = set()
    met = 0.0
    for value, i, j in pairs:
        if value <= 0 or value < at or {("said", i), ("truth", j)} & used:
            continue
        used |= {("said", i), ("truth", j)}
        met += value if at == 0 else 1
    share = met / max(len(said), len(truth)) if at == 0 else 2 * met / (len(said) + len(truth))
    return Grade(share, [list(s) for s in said])


def point(reply: Reply, truth: tuple[Rect, ...], sample: Sample) -> Grade:
    """1 when the answer's first point, or the centre of its first box, lies in a box of the truth, edges included.

    Source: ScreenSpot's rule.
    """
    for place in places(reply):
        if isinstance(place, Point):
            x, y = place.x, place.y
        elif (rect := _rect(place)) is not None:
            x, y = (rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2
        else:
            continue
        return Grade(float(any(b[0] <= x <= b[2] and b[1] <= y <= b[3] for b in truth)), [x, y])
    return Grade(0.0)
