"""Sight: every part of every image reaches the answer, and in its place. Holds for any weights: something changes,
and the probabilities of the answer's first tokens have to move.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image

from qvl.backends.answer import Answer, media_item
from qvl.doctor.endpoint import EndpointUnderTest
from qvl.doctor.images import blocks, changed, corners, flat, png
from qvl.doctor.probe import EvidenceImage, Finding, Run, failed, not_supported, passed, plumbing
from qvl.doctor.verdicts import Trial, must_agree, must_differ

WORDS = "What is shown here?"


def _image_seen(endpoint: EndpointUnderTest) -> Finding:
    unit, rng = endpoint.unit, endpoint.rng("picture")

    def trial() -> tuple[Answer, Answer]:
        first, second = (endpoint.ask([blocks(rng, 10 * unit, 10 * unit, unit)], WORDS) for _ in range(2))
        return first, second

    return must_differ(endpoint, {"A, B": trial, "C, D": trial}, "another image of the same size")


def _colours(endpoint: EndpointUnderTest) -> Finding:
    unit = endpoint.unit
    side = 10 * unit
    colours = {"red": (200, 40, 40), "green": (40, 124, 40), "blue": (40, 40, 255), "grey": (90, 90, 90)}

    def shown(name: str) -> Answer:
        return endpoint.ask([flat(side, side, colours[name])], WORDS)

    grey = shown("grey")
    trials: dict[str, Trial] = {
        f"grey, {name}": partial(lambda name: (grey, shown(name)), name) for name in ("red", "green", "blue")
    }
    return must_differ(endpoint, trials, "an image's colour at about the same brightness")


def _fine(endpoint: EndpointUnderTest) -> Finding:
    """Stripes of one pixel against their mean: what a second resizing or a lossy copy wipes out."""
    side = 10 * endpoint.unit
    stripes = np.zeros((side, side, 3), np.uint8)
    stripes[:, ::2] = 254
    striped = Image.fromarray(stripes)

    def trial(image: Image.Image) -> tuple[Answer, Answer]:
        return endpoint.ask([image], WORDS), endpoint.ask([flat(side, side, (127, 127, 127))], WORDS)

    trials: dict[str, Trial] = {
        "upright": lambda: trial(striped),
        "lying": lambda: trial(striped.transpose(Image.Transpose.ROTATE_90)),
    }
    return must_differ(endpoint, trials, "stripes of one pixel instead of their mean")


def _corners(name: str, rows: int = 0, columns: int = 0) -> Run:
    """A change in one corner alone: a mask, a crop or a lost window hides it, and some only in large images.

    rows, columns: of the image, in units; as large as the endpoint takes when left out.
    """

    def run(endpoint: EndpointUnderTest) -> Finding:
        height, width = (n * endpoint.unit or endpoint.large for n in (rows, columns))
        seen = endpoint.seen((height, width))
        if seen is not None and seen.visual_tokens + 64 > endpoint.room:
            return not_supported(
                f"an image of {width}x{height} doesn't fit the context of {endpoint.room} tokens."
            )
        rng = endpoint.rng(name)
        base = blocks(rng, height, width, 2 * endpoint.unit)
        plain = endpoint.ask([base], WORDS)
        # a fifth of the shorter side: among 400 tokens, four that change may move an answer less than noise does
        side = max(2, min(height, width) // endpoint.unit // 5) * endpoint.unit
        spots = corners(height, width, side)

        def trial(where: str) -> tuple[Answer, Answer]:
            return plain, endpoint.ask([changed(base, rng, spots[where])], WORDS)

        trials: dict[str, Trial] = {where: partial(trial, where) for where in spots}
        found = must_differ(endpoint, trials, f"one corner of an image of {width}x{height}")
        if found.status != "failed":
            return found
        unseen = str(found.numbers["unnoticed_where"]).split(", ")
        shown = tuple(
            EvidenceImage(f"changed at the {w}: no difference", changed(base, rng, spots[w]))
            for w in unseen[:2]
        )
        return replace(found, images=(EvidenceImage("the image", base), *shown))

    return run


def _layout(endpoint: EndpointUnderTest) -> Finding:
    """A flat image gives equal features in every place, so lying and standing differ by their positions alone.

    Rounding tells the two apart by less than real positions do, hence the larger bound.
    """
    unit, (short, long) = endpoint.unit, (4, 16)
    gaps = []
    for colour in ((200, 60, 60), (60, 90, 200), (240, 240, 240), (20, 20, 20)):
        lying = endpoint.ask([flat(short * unit, long * unit, colour)], WORDS)
        standing = endpoint.ask([flat(long * unit, short * unit, colour)], WORDS)
        gaps.append(endpoint.gap(lying, standing))
    if any(not g.same_text for g in gaps) and not endpoint.has_logprobs:
        return passed("flat images, lying and standing: the texts differ.")
    sizes = [g.any_nats for g in gaps if g.any_nats is not None]
    if not sizes:
        return not_supported(
            "the texts are the same, and the endpoint gives no log probabilities to look closer."
        )
    most = max(sizes)
    bound = max(LAYOUT_NATS, 2 * endpoint.noise)
    text = f"flat images of 16x4 and 4x16 units differ by up to {most:.2g} nats, rounding alone by under {bound:.2g}"
    return (passed if most > bound else failed)(f"{text}.", nats=round(most, 4), bound=bound)


LAYOUT_NATS = 0.02


def _order(endpoint: EndpointUnderTest) -> Finding:
    unit, rng = endpoint.unit, endpoint.rng("order")

    def drawn(height: int, width: int) -> Image.Image:
        return blocks(rng, height * unit, width * unit, unit)

    def two(*sizes: tuple[int, int]) -> tuple[Answer, Answer]:
        a, b = (drawn(*size) for size in sizes)
        return endpoint.ask([a, b], WORDS), endpoint.ask([b, a], WORDS)

    def three() -> tuple[Answer, Answer]:
        a, b, c = (drawn(6, 8) for _ in range(3))
        return endpoint.ask([a, b, c], WORDS), endpoint.ask([a, c, b], WORDS)

    trials: dict[str, Trial] = {
        "two of one size": lambda: two((8, 10), (8, 10)),
        "two of two sizes": lambda: two((8, 8), (6, 14)),
        "three": three,
    }
    return must_differ(endpoint, trials, "images in another order")


def _each(endpoint: EndpointUnderTest) -> Finding:
    unit, rng = endpoint.unit, endpoint.rng("each")
    a, b = (blocks(rng, 8 * unit, 10 * unit, unit) for _ in range(2))
    both = endpoint.ask([a, b], WORDS)

    def other() -> Image.Image:
        return blocks(rng, 8 * unit, 10 * unit, unit)

    trials: dict[str, Trial] = {
        "the first": lambda: (both, endpoint.ask([other(), b], WORDS)),
        "the second": lambda: (both, endpoint.ask([a, other()], WORDS)),
    }
    return must_differ(endpoint, trials, "one of two images")


def _words_around(endpoint: EndpointUnderTest) -> Finding:
    """Some servers move images to the front of the message, whatever stood before them."""
    unit, rng = endpoint.unit, endpoint.rng("around")

    def trial() -> tuple[Answer, Answer]:
        image = media_item(blocks(rng, 8 * unit, 10 * unit, unit))
        text = {"type": "text", "text": WORDS}
        first, second = (
            endpoint.chat([{"role": "user", "content": content}], max_new_tokens=3)
            for content in ([image, text], [text, image])
        )
        return first, second

    return must_differ(endpoint, {"after, before": trial}, "words after or before the image")


def _formats(endpoint: EndpointUnderTest) -> Finding:
    """The same pixels as PNG, lossless WebP and PNG with transparency that hides nothing."""
    original = blocks(endpoint.rng("formats"), 9 * endpoint.unit, 11 * endpoint.unit, endpoint.unit)
    files = {"PNG": png(original)}
    for name, image, options in (
        ("WebP", original, {"lossless": True}),
        ("PNG with alpha", original.convert("RGBA"), {}),
    ):
        out = BytesIO()
        image.save(out, name.split()[0], **options)
        files[name] = out.getvalue()
    answers = {name: endpoint.ask([data], WORDS, max_new_tokens=6) for name, data in files.items()}
    pairs = {name: (answers["PNG"], answer) for name, answer in answers.items() if name != "PNG"}
    return must_agree(endpoint, pairs, "the same pixels in other file formats")


_HIDDEN = ("window-mask", "attention-kernel")

PROBES = plumbing(
    "sight",
    ("picture-seen", "another image gives another answer", _image_seen, "cache-text-only", "language-only"),
    ("colours", "colours are seen", _colours, "image-decoding", "language-only"),
    ("fine-detail", "lines of one pixel are seen", _fine, "double-resize"),
    ("corners-small", "every corner of a small image is seen", _corners("corners-small", 10, 10), *_HIDDEN),
    ("corners-large", "every corner of a large image is seen", _corners("corners-large"), *_HIDDEN),
    ("corners-wide", "both ends of a wide image are seen", _corners("corners-wide", 6, 36), *_HIDDEN),
    ("corners-tall", "both ends of a tall image are seen", _corners("corners-tall", 36, 6), *_HIDDEN),
    ("layout", "rows and columns have positions of their own", _layout, "mrope"),
    ("order", "the order of images matters", _order, "image-order"),
    ("each-of-two", "each of two images is seen", _each, "image-order", "cache-text-only"),
    ("words-around", "words stay on their side of an image", _words_around, "template"),
    ("formats", "file formats don't matter", _formats, "image-decoding"),
)
