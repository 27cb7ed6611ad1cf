"""The questions whose answers are compared: synth samples in the situations that break separately.

Each set is asked once and read twice: are the answers the same as the standard's, and are they as good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qvl.backends.tasks import is_plain, task_prompt
from qvl.doctor.compare import Reply
from qvl.doctor.patient import Patient, Question
from qvl.inputs.geometry import Size
from qvl.outputs.mapping import Rect, iou

if TYPE_CHECKING:
    from PIL import Image

    from qvl.synth import Clip, Sample

FIRST_SEED = 1_900_000_000  # in the range that training never draws from
SEEDS_A_SET = 1000


@dataclass(frozen=True, eq=False)
class Item:
    """A question and its truth. `truth` is text, or (start, end) seconds, or boxes in pixels of the picture."""

    question: Question
    truth: Any


@dataclass(frozen=True, eq=False)
class QuestionSet:
    """`score` gives 0 to 1 for (the truth, the text, the picture's seen size)."""

    name: str
    shows: str
    draw: Callable[[Patient, str], list[Item]]
    score: Callable[[Patient, Item, str], float]
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


def _read_score(patient: Patient, item: Item, text: str) -> float:
    return similarity(text[: 4 * len(item.truth) + 40], item.truth)


def _exact_score(patient: Patient, item: Item, text: str) -> float:
    return float(" ".join(text.split()).casefold().rstrip(".") == item.truth.casefold())


def _box_score(patient: Patient, item: Item, text: str) -> float:
    """IoU of the first box with the truth, in pixels of the picture."""
    places = parsed_boxes(patient, item, text)
    return iou(places[0], item.truth) if places else 0.0


def _span_score(patient: Patient, item: Item, text: str) -> float:
    """Overlap in time over union in time of the first span."""
    from qvl.outputs.events import Clip, parse_events

    start, end, duration = item.truth
    found = parse_events(text, Clip(duration=duration)).items
    if not found:
        return 0.0
    return iou((found[0].start, 0, found[0].end, 1), (start, 0, end, 1))


def parsed_boxes(patient: Patient, item: Item, text: str) -> list[Rect]:
    """Boxes of an answer in pixels of the question's picture; none where the family isn't known."""
    from qvl.outputs.boxes import Box, parse_boxes
    from qvl.outputs.mapping import PictureMap

    picture = item.question.media[0]
    seen = patient.seen((picture.height, picture.width))
    if seen is None:
        return []
    found = parse_boxes(text, patient.family, PictureMap(Size(picture.height, picture.width), seen.seen))
    return [place.rect for place in found if isinstance(place, Box)]


# ----------------------------------------------------------------------------------------------------- drawing


def _samples(patient: Patient, name: str, kind: str, count: int, difficulty: int = 1) -> list[Sample]:
    from zlib import crc32

    from qvl.synth import make

    first = FIRST_SEED + patient.seed * SEEDS_A_SET + crc32(name.encode()) % 977 * 100_000
    return [make(kind, first + i, difficulty) for i in range(count)]


def _key(patient: Patient, name: str, number: int) -> str:
    """With the seed in it: another seed's pictures are other questions."""
    return f"{name}-{patient.seed}-{number}"


def _picture(sample: Sample) -> Image.Image:
    """The one picture of a sample."""
    return sample.media[0]  # type: ignore[return-value]


def _briefly(patient: Patient, words: str) -> str:
    """The embedded model knows no instructions; others talk around the answer without this one."""
    return words if is_plain(patient.name) else f"{words} Answer with that alone."


def _plain(kind: str, count: int, tokens: int = 16) -> Callable[[Patient, str], list[Item]]:
    def draw(patient: Patient, name: str) -> list[Item]:
        return [
            Item(Question(_key(patient, name, i), s.media, _briefly(patient, s.question), tokens), s.answer)
            for i, s in enumerate(_samples(patient, name, kind, count))
        ]

    return draw


def _on_sheet(
    shape: Callable[[Patient, int], tuple[int, int]], count: int
) -> Callable[[Patient, str], list[Item]]:
    """Text to read somewhere on a sheet of (height, width)."""

    def draw(patient: Patient, name: str) -> list[Item]:
        from qvl.doctor.pictures import on_paper

        rng = patient.rng(name)
        items = []
        for i, sample in enumerate(_samples(patient, name, "read", count)):
            picture = _picture(sample)
            height, width = shape(patient, i)
            height, width = max(height, picture.height), max(width, picture.width)
            left = int(rng.integers(0, width - picture.width + 1))
            top = int(rng.integers(0, height - picture.height + 1))
            sheet = on_paper([picture], height, width, [(left, top)])
            items.append(
                Item(
                    Question(_key(patient, name, i), (sheet,), _briefly(patient, "Read the text."), 16),
                    sample.answer,
                )
            )
        return items

    return draw


def _large_shape(patient: Patient, number: int) -> tuple[int, int]:
    return patient.large, patient.large


def _strip_shape(patient: Patient, number: int) -> tuple[int, int]:
    long, short = 24 * patient.unit, 4 * patient.unit
    return (long, short) if number % 2 else (short, long)


def _draw_tiny(patient: Patient, name: str) -> list[Item]:
    """The smallest print that is still drawn clearly: about nine pixels high."""
    items = []
    for i, sample in enumerate(_samples(patient, name, "read", 6)):
        picture = _picture(sample)
        scale = 12 / max(12, sample.extra["size"])
        small = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        items.append(
            Item(
                Question(_key(patient, name, i), (small,), _briefly(patient, sample.question), 16),
                sample.answer,
            )
        )
    return items


def _draw_boxes(patient: Patient, name: str) -> list[Item]:
    """Shapes on pictures enlarged to 1.5 times, so that few sides are whole units and the numbers are large."""
    items = []
    for i, sample in enumerate(_samples(patient, name, "find", 8)):
        picture = _picture(sample)
        width, height = picture.width * 3 // 2, picture.height * 3 // 2
        truth = Rect(*(side * 1.5 for side in sample.boxes[0][:4]))
        words = sample.question
        if patient.family is not None:
            words = task_prompt("boxes", patient.family, words, model=patient.name).question
        question = Question(_key(patient, name, i), (picture.resize((width, height)),), words, 64)
        items.append(Item(question, truth))
    return items


def _draw_pairs(patient: Patient, name: str) -> list[Item]:
    """Two pictures with a text each, and a question for one of them."""
    rng = patient.rng(name)
    items = []
    first, second = _samples(patient, name, "read", 10), _samples(patient, f"{name}-2", "read", 10)
    for i, (a, b) in enumerate(zip(first, second)):
        which = int(rng.integers(0, 2))
        words = _briefly(patient, f"What does the {('first', 'second')[which]} picture say?")
        question = Question(_key(patient, name, i), (*a.media, *b.media), words, 16)
        items.append(Item(question, (a.answer, b.answer)[which]))
    return items


def _draw_clips(patient: Patient, name: str) -> list[Item]:
    from qvl.doctor.pictures import video

    items = []
    for i, sample in enumerate(_samples(patient, name, "clip", 6)):
        clip: Clip = sample.media[0]  # type: ignore[assignment]
        words = sample.question
        if not is_plain(patient.name):
            words += " Give the start and the end in seconds."
        question = Question(_key(patient, name, i), (video(list(clip.frames), clip.fps),), words, 32)
        items.append(
            Item(question, (sample.extra["start_seconds"], sample.extra["end_seconds"], clip.seconds))
        )
    return items


def _draw_words(patient: Patient, name: str) -> list[Item]:
    asked = ("What is two and three?", "Name a colour.", "Count from one to five.", "Say the word yes.")
    return [Item(Question(_key(patient, name, i), (), words, 12), "") for i, words in enumerate(asked)]


def _no_score(patient: Patient, item: Item, text: str) -> float:
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
        QuestionSet("pair", "reads the picture of two that was asked for", _draw_pairs, _read_score, "order"),
        QuestionSet("boxes", "puts a box around the shape asked for", _draw_boxes, _box_score, "boxes"),
        QuestionSet("clip", "says from when to when a shape is in a clip", _draw_clips, _span_score, "clips"),
    )
}


def asked(patient: Patient, name: str) -> list[tuple[Item, Reply]]:
    """(item, the patient's reply) of a set, asked one by one the first time and remembered."""
    if name not in patient.answered:
        items = SETS[name].draw(patient, name)
        patient.answered[name] = [(item, patient.answer(item.question)) for item in items]
    return patient.answered[name]
