"""When mini learns what, and how fast: sheets of dense text first, then synth's kinds from easy to hard."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np

SAVE_EVERY = 200.0  # seconds
WARM_UP = 100  # steps
TOWER_SHARE = 0.15  # of the time, at the start, only the tower learns, on sheets


def dense_weight(done: float) -> float:
    """The dense losses lead at first and fade, but never go: they keep the glyphs in the tokens."""
    return 1.0 if done < TOWER_SHARE else max(0.2, 0.6 * (1 - done))


@dataclass(frozen=True)
class Lesson:
    kind: str
    difficulty: int
    size: int  # samples in a micro-batch
    weights: tuple[float, ...]  # share of the micro-batches at each of STAGES
    questions: int = 1  # at most, about each picture


STAGES = (0.0, 0.25, 0.5, 0.7, 0.85, 1.0)  # of the time after the tower's; shares are interpolated between
# Sizes make micro-batches cost about the same, so that ranks don't wait for each other. Many small steps
# taught more in an hour than few large ones.
LESSONS = (
    Lesson("glyphs", 1, 48, (1, 12, 9, 5, 5, 5)),  # sheets for the tower alone: most glyphs for the work
    Lesson("sheet", 1, 17, (2, 1, 1, 0.5, 0.5, 0.5)),
    Lesson("read", 0, 30, (4, 0.5, 0, 0, 0, 0)),
    Lesson("read", 1, 19, (2, 3, 4, 15, 15, 15)),
    Lesson("read", 2, 10, (0, 0, 0.3, 0.3, 0.3, 0.3)),
    Lesson("field", 0, 18, (1, 1, 0, 0, 0, 0)),
    Lesson("field", 1, 7, (0, 2, 4, 10, 10, 10), questions=4),
    Lesson("find", 0, 14, (2, 0, 0, 0, 0, 0)),
    Lesson("find", 1, 8, (0, 2, 8, 4, 4, 4), questions=3),
    Lesson("count", 0, 18, (1, 0, 0, 0, 0, 0)),
    Lesson("count", 1, 8, (0, 1.5, 5, 10, 10, 10), questions=6),
    Lesson("chart", 1, 7, (0, 0, 0.4, 15, 15, 15), questions=5),
    Lesson("screen", 1, 6, (0, 0, 0.4, 15, 15, 15), questions=4),
    Lesson("pair", 1, 10, (0, 0, 0.4, 6, 6, 6), questions=3),
    Lesson("clip", 1, 7, (0, 0, 0.4, 6, 6, 6), questions=2),
    Lesson("events", 1, 6, (0, 0, 0, 5, 5, 5), questions=3),
    Lesson("page", 0, 9, (0, 0, 0.3, 3, 3, 3)),
    Lesson("page", 1, 4, (0, 0, 0, 4, 4, 4)),
    Lesson("plain", 1, 30, (0, 0, 0, 4, 4, 4)),
    Lesson("shapes", 1, 8, (0, 0, 0, 1.5, 1.5, 1.5), questions=4),
    Lesson("unreadable", 1, 10, (0, 0, 0, 5.5, 5.5, 5.5), questions=3),
)


def shares(done: float) -> list[float]:
    """Weight of each lesson at this point of the training."""
    x = max(0.0, (done - TOWER_SHARE) / (1 - TOWER_SHARE))
    return [float(np.interp(x, STAGES, lesson.weights)) for lesson in LESSONS]


def rate(highest: float, steps: int, left: float, decay: float) -> float:
    """The learning rate `steps` after moments began anew, with `left` seconds to go: it falls to nothing over the
    last `decay` seconds."""
    return highest * min(1.0, (steps + 1) / WARM_UP) * min(1.0, max(0.0, left) / decay)


def minutes_until(clock: str, now: datetime) -> float:
    """From now to the next time the clock shows HH:MM."""
    hour, minute = map(int, clock.split(":"))
    end = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return ((end - now).total_seconds() / 60) % (24 * 60)
