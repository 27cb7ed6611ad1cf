"""Kind "screen": a window with buttons, fields and boxes to tick; the answer is the point to click."""

from __future__ import annotations

import json

from qvl.synth.canvas import Canvas, Colour, Rect, dark, jitter, light, wear
from qvl.synth.rng import Rng
from qvl.synth.sample import Box, Drawn
from qvl.synth.text import fit_size, set_line

BUTTONS = (
    "OK",
    "Cancel",
    "Save",
    "Send",
    "Open",
    "Close",
    "Next",
    "Back",
    "Login",
    "Help",
    "Buy",
    "Delete",
    "Print",
)
FIELDS = ("Name", "Email", "City", "Phone", "Search", "Street", "Code", "Title")
TICKS = ("Remember me", "Send news", "Dark mode", "Sounds", "Updates")
TITLES = ("Settings", "Sign in", "Order", "Contact", "Profile", "Search", "Mail", "Files")
QUESTIONS = {
    "button": ("Click the {} button.", "Press {}.", "Where do I click for {}?"),
    "field": ("Click the {} field.", "Where is the {} field?"),
    "checkbox": ("Click the {} checkbox.", "Tick {}."),
}


def point_json(box: Box) -> str:
    """A click as Qwen2.5-VL writes a point: the centre of the target, absolute pixels."""
    point = [(box.x1 + box.x2) // 2, (box.y1 + box.y2) // 2]
    return json.dumps({"point_2d": point, "label": box.label})


def draw(rng: Rng, difficulty: int) -> Drawn:
    """Difficulty 0: 1-2 buttons; 1: a title bar and 2-4 rows; 2: 5-7 rows; 3: also worn."""
    if difficulty == 0:
        width, height = 28 * rng.integer(5, 7), 28 * rng.integer(3, 5)
    elif difficulty == 1:
        width, height = 28 * rng.integer(8, 10), 28 * rng.integer(7, 9)
    elif difficulty == 2:
        width, height = 28 * rng.integer(12, 16), 28 * rng.integer(12, 15)
    else:
        width, height = rng.integer(340, 460), rng.integer(340, 430)
    night = rng.chance(0.25)
    paper: Colour = dark(rng, 24, 60) if night else light(rng, 228)
    ink = light(rng, 215) if night else dark(rng, 0, 60)
    accent = jitter(rng, rng.choice(((30, 100, 220), (20, 140, 90), (190, 60, 50), (110, 70, 180))), 20)
    canvas = Canvas(width, height, paper)
    face = rng.choice(("DejaVuSans", "DejaVuSansCondensed", "DejaVuSans-Bold"))
    size = rng.integer(14, 17)
    y = 0
    if difficulty:
        bar = size + 12
        canvas.pen.rectangle((0, 0, width - 1, bar - 1), fill=accent)
        canvas.text(8, bar - 8, rng.choice(TITLES), face, size, (255, 255, 255))
        _window_buttons(canvas, bar)
        y = bar
    rows = _rows(rng, difficulty)
    pitch = (height - y) // len(rows)
    boxes: list[Box] = []
    for row in rows:
        boxes += _row(canvas, rng, row, (6, y, width - 6, y + pitch), face, size, ink, accent, night)
        y += pitch
    target = rng.choice(boxes)
    ordered = (target, *(b for b in boxes if b is not target))
    worn = wear(canvas, ordered, rng, blur=0.6, noise=10) if difficulty >= 3 else wear(canvas, ordered, rng)
    kind = target.label.rpartition(" ")[2]
    return Drawn(
        media=(worn.image,),
        question=rng.choice(QUESTIONS[kind]).format(target.text),
        answer=point_json(worn.boxes[0]),
        boxes=worn.boxes[:1],
        glyphs=worn.glyphs,
        extra={"element_boxes": worn.boxes},
    )


def _rows(rng: Rng, difficulty: int) -> list[tuple[str, tuple[str, ...]]]:
    """(what, captions) per row; no caption comes twice."""
    num = (1, rng.integer(2, 4), rng.integer(5, 7), rng.integer(5, 7))[difficulty]
    fields, ticks, buttons = rng.shuffled(FIELDS), rng.shuffled(TICKS), rng.shuffled(BUTTONS)
    rows: list[tuple[str, tuple[str, ...]]] = []
    for i in range(num):
        last = i == num - 1
        what = "button" if last else rng.weighted(("field", "checkbox", "button"), (5, 2, 2))
        if what == "checkbox" and not ticks:
            what = "field"
        if what == "button":
            count = rng.integer(1, 2 if difficulty < 2 or not last else 3)
            rows.append((what, tuple(buttons.pop() for _ in range(count))))
        else:
            rows.append((what, ((fields if what == "field" else ticks).pop(),)))
    return rows


def _row(
    canvas: Canvas,
    rng: Rng,
    row: tuple[str, tuple[str, ...]],
    area: Rect,
    face: str,
    size: int,
    ink: Colour,
    accent: Colour,
    night: bool,
) -> list[Box]:
    what, captions = row
    x1, y1, x2, y2 = area
    middle = (y1 + y2) // 2
    baseline = middle + size * 3 // 8
    if what == "checkbox":
        side = size
        box = (x1 + 6, middle - side // 2, x1 + 6 + side, middle - side // 2 + side)
        canvas.pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=ink, width=2)
        canvas.text(box[2] + 8, baseline, captions[0], face, size, ink)
        return [Box(*box, f"{captions[0]} checkbox", captions[0])]
    if what == "field":
        label = captions[0]
        canvas.text(x1 + 6, baseline, label, face, size, ink)
        start = max(x1 + 12 + set_line(label, face, size).ink[2], x1 + (x2 - x1) * 2 // 5)
        half = min(size, (y2 - y1) // 2 - 2)
        box = (start, middle - half, x2 - 6, middle + half)
        fill = (70, 70, 76) if night else (255, 255, 255)
        canvas.pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=fill, outline=(140, 140, 146))
        return [Box(*box, f"{label} field", label)]
    boxes = []
    cell = (x2 - x1) // len(captions)
    for i, caption in enumerate(captions):
        small = fit_size(caption, face, size, cell - 24)
        text_width = set_line(caption, face, small).ink[2]
        room = cell - 10 - text_width - 12
        w = text_width + 12 + rng.integer(0, max(0, min(room, 40)))
        h = min(small + rng.integer(8, 14), y2 - y1 - 2)
        left = x1 + i * cell + 5 + rng.integer(0, max(0, cell - 10 - w))
        top = middle - h // 2
        filled = i == 0 or rng.chance(0.4)
        fill = accent if filled else canvas.paper
        canvas.pen.rounded_rectangle(
            (left, top, left + w - 1, top + h - 1), radius=rng.choice((0, 3, 6)), fill=fill, outline=accent
        )
        colour = (255, 255, 255) if filled else ink
        canvas.text(left + (w - text_width) // 2, middle + small * 3 // 8, caption, face, small, colour)
        boxes.append(Box(left, top, left + w, top + h, f"{caption} button", caption))
    return boxes


def _window_buttons(canvas: Canvas, bar: int) -> None:
    """Three dots at the right of a title bar."""
    for i in range(3):
        x = canvas.width - 12 - 14 * i
        canvas.pen.ellipse((x - 3, bar // 2 - 3, x + 3, bar // 2 + 3), fill=(255, 255, 255))
