"""What a sample is made of. Coordinates are pixels of the original image; boxes are half-open:
x2 and y2 are the first column and row outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class Box(NamedTuple):
    """One thing in an image that the answer speaks of. `picture` counts the sample's images, or a video's frames."""

    x1: int
    y1: int
    x2: int
    y2: int
    label: str
    text: str = ""
    picture: int = 0


class Glyph(NamedTuple):
    """One printed character and the box around its ink. `column` counts the characters of its line, spaces included."""

    char: str
    x0: int
    y0: int
    x1: int
    y1: int
    line: int
    column: int
    picture: int = 0


class ShapeMark(NamedTuple):
    """One drawn shape: its kind, colour name and (x1, y1, x2, y2)."""

    kind: str
    colour: str
    box: tuple[int, int, int, int]
    picture: int = 0


@dataclass(frozen=True, eq=False)
class Clip:
    """A short video without sound. Frame i is on screen from i / fps seconds on.

    frames: uint8 (T, H, W, 3), RGB.
    """

    frames: np.ndarray
    fps: float

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.fps


Media: TypeAlias = "Image.Image | Clip"


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a kind's drawing function gives back: a sample that doesn't know its seed yet."""

    media: tuple[Media, ...]
    question: str
    answer: str
    boxes: tuple[Box, ...] = ()
    glyphs: tuple[Glyph, ...] = ()
    shapes: tuple[ShapeMark, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Sample:
    """Media, a question about them, and its known answer.

    `boxes` are what the answer speaks of, the target first. `glyphs` and `shapes` are everything that was printed
    and drawn: the dense truth under every patch. `extra` holds what only one kind has (all fields of a receipt,
    a video's seconds).
    """

    kind: str
    seed: int
    difficulty: int
    media: tuple[Media, ...]
    question: str
    answer: str
    boxes: tuple[Box, ...]
    glyphs: tuple[Glyph, ...]
    shapes: tuple[ShapeMark, ...]
    extra: Mapping[str, Any]
