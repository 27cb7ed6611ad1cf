"""What lies under every merged patch: dense targets that synth knows for free.

Next-token loss alone leaves a small tower at chance for tens of thousands of pictures; telling each merged
token which glyphs and shapes lie under it makes reading a supervised problem. These targets serve training
only: the heads that predict them are not part of the model that ships.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

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
ELEMENTS = (
    "button",
    "field",
    "checkbox",
    "bar",
)  # of windows and charts: found as shapes are, but have no colour
SHAPE_CLASS = {name: i + 1 for i, name in enumerate((*SHAPES, *ELEMENTS))}
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
    """Targets for one picture or clip of a sample, in the raster order of its merged tokens.

    Returns: glyph (N, 8) uint8, index (N, 8) uint8 with 255 = ignore, role (N, 4) uint8 with 255 = ignore,
    shape (N, 2) uint8 = kind and colour of the shape whose region covers most of the cell (0 = none, colour 255 =
    ignore), centre (N,) uint8 = number of shape centres in the cell, box (N, 4) float32 = that shape's box in
    hundreds of pixels (nan where none), when (N,) uint8 = in which of a token's two frames the shape is: 0 none,
    1 the first, 2 the second, 3 both, 255 = ignore (a picture).
    """
    medium = sample.media[picture]
    if not hasattr(medium, "size"):
        return _clip_targets(sample)
    width, height = medium.size
    grid = (height // CELL, width // CELL)
    glyphs = [g for g in sample.glyphs if getattr(g, "picture", 0) == picture]
    out = _glyph_targets(glyphs, grid, _owners(sample))
    out |= _region_targets(_regions(sample, picture, glyphs), grid)
    del out["owner"]
    return out | {"when": np.full(grid[0] * grid[1], IGNORE, np.uint8)}


def _clip_targets(sample: Sample) -> dict[str, np.ndarray]:
    """Each token sees two frames: the shapes of both, and which of the two shows its shape."""
    frames = sample.media[0].frames
    grid = (frames.shape[1] // CELL, frames.shape[2] // CELL)
    steps = []
    for t in range(0, len(frames), 2):
        pair = (t, min(t + 1, len(frames) - 1))  # an odd last frame is shown twice
        shown = [
            {(s.kind, s.colour, tuple(s.box)) for s in sample.shapes if s.picture == frame} for frame in pair
        ]
        regions, marks = [], []
        for kind, colour, box in sorted(shown[0] | shown[1]):
            mark = (kind, colour, box)
            marks.append((mark in shown[0]) + 2 * (mark in shown[1]))
            regions.append(Region(SHAPE_CLASS[kind], COLOUR_CLASS[colour], box, (box,)))
        step = _glyph_targets([], grid, {}) | _region_targets(regions, grid)
        owner = step.pop("owner")
        step["when"] = np.where(owner >= 0, np.array([*marks, 0], np.uint8)[owner], 0).astype(np.uint8)
        steps.append(step)
    return {key: np.concatenate([step[key] for step in steps]) for key in steps[0]}


def _lines_of(glyphs: list) -> dict[int, list]:
    lines: dict[int, list] = {}
    for g in glyphs:
        lines.setdefault(g.line, []).append(g)
    for items in lines.values():
        items.sort(key=lambda g: g.x0)
    return lines


def _owners(sample: Sample) -> dict[str, str]:
    """Printed values of a chart and the name each belongs to: what a line says does not tell what it is about."""
    values = getattr(sample, "extra", {}).get("values", {}) if getattr(sample, "kind", "") == "chart" else {}
    return {str(value): name for name, value in values.items()}


def _glyph_targets(glyphs: list, grid: tuple[int, int], owners: dict[str, str]) -> dict[str, np.ndarray]:
    rows, cols = grid
    n = rows * cols
    glyph = np.zeros((n, SLOTS), np.uint8)
    index = np.full((n, SLOTS), IGNORE, np.uint8)
    role = np.full((n, 4), IGNORE, np.uint8)
    for items in _lines_of(glyphs).values():
        label = "".join(_first_word(items))
        line_role = role_of(owners.get(label, label))
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
    return {"glyph": glyph, "index": index, "role": role}


class Region(NamedTuple):
    """A thing to find: its classes, its box, and the rectangles whose cells should know it."""

    kind: int
    colour: int
    box: tuple[float, float, float, float]
    covers: tuple[tuple[float, float, float, float], ...]


def _regions(sample: Sample, picture: int, glyphs: list) -> list[Region]:
    """Shapes, a window's elements, a chart's bars. An element's printed label knows its element's box as well: that
    is where a question finds it."""
    out = [
        Region(SHAPE_CLASS[s.kind], COLOUR_CLASS[s.colour], tuple(s.box), (tuple(s.box),))
        for s in sample.shapes
        if getattr(s, "picture", 0) == picture
    ]
    extra = getattr(sample, "extra", {})
    kind = getattr(sample, "kind", "")
    elements = {"screen": "element_boxes", "chart": "mark_boxes"}.get(kind)
    if not elements:
        return out
    lines = _lines_of(glyphs).values()
    for box in extra[elements]:
        name, caption = ("bar", box.label) if kind == "chart" else (box.label.rpartition(" ")[2], box.text)
        place = tuple(box[:4])
        labels = [
            _ink(items) for items in lines if "".join(g.char for g in items) == caption.replace(" ", "")
        ]
        centre = (place[1] + place[3]) / 2
        # a window's title may say the same as one of its fields
        label = min(labels, key=lambda ink: abs((ink[1] + ink[3]) / 2 - centre), default=None)
        out.append(Region(SHAPE_CLASS[name], IGNORE, place, (place, label) if label else (place,)))
    return out


def _ink(items: list) -> tuple[float, float, float, float]:
    return (
        min(g.x0 for g in items),
        min(g.y0 for g in items),
        max(g.x1 for g in items),
        max(g.y1 for g in items),
    )


def _region_targets(regions: list[Region], grid: tuple[int, int]) -> dict[str, np.ndarray]:
    rows, cols = grid
    n = rows * cols
    shape = np.zeros((n, 2), np.uint8)
    box = np.full((n, 4), np.nan, np.float32)
    centre = np.zeros(n, np.uint8)
    owner = np.full(n, -1, np.int64)
    cover = np.zeros(n)
    for number, region in enumerate(regions):
        for x0, y0, x1, y1 in region.covers:
            for row in range(max(0, int(y0 // CELL)), min(rows, int(np.ceil(y1 / CELL)))):
                for col in range(max(0, int(x0 // CELL)), min(cols, int(np.ceil(x1 / CELL)))):
                    w = min(x1, (col + 1) * CELL) - max(x0, col * CELL)
                    h = min(y1, (row + 1) * CELL) - max(y0, row * CELL)
                    cell = row * cols + col
                    if w * h > cover[cell] and w * h > 40:
                        cover[cell] = w * h
                        shape[cell] = region.kind, region.colour
                        box[cell] = np.array(region.box, np.float32) / 100
                        owner[cell] = number
        x0, y0, x1, y1 = region.box
        row, col = int((y0 + y1) / 2 // CELL), int((x0 + x1) / 2 // CELL)
        if 0 <= row < rows and 0 <= col < cols:
            centre[row * cols + col] += 1
    return {"shape": shape, "centre": centre, "box": box, "owner": owner}


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
