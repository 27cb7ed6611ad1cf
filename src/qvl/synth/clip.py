"""Kind "clip": a short video in which one shape appears and leaves at known seconds."""

from __future__ import annotations

import numpy as np

from qvl.synth.canvas import COLOURS, SHAPES, Canvas, jitter
from qvl.synth.rng import Rng
from qvl.synth.sample import Box, Clip, Drawn, ShapeMark
from qvl.synth.scenes import Thing, plan

QUESTIONS = (
    "When does the {} appear?",
    "When is the {} visible?",
    "From when to when is the {} on screen?",
)


def seconds_text(start: float, end: float) -> str:
    return f"From {start:.1f} to {end:.1f} seconds."


def draw(rng: Rng, difficulty: int) -> Drawn:
    """Difficulty 0: 4 s at 1 fps, nothing else in view; 1: 4-6 s at 2 fps, up to 2 others that stay; 2: 6-10 s,
    others drift; 3: 8-12 s with noise. The shape is on screen in every frame whose time t has start <= t < end."""
    fps = 1 if difficulty == 0 else 2
    seconds = (4, rng.integer(4, 6), rng.integer(6, 10), rng.integer(8, 12))[difficulty]
    side = 28 * (4 if difficulty < 2 else rng.integer(4, 6))
    num_frames = seconds * fps
    first = rng.integer(0, num_frames - fps - 1)
    last = rng.integer(first + fps, num_frames)  # the first frame without it again

    grey = rng.integer(226, 248)
    stage = Canvas(side, side, jitter(rng, (grey, grey, grey), 5))
    target = Thing(rng.choice(tuple(SHAPES)), rng.choice(tuple(COLOURS)))
    others: list[Thing] = []
    num_others = (0, rng.integer(0, 2), rng.integer(1, 3), rng.integer(1, 3))[difficulty]
    while len(others) < num_others:
        other = Thing(rng.choice(tuple(SHAPES)), rng.choice(tuple(COLOURS)))
        if other != target:
            others.append(other)
    things = [target, *others]
    spots = plan(stage, rng, things, ((32, 52), (24, 44), (22, 40), (22, 40))[difficulty], margin=8)
    fills = [jitter(rng, COLOURS[t.colour], 12) for t in things]
    drift = [rng.integer(-2, 2) if difficulty >= 2 else 0 for _ in things]
    level = rng.uniform(3, 12)

    frames = np.empty((num_frames, side, side, 3), np.uint8)
    marks: list[ShapeMark] = []
    boxes: list[Box] = []
    for t in range(num_frames):
        canvas = Canvas(side, side, stage.paper, picture=t)
        for i, (thing, spot) in enumerate(zip(things, spots)):
            if i == 0 and not first <= t < last:
                continue
            # Two pixels to and fro stay within the gap that the plan leaves.
            x = spot.x + (drift[i] if t % 2 else 0)
            box = canvas.shape(x, spot.y, thing.kind, thing.colour, spot.size, fills[i])
            if i == 0:
                boxes.append(Box(*box, target.name, picture=t))
        marks += canvas.shapes
        pixels = np.asarray(canvas.image)
        if difficulty >= 3:
            noisy = pixels + rng.noise(pixels.shape) * np.float32(level)
            pixels = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        frames[t] = pixels
    start, end = first / fps, last / fps
    return Drawn(
        media=(Clip(frames, float(fps)),),
        question=rng.choice(QUESTIONS).format(target.name),
        answer=seconds_text(start, end),
        boxes=tuple(boxes),
        shapes=tuple(marks),
        extra={"start_seconds": start, "end_seconds": end, "label": target.name},
    )
