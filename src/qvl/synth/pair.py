"""Kind "pair": two images and a question across them."""

from __future__ import annotations

from qvl.synth import words
from qvl.synth.canvas import SHAPES, Canvas, Worn, ink_and_paper, jitter, wear
from qvl.synth.rng import Rng
from qvl.synth.sample import Box, Drawn
from qvl.synth.scenes import Thing, plural, scatter
from qvl.synth.text import FACES, fit_size, set_line

SAME_QUESTIONS = ("Do both pictures say the same?", "Is the text in the two pictures the same?")
NTH_QUESTIONS = ("What does the {} picture say?", "Read the text in the {} picture.")
MORE_QUESTIONS = (
    "Which picture has more {}, the first or the second?",
    "Where are more {}, in the first or the second picture?",
)
ORDINALS = ("first", "second")
CODE = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"


def draw(rng: Rng, difficulty: int) -> Drawn:
    """Difficulty 0: two short texts; 1: text or counting, images of 112-168; 2: longer and fuller; 3: also worn."""
    task = rng.choice(("same", "nth", "more")) if difficulty else rng.choice(("same", "nth"))
    return _count(rng, difficulty) if task == "more" else _text(rng, difficulty, task)


def _text(rng: Rng, difficulty: int, task: str) -> Drawn:
    first = _string(rng, difficulty)
    same = rng.chance(0.5) if task == "same" else rng.chance(0.1)
    second = first if same else _other(rng, first, difficulty)
    worn: list[Worn] = []
    for picture, text in enumerate((first, second)):
        width = 28 * (rng.integer(4, 6) if difficulty < 2 else rng.integer(6, 9))
        height = 28 * rng.integer(2, 3 + (difficulty > 0))
        ink, paper = ink_and_paper(rng)
        canvas = Canvas(width, height, paper, picture)
        face = rng.choice(FACES)
        size = fit_size(text, face, rng.integer(18, 26), width - 8)
        setting = set_line(text, face, size)
        x = 4 + rng.integer(0, max(0, width - 8 - setting.ink[2]))
        y = 4 - setting.ink[1] + rng.integer(0, max(0, height - 8 - (setting.ink[3] - setting.ink[1])))
        box = Box(*canvas.text(x, y, setting, colour=ink), "line", text, picture)
        worn.append(_finish(canvas, (box,), rng, difficulty))
    if task == "same":
        question, answer, boxes = (
            rng.choice(SAME_QUESTIONS),
            "yes" if same else "no",
            worn[0].boxes + worn[1].boxes,
        )
    else:
        which = rng.integer(0, 1)
        question = rng.choice(NTH_QUESTIONS).format(ORDINALS[which])
        answer, boxes = (first, second)[which], worn[which].boxes
    return Drawn(
        media=(worn[0].image, worn[1].image),
        question=question,
        answer=answer,
        boxes=boxes,
        glyphs=worn[0].glyphs + worn[1].glyphs,
        extra={"task": task, "texts": (first, second)},
    )


def _string(rng: Rng, difficulty: int) -> str:
    if difficulty < 2:
        return rng.text(CODE, rng.integer(2, 3 + 2 * difficulty))
    return f"{rng.choice(words.COMMON)} {rng.text(CODE, rng.integer(3, 5))}"


def _other(rng: Rng, text: str, difficulty: int) -> str:
    """Another text: a new one, or (from difficulty 1) the same with one character changed."""
    while True:
        if difficulty and rng.chance(0.5):
            at = rng.integer(0, len(text) - 1)
            changed = text if text[at] == " " else text[:at] + rng.choice(CODE) + text[at + 1 :]
        else:
            changed = _string(rng, difficulty)
        if changed.lower() != text.lower():
            return changed


def _count(rng: Rng, difficulty: int) -> Drawn:
    kind = rng.choice(tuple(SHAPES))
    colours = ("red", "green", "blue", "purple")
    most = 5 if difficulty == 1 else 8
    counts = rng.pick(range(most + 1), 2)  # two different counts: one image always has more
    worn: list[Worn] = []
    for picture, count in enumerate(counts):
        grey = rng.integer(228, 250)
        side = 28 * (rng.integer(5, 6) if difficulty < 2 else rng.integer(7, 8))
        canvas = Canvas(side, side, jitter(rng, (grey, grey, grey), 5), picture)
        others = [k for k in SHAPES if k != kind]
        things = [Thing(kind, rng.choice(colours)) for _ in range(count)]
        things += [
            Thing(rng.choice(others), rng.choice(colours)) for _ in range(rng.integer(0, 2 * difficulty))
        ]
        scatter(canvas, rng, rng.shuffled(things), (18, 34))
        boxes = tuple(
            Box(*s.box, f"{s.colour} {s.kind}", "", picture) for s in canvas.shapes if s.kind == kind
        )
        worn.append(_finish(canvas, boxes, rng, difficulty))
    return Drawn(
        media=(worn[0].image, worn[1].image),
        question=rng.choice(MORE_QUESTIONS).format(plural(kind)),
        answer=ORDINALS[counts[1] > counts[0]],
        boxes=worn[0].boxes + worn[1].boxes,
        shapes=worn[0].shapes + worn[1].shapes,
        extra={"task": "more", "counts": tuple(counts), "shape": kind},
    )


def _finish(canvas: Canvas, boxes: tuple[Box, ...], rng: Rng, difficulty: int) -> Worn:
    if difficulty >= 3:
        return wear(canvas, boxes, rng, degrees=4, blur=0.7, noise=12)
    return wear(canvas, boxes, rng)
