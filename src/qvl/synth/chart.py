"""Kind "chart": bars or a line over a few categories, asked for a value or for the extreme."""

from __future__ import annotations

from typing import NamedTuple

from qvl.synth import words
from qvl.synth.canvas import COLOURS, Canvas, Colour, dark, jitter, light, wear
from qvl.synth.rng import Rng
from qvl.synth.sample import Box, Drawn
from qvl.synth.text import fit_size, set_line

VALUE_QUESTIONS = ("What is the value of {}?", "How much is {}?", "Read the value of {}.")
EXTREME_QUESTIONS = {
    True: ("Which has the highest value?", "Which category is the highest?"),
    False: ("Which has the lowest value?", "Which category is the lowest?"),
}
TITLES = ("SALES", "VISITS", "ORDERS", "RAIN", "STOCK", "HOURS", "SCORE", "COST")
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
HEADROOM = 0.88  # the largest value reaches this share of the plot's height


class Plot(NamedTuple):
    """The plotting area in pixels and the value at its top; 0 is at the bottom."""

    left: int
    top: int
    right: int
    bottom: int
    full: float

    def y(self, value: float) -> int:
        return self.bottom - round((self.bottom - self.top) * value / self.full)


def draw(rng: Rng, difficulty: int) -> Drawn:
    """Difficulty 0: 2-3 bars; 1: 3-5 bars or points with their values printed; 2: up to 7, half of them to be read
    off the axis, where every value lies on a grid line or midway; 3: also worn."""
    num = (rng.integer(2, 3), rng.integer(3, 5), rng.integer(4, 7), rng.integer(4, 7))[difficulty]
    if difficulty >= 3:
        width, height = rng.integer(280, 380), rng.integer(240, 320)
    elif difficulty == 2:
        width, height = 28 * rng.integer(10, 12), 28 * rng.integer(9, 10)
    else:
        width, height = 28 * (6 + difficulty + rng.integer(1, 2)), 28 * rng.integer(6, 7 + difficulty)
    printed = difficulty < 2 or rng.chance(0.5)
    step = rng.choice((10, 20, 50))
    if printed:
        values = rng.pick(range(1, 100), num)
    else:
        values = [level * step // 2 for level in rng.pick(range(1, 11), num)]
    names = _names(rng, num)
    canvas = Canvas(width, height, light(rng, 240))
    ink = dark(rng, 0, 60)
    face = rng.choice(("DejaVuSans", "DejaVuSansCondensed", "DejaVuSansMono"))
    size = rng.integer(13, 16) if difficulty else rng.integer(16, 20)

    title = rng.choice(TITLES) if difficulty and rng.chance(0.6) else ""
    if title:
        room = set_line(title, face, size).ink[2]
        canvas.text((width - room) // 2, size + 4, title, face, size, ink)
    axis = step * 5 if not printed else 0
    left = 10 + (set_line(str(axis), face, size).ink[2] if axis else 0)
    plot = Plot(
        left,
        12 + size + (size + 4 if title else 0),
        width - 8,
        height - size - 12,
        axis or max(values) / HEADROOM,
    )
    if axis:
        _grid(canvas, plot, step, face, size - 2, ink)
    canvas.pen.line((plot.left, plot.top, plot.left, plot.bottom), fill=ink)
    canvas.pen.line((plot.left, plot.bottom, plot.right, plot.bottom), fill=ink)

    names_at = plot.bottom + size + 3
    bars = difficulty == 0 or rng.chance(0.6)
    if printed and not bars:  # room for the values that stand under their points
        plot = plot._replace(bottom=plot.bottom - size - 10)
    boxes = (_bars if bars else _points)(canvas, rng, plot, names, values)
    pitch = (plot.right - plot.left) / num
    for i, (name, value) in enumerate(zip(names, values)):
        centre = round(plot.left + pitch * (i + 0.5))
        small = fit_size(name, face, size, int(pitch) - 3)
        half = set_line(name, face, small).ink[2] // 2
        canvas.text(centre - half, names_at, name, face, small, ink)
        if printed:
            text = set_line(str(value), face, size)
            shift, under = (0, False) if bars else _clear_side(values, i, size)
            y = boxes[i].y2 + 3 - text.ink[1] if under else boxes[i].y1 - 3
            x = centre - text.ink[2] // 2 + shift
            canvas.text(max(plot.left + 2, min(x, width - 2 - text.ink[2])), y, text, colour=ink)

    kind = rng.weighted(("value", "high", "low"), (7, 2, 1) if difficulty else (1, 0, 0))
    if kind == "value":
        target = rng.integer(0, num - 1)
        question, answer = rng.choice(VALUE_QUESTIONS).format(names[target]), str(values[target])
    else:
        target = values.index(max(values) if kind == "high" else min(values))
        question, answer = rng.choice(EXTREME_QUESTIONS[kind == "high"]), names[target]
    chosen = (boxes[target], *(b for i, b in enumerate(boxes) if i != target))
    worn = (
        wear(canvas, chosen, rng, degrees=3, blur=0.7, noise=12)
        if difficulty >= 3
        else wear(canvas, chosen, rng)
    )
    return Drawn(
        media=(worn.image,),
        question=question,
        answer=answer,
        boxes=worn.boxes[:1],
        glyphs=worn.glyphs,
        extra={
            "values": dict(zip(names, values)),
            "style": "bars" if bars else "line",
            "printed": printed,
            "mark_boxes": worn.boxes,
        },
    )


def _clear_side(values: list[int], i: int, size: int) -> tuple[int, bool]:
    """Where a point's value stands clear of the line: pixels to the right, and whether below the point."""
    rises_before = i > 0 and values[i - 1] < values[i]
    falls_before = i > 0 and values[i - 1] > values[i]
    rises_after = i < len(values) - 1 and values[i + 1] > values[i]
    falls_after = i < len(values) - 1 and values[i + 1] < values[i]
    if ((falls_before or i == 0) and rises_after) or (falls_before and not falls_after):
        return 0, True  # a valley, or an end below its neighbour
    if rises_before and rises_after:
        return -size // 2, False
    if falls_before and falls_after:
        return size // 2, False
    return 0, False


def _names(rng: Rng, num: int) -> list[str]:
    style = rng.integer(0, 2)
    if style == 0:
        return [chr(ord("A") + i) for i in range(num)]
    if style == 1:
        start = rng.integer(0, len(MONTHS) - num)
        return list(MONTHS[start : start + num])
    return rng.pick([item for item in words.ITEMS if len(item) <= 4], num)


def _grid(canvas: Canvas, plot: Plot, step: int, face: str, size: int, ink: Colour) -> None:
    faint = (206, 206, 210)
    for i in range(6):
        y = plot.y(i * step)
        if i:
            canvas.pen.line((plot.left, y, plot.right, y), fill=faint)
        text = str(i * step)
        canvas.text(plot.left - 5 - set_line(text, face, size).ink[2], y + size // 3, text, face, size, ink)


def _bars(canvas: Canvas, rng: Rng, plot: Plot, names: list[str], values: list[int]) -> list[Box]:
    pitch = (plot.right - plot.left) / len(values)
    half = max(3, int(pitch * rng.uniform(0.25, 0.4)))
    palette = rng.shuffled([name for name in COLOURS if name != "black"])
    several = rng.chance(0.5)
    boxes = []
    for i, (name, value) in enumerate(zip(names, values)):
        colour = jitter(rng, COLOURS[palette[i if several else 0]], 12)
        centre, top = round(plot.left + pitch * (i + 0.5)), min(plot.y(value), plot.bottom - 1)
        # Pillow's rectangles include their last row and column; ours leave the axis in place.
        canvas.pen.rectangle((centre - half, top, centre + half, plot.bottom - 1), fill=colour)
        boxes.append(Box(centre - half, top, centre + half + 1, plot.bottom, name, str(value)))
    return boxes


def _points(canvas: Canvas, rng: Rng, plot: Plot, names: list[str], values: list[int]) -> list[Box]:
    pitch = (plot.right - plot.left) / len(values)
    name = rng.choice([name for name in COLOURS if name not in ("black", "yellow")])
    colour = jitter(rng, COLOURS[name], 12)
    centres = [(round(plot.left + pitch * (i + 0.5)), plot.y(v)) for i, v in enumerate(values)]
    canvas.pen.line(centres, fill=colour, width=2)
    radius = 4
    boxes = []
    for (x, y), label, value in zip(centres, names, values):
        canvas.pen.rectangle((x - radius, y - radius, x + radius, y + radius), fill=colour)
        boxes.append(Box(x - radius, y - radius, x + radius + 1, y + radius + 1, label, str(value)))
    return boxes
