"""How far apart two answers are, from their log probabilities where an endpoint gives them, otherwise by their text.

Two runs of the same numbers differ a little in half precision: a logit of 20 in bf16 is rounded to 1/8, so another
order of summation moves log probabilities by about that much, and an answer may take another turn where two tokens
were as likely. Both are told here from real differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qvl.backends.answer import Answer
from qvl.backends.base import Backend

NUM_LOGPROBS = 5  # what OpenAI's API gave first; every server that gives any gives so many
# Four steps of a bf16 logit near 20
SAME_NATS = 0.5
LIKELY = 0.05  # tokens below this probability move more and matter less
MOST = 99.0  # stands for "no token in common", which has no number


@dataclass(frozen=True, eq=False)
class Question:
    """A question whose answer is compared over time. `name` is its key in a baseline."""

    name: str
    media: tuple[Any, ...]
    words: str
    max_new_tokens: int
    system: str | None = None


class Step(NamedTuple):
    """One token of an answer. `top` holds the log probabilities of the likeliest ones, itself among them."""

    token: Hashable
    top: Mapping[Hashable, float]


@dataclass(frozen=True)
class Reply:
    """An answer's text and its steps (none where the endpoint gives no log probabilities)."""

    text: str
    steps: tuple[Step, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON: tokens as text, six digits. Bytes that are no text become U+FFFD, on both sides of a comparison."""
        steps = [
            [_written(s.token), {_written(t): round(v, 6) for t, v in s.top.items()}] for s in self.steps
        ]
        return {"text": self.text, "steps": steps}

    @classmethod
    def of_dict(cls, raw: Mapping[str, Any]) -> Reply:
        """The inverse of `to_dict`. Raises: KeyError, TypeError or ValueError for anything else."""
        steps = tuple(
            Step(str(token), {str(t): float(v) for t, v in top.items()}) for token, top in raw["steps"]
        )
        return cls(str(raw["text"]), steps)

    def readable(self) -> Reply:
        """With tokens as text, as a stored one has them."""
        return Reply.of_dict(self.to_dict())


def reply_of(answer: Answer, token_bytes: Callable[[int], bytes] | None = None) -> Reply:
    """token_bytes: of our own engine's token ids, so that they can be compared with a server's."""
    steps = []
    for entry in answer.logprobs:
        if isinstance(entry, Mapping):  # a server's
            top = {_key(t): float(t["logprob"]) for t in entry.get("top_logprobs") or ()}
            steps.append(Step(_key(entry), top | {_key(entry): float(entry["logprob"])}))
        else:
            name: Callable[[int], Hashable] = token_bytes or (lambda token: token)
            top = {name(token): value for token, value in entry.top}
            steps.append(Step(name(entry.token_id), top | {name(entry.token_id): entry.logprob}))
    return Reply(answer.text, tuple(steps))


def token_bytes_of(backend: Backend) -> Callable[[int], bytes] | None:
    return backend.token_bytes


def _key(entry: Mapping[str, Any]) -> Hashable:
    raw = entry.get("bytes")
    if isinstance(raw, list):
        return bytes(raw)
    return str(entry.get("token", "")).encode()


def _written(token: Hashable) -> str:
    return token.decode("utf-8", "replace") if isinstance(token, bytes) else str(token)


@dataclass(frozen=True)
class Gap:
    """nats: largest |Δ log p| of a token that was likely in either, over the steps with an equal past; mean_nats the
    mean of those maxima over steps; any_nats with unlikely tokens too. None without log probabilities.
    parted: the texts differ, and where they part it was no near tie.
    """

    same_text: bool
    parted: bool
    nats: float | None = None
    mean_nats: float | None = None
    any_nats: float | None = None

    @property
    def agree(self) -> bool:
        """Equal up to what half precision explains."""
        return not self.parted and (self.nats is None or self.nats <= SAME_NATS)

    def differ(self, noise: float) -> bool:
        """Told apart beyond the noise (in nats) of asking the same twice."""
        if not self.same_text:
            return True
        return self.any_nats is not None and self.any_nats > max(1e-5, 2 * noise)


def gap(a: Reply, b: Reply) -> Gap:
    """Symmetrical. Steps count up to and with the first at which the two chose different tokens."""
    same_text = a.text == b.text
    if not a.steps or not b.steps:
        return Gap(same_text, parted=not same_text)
    likely, everything = [], []
    parted = False
    for first, second in zip(a.steps, b.steps):
        common = first.top.keys() & second.top.keys()
        moves = [
            (abs(first.top[t] - second.top[t]), math.exp(max(first.top[t], second.top[t]))) for t in common
        ]
        likely.append(max((move for move, p in moves if p >= LIKELY), default=0.0 if moves else MOST))
        everything.append(max((move for move, _ in moves), default=MOST))
        if first.token != second.token:
            parted = min(_margin(first, second.token), _margin(second, first.token)) > SAME_NATS
            break
    else:
        # one ended before the other: with equal steps until then, only a limit or a lost piece does that
        parted = not same_text
    return Gap(
        same_text=same_text,
        parted=parted,
        nats=max(likely),
        mean_nats=sum(likely) / len(likely),
        any_nats=max(everything),
    )


def _margin(step: Step, other: Hashable) -> float:
    """By how much the token taken was likelier than the other answer's."""
    return step.top[step.token] - step.top.get(other, -MOST)


def largest(gaps: Sequence[Gap]) -> float | None:
    """The largest `nats` among them, None when none has any."""
    return max((g.nats for g in gaps if g.nats is not None), default=None)
