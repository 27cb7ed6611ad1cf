"""The size at which the model saw an image, and the mapping of coordinates to the original.

`seen_size` is the one source of the seen size. Coordinates are edges, not pixel centres: a box that covers
the columns 3, 4 and 5 runs from x = 3 to x = 6, and an image of width W from 0 to W. So mapping is a
plain proportion, the same for a point and for the side of a box, and it has an exact inverse.

The stages of an image, by name:

    stored --(EXIF orientation)--> upright --(crop)--> sent --(resize)--> seen --(convention)--> written
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from qvl import moved
from qvl.catalog.generations import by_name
from qvl.catalog.generations.generation import ORIGINAL_PIXELS, Convention, Generation
from qvl.errors import OutputError
from qvl.geometry import PixelLimits, Size, smart_resize


class Rect(NamedTuple):
    """Edges in pixels: left, top, right, bottom."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def width(self) -> float:
        return self.x2 - self.x1

    @property
    def height(self) -> float:
        return self.y2 - self.y1

    @property
    def area(self) -> float:
        return max(0.0, self.width) * max(0.0, self.height)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2): 1 for the same box, 0 for no overlap."""
    overlap = Rect(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    shared = overlap.area if overlap.width > 0 and overlap.height > 0 else 0.0
    union = Rect(*a[:4]).area + Rect(*b[:4]).area - shared
    return shared / union if union > 0 else 0.0


def seen_size(original: Size, family: Generation | str, limits: PixelLimits | None = None) -> Size:
    """The size in pixels at which the model of this family sees an image (after EXIF turning and cropping).

    `limits` are the pixel limits in force; None means those of the published preprocessor files.
    Raises: MediaError for an empty image or an impossible aspect ratio; GenerationError for an unknown family.
    """
    generation = by_name(family)
    if generation.image is None:
        assert generation.fixed_size is not None, "a record has pixel limits or one size for all images"
        return generation.fixed_size
    return smart_resize(original[0], original[1], limits or generation.image)


def _to_upright(x: float, y: float, orientation: int, stored: Size) -> tuple[float, float]:
    w, h = stored.width, stored.height
    return {
        1: (x, y),
        2: (w - x, y),
        3: (w - x, h - y),
        4: (x, h - y),
        5: (y, x),
        6: (h - y, x),
        7: (h - y, w - x),
        8: (y, w - x),
    }[orientation]


# Each orientation's inverse: 6 and 8 (quarter turns) undo each other, all others undo themselves.
_INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


def upright_size(stored: Size, orientation: int = 1) -> Size:
    """The size after turning as EXIF tag 274 asks: orientations 5 to 8 swap the sides.

    Raises: OutputError for an orientation outside 1 to 8.
    """
    if orientation not in _INVERSE:
        raise OutputError(f"EXIF orientation is {orientation!r}; it must be 1 to 8")
    return Size(stored[1], stored[0]) if orientation >= 5 else Size(stored[0], stored[1])


@dataclass(frozen=True)
class PictureMap:
    """Where places of the image a model saw lie in the user's image, and back.

    original: the image that results are wanted for. With `orientation` other than 1 it's the stored,
    unturned file, and `crop` still counts in the upright image (which is what people crop).
    """

    original: Size
    seen: Size
    orientation: int = 1
    crop: Rect | None = None

    def __post_init__(self) -> None:
        for name, size in (("original", self.original), ("seen", self.seen)):
            if len(size) != 2 or not all(isinstance(s, int) and s > 0 for s in size):
                raise OutputError(
                    f"the {name} size is {size!r}; it needs a height and a width above 0 pixels"
                )
        object.__setattr__(self, "original", Size(*self.original))
        object.__setattr__(self, "seen", Size(*self.seen))
        upright = self.upright  # refuses unknown orientations
        if self.crop is not None:
            crop = Rect(*self.crop)
            inside = 0 <= crop.x1 < crop.x2 <= upright.width and 0 <= crop.y1 < crop.y2 <= upright.height
            if not inside:
                raise OutputError(
                    f"the crop {tuple(crop)} doesn't lie in the image of {upright.width}x{upright.height} pixels"
                )
            object.__setattr__(self, "crop", crop)

    @property
    def upright(self) -> Size:
        return upright_size(self.original, self.orientation)

    @property
    def sent(self) -> Rect:
        """The part of the upright image that was sent: the crop, or all of it."""
        return self.crop or Rect(0.0, 0.0, float(self.upright.width), float(self.upright.height))

    def to_original(self, x: float, y: float) -> tuple[float, float]:
        """A point of the seen image, in pixels of the original. Doesn't clamp."""
        part = self.sent
        u = part.x1 + x * part.width / self.seen.width
        v = part.y1 + y * part.height / self.seen.height
        return _to_upright(u, v, _INVERSE[self.orientation], self.upright)

    def to_seen(self, x: float, y: float) -> tuple[float, float]:
        """The inverse of to_original."""
        u, v = _to_upright(x, y, self.orientation, self.original)
        part = self.sent
        return (u - part.x1) * self.seen.width / part.width, (v - part.y1) * self.seen.height / part.height

    def box_to_original(self, box: Sequence[float]) -> Rect:
        return _ordered(*self.to_original(box[0], box[1]), *self.to_original(box[2], box[3]))

    def box_to_seen(self, box: Sequence[float]) -> Rect:
        return _ordered(*self.to_seen(box[0], box[1]), *self.to_seen(box[2], box[3]))

    def written_to_seen(self, x: float, y: float, convention: Convention) -> tuple[float, float]:
        """Numbers as the model wrote them → pixels of the seen image."""
        if convention == ORIGINAL_PIXELS:
            return self.to_seen(x, y)
        if convention.scale is None:
            return x, y
        return x * self.seen.width / convention.scale, y * self.seen.height / convention.scale

    def seen_to_written(self, x: float, y: float, convention: Convention) -> tuple[float, float]:
        """The inverse of written_to_seen, not rounded."""
        if convention == ORIGINAL_PIXELS:
            return self.to_original(x, y)
        if convention.scale is None:
            return x, y
        return x / self.seen.width * convention.scale, y / self.seen.height * convention.scale


def _ordered(ax: float, ay: float, bx: float, by: float) -> Rect:
    return Rect(min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))


def picture_map(
    original: Size,
    family: Generation | str,
    limits: PixelLimits | None = None,
    *,
    orientation: int = 1,
    crop: Sequence[float] | None = None,
) -> PictureMap:
    """The map of an image of this size, sent whole or as a crop to a model of this family.

    original: the size that results should refer to: upright with orientation 1 (what image libraries show),
    or as stored in the file together with its EXIF orientation.
    Raises: OutputError or MediaError for sizes, crops or orientations that can't be.
    """
    upright = upright_size(original, orientation)
    part = upright
    if crop is not None:
        x1, y1, x2, y2 = crop
        if any(not math.isfinite(c) or c != int(c) for c in crop):
            raise OutputError(f"the crop {tuple(crop)} must be whole pixels: round it before cutting")
        crop = Rect(x1, y1, x2, y2)
        if x2 > x1 and y2 > y1:  # otherwise PictureMap says what is wrong
            part = Size(int(y2 - y1), int(x2 - x1))
    return PictureMap(Size(*original), seen_size(part, family, limits), orientation, crop)


def clamp_rect(box: Rect, size: Size) -> Rect:
    """The part of a box inside an image; of no area when they don't overlap."""
    return Rect(
        min(max(box.x1, 0.0), float(size.width)),
        min(max(box.y1, 0.0), float(size.height)),
        min(max(box.x2, 0.0), float(size.width)),
        min(max(box.y2, 0.0), float(size.height)),
    )


def tiles(upright: Size, tile: Size, overlap: int = 0) -> tuple[Rect, ...]:
    """Crops of at most `tile` that cover the image, row by row, spread evenly with at least `overlap` pixels
    in common between neighbours.

    Raises: OutputError when the overlap isn't smaller than the tile.
    """
    if min(tile) < 1 or min(upright) < 1 or overlap < 0 or overlap >= min(tile):
        raise OutputError(
            f"tiles of {tile[1]}x{tile[0]} pixels with {overlap} in common can't cover "
            f"{upright[1]}x{upright[0]}: the overlap must be smaller than the tile"
        )

    def starts(length: int, side: int) -> list[int]:
        if length <= side:
            return [0]
        count = -(-(length - overlap) // (side - overlap))
        return [round(i * (length - side) / (count - 1)) for i in range(count)]

    height, width = min(tile[0], upright[0]), min(tile[1], upright[1])
    return tuple(
        Rect(x, y, x + width, y + height)
        for y in starts(upright[0], tile[0])
        for x in starts(upright[1], tile[1])
    )


B = TypeVar("B")


def merge_overlapping(boxes: Iterable[B], min_iou: float = 0.5) -> tuple[tuple[B, ...], tuple[B, ...]]:
    """Joins results of overlapping tiles: of boxes with the same label and an IoU of at least `min_iou`
    the largest stays (it was cut least). Items need x1, y1, x2, y2 and label.

    Returns: (kept, dropped), each in the given order.
    """
    given = list(boxes)

    def rect(item: B) -> Rect:
        return Rect(item.x1, item.y1, item.x2, item.y2)  # type: ignore[attr-defined]

    kept: list[int] = []
    dropped: list[int] = []
    for index in sorted(range(len(given)), key=lambda i: -rect(given[i]).area):
        same = any(
            given[k].label == given[index].label and iou(rect(given[k]), rect(given[index])) >= min_iou  # type: ignore[attr-defined]
            for k in kept
        )
        (dropped if same else kept).append(index)
    return tuple(given[i] for i in sorted(kept)), tuple(given[i] for i in sorted(dropped))


__getattr__ = moved.names(__name__)
