"""What lies under every merged patch: dense targets that synth knows for free.

Next-token loss alone leaves a small tower at chance for tens of thousands of pictures; telling each merged
token which glyphs and shapes lie under it makes reading a supervised problem. These targets serve training
only: the heads that predict them are not part of the model that ships.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from qvl.synth.canvas import COLOURS, SHAPES

if TYPE_CHECKING:
    from qvl.synth import Sample

CELL = 28  # pixels of a merged token's side
SUB = 14  # pixels of a patch
CHARS = "".join(chr(c) for c in range(33, 127)) + "€£¥₩×÷°–—•"
GLYPH_CLASS = {c: i + 1 for i, c in enumerate(CHARS)}  # 0 = nothing
NUM_GLYPH_CLASSES = len(CHARS) + 1
NUM_INDEX = 12  # position of a glyph inside its word, the last class takes the rest
SLOTS = 8  # per merged token: 4 patches x 2 glyphs (centres of narrow glyphs can share a patch)
IGNORE = 255
SHAPE_CLASS = {name: i + 1 for i, name in enumerate(SHAPES)}
COLOUR_CLASS = {name: i + 1 for i, name in enumerate(COLOURS)}
NUM_ROLES = 64  # identity of a line's first word, hashed: what a value on that line is the value of


def role_of(word: str) -> int:
    """A small stable class for a line's label. 0 is left for 'no label'."""
    value = 0
    for c in word.upper():
        if c.isalpha():
            value = (value * 31 + ord(c)) % 63
    return 1 + value if any(c.isalpha() for c in word) else 0


def dense_targets(sample: Sample, picture: int = 0) -> dict[str, np.ndarray]:
    """Targets for one picture of a sample, in merged-token raster order.

    Returns: glyph (N, 8) uint8, index (N, 8) uint8 with 255 = ignore, role (N, 4) uint8 with 255 = ignore,
    shape (N, 2) uint8 = kind and colour of the shape whose box covers most of the cell (0 = none),
    centre (N,) uint8 = number of shape centres in the cell, box (N, 4) float32 = that shape's box in
    hundreds of pixels (nan where none).
    """
    width, height = sample.media[picture].size
    rows, cols = height // CELL, width // CELL
    n = rows * cols
    glyph = np.zeros((n, SLOTS), np.uint8)
    index = np.full((n, SLOTS), IGNORE, np.uint8)
    role = np.full((n, 4), IGNORE, np.uint8)
    lines: dict[int, list] = {}
    for g in sample.glyphs:
        lines.setdefault(g.line, []).append(g)
    for items in lines.values():
        items.sort(key=lambda g: g.x0)
        label = "".join(_first_word(items))
        line_role = role_of(label)
        position, previous = 0, None
        for g in items:
            # a gap wider than a third of the glyph height starts a new word
            new_word = previous is not None and g.x0 - previous.x1 > 0.3 * _line_height(items)
            position = 0 if previous is None or new_word else position + 1
            previous = g
            cx, cy = (g.x0 + g.x1) / 2, _line_centre(items)
            row, col = int(cy // CELL), int(cx // CELL)
            if not (0 <= row < rows and 0 <= col < cols):
                continue
            cell = row * cols + col
            sub = (int(cy // SUB) % 2) * 2 + int(cx // SUB) % 2
            slot = sub * 2
            if glyph[cell, slot]:
                slot += 1
            if glyph[cell, slot]:
                continue  # three centres in one patch: leave the third out
            glyph[cell, slot] = GLYPH_CLASS.get(g.char, 0)
            index[cell, slot] = min(position, NUM_INDEX - 1)
            role[cell, sub] = line_role
    shape = np.zeros((n, 2), np.uint8)
    box = np.full((n, 4), np.nan, np.float32)
    centre = np.zeros(n, np.uint8)
    cover = np.zeros(n)
    for s in sample.shapes:
        x0, y0, x1, y1 = s.box
        for row in range(max(0, int(y0 // CELL)), min(rows, int(np.ceil(y1 / CELL)))):
            for col in range(max(0, int(x0 // CELL)), min(cols, int(np.ceil(x1 / CELL)))):
                w = min(x1, (col + 1) * CELL) - max(x0, col * CELL)
                h = min(y1, (row + 1) * CELL) - max(y0, row * CELL)
                cell = row * cols + col
                if w * h > cover[cell] and w * h > 40:
                    cover[cell] = w * h
                    shape[cell] = SHAPE_CLASS[s.kind], COLOUR_CLASS[s.colour]
                    box[cell] = np.array([x0, y0, x1, y1], np.float32) / 100
        row, col = int((y0 + y1) / 2 // CELL), int((x0 + x1) / 2 // CELL)
        if 0 <= row < rows and 0 <= col < cols:
            centre[row * cols + col] += 1
    return {"glyph": glyph, "index": index, "role": role, "shape": shape, "centre": centre, "box": box}


def _line_height(items: list) -> float:
    return max(g.y1 for g in items) - min(g.y0 for g in items)


def _line_centre(items: list) -> float:
    return (max(g.y1 for g in items) + min(g.y0 for g in items)) / 2


def _first_word(items: list) -> list[str]:
    word = [items[0].char]
    height = _line_height(items)
    for a, b in pairwise(items):
        if b.x0 - a.x1 > 0.3 * height:
            break
        word.append(b.char)
    return word
