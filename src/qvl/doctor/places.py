"""Places: which image the model's numbers are about. A model that finds nothing can't tell, so it isn't blamed."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from qvl.catalog.generations.generation import ORIGINAL_PIXELS, RELATIVE_1000, SEEN_PIXELS, Convention
from qvl.doctor.endpoint import EndpointUnderTest
from qvl.doctor.probe import EvidenceImage, Finding, Probe, not_supported
from qvl.doctor.sets import asked
from qvl.doctor.verdicts import one_sided
from qvl.evaluate.statistics import sign_flip
from qvl.geometry import Size
from qvl.outputs.boxes import Box, find_places, parse_boxes
from qvl.outputs.draw import draw_places
from qvl.outputs.mapping import PictureMap, Rect, iou

KNOWN_IOU = 0.3  # boxes that fit no better on average say nothing about a space
CLEAR_P = 0.01


def _space(endpoint: EndpointUnderTest) -> Finding:
    """Mean IoU of the same numbers read in each space that makes a difference here."""
    if endpoint.family is None:
        return not_supported("the family is unknown: give it with --family.")
    own = endpoint.generation.coordinates
    scores: dict[str, list[float]] = {}
    images: list[EvidenceImage] = []
    for item, reply in asked(endpoint, "boxes"):
        (image,) = item.question.media
        size = Size(image.height, image.width)
        seen = endpoint.seen(size)
        assert seen is not None
        road = PictureMap(size, seen.seen)
        written = find_places(reply.text).places
        numbers = written[0].numbers if written and len(written[0].numbers) == 4 else None
        for name, rect in _readings(numbers, road, own).items():
            scores.setdefault(name, []).append(iou(rect, item.truth) if rect else 0.0)
        if len(images) < 3:
            places = parse_boxes(reply.text, endpoint.generation, road)
            found = [replace(p, label="answered") for p in places if isinstance(p, Box)]
            images.append(_drawn(image, item.truth, found[:1], item.question.words))
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    best = max(means, key=lambda name: means[name])
    shown = ", ".join(f"{name} {mean:.2f}" for name, mean in sorted(means.items(), key=lambda m: -m[1]))
    numbers_out = {f"iou_{name}": round(mean, 4) for name, mean in means.items()}
    text = f"mean IoU of {len(scores[own.name])} boxes read as {shown}"
    if best != own.name and means[best] >= KNOWN_IOU:
        p = one_sided(sign_flip([b - a for a, b in zip(scores[own.name], scores[best])]), True)
        if p < CLEAR_P:
            return Finding("failed", f"{text}: they are in {best} (p {p:.4f}).", numbers_out, tuple(images))
    if means[own.name] >= KNOWN_IOU:
        return Finding("passed", f"{text}; the family writes {own.name}.", numbers_out, tuple(images))
    return Finding(
        "not supported",
        f"{text}: too few boxes hit their object to decide on the coordinate space.",
        numbers_out,
        tuple(images),
    )


def _readings(numbers: tuple[float, ...] | None, road: PictureMap, own: Convention) -> dict[str, Rect | None]:
    """The box that four written numbers mean in each space, in pixels of the original."""
    readings: dict[str, Rect | None] = {}
    spaces = [own, RELATIVE_1000, SEEN_PIXELS]
    # told apart only where the image was really resized
    if min(road.original.width / road.seen.width, road.seen.width / road.original.width) < 0.8:
        spaces.append(ORIGINAL_PIXELS)
    for space in dict.fromkeys(spaces):
        readings[space.name] = _rect(numbers, road, space)
    # something on the way to the model scaled the image, or took its height for its width
    w, h = road.seen.width, road.seen.height
    for name, x, y in (
        ("a halved image", 2, 2),
        ("a doubled image", 0.5, 0.5),
        ("one with its sides exchanged", w / h, h / w),
    ):
        scaled = None if numbers is None else (numbers[0] * x, numbers[1] * y, numbers[2] * x, numbers[3] * y)
        readings[f"pixels of {name}"] = _rect(scaled, road, own)
    return readings


def _rect(numbers: tuple[float, ...] | None, road: PictureMap, space: Convention) -> Rect | None:
    if numbers is None:
        return None
    x1, y1, x2, y2 = numbers
    return road.box_to_original((*road.written_to_seen(x1, y1, space), *road.written_to_seen(x2, y2, space)))


def _drawn(image: Image.Image, truth: Rect, found: list[Box], words: str) -> EvidenceImage:
    """The image with the true box and the model's."""
    x1, y1, x2, y2 = truth
    boxes = [Box(x1=x1, y1=y1, x2=x2, y2=y2, label="true", seen=truth, written=()), *found]
    return EvidenceImage(
        words if found else f"{words} (no box in the answer)", draw_places(image, boxes).image
    )


PROBES = (
    Probe(
        "box-space",
        "places",
        "skill",
        "boxes are in pixels or parts of the image that was sent",
        _space,
        ("box-space", "double-resize"),
    ),
)
