"""Time: frames, their order, their rate and their end reach the answer. Holds for any weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvl.backends.answer import Answer
from qvl.doctor.patient import Patient
from qvl.doctor.pictures import frames, video
from qvl.doctor.probe import Finding, not_supported, plumbing
from qvl.doctor.verdicts import Trial, must_differ

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

WORDS = "What happens here?"
NUM_FRAMES = 8


def _shown(patient: Patient, rng: np.random.Generator) -> list[Image.Image]:
    # below the least area of a frame in released checkpoints, which enlarge it: cheap where the model is small
    return frames(rng, NUM_FRAMES, 6 * patient.unit, 2 * patient.unit)


def _order(patient: Patient) -> Finding:
    rng = patient.rng("clip-order")

    def trial() -> tuple[Answer, Answer]:
        shown = _shown(patient, rng)
        return patient.ask([video(shown, 2.0)], WORDS), patient.ask([video(shown[::-1], 2.0)], WORDS)

    return must_differ(patient, {"forwards, backwards": trial}, "a clip backwards")


def _each(patient: Patient) -> Finding:
    """A change in two frames (one temporal patch) at the start, in the middle, at the end."""
    rng = patient.rng("clip-each")
    shown = _shown(patient, rng)
    whole = patient.ask([video(shown, 2.0)], WORDS)

    def trial(at: int) -> tuple[Answer, Answer]:
        other = [*shown[:at], *_shown(patient, rng)[:2], *shown[at + 2 :]]
        return whole, patient.ask([video(other, 2.0)], WORDS)

    trials: dict[str, Trial] = {
        "start": lambda: trial(0), "middle": lambda: trial(4), "end": lambda: trial(6),
    }  # fmt: skip
    return must_differ(patient, trials, "two frames of a clip")


def _rate(patient: Patient) -> Finding:
    """The same frames over more seconds. Times cut to whole seconds make 1 and 1.6 seconds a step the same, and
    0.5 and 0.25 too.
    """
    if patient.family is None or patient.family in ("qwen_vl", "qwen2_vl"):
        return not_supported("this generation counts frames and knows no seconds.")
    rng = patient.rng("clip-rate")

    def trial(first: float, second: float) -> tuple[Answer, Answer]:
        shown = _shown(patient, rng)
        return patient.ask([video(shown, first)], WORDS), patient.ask([video(shown, second)], WORDS)

    trials: dict[str, Trial] = {
        "1 or 1.6 s a step": lambda: trial(2.0, 1.25),
        "0.5 or 0.25 s a step": lambda: trial(4.0, 8.0),
        "1 or 0.5 s a step": lambda: trial(2.0, 4.0),
    }
    return must_differ(patient, trials, "the same frames in other seconds")


def _mixed(patient: Patient) -> Finding:
    """A clip among pictures: both kinds in one message are kept apart."""
    rng = patient.rng("clip-mixed")
    picture, *shown = _shown(patient, rng)
    clip = video(shown[:4], 2.0)
    base = patient.ask([picture, clip], WORDS)
    trials: dict[str, Trial] = {
        "the picture": lambda: (base, patient.ask([_shown(patient, rng)[0], clip], WORDS)),
        "the clip": lambda: (base, patient.ask([picture, video(_shown(patient, rng)[:4], 2.0)], WORDS)),
        "the order": lambda: (base, patient.ask([clip, picture], WORDS)),
    }
    return must_differ(patient, trials, "a picture beside a clip")


PROBES = (
    plumbing("clip-order", "time", "frames have an order", _order, "video-frames"),
    plumbing("clip-frames", "time", "start, middle and end of a clip are seen", _each, "video-frames"),
    plumbing("clip-rate", "time", "seconds are seen, not only frames", _rate, "video-time"),
    plumbing("clip-and-picture", "time", "a clip and a picture go together", _mixed, "mixed-media"),
)
