"""Kind "page": a document with headings, paragraphs, lists and tables, answered as QwenVL HTML.

The HTML is what Qwen2.5-VL writes: one element per block, `data-bbox="x1 y1 x2 y2"` in pixels, in reading order.
"""

from __future__ import annotations

from html import escape
from typing import NamedTuple

from qvl.synth import words
from qvl.synth.canvas import Canvas, Colour, dark, gradient, light, wear
from qvl.synth.rng import Rng
from qvl.synth.sample import Box, Drawn
from qvl.synth.text import BOLD, FACES, set_line

QUESTIONS = ("QwenVL HTML", "Write the page as QwenVL HTML.", "Parse this document as QwenVL HTML.")
HEADINGS = (
    "Report",
    "Notes",
    "Summary",
    "Plan",
    "Results",
    "Prices",
    "Methods",
    "Weather",
    "Travel",
    "Garden",
    "News",
)
COLUMNS = ("Item", "Price", "Size", "City", "Count", "Week", "Room")


class Block(NamedTuple):
    """One element: tag "h1", "h2", "p" or "table"; lines of text, or rows of cells."""

    tag: str
    lines: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def html(blocks: list[tuple[Block, tuple[int, int, int, int]]]) -> str:
    """The page's blocks with their boxes as QwenVL HTML, one element a line."""
    out = ["<html><body>"]
    for block, box in blocks:
        place = 'data-bbox="' + " ".join(map(str, box)) + '"'
        if block.tag == "table":
            head, *body = (
                "<tr>" + "".join(f"<{cell}>{escape(text, quote=False)}</{cell}>" for text in row) + "</tr>"
                for cell, row in ((("th" if i == 0 else "td"), row) for i, row in enumerate(block.rows))
            )
            out.append(f"<table {place}>{head}{''.join(body)}</table>")
        else:
            out.append(f"<{block.tag} {place}>{escape(' '.join(block.lines), quote=False)}</{block.tag}>")
    return "\n".join([*out, "</body></html>"])


def draw(rng: Rng, difficulty: int) -> Drawn:
    """Difficulty 0: one heading or paragraph; 1: 2-3 blocks on a small page; 2: 4-6 blocks; 3: also worn."""
    if difficulty == 0:
        width, height = 28 * rng.integer(5, 7), 28 * rng.integer(2, 4)
    elif difficulty == 1:
        width, height = 28 * rng.integer(8, 9), 28 * rng.integer(8, 10)
    elif difficulty == 2:
        width, height = 28 * rng.integer(14, 16), 28 * rng.integer(16, 20)
    else:
        width, height = rng.integer(400, 480), rng.integer(460, 580)
    paper: Colour = light(rng, 242)
    canvas = Canvas(width, height, paper)
    if difficulty >= 2:
        gradient(canvas, rng, 16)
    ink = dark(rng, 0, 60)
    face = rng.choice([f for f in FACES if f in BOLD])
    size = rng.integer(*((15, 20), (13, 16), (13, 16), (13, 16))[difficulty])
    margin = 6 if difficulty == 0 else rng.integer(8, 14) if difficulty == 1 else rng.integer(20, 32)
    most = (1, rng.integer(2, 3), rng.integer(4, 6), rng.integer(4, 6))[difficulty]

    y = margin
    done: list[tuple[Block, tuple[int, int, int, int]]] = []
    for i in range(most):
        tag = _tag(rng, i, most, done[-1][0].tag if done else "")
        text_size = size + {"h1": 5, "h2": 2}.get(tag, 0)
        room = height - margin - y
        used = _table(canvas, rng, face, size, ink, margin, y, room) if tag == "table" else None
        if tag != "table":
            style = BOLD[face] if tag != "p" else face
            used = _paragraph(canvas, rng, tag, style, text_size, ink, margin, y, room)
        if used is None:
            break
        done.append(used)
        y = used[1][3] + round(size * rng.uniform(0.7, 1.2))
    boxes = tuple(
        Box(*box, block.tag, " ".join(block.lines) or "\n".join(" ".join(r) for r in block.rows))
        for block, box in done
    )
    worn = (
        wear(canvas, boxes, rng, degrees=0, blur=0.7, noise=12)
        if difficulty >= 3
        else wear(canvas, boxes, rng)
    )
    return Drawn(
        media=(worn.image,),
        question=rng.choice(QUESTIONS),
        answer=html(done),
        boxes=worn.boxes,
        glyphs=worn.glyphs,
    )


def _tag(rng: Rng, position: int, count: int, before: str) -> str:
    if count == 1:
        return rng.choice(("h1", "p"))
    if position == 0:
        return "h1"
    if position == count - 1 and before != "table" and rng.chance(0.5):
        return "table"
    if before in ("p", "table") and rng.chance(0.4) and position < count - 1:
        return "h2"
    return "p" if before != "p" or rng.chance(0.5) else "table"


def _words(rng: Rng, count: int) -> list[str]:
    chosen = [rng.choice(words.COMMON) for _ in range(count)]
    if count > 3 and rng.chance(0.4):
        chosen[rng.integer(1, count - 1)] = str(rng.integer(2, 999))
    return [chosen[0].capitalize(), *chosen[1:]]


def _paragraph(
    canvas: Canvas, rng: Rng, tag: str, face: str, size: int, ink: Colour, left: int, top: int, room: int
) -> tuple[Block, tuple[int, int, int, int]] | None:
    """Sets words in lines as wide as the page allows. None when not one line has room."""
    pitch = round(size * 1.35)
    max_lines = min(1 if tag != "p" else 4, room // pitch)
    if max_lines < 1:
        return None
    if tag == "p":
        text = _words(rng, rng.integer(3, max(4, 5 * max_lines)))
        text[-1] += "."
    else:
        text = [rng.choice(HEADINGS)] + ([str(rng.integer(1, 2030))] if rng.chance(0.3) else [])
    lines: list[str] = []
    width = canvas.width - 2 * left
    for word in text:
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and set_line(longer, face, size).ink[2] <= width:
            lines[-1] = longer
        elif len(lines) < max_lines:
            lines.append(word)
        else:
            break
    boxes = [canvas.text(left, top + size + i * pitch, line, face, size, ink) for i, line in enumerate(lines)]
    return Block(tag, tuple(lines)), _around(boxes)


def _table(
    canvas: Canvas, rng: Rng, face: str, size: int, ink: Colour, left: int, top: int, room: int
) -> tuple[Block, tuple[int, int, int, int]] | None:
    """A ruled table of 2-3 columns. None when a head and one row have no room."""
    row_height = round(size * 1.6)
    num_rows = min(rng.integer(2, 5), room // row_height)
    if num_rows < 2:
        return None
    width = canvas.width - 2 * left
    num_columns = 3 if width >= 18 * size else 2
    head = tuple(rng.pick(COLUMNS, num_columns))
    rows = [head] + [tuple(_cell(rng, name) for name in head) for _ in range(num_rows - 1)]
    column = width // num_columns
    right, bottom = left + column * num_columns, top + row_height * num_rows
    for i in range(num_rows + 1):
        canvas.pen.line((left, top + i * row_height, right, top + i * row_height), fill=ink)
    for j in range(num_columns + 1):
        canvas.pen.line((left + j * column, top, left + j * column, bottom), fill=ink)
    for i, row in enumerate(rows):
        line = canvas.next_line
        start = 0
        for j, text in enumerate(row):
            baseline = top + i * row_height + round(size * 1.15)
            style = BOLD[face] if i == 0 else face
            x = left + j * column + size // 2
            canvas.text(x, baseline, text, style, size, ink, line=line, first_column=start)
            start += len(text) + 1
    return Block("table", rows=tuple(rows)), (left, top, right + 1, bottom + 1)


def _cell(rng: Rng, column: str) -> str:
    if column == "Item":
        return rng.choice(words.ITEMS).capitalize()[:6]
    if column == "City":
        return rng.choice(words.CITIES).capitalize()
    if column == "Price":
        return f"{rng.integer(0, 99)}.{rng.integer(0, 99):02d}"
    return str(rng.integer(1, 999))


def _around(boxes: list[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = zip(*boxes)
    return min(x1), min(y1), max(x2), max(y2)
