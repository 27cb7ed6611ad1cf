"""The questions whose answers are compared: synth samples in the situations that break separately.

Each set is asked once and read twice: are the answers the same as the expected ones, and are they as good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from PIL import Image

from qvl.doctor.compare import Question, Reply
from qvl.doctor.endpoint import EndpointUnderTest
from qvl.doctor.images import on_paper, video
from qvl.geometry import Size
from qvl.outputs import events
from qvl.outputs.boxes import Box, parse_boxes
from qvl.outputs.mapping import PictureMap, Rect, iou
from qvl.synth import Clip, Sample, make
from qvl.tasks.prompts import is_plain, task_prompt

FIRST_SEED = 1_900_000_000  # in the range that training never draws from
SEEDS_A_SET = 1000


@dataclass(frozen=True, eq=False)
class Item:
    """A question and its truth. `truth` is text, or (start, end) seconds, or boxes in pixels of the image."""

    question: Question
    truth: Any


@dataclass(frozen=True, eq=False)
class QuestionSet:
    """`score` gives 0 to 1 for (the truth, the text, the image's seen size)."""

    name: str
    shows: str
    draw: Callable[[EndpointUnderTest, str], list[Item]]
    score: Callable[[EndpointUnderTest, Item, str], float]
    same: str  # the probe of same answers that it belongs to


# ------------------------------------------------------------------------------------------------------ scores


def similarity(a: str, b: str) -> float:
    """1 - edit distance / length of the longer, blanks normalised: 1 for equal texts, 0 for nothing in common."""
    a, b = " ".join(a.split()), " ".join(b.split())
    if not a and not b:
        return 1.0
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return 1 - row[-1] / max(len(a), len(b))


def _read_score(endpoint: EndpointUnderTest, item: Item, text: str) -> float:
    return similarity(text[: 4 * len(item.truth) + 40], item.truth)


def _exact_score(endpoint: EndpointUnderTest, item: Item, text: str) -> float:
    return float(" ".join(text.split()).casefold().rstrip(".") == item.truth.casefold())


def _box_score(endpoint: EndpointUnderTest, item: Item, text: str) -> float:
    """IoU of the first box with the truth, in pixels of the image."""
    places = parsed_boxes(endpoint, item, text)
    return iou(places[0], item.truth) if places else 0.0


def _span_score(endpoint: EndpointUnderTest, item: Item, text: str) -> float:
    """Overlap in time over union in time of the first span."""
    start, end, duration = item.truth
    found = events.parse_events(text, events.Clip(duration=duration)).items
    if not found:
        return 0.0
    return iou((found[0].start, 0, found[0].end, 1), (start, 0, end, 1))


def parsed_boxes(endpoint: EndpointUnderTest, item: Item, text: str) -> list[Rect]:
    """Boxes of an answer in pixels of the question's image; none where the family isn't known."""
    image = item.question.media[0]
    seen = endpoint.seen((image.height, image.width))
    if seen is None:
        return []
    found = parse_boxes(text, endpoint.generation, PictureMap(Size(image.height, image.width), seen.seen))
    return [place.rect for place in found if isinstance(place, Box)]


# ----------------------------------------------------------------------------------------------------- drawing


def _samples(
    endpoint: EndpointUnderTest, name: str, kind: str, count: int, difficulty: int = 1
) -> list[Sample]:
    first = FIRST_SEED + endpoint.seed * SEEDS_A_SET + crc32(name.encode()) % 977 * 100_000
    return [make(kind, first + i, difficulty) for i in range(count)]


def _key(endpoint: EndpointUnderTest, name: str, number: int) -> str:
    """With the seed in it: another seed's images are other questions."""
    return f"{name}-{endpoint.seed}-{number}"


def _image(sample: Sample) -> Image.Image:
    """The one image of a sample."""
    return sample.media[0]  # type: ignore[return-value]


def _briefly(endpoint: EndpointUnderTest, words: str) -> str:
    """The embedded model knows no instructions; others talk around the answer without this one."""
    return words if is_plain(endpoint.name) else f"{words} Answer with that alone."


def _plain(kind: str, count: int, tokens: int = 16) -> Callable[[EndpointUnderTest, str], list[Item]]:
    def draw(endpoint: EndpointUnderTest, name: str) -> list[Item]:
        return [
            Item(Question(_key(endpoint, name, i), s.media, _briefly(endpoint, s.question), tokens), s.answer)
            for i, s in enumerate(_samples(endpoint, name, kind, count))
        ]

    return draw


def _on_sheet(
    shape: Callable[[EndpointUnderTest, int], tuple[int, int]], count: int
) -> Callable[[EndpointUnderTest, str], list[Item]]:
    """Text to read somewhere on a sheet of (height, width)."""

    def draw(endpoint: EndpointUnderTest, name: str) -> list[Item]:
        rng = endpoint.rng(name)
        items = []
        for i, sample in enumerate(_samples(endpoint, name, "read", count)):
            image = _image(sample)
            height, width = shape(endpoint, i)
            height, width = max(height, image.height), max(width, image.width)
            left = int(rng.integers(0, width - image.width + 1))
            top = int(rng.integers(0, height - image.height + 1))
            sheet = on_paper([image], height, width, [(left, top)])
            items.append(
                Item(
                    Question(_key(endpoint, name, i), (sheet,), _briefly(endpoint, "Read the text."), 16),
                    sample.answer,
                )
            )
        return items

    return draw


def _large_shape(endpoint: EndpointUnderTest, number: int) -> tuple[int, int]:
    return endpoint.large, endpoint.large


def _strip_shape(endpoint: EndpointUnderTest, number: int) -> tuple[int, int]:
    long, short = 24 * endpoint.unit, 4 * endpoint.unit
    return (long, short) if number % 2 else (short, long)


def _draw_tiny(endpoint: EndpointUnderTest, name: str) -> list[Item]:
    """The smallest print that is still drawn clearly: about nine pixels high."""
    items = []
    for i, sample in enumerate(_samples(endpoint, name, "read", 6)):
        image = _image(sample)
        scale = 12 / max(12, sample.extra["size"])
        small = image.resize((round(image.width * scale), round(image.height * scale)))
        items.append(
            Item(
                Question(_key(endpoint, name, i), (small,), _briefly(endpoint, sample.question), 16),
                sample.answer,
            )
        )
    return items


def _draw_boxes(endpoint: EndpointUnderTest, name: str) -> list[Item]:
    """Shapes on images enlarged to 1.5 times, so that few sides are whole units and the numbers are large."""
    items = []
    for i, sample in enumerate(_samples(endpoint, name, "find", 8)):
        image = _image(sample)
        width, height = image.width * 3 // 2, image.height * 3 // 2
        truth = Rect(*(side * 1.5 for side in sample.boxes[0][:4]))
        words = sample.question
        if endpoint.generation is not None:
            words = task_prompt("boxes", endpoint.generation, words, model=endpoint.name).question
        question = Question(_key(endpoint, name, i), (image.resize((width, height)),), words, 64)
        items.append(Item(question, truth))
    return items


def _draw_pairs(endpoint: EndpointUnderTest, name: str) -> list[Item]:
    """Two images with a text each, and a question for one of them."""
    rng = endpoint.rng(name)
    items = []
    first, second = _samples(endpoint, name, "read", 10), _samples(endpoint, f"{name}-2", "read", 10)
    for i, (a, b) in enumerate(zip(first, second)):
        which = int(rng.integers(0, 2))
        words = _briefly(endpoint, f"What does the {('first', 'second')[which]} picture say?")
        question = Question(_key(endpoint, name, i), (*a.media, *b.media), words, 16)
        items.append(Item(question, (a.answer, b.answer)[which]))
    return items


def _draw_clips(endpoint: EndpointUnderTest, name: str) -> list[Item]:
    items = []
    for i, sample in enumerate(_samples(endpoint, name, "clip", 6)):
        clip: Clip = sample.media[0]  # type: ignore[assignment]
        words = sample.question
        if not is_plain(endpoint.name):
            words += " Give the start and the end in seconds."
        question = Question(_key(endpoint, name, i), (video(list(clip.frames), clip.fps),), words, 32)
        items.append(
            Item(question, (sample.extra["start_seconds"], sample.extra["end_seconds"], clip.seconds))
        )
    return items


def _draw_words(endpoint: EndpointUnderTest, name: str) -> list[Item]:
    asked = ("What is two and three?", "Name a colour.", "Count from one to five.", "Say the word yes.")
    return [Item(Question(_key(endpoint, name, i), (), words, 12), "") for i, words in enumerate(asked)]


def _no_score(endpoint: EndpointUnderTest, item: Item, text: str) -> float:
    return 0.0


SETS: dict[str, QuestionSet] = {
    s.name: s
    for s in (
        QuestionSet("words", "", _draw_words, _no_score, "words"),
        QuestionSet("read", "reads short texts", _plain("read", 8), _read_score, "small"),
        QuestionSet("field", "finds a value on receipts and forms", _plain("field", 8), _read_score, "small"),
        QuestionSet("count", "counts shapes", _plain("count", 8), _exact_score, "small"),
        QuestionSet("tiny", "reads print of about nine pixels", _draw_tiny, _read_score, "small"),
        QuestionSet(
            "large", "reads a short text on a large sheet", _on_sheet(_large_shape, 6), _read_score, "large"
        ),
        QuestionSet(
            "strip",
            "reads on strips six times as long as wide",
            _on_sheet(_strip_shape, 6),
            _read_score,
            "strips",
        ),
        QuestionSet("pair", "reads the image of two that was asked for", _draw_pairs, _read_score, "order"),
        QuestionSet("boxes", "puts a box around the shape asked for", _draw_boxes, _box_score, "boxes"),
        QuestionSet(
            "clip", "says from when to when a shape is in a video", _draw_clips, _span_score, "clips"
        ),
    )
}


def asked(endpoint: EndpointUnderTest, name: str) -> list[tuple[Item, Reply]]:
    """(item, the endpoint's reply) of a set, asked one by one the first time and remembered."""
    if name not in endpoint.answered:
        items = SETS[name].draw(endpoint, name)
        endpoint.answered[name] = [(item, endpoint.answer(item.question)) for item in items]
    return endpoint.answered[name]
