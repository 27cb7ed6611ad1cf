"""Probe images: plain drawings in which one thing at a time changes. numpy and Pillow are imported when drawing."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

Rgb = tuple[int, int, int]


def blocks(rng: np.random.Generator, height: int, width: int, side: int) -> Image.Image:
    """Squares of random colours: every part of the image says something."""
    rows, columns = -(-height // side), -(-width // side)
    small = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    pixels = small.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
    return Image.fromarray(np.ascontiguousarray(pixels))


def flat(height: int, width: int, colour: Rgb) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def changed(image: Image.Image, rng: np.random.Generator, box: tuple[int, int, int, int]) -> Image.Image:
    """A copy that differs inside the box (left, top, right, bottom) alone, in every pixel of it."""
    pixels = np.array(image)
    x1, y1, x2, y2 = box
    # half the range away from what was there
    shift = rng.integers(96, 160, pixels[y1:y2, x1:x2].shape, dtype=np.int64)
    pixels[y1:y2, x1:x2] = (pixels[y1:y2, x1:x2] + shift) % 256
    return Image.fromarray(pixels)


def corners(height: int, width: int, side: int) -> dict[str, tuple[int, int, int, int]]:
    """A square in each corner and in the middle, by name."""
    x, y = (width - side) // 2, (height - side) // 2
    starts = {
        "top left": (0, 0),
        "top right": (width - side, 0),
        "bottom left": (0, height - side),
        "bottom right": (width - side, height - side),
        "middle": (x, y),
    }
    return {name: (x, y, x + side, y + side) for name, (x, y) in starts.items()}


def on_paper(
    images: Sequence[Image.Image], height: int, width: int, places: Sequence[tuple[int, int]]
) -> Any:
    """The images at (left, top) on one light sheet."""
    sheet = flat(height, width, (245, 245, 245))
    for image, place in zip(images, places, strict=True):
        sheet.paste(image, place)
    return sheet


def frames(rng: np.random.Generator, count: int, side: int, square: int) -> list[Image.Image]:
    """A video: each frame other blocks."""
    return [blocks(rng, side, side, square) for _ in range(count)]


def video(shown: Sequence[Image.Image], fps: float) -> dict[str, Any]:
    """Frames as an item of a message, taken at this rate."""
    return {"type": "video", "video": list(shown), "sample_fps": fps}


def png(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
