"""What mini is trained on: sheets of dense text, synth's kinds, images by other code, and all questions about each."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from importlib import resources

import drawings
import numpy as np
from drawings import Asked, Drawing
from mini_schedule import LESSONS, TOWER_SHARE, Lesson, shares
from PIL import Image, ImageDraw, ImageFont
from targets import COLOUR_CLASS, SHAPE_CLASS
from tokenizer import SPECIAL, build  # noqa: F401  (SPECIAL is part of this module's interface)

from qvl.inputs.positions import VisualBlock, mrope_positions
from qvl.synth import KINDS, TRAIN_SEEDS, Clip, make, scenes, screen, words
from qvl.synth import chart as charts
from qvl.synth import clip as clips
from qvl.synth import field as fields
from qvl.synth import pair as pairs

UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
LOWER = UPPER.lower()
SIGNS = ".,:-/%$()#&+'\"!?=*"


@dataclass(frozen=True)
class Glyph:
    char: str
    x0: float
    y0: float
    x1: float
    y1: float
    line: int
    index: int


@dataclass(frozen=True)
class Shape:
    kind: str
    colour: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Sheet:
    """A picture filled with random text: many glyphs for each patch computed. Asked to read one of its lines."""

    media: tuple[Image.Image, ...]
    question: str
    answer: str
    glyphs: tuple[Glyph, ...]
    shapes: tuple[Shape, ...] = ()


_fonts: dict[tuple[str, int], ImageFont.FreeTypeFont] = {}


def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    if (name, size) not in _fonts:
        with resources.as_file(resources.files("qvl.synth") / "fonts" / name) as path:
            _fonts[name, size] = ImageFont.truetype(str(path), size)
    return _fonts[name, size]


FONTS = sorted(p.name for p in (resources.files("qvl.synth") / "fonts").iterdir() if p.name.endswith(".ttf"))


def word(rng: random.Random, level: float) -> str:
    r = rng.random() if level > 0.25 else rng.uniform(0, 0.4)
    n = rng.randint(1, 7)
    if rng.random() < 0.3 * level:
        # lower case is in screens, pages and everybody's text, but in none of the kinds that are read most
        text = (
            rng.choice(words.COMMON) if rng.random() < 0.5 else "".join(rng.choice(LOWER) for _ in range(n))
        )
        return text.capitalize() if rng.random() < 0.4 else text
    if r < 0.4:
        return "".join(rng.choice(UPPER + DIGITS) for _ in range(n))
    if r < 0.65:
        digits = "".join(rng.choice(DIGITS) for _ in range(rng.randint(1, 4)))
        return digits + rng.choice(["", ".", ":", "-", "/"]) + "".join(rng.choice(DIGITS) for _ in range(2))
    if r < 0.8:
        return "".join(rng.choice(UPPER) for _ in range(n))
    if r < 0.8 + 0.07 * level:
        return rng.choice(UPPER + LOWER) + "".join(rng.choice(LOWER) for _ in range(n))
    if r < 0.97:
        return "".join(rng.choice(DIGITS) for _ in range(n))
    return rng.choice(SIGNS) * rng.randint(1, 2)


def sheet(rng: random.Random, level: float, lines: int | None = None) -> Sheet:
    w, h = rng.choice([(112, 56), (112, 112), (168, 84), (140, 112), (168, 112), (196, 112)])
    easy = level < 0.25
    dark = rng.random() < 0.3 and not easy
    tone = lambda a, b: tuple(rng.randint(a, b) for _ in range(3))  # noqa: E731
    background, ink = (tone(0, 90), tone(190, 255)) if dark else (tone(195, 255), tone(0, 90))
    picture = Image.new("RGB", (w, h), background)
    draw = ImageDraw.Draw(picture)
    glyphs: list[Glyph] = []
    y, line = rng.randint(0, 10), 0
    texts = []
    while True:
        size = rng.randint(18, 28) if easy else rng.randint(15, 30)
        f = font(rng.choice(FONTS[:3] if easy else FONTS), size)
        ascent, descent = f.getmetrics()
        if y + ascent + descent * 0.6 > h or (lines is not None and line >= lines):
            break
        x = rng.randint(2, 40)
        text = word(rng, level)
        while f.getlength(text) + x < w - 2 and rng.random() < 0.7:
            text += " " + word(rng, level)
        while text and x + f.getlength(text) > w - 2:
            text = text[:-1].rstrip()
        if text:
            draw.text((x, y), text, font=f, fill=ink)
            for i, c in enumerate(text):
                if c != " ":
                    a, b = x + f.getlength(text[:i]), x + f.getlength(text[: i + 1])
                    glyphs.append(Glyph(c, a, y + ascent * 0.25, b, y + ascent, line, i))
            texts.append(text)
        line += 1
        y += int((ascent + descent) * rng.uniform(0.85, 1.3))
    a = np.asarray(picture)
    if rng.random() < 0.15 * level:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 12), a.shape)
        picture = Image.fromarray(np.clip(a + noise, 0, 255).astype(np.uint8))
    return Sheet((picture,), "Read the text.", "\n".join(texts), tuple(glyphs))


# ------------------------------------------------------------------------------------- many questions a picture


def questions_of(sample, rng: random.Random, most: int) -> list[Asked]:
    """The sample's own question and up to `most` - 1 more of its kind about the same picture.

    The tower's work and the picture's tokens are paid once, so a picture teaches several times for little more.
    """
    if isinstance(sample, Drawing):
        asked = list(sample.asked) or _shape_questions(sample, rng)
        return [replace(a, what=what_is_asked(a.question)) for a in asked[:most]]
    kind = getattr(sample, "kind", "sheet")
    own = _own(sample)
    others = {
        "find": _find, "count": _count, "field": _field, "chart": _chart, "screen": _screen, "pair": _pair,
        "clip": _clip,
    }  # fmt: skip
    if most < 2 or kind not in others:
        return [own]
    more = [
        replace(a, what=what_is_asked(a.question))
        for a in others[kind](sample, rng)
        if a.question != own.question
        and (a.answer != own.answer or kind in ("count", "field", "pair", "clip"))
    ]
    rng.shuffle(more)
    return [own, *more[: most - 1]]


def _own(sample) -> Asked:
    """The sample's own question, with what its answer has to look up."""
    kind, extra = getattr(sample, "kind", "sheet"), getattr(sample, "extra", {})
    asked = Asked(sample.question, sample.answer, what=what_is_asked(sample.question))
    if kind == "find":
        box = tuple(sample.boxes[0][:4])
        return replace(asked, box=box, written=box)
    if kind == "screen":
        return replace(_screen_asked(sample.boxes[0], asked.question), what=asked.what)
    if kind == "chart":
        name = sample.boxes[0].label  # of the highest bar the name is the answer, not what leads to it
        label = "" if name == sample.answer else name
        return replace(asked, box=tuple(sample.boxes[0][:4]), label=label)
    if kind == "clip":
        span = (extra["start_seconds"], extra["end_seconds"])
        return replace(asked, box=tuple(sample.boxes[0][:4]), seconds=span)
    if kind == "pair" and extra["task"] == "nth":
        return replace(asked, box=tuple(sample.boxes[0][:4]))
    if kind == "field" and extra["asked"].startswith("item:"):
        return replace(asked, label=extra["asked"].partition(":")[2])
    return asked


def _shape_questions(sample: Drawing, rng: random.Random) -> list[Asked]:
    """Where each shape is and how many there are, mixed."""
    asked = [*_find(sample, rng), *_count(sample, rng)[:3]]
    rng.shuffle(asked)
    return list({a.question: a for a in asked}.values())


def what_is_asked(question: str) -> tuple[int, int] | None:
    """The shape's kind and colour that the question names. None when it speaks of no shapes."""
    words = question.lower().replace("crosses", "cross").rstrip("?.").split()
    words = [w if w in SHAPE_CLASS or w in COLOUR_CLASS else w.removesuffix("s") for w in words]
    kinds = [SHAPE_CLASS[w] for w in words if w in SHAPE_CLASS]
    colours = [COLOUR_CLASS[w] for w in words if w in COLOUR_CLASS]
    if not kinds and "shape" not in words:
        return None
    return (kinds[0] if kinds else 0), (colours[0] if colours else 0)


def _find(sample, rng: random.Random) -> list[Asked]:
    names = [f"{s.colour} {s.kind}" for s in sample.shapes]
    out = []
    for name, shape in zip(names, sample.shapes):
        if names.count(name) == 1:
            box = tuple(int(v) for v in shape.box)
            answer = scenes.grounding_json([scenes.Box(*box, name)])
            out.append(Asked(rng.choice(scenes.FIND_QUESTIONS).format(name), answer, box, written=box))
    return out


def _count(sample, rng: random.Random) -> list[Asked]:
    """As draw_count asks: of everything, a kind, a colour or both, what is there more often than what isn't."""
    kinds, colours = tuple(scenes.SHAPES), tuple(scenes.COLOURS)
    out = []
    for by in ("all", "kind", "colour", "both", "kind", "colour"):
        there = rng.choice(sample.shapes) if sample.shapes and rng.random() < 0.85 else None
        kind, colour = (there.kind, there.colour) if there else (rng.choice(kinds), rng.choice(colours))
        count = sum(
            (by in ("all", "colour") or s.kind == kind) and (by in ("all", "kind") or s.colour == colour)
            for s in sample.shapes
        )
        noun = {
            "all": "shapes",
            "kind": scenes.plural(kind),
            "colour": f"{colour} shapes",
            "both": f"{colour} {scenes.plural(kind)}",
        }[by]
        out.append(Asked(rng.choice(scenes.COUNT_QUESTIONS).format(noun), str(count)))
    return out


def _field(sample, rng: random.Random) -> list[Asked]:
    out = []
    for key, value in sample.extra["fields"].items():
        topic, _, item = key.partition(":")
        if key == sample.extra["asked"] or topic not in fields.QUESTIONS:
            continue
        noun = item.lower()
        if topic == "number":
            noun = fields.NUMBER_LABELS.get(_label_beside(sample, key), "")
            if not noun:
                continue
        label = item if topic == "item" else ""
        out.append(Asked(rng.choice(fields.QUESTIONS[topic]).format(noun), value, label=label))
    return out


def _label_beside(sample, key: str) -> str:
    """The first word of the line that the value stands on."""
    box = next(b for b in sample.extra["value_boxes"] if b.label == key)
    middle = (box.y1 + box.y2) / 2
    rows = {g.line for g in sample.glyphs if g.y0 <= middle <= g.y1 and g.x0 >= box.x1 - 1}
    first = sorted((g for g in sample.glyphs if g.line in rows), key=lambda g: g.column)
    word = ""
    for g in first:
        if g.column != len(word) or not g.char.isalpha():
            break
        word += g.char
    return word.upper()


def _chart(sample, rng: random.Random) -> list[Asked]:
    values = sample.extra["values"]
    boxes = {box.label: tuple(box[:4]) for box in sample.extra["mark_boxes"]}
    out = [
        Asked(rng.choice(charts.VALUE_QUESTIONS).format(n), str(v), boxes[n], label=n)
        for n, v in values.items()
    ]
    for high in (True, False):
        best = (max if high else min)(values, key=values.get)
        out.append(Asked(rng.choice(charts.EXTREME_QUESTIONS[high]), best, boxes[best]))
    return out


def _screen(sample, rng: random.Random) -> list[Asked]:
    out = []
    for box in sample.extra["element_boxes"]:
        kind = box.label.rpartition(" ")[2]
        out.append(_screen_asked(box, rng.choice(screen.QUESTIONS[kind]).format(box.text)))
    return out


def _screen_asked(box, question: str) -> Asked:
    answer = screen.point_json(box)
    point = tuple(json.loads(answer)["point_2d"])
    return Asked(question, answer, tuple(box[:4]), label=box.text, written=point)


def _pair(sample, rng: random.Random) -> list[Asked]:
    """Of texts: what either says, and whether they say the same. Of shapes: which picture has more of each kind."""
    if sample.extra["task"] == "more":
        counts = [
            {
                kind: sum(s.kind == kind and s.picture == picture for s in sample.shapes)
                for kind in scenes.SHAPES
            }
            for picture in (0, 1)
        ]
        return [
            Asked(
                rng.choice(pairs.MORE_QUESTIONS).format(scenes.plural(kind)),
                pairs.ORDINALS[counts[1][kind] > counts[0][kind]],
            )
            for kind in scenes.SHAPES
            if counts[0][kind] != counts[1][kind] and kind != sample.extra["shape"]
        ]
    first, second = sample.extra["texts"]
    out = [Asked(rng.choice(pairs.SAME_QUESTIONS), "yes" if first == second else "no")]
    for picture, text in enumerate((first, second)):
        ink = [g for g in sample.glyphs if g.picture == picture]
        box = (min(g.x0 for g in ink), min(g.y0 for g in ink), max(g.x1 for g in ink), max(g.y1 for g in ink))
        question = rng.choice(pairs.NTH_QUESTIONS).format(pairs.ORDINALS[picture])
        out.append(Asked(question, text, box))
    return out


def _clip(sample, rng: random.Random) -> list[Asked]:
    """When each of the shapes that stay is seen: from the first frame to the last."""
    seconds = sample.media[0].seconds
    stay = {f"{s.colour} {s.kind}": s.box for s in sample.shapes if s.picture == 0}
    count = Counter(f"{s.colour} {s.kind}" for s in sample.shapes if s.picture == 0)
    return [
        Asked(
            rng.choice(clips.QUESTIONS).format(name),
            clips.seconds_text(0.0, seconds),
            tuple(box),
            seconds=(0.0, seconds),
        )
        for name, box in stay.items()
        if name != sample.extra["label"] and count[name] == 1
    ]


# ---------------------------------------------------------------------------------------------- what is drawn


def positions_of(ids: list[int], media: list, pads: tuple[int, int]) -> np.ndarray:
    """int64 (3, T): the rule that `ask` uses, over the prompt and the answer. `media`: (grid, seconds per grid)."""
    blocks, at = [], 0
    for grid, seconds in media:
        while ids[at] not in pads:
            at += 1
        blocks.append(VisualBlock(at, grid, seconds))
        at += grid.t * grid.h * grid.w // 4
    return mrope_positions(len(ids), blocks, tokens_per_second=2).positions


def two_a_second(clip: Clip) -> np.ndarray:
    """The frames that the processor takes at its default of 2 a second, an even number of them."""
    step = max(1, round(clip.fps / 2))
    frames = clip.frames[::step]
    return frames if len(frames) % 2 == 0 else np.concatenate([frames, frames[-1:]])


DRAWINGS = {
    "plain": drawings.plain_text,
    "shapes": drawings.plain_shapes,
    "unreadable": drawings.unreadable,
    "events": drawings.events,
}


def draw(rng: random.Random, done: float) -> tuple[str, list, int]:
    """(name of the lesson, samples of one micro-batch, questions about each), from training seeds only."""
    if done < TOWER_SHARE:
        if rng.random() < 0.85:
            return "sheet", [sheet(rng, done / TOWER_SHARE) for _ in range(36)], 1
        lesson = Lesson("find", 1, 24, ())
    else:
        lesson = rng.choices(LESSONS, shares(done))[0]
    if lesson.kind == "glyphs":
        return "glyphs", [sheet(rng, 1.0) for _ in range(lesson.size)], 1
    if lesson.kind == "sheet":
        # read a whole sheet of at most two lines: lines of many lengths, faces and tones
        return "sheet", [sheet(rng, 1.0, rng.randint(1, 2)) for _ in range(lesson.size)], 1
    if lesson.kind in DRAWINGS:
        return lesson.kind, [DRAWINGS[lesson.kind](rng) for _ in range(lesson.size)], lesson.questions
    seeds = [rng.randrange(TRAIN_SEEDS.start, TRAIN_SEEDS.stop) for _ in range(lesson.size)]
    samples = [make(lesson.kind, s, lesson.difficulty) for s in seeds]
    return f"{lesson.kind}{lesson.difficulty}", samples, lesson.questions


# what the answers of every kind are made of
FIXED = [
    '<html><body>\n<h1 data-bbox="', '<h2 data-bbox="', '<p data-bbox="', '<table data-bbox="', "<tr><td>",
    "</td><td>", "</td></tr>", "</table>\n", "</p>\n", "</h2>\n", "</body></html>", '[{"point_2d": [',
    '], "label": "', '"}]', "From 2.0 to 5.0 seconds.", "What is the value of", "What is the highest bar?",
    "Which picture has more circles, the first", "or the second?", "Do both pictures say the same?",
    "What does the second picture say?", "yes", "no", "first", "second", "Click the button.",
    "Where is the button?", "When does the red circle appear?", "Describe the picture.", "button", "field",
    "image", "chart", "line", "bar", "left", "right", "top", "bottom", "same", "different", "more", "less",
]  # fmt: skip


def make_tokenizer():
    texts = []
    for kind in KINDS:
        if kind == "read":
            continue  # what is read is copied glyph by glyph; its random words shall not become tokens
        for seed in range(400):
            sample = make(kind, seed, 1)
            texts += [sample.question, sample.answer]
    texts += FIXED * 100
    texts += ["user\n", "assistant\n", "system\n", "You are a helpful assistant."] * 100
    return build(texts, 640)
