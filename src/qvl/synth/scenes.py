"""Kinds "find" and "count": coloured shapes that never overlap."""

from __future__ import annotations

import json
from typing import NamedTuple

from qvl.synth.canvas import COLOURS, SHAPES, Canvas, Rect, Worn, dark, gradient, jitter, shape_mask, wear
from qvl.synth.rng import Rng
from qvl.synth.sample import Box, Drawn

FIND_QUESTIONS = (
    "Locate the {}.",
    "Where is the {}?",
    "Find the {}.",
    "Give the bounding box of the {}.",
)
COUNT_QUESTIONS = ("How many {} are there?", "Count the {}.", "How many {} do you see?")
GAP = 5  # pixels of paper between two shapes


class Thing(NamedTuple):
    kind: str
    colour: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


def plural(kind: str) -> str:
    return "crosses" if kind == "cross" else f"{kind}s"


def grounding_json(boxes: list[Box]) -> str:
    """The list of boxes as Qwen2.5-VL writes it, in absolute pixels."""
    return json.dumps([{"bbox_2d": list(b[:4]), "label": b.label} for b in boxes])


def draw_find(rng: Rng, difficulty: int) -> Drawn:
    """One target among others; no other shape has both its kind and its colour.

    Difficulty 0: 1 or 2 shapes; 1: 1-5; 2: 4-9 that share the target's kind or colour; 3: also worn.
    """
    canvas = _paper(rng, difficulty, sides=((4, 6), (6, 8), (8, 10)))
    target = Thing(rng.choice(tuple(SHAPES)), rng.choice(_colours(canvas)))
    num_others = rng.integer(*((0, 1), (0, 4), (3, 8), (3, 8))[difficulty])
    others: list[Thing] = []
    while len(others) < num_others:
        other = Thing(rng.choice(tuple(SHAPES)), rng.choice(_colours(canvas)))
        if difficulty >= 2:  # near misses
            other = (
                other._replace(kind=target.kind) if rng.chance(0.5) else other._replace(colour=target.colour)
            )
        if other != target:
            others.append(other)
    sizes = ((28, 60), (22, 64), (16, 72), (16, 72))[difficulty]
    things = rng.shuffled([target, *others])
    boxes = scatter(canvas, rng, things, sizes)
    named = [Box(*box, thing.name) for thing, box in zip(things, boxes)]
    ordered = tuple(sorted(named, key=lambda b: b.label != target.name))  # the target first
    image, ordered, _, shapes = _finish(canvas, ordered, rng, difficulty)
    return Drawn(
        media=(image,),
        question=rng.choice(FIND_QUESTIONS).format(target.name),
        answer=grounding_json([ordered[0]]),
        boxes=ordered[:1],
        shapes=shapes,
    )


def draw_count(rng: Rng, difficulty: int) -> Drawn:
    """How many shapes of a colour, of a kind, of both, or in all; the answer is 0 to 9.

    Difficulty 0: up to 4 alike; 1: up to 9, sides 168-224; 2: smaller among more others; 3: also worn.
    """
    canvas = _paper(rng, difficulty, sides=((4, 6), (6, 8), (8, 10)))
    colours = _colours(canvas)
    wanted = Thing(rng.choice(tuple(SHAPES)), rng.choice(colours))
    asked = rng.choice(("all", "kind", "colour", "both")) if difficulty else "all"
    if asked == "all":
        count = rng.integer(0, 9) if difficulty else rng.integer(0, 4)
        num_others = 0
    else:
        count = rng.integer(0, 9 if difficulty >= 2 else 6)
        num_others = rng.integer(0 if count else 1, 5 if difficulty >= 2 else 9 - count)
    alike = asked == "all" and (difficulty == 0 or rng.chance(0.5))

    def random_thing() -> Thing:
        return Thing(rng.choice(tuple(SHAPES)), rng.choice(colours))

    def matches(t: Thing) -> bool:
        same_kind, same_colour = t.kind == wanted.kind, t.colour == wanted.colour
        return {"all": True, "kind": same_kind, "colour": same_colour, "both": t == wanted}[asked]

    things: list[Thing] = []
    for _ in range(count):
        thing = random_thing()
        if asked in ("kind", "both") or alike:
            thing = thing._replace(kind=wanted.kind)
        if asked in ("colour", "both") or alike:
            thing = thing._replace(colour=wanted.colour)
        things.append(thing)
    while len(things) < count + num_others:
        thing = random_thing()
        if not matches(thing):
            things.append(thing)
    sizes = ((24, 40), (20, 40), (16, 36), (16, 36))[difficulty]
    scatter(canvas, rng, rng.shuffled(things), sizes)
    noun = {
        "all": "shapes",
        "kind": plural(wanted.kind),
        "colour": f"{wanted.colour} shapes",
        "both": f"{wanted.colour} {plural(wanted.kind)}",
    }[asked]
    drawn = {s.box: Thing(s.kind, s.colour) for s in canvas.shapes}
    boxes = tuple(Box(*box, thing.name) for box, thing in drawn.items() if matches(thing))
    image, boxes, _, shapes = _finish(canvas, boxes, rng, difficulty)
    return Drawn(
        media=(image,),
        question=rng.choice(COUNT_QUESTIONS).format(noun),
        answer=str(count),
        boxes=boxes,
        shapes=shapes,
        extra={"asked": asked, "noun": noun},
    )


def scatter(
    canvas: Canvas, rng: Rng, things: list[Thing], sizes: tuple[int, int], margin: int = 3
) -> list[Rect]:
    """Draws the things at random places, GAP pixels apart. Returns their boxes."""
    boxes = []
    for thing, (x, y, size) in zip(things, plan(canvas, rng, things, sizes, margin)):
        boxes.append(
            canvas.shape(x, y, thing.kind, thing.colour, size, jitter(rng, COLOURS[thing.colour], 14))
        )
    return boxes


class Spot(NamedTuple):
    """Where a shape's ink starts, and the size to draw it at."""

    x: int
    y: int
    size: int


def plan(
    canvas: Canvas, rng: Rng, things: list[Thing], sizes: tuple[int, int], margin: int = 3
) -> list[Spot]:
    """Random places GAP pixels apart; a thing that finds no room is tried smaller. Draws nothing."""
    taken: list[Rect] = []
    spots = []
    for thing in things:
        size = rng.integer(*sizes)
        while True:
            mask = shape_mask(thing.kind, size)
            spot = _free_spot(canvas, rng, mask.size, taken, margin)
            if spot:
                break
            size = max(8, size - 4)
        x, y = spot
        taken.append((x, y, x + mask.width, y + mask.height))
        spots.append(Spot(x, y, size))
    return spots


def _free_spot(
    canvas: Canvas, rng: Rng, size: tuple[int, int], taken: list[Rect], margin: int
) -> tuple[int, int] | None:
    w, h = size
    if w > canvas.width - 2 * margin or h > canvas.height - 2 * margin:
        return None
    for _ in range(40):
        x = rng.integer(margin, canvas.width - margin - w)
        y = rng.integer(margin, canvas.height - margin - h)
        if all(
            x >= x2 + GAP or x1 >= x + w + GAP or y >= y2 + GAP or y1 >= y + h + GAP
            for x1, y1, x2, y2 in taken
        ):
            return x, y
    return None


def _paper(rng: Rng, difficulty: int, sides: tuple[tuple[int, int], ...]) -> Canvas:
    if difficulty >= 3:
        width, height = rng.integer(220, 300), rng.integer(220, 300)
    else:
        width, height = 28 * rng.integer(*sides[difficulty]), 28 * rng.integer(*sides[difficulty])
    grey = rng.integer(225, 250)
    paper = jitter(rng, (grey, grey, grey), 5)
    if difficulty >= 2 and rng.chance(0.3):
        paper = dark(rng, 40, 70)
    canvas = Canvas(width, height, paper)
    if difficulty >= 2:
        gradient(canvas, rng, 24)
    return canvas


def _colours(canvas: Canvas) -> tuple[str, ...]:
    """Every colour that shows on this paper: black doesn't on dark."""
    dim = sum(canvas.paper) < 384
    return tuple(name for name in COLOURS if not (dim and name == "black"))


def _finish(canvas: Canvas, boxes: tuple[Box, ...], rng: Rng, difficulty: int) -> Worn:
    if difficulty >= 3:
        return wear(canvas, boxes, rng, degrees=4, blur=0.8, noise=14)
    return wear(canvas, boxes, rng)
