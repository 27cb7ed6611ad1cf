"""Draws boxes, points, quads, document regions and actions onto an image, to look at.

Each line has a dark and a light edge and each label its own ground, so both are readable on any image. Labels
in scripts that no font of this machine has are shown as a number, and the drawing says which label that is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from qvl.errors import OutputError
from qvl.outputs.actions import Action, Click, Drag, LongPress, Move, Swipe, describe
from qvl.outputs.blocks import Page
from qvl.outputs.boxes import Box, Place, Point, Quad
from qvl.outputs.mapping import Rect

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Colours that people with any kind of colour vision can tell apart (Okabe and Ito), without black
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
_DARK, _LIGHT = (20, 20, 20), (255, 255, 255)

# Files under which systems keep fonts with Chinese, Japanese and Korean; Pillow looks for them in the system's
# font folders. The default font that Pillow brings along has Latin letters only.
FONT_FILES = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKkr-Regular.otf", "NotoSansKR-Regular.otf", "NotoSansSC-Regular.otf",
    "SourceHanSans.ttc", "NanumGothic.ttf", "wqy-zenhei.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf",
    "UnBatang.ttf", "AppleSDGothicNeo.ttc", "PingFang.ttc", "Arial Unicode.ttf", "malgun.ttf", "msyh.ttc",
    "simsun.ttc", "DejaVuSans.ttf",
)  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """notes: which labels couldn't be written out, and what to install."""

    image: Image.Image
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=64)
def _load(name: str, size: int) -> Font | None:
    if not name:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=4096)
def _has(name: str, char: str) -> bool:
    """Whether a font draws this character, and not the sign for a missing one."""
    font = _load(name, 24)
    if font is None:
        return False
    if char.isspace():
        return True
    # the last code points of plane 16 are unassigned, so no font has them
    missing = font.getmask("\U0010fffd")
    drawn = font.getmask(char)
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)


def font_for(text: str, size: int, files: Sequence[str] = FONT_FILES) -> Font | None:
    """A font that has every character of a text; None if this machine has none."""
    for name in ("", *files):
        if _load(name, size) is not None and all(_has(name, c) for c in set(text)):
            return _load(name, size)
    return None


def ink_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Dark or light, whichever is easier to read on this ground (relative luminance as WCAG 2 defines it)."""
    parts = [c / 255 for c in colour]
    r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return _DARK if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.19 else _LIGHT


def enlargement(size: tuple[int, int]) -> int:
    """How many times as large a small image is drawn: a label takes 11 pixels whatever the image."""
    short = min(size)
    return 1 if short >= 256 or max(size) > 1024 else min(4, -(-480 // short))


class _Canvas:
    """One image being drawn on: lines first, then labels, so that no label hides under a line. `point` and `rect`
    say where a place of the given image is on it."""

    def __init__(self, image: Image.Image, files: Sequence[str]) -> None:
        self.scale = enlargement(image.size)
        self.image = image.convert("RGB")
        if self.scale > 1:
            self.image = self.image.resize((image.width * self.scale, image.height * self.scale))
        self.draw = ImageDraw.Draw(self.image)
        short = min(self.image.size)
        self.width = max(2, round(short / 250))
        self.size = max(11, min(48, round(short / 32)))
        self.files = files
        # x, y, the end of what is labelled (nan: just a point), text, colour
        self.labels: list[tuple[float, float, float, str, tuple[int, int, int]]] = []
        self.taken: list[Rect] = []
        self.notes: list[str] = []
        self.colours: dict[str, tuple[int, int, int]] = {}

    def point(self, x: float, y: float) -> tuple[float, float]:
        return x * self.scale, y * self.scale

    def rect(self, rect: Rect) -> Rect:
        return Rect(*(edge * self.scale for edge in rect))

    def colour(self, key: str) -> tuple[int, int, int]:
        """The same colour for the same label."""
        return self.colours.setdefault(key, PALETTE[len(self.colours) % len(PALETTE)])

    def line(self, points: Sequence[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        """A line with a dark and a light edge, readable on black, white and its own colour."""
        w = self.width
        for shade, wide in ((_DARK, w + 4), (_LIGHT, w + 2), (colour, w)):
            self.draw.line(list(points), fill=shade, width=wide, joint="curve")

    def box(self, rect: Rect, colour: tuple[int, int, int], label: str) -> None:
        x1, y1 = rect.x1, rect.y1
        x2, y2 = max(x1, rect.x2 - 1), max(y1, rect.y2 - 1)  # the edge at x2 lies after the last pixel
        self.line([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1), (x2, y1)], colour)
        self.label(x1, y1, label, colour, below=rect.y2 + self.width)

    def mark(
        self, x: float, y: float, colour: tuple[int, int, int], label: str, *, ring: bool = False
    ) -> None:
        r = self.size * 0.45
        for shade, more in ((_DARK, 2), (_LIGHT, 1), (colour, 0)):
            self.draw.ellipse(
                [x - r - more, y - r - more, x + r + more, y + r + more], outline=shade, width=self.width
            )
        if ring:
            self.draw.ellipse([x - 2 * r, y - 2 * r, x + 2 * r, y + 2 * r], outline=colour, width=self.width)
        for shade, more in ((_DARK, 2), (_LIGHT, 1), (colour, 0)):
            dot = max(2.0, r * 0.3) + more
            self.draw.ellipse([x - dot, y - dot, x + dot, y + dot], fill=shade)
        if label:
            self.label(x + r, y - r, label, colour)

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], colour: tuple[int, int, int]
    ) -> None:
        self.line([start, end], colour)
        angle = math.atan2(end[1] - start[1], end[0] - start[0])
        for turn in (2.6, -2.6):
            tip = (end[0] + self.size * math.cos(angle + turn), end[1] + self.size * math.sin(angle + turn))
            self.line([end, tip], colour)

    def label(
        self, x: float, y: float, text: str, colour: tuple[int, int, int], below: float = math.nan
    ) -> None:
        """Remembers a label for the place (x, y) that ends at `below`; written by `finish`."""
        text = " ".join(text.split())
        if text:
            self.labels.append((x, y, below, text if len(text) <= 40 else text[:39] + "…", colour))

    def finish(self) -> Drawing:
        for number, (x, y, below, text, colour) in enumerate(self.labels, 1):
            font = font_for(text, self.size, self.files)
            if font is None:
                self.notes.append(
                    f"#{number} stands for {text!r}: no installed font has all its characters "
                    "(Debian: apt install fonts-noto-cjk)"
                )
                text = f"#{number} (no font)"
                font = ImageFont.load_default(self.size)
            self._write(x, y, below, text, colour, font)
        return Drawing(self.image, tuple(self.notes))

    def _write(
        self, x: float, y: float, below: float, text: str, colour: tuple[int, int, int], font: Font
    ) -> None:
        left, top, right, bottom = self.draw.textbbox((0, 0), text, font=font)
        pad = max(2, self.size // 6)
        wide, high = right - left + 2 * pad, bottom - top + 2 * pad
        limit_x, limit_y = self.image.width - wide, self.image.height - high
        # above the corner, below the box, inside it, then further down until it covers no other label
        under = [(x, below)] if below <= limit_y else []
        spots = [(x, y - high), *under, (x, y), *((x, y + n * high) for n in range(1, 6)), (x, y - high)]
        for spot_x, spot_y in spots:
            at_x, at_y = min(max(0, spot_x), max(0, limit_x)), min(max(0, spot_y), max(0, limit_y))
            ground = Rect(at_x, at_y, at_x + wide, at_y + high)
            if spot_y < 0 or any(_overlap(ground, other) for other in self.taken):
                continue
            break
        self.taken.append(ground)
        ink = ink_on(colour)
        self.draw.rectangle([ground.x1, ground.y1, ground.x2, ground.y2], fill=colour, outline=ink)
        self.draw.text((at_x + pad - left, at_y + pad - top), text, font=font, fill=ink)


def _overlap(a: Rect, b: Rect) -> bool:
    return a.x1 < b.x2 and b.x1 < a.x2 and a.y1 < b.y2 and b.y1 < a.y2


def draw_places(image: Image.Image, places: Iterable[Place], *, files: Sequence[str] = FONT_FILES) -> Drawing:
    """Boxes, points and quads of parse_boxes with their labels, on a copy of the original image."""
    canvas = _Canvas(image, files)
    for place in places:
        label = place.label or place.text
        colour = canvas.colour(label)
        if isinstance(place, Box):
            canvas.box(canvas.rect(place.rect), colour, label)
        elif isinstance(place, Point):
            canvas.mark(*canvas.point(place.x, place.y), colour, label)
        elif isinstance(place, Quad):
            corners = [canvas.point(*corner) for corner in place.corners]
            canvas.line([*corners, *corners[:2]], colour)
            canvas.label(*corners[0], label, colour)
    return canvas.finish()


def draw_regions(image: Image.Image, page: Page, *, files: Sequence[str] = FONT_FILES) -> Drawing:
    """The blocks of a page that have boxes, numbered in reading order, one colour for each kind."""
    canvas = _Canvas(image, files)
    number = 0
    for block in page.walk():
        if block.box is None:
            continue
        number += 1
        canvas.box(canvas.rect(block.box), canvas.colour(block.kind), f"{number} {block.kind}")
    return canvas.finish()


def draw_actions(
    image: Image.Image, actions: Iterable[Action], *, files: Sequence[str] = FONT_FILES
) -> Drawing:
    """What an agent would do, numbered in order, on a copy of the screenshot. Actions without a place are listed
    in the corner; a drag starts where the pointer was left."""
    canvas = _Canvas(image, files)
    pointer: tuple[float, float] | None = None
    aside = 0
    for number, action in enumerate(actions, 1):
        label, colour = f"{number} {describe(action)}", PALETTE[(number - 1) % len(PALETTE)]
        if isinstance(action, (Click, LongPress, Move)):
            pointer = canvas.point(action.x, action.y)
            canvas.mark(*pointer, colour, label, ring=not isinstance(action, Move))
        elif isinstance(action, (Swipe, Drag)):
            at = canvas.point(action.x, action.y)
            start, end = (
                (at, canvas.point(action.to_x, action.to_y)) if isinstance(action, Swipe) else (pointer, at)
            )
            if start is not None:
                canvas.mark(*start, colour, "")
                canvas.arrow(start, end, colour)
            else:
                canvas.mark(*end, colour, "")
            canvas.label(*end, label, colour)
            pointer = end
        else:
            canvas.label(0, canvas.size * 1.7 * aside, label, colour)
            aside += 1
    return canvas.finish()


class DryRun:
    """An Executor that does nothing but remember, and can show what would have been done."""

    def __init__(self, screenshot: Image.Image) -> None:
        self.screenshot = screenshot
        self.actions: list[Action] = []

    def execute(self, action: Action) -> None:
        self.actions.append(action)

    def drawing(self, **options: Any) -> Drawing:
        return draw_actions(self.screenshot, self.actions, **options)


ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pdf")  # of files to draw into


def save(drawing: Drawing, path: str) -> None:
    """Raises: OutputError when the file can't be written or its ending names no format."""
    try:
        drawing.image.save(path)
    except (OSError, ValueError) as e:
        raise OutputError(f"{path}: the drawing can't be written ({e}); use a name ending in .png") from e
