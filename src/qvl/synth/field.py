"""Kind "field": receipts and forms, asked for one of their values."""

from __future__ import annotations

from typing import NamedTuple

from qvl.synth import words
from qvl.synth.canvas import Canvas, Colour, Worn, dark, gradient, ink_and_paper, jitter, light, wear
from qvl.synth.rng import Rng
from qvl.synth.sample import Box, Drawn
from qvl.synth.text import BOLD, set_line

QUESTIONS: dict[str, tuple[str, ...]] = {
    "total": ("What is the total?", "How much is the total?", "What is the total amount?"),
    "date": ("What is the date?", "What date is printed?", "Which date does it show?"),
    "number": ("What is the {} number?", "Read the {} number.", "Which {} number is printed?"),
    "tax": ("What is the tax?", "How much is the tax?"),
    "cash": ("How much cash was paid?", "What is the cash amount?"),
    "change": ("How much change was given?", "What is the change?"),
    "item": ("What is the price of {}?", "How much is {}?"),
    "shop": ("What is the name of the shop?", "Which shop is this from?"),
    "name": ("What is the name?", "Which name is filled in?"),
    "city": ("What is the city?", "Which city is filled in?"),
    "phone": ("What is the phone number?", "Read the phone number."),
}
# What a number may be called on paper, and in the question.
NUMBER_LABELS = {"NO": "invoice", "INVOICE": "invoice", "RECEIPT": "receipt", "ORDER": "order"}
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# Seven hundredths of the sum, rounded half up, in whole cents.
TAX_PERCENT = 7


class Line(NamedTuple):
    """One printed line: a label and its value, a heading (no label), or a rule (neither)."""

    key: str
    label: str
    value: str
    strong: bool = False


RULE = Line("rule", "", "")


class Look(NamedTuple):
    """How one document is set."""

    face: str
    size: int
    pitch: float
    layout: str  # "right": values at the right edge, "colon": right after the label, "column": at a tab stop
    ink: Colour
    left: int
    right: int
    top: int
    bottom: int


def draw(rng: Rng, difficulty: int, variant: str = "field") -> Drawn:
    """Difficulty 0: 2-3 large lines; 1: 4-7 lines of 16-20 px; 2: long, smaller, mixed case; 3: also worn."""
    form = {"receipt": False, "form": True}.get(variant) if variant != "field" else rng.chance(0.25)
    canvas, look = _paper(rng, difficulty, bool(form))
    asked, lines = (_form_lines if form else _receipt_lines)(rng, difficulty)
    if difficulty >= 2 and rng.chance(0.7):
        lines = [
            line._replace(label=_title_case(line.label), value=_title_case(line.value))
            if line.key not in ("number",)
            else line._replace(label=_title_case(line.label))
            for line in lines
        ]
    look = _fitted(lines, look)
    printed = _print_lines(canvas, rng, lines, look, bool(form))
    target = next(b for b in printed if b.label == asked)
    rest = tuple(b for b in printed if b is not target)
    worn = _finish(canvas, (target, *rest), rng, difficulty)
    line = next(line for line in lines if line.key == asked)
    topic = asked.partition(":")[0]
    noun = {"item": line.label.lower(), "number": NUMBER_LABELS.get(line.label.upper(), "")}.get(topic, "")
    return Drawn(
        media=(worn.image,),
        question=rng.choice(QUESTIONS[topic]).format(noun),
        answer=line.value,
        boxes=worn.boxes[:1],
        glyphs=worn.glyphs,
        extra={
            "asked": asked,
            "form": bool(form),
            "fields": {n.key: n.value for n in lines if n.key != "rule"},
            "value_boxes": worn.boxes,
            "size": look.size,
        },
    )


def money(cents: int, sign: str = "") -> str:
    return f"{sign}{cents // 100}.{cents % 100:02d}"


def _title_case(text: str) -> str:
    return " ".join(word.capitalize() for word in text.split(" "))


def _date(rng: Rng, difficulty: int) -> str:
    year, month, day = rng.integer(2019, 2027), rng.integer(1, 12), rng.integer(1, 28)
    style = rng.integer(0, 3) if difficulty >= 2 else 0
    return (
        f"{year}-{month:02d}-{day:02d}",
        f"{day:02d}/{month:02d}/{year}",
        f"{day:02d}.{month:02d}.{year}",
        f"{day} {MONTHS[month - 1]} {year}",
    )[style]


def _number(rng: Rng, difficulty: int) -> tuple[str, str]:
    digits = rng.text("0123456789", rng.integer(3, 4 if difficulty == 0 else 6))
    if difficulty >= 2 and rng.chance(0.4):
        digits = f"{rng.text('ABCDEFGHKMNPRSTX', rng.integer(1, 2))}-{digits}"
    return rng.choice(tuple(NUMBER_LABELS)), digits


def _receipt_lines(rng: Rng, difficulty: int) -> tuple[str, list[Line]]:
    """The key that will be asked and the lines from top to bottom. Prices, tax, total, cash and change add up."""
    sign = rng.choice(("", "$", "€", "£")) if difficulty >= 2 else ""
    cap = 999 if difficulty < 2 else 2999
    num_items = (0, rng.integer(1, 3), rng.integer(4, 8), rng.integer(3, 7))[difficulty]
    items = [(name, rng.integer(25, cap)) for name in rng.pick(words.ITEMS, num_items)]
    subtotal = sum(cents for _, cents in items) or rng.integer(100, 9999)

    weights = {"total": 32, "date": 24, "number": 20, "tax": 6, "cash": 6, "change": 4}
    if difficulty:
        weights |= {"item": 10, "shop": 5}
    topic = rng.weighted(tuple(weights), tuple(weights.values()))
    budget = (rng.integer(2, 3), rng.integer(4, 7), 99, 99)[difficulty] - num_items
    # Optional lines, the asked one first so that it is surely in; a total always is. Change needs cash.
    wanted = {"total", topic} - {"item"} | ({"cash"} if topic == "change" else set())
    optional = rng.shuffled(("date", "number", "tax", "cash", "change", "shop"))
    if rng.chance(0.5):
        optional.insert(0, "shop")
    for extra in optional:
        fits = len(wanted | {extra}) <= budget and (extra != "change" or "cash" in wanted)
        if fits and (difficulty or extra != "shop"):
            wanted.add(extra)

    tax = (subtotal * TAX_PERCENT + 50) // 100 if "tax" in wanted else 0
    total = subtotal + tax
    note = rng.choice((500, 1000, 2000, 5000))
    cash = -(-total // note) * note
    label, number = _number(rng, difficulty)
    sections = [
        [Line("shop", "", rng.choice(words.SHOPS), strong=True)],
        [Line("date", "DATE", _date(rng, difficulty)), Line("number", label, number)],
        [Line(f"item:{name}", name, money(cents, sign)) for name, cents in items],
        [
            Line("tax", "TAX", money(tax, sign)),
            Line("total", "TOTAL", money(total, sign), strong=rng.chance(0.6)),
        ],
        [Line("cash", "CASH", money(cash, sign)), Line("change", "CHANGE", money(cash - total, sign))],
    ]
    rules = difficulty >= 1 and rng.chance(0.6)
    if rng.chance(0.3):
        sections[1].reverse()
    lines: list[Line] = []
    for section in sections:
        kept = [line for line in section if line.key in wanted or line.key.startswith("item:")]
        if kept and rules and len(lines) > 1 and lines[-1] != RULE:
            lines.append(RULE)
        lines += kept
    asked = f"item:{rng.choice(items)[0]}" if topic == "item" else topic
    return asked, lines


def _form_lines(rng: Rng, difficulty: int) -> tuple[str, list[Line]]:
    label, number = _number(rng, difficulty)
    fields = {
        "date": Line("date", "DATE", _date(rng, difficulty)),
        "number": Line("number", label, number),
        "total": Line("total", rng.choice(("TOTAL", "AMOUNT")), money(rng.integer(100, 99999))),
        "name": Line("name", "NAME", rng.choice(words.NAMES)),
        "city": Line("city", "CITY", rng.choice(words.CITIES)),
        "phone": Line("phone", "PHONE", rng.text("0123456789", 3) + "-" + rng.text("0123456789", 4)),
    }
    num_lines = (rng.integer(2, 3), rng.integer(3, 5), 6, rng.integer(5, 6))[difficulty]
    asked = rng.weighted(tuple(fields), (26, 26, 26, 8, 8, 8))
    keys = rng.shuffled([asked, *rng.pick([k for k in fields if k != asked], num_lines - 1)])
    lines = [fields[key] for key in keys]
    if difficulty and rng.chance(0.8):
        title = rng.choice(("INVOICE", "ORDER FORM", "DELIVERY", "PERMIT", "TICKET", "CLAIM FORM"))
        lines.insert(0, Line("title", "", title, strong=True))
    return asked, lines


def _paper(rng: Rng, difficulty: int, form: bool) -> tuple[Canvas, Look]:
    """The sheet to print on: filling the image, or lying on a table."""
    if difficulty == 0:
        width, height = 28 * rng.integer(6, 7), 28 * rng.integer(3, 4)
    elif difficulty == 1:
        width, height = 28 * rng.integer(8, 9), 28 * rng.integer(8, 10)
    elif difficulty == 2:
        width, height = (28 * rng.integer(14, 16), 28 * rng.integer(12, 14)) if form else (336, 560)
    else:
        width, height = rng.integer(320, 420), rng.integer(380, 620)
    ink, paper = dark(rng, 0, 70), light(rng, 236)
    if difficulty == 0 and rng.chance(0.25):
        ink, paper = ink_and_paper(rng, 1.0)
    margin = 0
    if difficulty and rng.chance(0.5):
        margin = rng.integer(4, 8) if difficulty == 1 else rng.integer(8, 16)
        canvas = Canvas(width, height, jitter(rng, (168, 156, 140), 30))
        shadow = jitter(rng, (112, 104, 94), 10)
        canvas.pen.rectangle((margin + 2, margin + 2, width - margin + 1, height - margin + 1), fill=shadow)
        canvas.pen.rectangle((margin, margin, width - margin - 1, height - margin - 1), fill=paper)
    else:
        canvas = Canvas(width, height, paper)
    if difficulty >= 2:
        gradient(canvas, rng, 22)
    low, high = ((20, 24), (16, 20), (13, 19), (13, 19))[difficulty]
    faces = ("DejaVuSansMono", "DejaVuSans", "DejaVuSansCondensed", "DejaVuSerif")
    inside = margin + rng.integer(5, 9 if difficulty < 2 else 18)
    look = Look(
        face=rng.weighted(faces, (5, 3, 2, 2)),
        size=rng.integer(low, high),
        pitch=rng.uniform(1.25, 1.6),
        layout=rng.weighted(("right", "colon", "column"), (5, 3, 2) if not form else (1, 4, 5)),
        ink=ink,
        left=inside,
        right=width - inside,
        top=margin + 6,
        bottom=height - margin - 6,
    )
    return canvas, look


def _label(line: Line, layout: str) -> str:
    return f"{line.label}:" if line.label and layout == "colon" else line.label


def _face(line: Line, look: Look) -> str:
    return BOLD[look.face] if line.strong else look.face


def _width(line: Line, look: Look) -> int:
    face = _face(line, look)
    value = set_line(line.value, face, look.size).ink[2]
    if not line.label:
        return value
    return set_line(_label(line, look.layout), face, look.size).ink[2] + look.size // 2 + value


def _tab(lines: list[Line], look: Look) -> int:
    """Where values start in the "column" layout, from the left edge."""
    labels = [set_line(n.label, _face(n, look), look.size).ink[2] for n in lines if n.label]
    return max(labels) + look.size // 2


def _height(lines: list[Line], look: Look) -> int:
    rules = sum(line == RULE for line in lines)
    return round(look.size * look.pitch * (len(lines) - rules) + look.size * 0.6 * rules)


def _fitted(lines: list[Line], look: Look) -> Look:
    """The same look, set closer and then smaller until every line fits across and all fit down."""
    while look.size > 8:
        widest = max(_width(line, look) for line in lines)
        if look.layout == "column":
            values = max(set_line(n.value, _face(n, look), look.size).ink[2] for n in lines if n.label)
            widest = max(widest, _tab(lines, look) + values)
        across = widest <= look.right - look.left
        down = _height(lines, look) <= look.bottom - look.top
        if across and down:
            break
        if across and look.pitch > 1.25:
            look = look._replace(pitch=max(1.25, look.pitch - 0.1))
        elif not across and look.layout == "column":
            look = look._replace(layout="colon")
        elif not across and "Condensed" not in look.face:
            look = look._replace(face="DejaVuSansCondensed")
        else:
            look = look._replace(size=look.size - 1)
    return look


def _print_lines(canvas: Canvas, rng: Rng, lines: list[Line], look: Look, form: bool) -> list[Box]:
    """Prints from the top; returns a box per value, labelled with its key."""
    boxes: list[Box] = []
    free = look.bottom - look.top - _height(lines, look)
    y = float(look.top + rng.integer(0, max(0, min(free, 40))))
    faint = jitter(rng, (150, 150, 150), 20)
    tab = _tab(lines, look)
    dashes = rng.chance(0.7)
    for row, line in enumerate(lines):
        if line == RULE:
            at = round(y + look.size * 0.3)
            step = 7 if dashes else look.right
            for x in range(look.left, look.right, step):
                canvas.pen.line((x, at, min(x + min(step, look.right) - 3, look.right - 1), at), fill=faint)
            y += look.size * 0.6
            continue
        baseline = round(y + look.size * (look.pitch * 0.5 + 0.38))
        y += look.size * look.pitch
        face = _face(line, look)
        value = set_line(line.value, face, look.size)
        if not line.label:
            x = look.left + (look.right - look.left - value.ink[2]) // 2
        elif look.layout == "right":
            x = look.right - value.ink[2]
        elif look.layout == "column":
            x = look.left + tab
        else:
            x = look.left + set_line(_label(line, look.layout), face, look.size).ink[2] + look.size // 2
        first = 0
        if line.label:
            label = _label(line, look.layout)
            canvas.text(look.left, baseline, label, face, look.size, look.ink, line=row)
            first = len(label) + 1
        if form and line.label:
            under = baseline + look.size // 3
            canvas.pen.line((x, under, look.right - 1, under), fill=faint)
        box = canvas.text(x, baseline, value, colour=look.ink, line=row, first_column=first)
        boxes.append(Box(*box, line.key, line.value))
    return boxes


def _finish(canvas: Canvas, boxes: tuple[Box, ...], rng: Rng, difficulty: int) -> Worn:
    if difficulty >= 3:
        return wear(canvas, boxes, rng, degrees=3, blur=0.7, noise=14)
    if difficulty == 2 and rng.chance(0.5):
        return wear(canvas, boxes, rng, noise=8)
    return wear(canvas, boxes, rng)
