"""Time: frames, their order, their rate and their end reach the answer. Holds for any weights."""

from __future__ import annotations

import numpy as np
from PIL import Image

from qvl.backends.answer import Answer
from qvl.doctor.endpoint import EndpointUnderTest
from qvl.doctor.images import frames, video
from qvl.doctor.probe import Finding, not_supported, plumbing
from qvl.doctor.verdicts import Trial, must_differ

WORDS = "What happens here?"
NUM_FRAMES = 8


def _shown(endpoint: EndpointUnderTest, rng: np.random.Generator) -> list[Image.Image]:
    # below the least area of a frame in released checkpoints, which enlarge it: cheap where the model is small
    return frames(rng, NUM_FRAMES, 6 * endpoint.unit, 2 * endpoint.unit)


def _order(endpoint: EndpointUnderTest) -> Finding:
    rng = endpoint.rng("clip-order")

    def trial() -> tuple[Answer, Answer]:
        shown = _shown(endpoint, rng)
        return endpoint.ask([video(shown, 2.0)], WORDS), endpoint.ask([video(shown[::-1], 2.0)], WORDS)

    return must_differ(endpoint, {"forwards, backwards": trial}, "a video backwards")


def _each(endpoint: EndpointUnderTest) -> Finding:
    """A change in two frames (one temporal patch) at the start, in the middle, at the end."""
    rng = endpoint.rng("clip-each")
    shown = _shown(endpoint, rng)
    whole = endpoint.ask([video(shown, 2.0)], WORDS)

    def trial(at: int) -> tuple[Answer, Answer]:
        other = [*shown[:at], *_shown(endpoint, rng)[:2], *shown[at + 2 :]]
        return whole, endpoint.ask([video(other, 2.0)], WORDS)

    trials: dict[str, Trial] = {
        "start": lambda: trial(0), "middle": lambda: trial(4), "end": lambda: trial(6),
    }  # fmt: skip
    return must_differ(endpoint, trials, "two frames of a video")


def _rate(endpoint: EndpointUnderTest) -> Finding:
    """The same frames over more seconds. Times cut to whole seconds make 1 and 1.6 seconds a step the same, and
    0.5 and 0.25 too.
    """
    if endpoint.generation is None:
        return not_supported("the model's family isn't known (--family), nor then whether it knows seconds.")
    if not endpoint.generation.knows_seconds:
        return not_supported("this generation counts frames and knows no seconds.")
    rng = endpoint.rng("clip-rate")

    def trial(first: float, second: float) -> tuple[Answer, Answer]:
        shown = _shown(endpoint, rng)
        return endpoint.ask([video(shown, first)], WORDS), endpoint.ask([video(shown, second)], WORDS)

    trials: dict[str, Trial] = {
        "1 or 1.6 s a step": lambda: trial(2.0, 1.25),
        "0.5 or 0.25 s a step": lambda: trial(4.0, 8.0),
        "1 or 0.5 s a step": lambda: trial(2.0, 4.0),
    }
    return must_differ(endpoint, trials, "the same frames in other seconds")


def _mixed(endpoint: EndpointUnderTest) -> Finding:
    """A video among images: both kinds in one message are kept apart."""
    rng = endpoint.rng("clip-mixed")
    image, *shown = _shown(endpoint, rng)
    clip = video(shown[:4], 2.0)
    base = endpoint.ask([image, clip], WORDS)
    trials: dict[str, Trial] = {
        "the image": lambda: (base, endpoint.ask([_shown(endpoint, rng)[0], clip], WORDS)),
        "the video": lambda: (base, endpoint.ask([image, video(_shown(endpoint, rng)[:4], 2.0)], WORDS)),
        "the order": lambda: (base, endpoint.ask([clip, image], WORDS)),
    }
    return must_differ(endpoint, trials, "an image beside a video")


PROBES = plumbing(
    "time",
    ("clip-order", "frames have an order", _order, "video-frames"),
    ("clip-frames", "start, middle and end of a video are seen", _each, "video-frames"),
    ("clip-rate", "seconds are seen, not only frames", _rate, "video-time"),
    ("clip-and-picture", "a video and an image go together", _mixed, "mixed-media"),
)
