"""Images, pages, charts, screens and videos drawn from a seed, each with its known answer.

`make(kind, seed, difficulty)` draws the same sample on every machine. It feeds training, scoring and the
golden tests; judging an answer is left to `evaluate`. Numpy and Pillow are imported when the first
sample is drawn, not before.

Difficulty: 0 a first lesson, 1 the test level (clean, small), 2 longer and richer, 3 noisy and rotated.
"""

from __future__ import annotations

import importlib

from qvl.errors import QvlError
from qvl.synth.sample import Box, Clip, Drawn, Glyph, Sample, ShapeMark

__all__ = [
    "Box",
    "Clip",
    "Glyph",
    "KINDS",
    "MAX_DIFFICULTY",
    "Sample",
    "ShapeMark",
    "SynthError",
    "TEST_SEEDS",
    "TRAIN_SEEDS",
    "make",
    "resolve_kind",
]

# kind → the function that draws it: (Rng, difficulty) → Drawn
KINDS: dict[str, str] = {
    "read": "qvl.synth.read:draw",
    "field": "qvl.synth.field:draw",
    "find": "qvl.synth.scenes:draw_find",
    "count": "qvl.synth.scenes:draw_count",
    "chart": "qvl.synth.chart:draw",
    "page": "qvl.synth.page:draw",
    "screen": "qvl.synth.screen:draw",
    "clip": "qvl.synth.clip:draw",
    "pair": "qvl.synth.pair:draw",
}
# A narrower name draws only that variant of its kind.
VARIANTS: dict[str, str] = {"receipt": "field", "form": "field"}
MAX_DIFFICULTY = 3

# Whoever trains draws from the first, whoever tests from the second: a test sample was never trained on.
TRAIN_SEEDS = range(0, 10**9)
TEST_SEEDS = range(10**9, 2 * 10**9)


class SynthError(QvlError):
    """A kind, difficulty or script that can't be drawn; names what can."""


def resolve_kind(name: str) -> str:
    """The kind a name stands for: itself, or "field" for "receipt" and "form"."""
    kind = VARIANTS.get(name, name)
    if kind not in KINDS:
        raise SynthError(f"no kind of sample {name!r}; known: {', '.join([*KINDS, *VARIANTS])}")
    return kind


def make(kind: str, seed: int, difficulty: int = 1, *, script: str = "latin") -> Sample:
    """The sample of this kind and seed: the same pixels, question and answer every time.

    `script` is "latin", "ko" or "zh"; other than latin is for kind "read" and needs a font of the machine.

    Raises: SynthError for an unknown kind, a difficulty outside 0..3, a negative seed, or a missing font.
    """
    from qvl.synth.rng import Rng

    module, _, function = KINDS[resolve_kind(kind)].partition(":")
    if not 0 <= difficulty <= MAX_DIFFICULTY:
        raise SynthError(f"difficulty {difficulty} is outside 0..{MAX_DIFFICULTY}")
    if seed < 0:
        raise SynthError(f"seed {seed} is negative: use 0 or more")
    if script != "latin" and kind != "read":
        raise SynthError(f"script {script!r} is for kind 'read' only, not {kind!r}")
    choices = [script] if script != "latin" else [kind] if kind in VARIANTS else []
    draw = getattr(importlib.import_module(module), function)
    drawn: Drawn = draw(Rng(kind, seed, difficulty, *choices), difficulty, *choices)
    return Sample(
        kind=kind,
        seed=seed,
        difficulty=difficulty,
        media=drawn.media,
        question=drawn.question,
        answer=drawn.answer,
        boxes=drawn.boxes,
        glyphs=drawn.glyphs,
        shapes=drawn.shapes,
        extra=drawn.extra,
    )
