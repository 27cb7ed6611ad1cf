"""An image that records what is drawn on it: every glyph and shape, with exact boxes.

Also the degradation after drawing (rotation, blur, noise), which moves the boxes accordingly.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from qvl.synth.rng import Rng
from qvl.synth.sample import Box, Glyph, ShapeMark
from qvl.synth.text import Setting, set_line

Colour = tuple[int, int, int]
Rect = tuple[int, int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "green": (34, 160, 70),
    "blue": (40, 84, 216),
    "yellow": (240, 206, 40),
    "orange": (244, 136, 28),
    "purple": (138, 58, 178),
    "pink": (246, 150, 190),
    "black": (28, 28, 30),
}
# Corner points on the unit square; the circle is drawn as an ellipse.
SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": (),
    "square": ((0, 0), (1, 0), (1, 1), (0, 1)),
    "triangle": ((0.5, 0), (1, 1), (0, 1)),
    "star": tuple(
        (0.5 + r * math.sin(k * math.pi / 5), 0.5 - r * math.cos(k * math.pi / 5))
        for k, r in enumerate([0.5, 0.2] * 5)
    ),
    "cross": (
        (0.33, 0), (0.67, 0), (0.67, 0.33), (1, 0.33), (1, 0.67), (0.67, 0.67),
        (0.67, 1), (0.33, 1), (0.33, 0.67), (0, 0.67), (0, 0.33), (0.33, 0.33),
    ),
    "diamond": ((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)),
}  # fmt: skip
_OVERSAMPLE = 4


@lru_cache(maxsize=4096)
def shape_mask(kind: str, size: int) -> Image.Image:
    """Coverage 0..255 of a shape about `size` pixels wide, cut to its ink."""
    side = size * _OVERSAMPLE
    big = Image.new("L", (side, side))
    pen = ImageDraw.Draw(big)
    if kind == "circle":
        pen.ellipse((0, 0, side - 1, side - 1), fill=255)
    else:
        pen.polygon([(x * (side - 1), y * (side - 1)) for x, y in SHAPES[kind]], fill=255)
    mask = big.reduce(_OVERSAMPLE)
    # One part in 32 of coverage is not ink a person or a model could see; it would only widen the box.
    mask = mask.point([0] * 8 + list(range(8, 256)))
    return mask.crop(mask.getbbox())


class Canvas:
    """One image under the pen. Owns its image and the truth about it."""

    def __init__(self, width: int, height: int, paper: Colour, picture: int = 0) -> None:
        self.image = Image.new("RGB", (width, height), paper)
        self.pen = ImageDraw.Draw(self.image)
        self.width, self.height = width, height
        self.paper = paper
        self.picture = picture
        self.glyphs: list[Glyph] = []
        self.shapes: list[ShapeMark] = []
        self.next_line = 0

    def text(
        self,
        x: int,
        baseline: int,
        text: str | Setting,
        face: str = "",
        size: int = 0,
        colour: Colour = (0, 0, 0),
        *,
        line: int | None = None,
        first_column: int = 0,
    ) -> Rect:
        """Prints one line with its pen at (x, baseline). Returns the box around its ink."""
        setting = set_line(text, face, size) if isinstance(text, str) else text
        if line is None:
            line = self.next_line
        self.next_line = line + 1
        for g in setting.glyphs:
            left, top = x + g.x, baseline + g.y
            self.image.paste(colour, (left, top), g.mask)
            right, bottom = left + g.mask.width, top + g.mask.height
            self.glyphs.append(
                Glyph(g.char, left, top, right, bottom, line, first_column + g.column, self.picture)
            )
        x1, y1, x2, y2 = setting.ink
        return (x + x1, baseline + y1, x + x2, baseline + y2)

    def shape(self, x: int, y: int, kind: str, colour_name: str, size: int, colour: Colour) -> Rect:
        """Draws a shape with its ink's top left corner at (x, y). Returns the box around its ink."""
        mask = shape_mask(kind, size)
        self.image.paste(colour, (x, y), mask)
        box = (x, y, x + mask.width, y + mask.height)
        self.shapes.append(ShapeMark(kind, colour_name, box, self.picture))
        return box


def light(rng: Rng, low: int = 205, high: int = 255) -> Colour:
    return (rng.integer(low, high), rng.integer(low, high), rng.integer(low, high))


def dark(rng: Rng, low: int = 0, high: int = 80) -> Colour:
    return (rng.integer(low, high), rng.integer(low, high), rng.integer(low, high))


def ink_and_paper(rng: Rng, inverted: float = 0.35) -> tuple[Colour, Colour]:
    """Dark on light, or with the given chance light on dark."""
    if rng.chance(inverted):
        return light(rng, 190), dark(rng, 0, 70)
    return dark(rng), light(rng)


def jitter(rng: Rng, colour: Colour, amount: int) -> Colour:
    r, g, b = (min(255, max(0, c + rng.integer(-amount, amount))) for c in colour)
    return (r, g, b)


def gradient(canvas: Canvas, rng: Rng, strength: int) -> None:
    """Shades the whole image from one corner to the other by up to `strength` levels. Draw it first."""
    across, down = rng.uniform(-1, 1), rng.uniform(-1, 1)
    x = np.linspace(-0.5, 0.5, canvas.width, dtype=np.float32) * across
    y = np.linspace(-0.5, 0.5, canvas.height, dtype=np.float32) * down
    shade = ((y[:, None] + x[None, :]) * strength)[..., None]
    pixels = np.asarray(canvas.image).astype(np.float32) + shade
    canvas.image.paste(Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)))


class Worn(NamedTuple):
    """An image after wear, with its truth moved to where the ink now is."""

    image: Image.Image
    boxes: tuple[Box, ...]
    glyphs: tuple[Glyph, ...]
    shapes: tuple[ShapeMark, ...]


def wear(
    canvas: Canvas,
    boxes: tuple[Box, ...],
    rng: Rng,
    *,
    degrees: float = 0.0,
    blur: float = 0.0,
    noise: float = 0.0,
) -> Worn:
    """Rotates by up to `degrees` either way about the centre, blurs, and adds noise of `noise` grey levels.

    A rotated box is the upright box around its four turned corners, cut to the image.
    """
    image = canvas.image
    glyphs, shapes = tuple(canvas.glyphs), tuple(canvas.shapes)
    if degrees:
        angle = rng.uniform(-degrees, degrees)
        image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=canvas.paper)
        sin, cos = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        cx, cy = canvas.width / 2, canvas.height / 2

        def turned(x1: int, y1: int, x2: int, y2: int) -> Rect:
            xs, ys = [], []
            for x, y in ((x1, y1), (x2, y1), (x1, y2), (x2, y2)):
                xs.append(cx + (x - cx) * cos + (y - cy) * sin)
                ys.append(cy - (x - cx) * sin + (y - cy) * cos)
            return (
                max(0, math.floor(min(xs))),
                max(0, math.floor(min(ys))),
                min(canvas.width, math.ceil(max(xs))),
                min(canvas.height, math.ceil(max(ys))),
            )

        boxes = tuple(Box(*turned(*b[:4]), *b[4:]) for b in boxes)
        glyphs = tuple(Glyph(g.char, *turned(*g[1:5]), *g[5:]) for g in glyphs)
        shapes = tuple(s._replace(box=turned(*s.box)) for s in shapes)
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, blur)))
    if noise:
        pixels = np.asarray(image).astype(np.float32)
        pixels += rng.noise(pixels.shape) * np.float32(rng.uniform(noise / 3, noise))
        image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    return Worn(image, boxes, glyphs, shapes)
