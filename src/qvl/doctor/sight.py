"""Sight: every part of every picture reaches the answer, and in its place. Holds for any weights: something changes,
and the probabilities of the answer's first tokens have to move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

from qvl.backends.answer import Answer, media_item
from qvl.doctor.patient import Patient
from qvl.doctor.pictures import blocks, changed, corners, flat, png
from qvl.doctor.probe import Finding, Picture, failed, not_supported, passed, plumbing
from qvl.doctor.verdicts import Trial, must_agree, must_differ

if TYPE_CHECKING:
    from PIL import Image

WORDS = "What is shown here?"


def _picture_seen(patient: Patient) -> Finding:
    unit, rng = patient.unit, patient.rng("picture")

    def trial() -> tuple[Answer, Answer]:
        first, second = (patient.ask([blocks(rng, 10 * unit, 10 * unit, unit)], WORDS) for _ in range(2))
        return first, second

    return must_differ(patient, {"A, B": trial, "C, D": trial}, "another picture of the same size")


def _colours(patient: Patient) -> Finding:
    unit = patient.unit
    side = 10 * unit
    colours = {"red": (200, 40, 40), "green": (40, 124, 40), "blue": (40, 40, 255), "grey": (90, 90, 90)}

    def shown(name: str) -> Answer:
        return patient.ask([flat(side, side, colours[name])], WORDS)

    grey = shown("grey")
    trials: dict[str, Trial] = {
        f"grey, {name}": partial(lambda name: (grey, shown(name)), name) for name in ("red", "green", "blue")
    }
    return must_differ(patient, trials, "a picture's colour at about the same brightness")


def _fine(patient: Patient) -> Finding:
    """Stripes of one pixel against their mean: what a second resizing or a lossy copy wipes out."""
    import numpy as np
    from PIL import Image

    side = 10 * patient.unit
    stripes = np.zeros((side, side, 3), np.uint8)
    stripes[:, ::2] = 254
    striped = Image.fromarray(stripes)

    def trial(picture: Image.Image) -> tuple[Answer, Answer]:
        return patient.ask([picture], WORDS), patient.ask([flat(side, side, (127, 127, 127))], WORDS)

    trials: dict[str, Trial] = {
        "upright": lambda: trial(striped),
        "lying": lambda: trial(striped.transpose(Image.Transpose.ROTATE_90)),
    }
    return must_differ(patient, trials, "stripes of one pixel instead of their mean")


def _corners(name: str, shape: Callable[[Patient], tuple[int, int]]) -> Callable[[Patient], Finding]:
    """A change in one corner alone: a mask, a crop or a lost window hides it, and some only in large pictures."""

    def run(patient: Patient) -> Finding:
        height, width = shape(patient)
        seen = patient.seen((height, width))
        if seen is not None and seen.visual_tokens + 64 > patient.room:
            return not_supported(
                f"a picture of {width}x{height} doesn't fit the context of {patient.room} tokens."
            )
        rng = patient.rng(name)
        base = blocks(rng, height, width, 2 * patient.unit)
        plain = patient.ask([base], WORDS)
        # a fifth of the shorter side: among 400 tokens, four that change may move an answer less than noise does
        side = max(2, min(height, width) // patient.unit // 5) * patient.unit
        spots = corners(height, width, side)

        def trial(where: str) -> tuple[Answer, Answer]:
            return plain, patient.ask([changed(base, rng, spots[where])], WORDS)

        trials: dict[str, Trial] = {where: partial(trial, where) for where in spots}
        found = must_differ(patient, trials, f"one corner of a picture of {width}x{height}")
        if found.status != "failed":
            return found
        unseen = str(found.numbers["unnoticed_where"]).split(", ")
        shown = tuple(
            Picture(f"changed at the {w}: no difference", changed(base, rng, spots[w])) for w in unseen[:2]
        )
        return replace(found, pictures=(Picture("the picture", base), *shown))

    return run


def _layout(patient: Patient) -> Finding:
    """A flat picture gives equal features in every place, so lying and standing differ by their positions alone.

    Rounding tells the two apart by less than real positions do, hence the larger bound.
    """
    unit, (short, long) = patient.unit, (4, 16)
    gaps = []
    for colour in ((200, 60, 60), (60, 90, 200), (240, 240, 240), (20, 20, 20)):
        lying = patient.ask([flat(short * unit, long * unit, colour)], WORDS)
        standing = patient.ask([flat(long * unit, short * unit, colour)], WORDS)
        gaps.append(patient.gap(lying, standing))
    if any(not g.same_text for g in gaps) and not patient.has_logprobs:
        return passed("flat pictures, lying and standing: the texts differ.")
    sizes = [g.any_nats for g in gaps if g.any_nats is not None]
    if not sizes:
        return not_supported(
            "the texts are the same, and the endpoint gives no log probabilities to look closer."
        )
    most = max(sizes)
    bound = max(LAYOUT_NATS, 2 * patient.noise)
    text = f"flat pictures of 16x4 and 4x16 units differ by up to {most:.2g} nats, rounding alone by under {bound:.2g}"
    return (passed if most > bound else failed)(f"{text}.", nats=round(most, 4), bound=bound)


LAYOUT_NATS = 0.02


def _order(patient: Patient) -> Finding:
    unit, rng = patient.unit, patient.rng("order")

    def drawn(height: int, width: int) -> Image.Image:
        return blocks(rng, height * unit, width * unit, unit)

    def two(*sizes: tuple[int, int]) -> tuple[Answer, Answer]:
        a, b = (drawn(*size) for size in sizes)
        return patient.ask([a, b], WORDS), patient.ask([b, a], WORDS)

    def three() -> tuple[Answer, Answer]:
        a, b, c = (drawn(6, 8) for _ in range(3))
        return patient.ask([a, b, c], WORDS), patient.ask([a, c, b], WORDS)

    trials: dict[str, Trial] = {
        "two of one size": lambda: two((8, 10), (8, 10)),
        "two of two sizes": lambda: two((8, 8), (6, 14)),
        "three": three,
    }
    return must_differ(patient, trials, "pictures in another order")


def _each(patient: Patient) -> Finding:
    unit, rng = patient.unit, patient.rng("each")
    a, b = (blocks(rng, 8 * unit, 10 * unit, unit) for _ in range(2))
    both = patient.ask([a, b], WORDS)

    def other() -> Image.Image:
        return blocks(rng, 8 * unit, 10 * unit, unit)

    trials: dict[str, Trial] = {
        "the first": lambda: (both, patient.ask([other(), b], WORDS)),
        "the second": lambda: (both, patient.ask([a, other()], WORDS)),
    }
    return must_differ(patient, trials, "one of two pictures")


def _words_around(patient: Patient) -> Finding:
    """Some servers move pictures to the front of the message, whatever stood before them."""
    unit, rng = patient.unit, patient.rng("around")

    def trial() -> tuple[Answer, Answer]:
        picture = media_item(blocks(rng, 8 * unit, 10 * unit, unit))
        text = {"type": "text", "text": WORDS}
        first, second = (
            patient.chat([{"role": "user", "content": content}], max_new_tokens=3)
            for content in ([picture, text], [text, picture])
        )
        return first, second

    return must_differ(patient, {"after, before": trial}, "words after or before the picture")


def _formats(patient: Patient) -> Finding:
    """The same pixels as PNG, lossless WebP and PNG with transparency that hides nothing."""
    picture = blocks(patient.rng("formats"), 9 * patient.unit, 11 * patient.unit, patient.unit)
    files = {"PNG": png(picture)}
    for name, image, options in (
        ("WebP", picture, {"lossless": True}),
        ("PNG with alpha", picture.convert("RGBA"), {}),
    ):
        out = BytesIO()
        image.save(out, name.split()[0], **options)
        files[name] = out.getvalue()
    answers = {name: patient.ask([data], WORDS, max_new_tokens=6) for name, data in files.items()}
    pairs = {name: (answers["PNG"], answer) for name, answer in answers.items() if name != "PNG"}
    return must_agree(patient, pairs, "the same pixels in other file formats")


def _small_shape(patient: Patient) -> tuple[int, int]:
    return 10 * patient.unit, 10 * patient.unit


def _large_shape(patient: Patient) -> tuple[int, int]:
    return patient.large, patient.large


def _wide_shape(patient: Patient) -> tuple[int, int]:
    return 6 * patient.unit, 36 * patient.unit


def _tall_shape(patient: Patient) -> tuple[int, int]:
    return 36 * patient.unit, 6 * patient.unit


_HIDDEN = ("window-mask", "attention-kernel")

PROBES = (
    plumbing(
        "picture-seen",
        "sight",
        "another picture gives another answer",
        _picture_seen,
        "cache-text-only",
        "language-only",
    ),
    plumbing("colours", "sight", "colours are seen", _colours, "picture-decoding", "language-only"),
    plumbing("fine-detail", "sight", "lines of one pixel are seen", _fine, "double-resize"),
    plumbing(
        "corners-small",
        "sight",
        "every corner of a small picture is seen",
        _corners("corners-small", _small_shape),
        *_HIDDEN,
    ),
    plumbing(
        "corners-large",
        "sight",
        "every corner of a large picture is seen",
        _corners("corners-large", _large_shape),
        *_HIDDEN,
    ),
    plumbing(
        "corners-wide",
        "sight",
        "both ends of a wide picture are seen",
        _corners("corners-wide", _wide_shape),
        *_HIDDEN,
    ),
    plumbing(
        "corners-tall",
        "sight",
        "both ends of a tall picture are seen",
        _corners("corners-tall", _tall_shape),
        *_HIDDEN,
    ),
    plumbing("layout", "sight", "rows and columns have positions of their own", _layout, "mrope"),
    plumbing("order", "sight", "the order of pictures matters", _order, "picture-order"),
    plumbing(
        "each-of-two", "sight", "each of two pictures is seen", _each, "picture-order", "cache-text-only"
    ),
    plumbing("words-around", "sight", "words stay on their side of a picture", _words_around, "template"),
    plumbing("formats", "sight", "file formats don't matter", _formats, "picture-decoding"),
)
