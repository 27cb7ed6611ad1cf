"""Asking with a repetition guard: a reply that repeats itself is stopped and retried.

First drawn with another seed, then, where that is wished, about the two halves of the image: a model that loops
on a long page often reads half of it well. Every stop is reported with its reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qvl.backends.answer import Answer
from qvl.backends.base import Stream
from qvl.errors import PromptError
from qvl.geometry import Size
from qvl.outputs.mapping import Rect
from qvl.outputs.repetition import RepetitionGuard, halves

Retry = Literal["no", "seed", "crop"]
RETRIES: tuple[Retry, ...] = ("no", "seed", "crop")
_REDRAWN: dict[str, Any] = {"temperature": 0.5, "seed": 1}

# (a part of the image or all of it, settings on top of the caller's) → a stream
Ask = Callable[[Rect | None, dict[str, Any]], Stream]


@dataclass(frozen=True)
class Part:
    """The answer about the image, or about one part of it."""

    answer: Answer
    crop: Rect | None
    ended: bool  # by itself


@dataclass(frozen=True)
class Watched:
    """One part, or one for each half of the image in reading order; `notes` tell of every stop."""

    parts: tuple[Part, ...]
    notes: tuple[str, ...]

    @property
    def answer(self) -> Answer:
        """Of all parts together: texts one after the other, counts and seconds added up."""
        first, *more = (part.answer for part in self.parts)
        return _added(first, more) if more else first


def check_retry(name: str) -> Retry:
    """Raises: PromptError with the known ones."""
    for known in RETRIES:
        if name == known:
            return known
    raise PromptError(f"retry {name!r}: known: {', '.join(RETRIES)}")


def ask_watched(
    ask: Ask,
    *,
    retry: Retry,
    size: Size | None = None,
    make_guard: Callable[[], RepetitionGuard] = RepetitionGuard,
    on_text: Callable[[str], object] | None = None,
) -> Watched:
    """size: of the image, where it may be cut. on_text gets the answer's text as it comes, of every try.

    When all tries repeat themselves, the longest is kept up to where it began to.
    """
    notes: list[str] = []

    def attempt(name: str, crop: Rect | None, drawn: dict[str, Any]) -> Part:
        answer, why = watch(ask(crop, drawn), make_guard(), on_text)
        if why is not None:
            notes.append(f"{name}: {why}")
        return Part(answer, crop, why is None)

    tries: list[Part] = []
    for drawn in ({},) if retry == "no" else ({}, _REDRAWN):
        tries.append(attempt(f"try {len(tries) + 1}", None, drawn))
        if tries[-1].ended:
            return Watched((tries[-1],), tuple(notes))
    if retry == "crop" and size is not None:
        crops = halves(size)
        parts = tuple(attempt(f"part {n} of {len(crops)}", crop, {}) for n, crop in enumerate(crops, 1))
        if any(part.ended for part in parts):
            notes.append(
                "the image was asked about in halves: what lies on the cut may come twice or in parts"
            )
            return Watched(parts, tuple(notes))
    return Watched((max(tries, key=lambda part: len(part.answer.text)),), tuple(notes))


def watch(
    stream: Stream, guard: RepetitionGuard, on_text: Callable[[str], object] | None = None
) -> tuple[Answer, str | None]:
    """(the answer, why it was stopped). A stopped one is cut to what came before it began to repeat."""
    guards = {True: RepetitionGuard(), False: guard}  # thoughts go round in circles too
    said: dict[bool, list[str]] = {True: [], False: []}
    with stream:  # leaving it cancels the request
        for text, thought in stream.pieces():
            said[thought].append(text)
            if on_text is not None and not thought:
                on_text(text)
            if guards[thought].feed(text):
                break
        else:
            for watched in guards.values():
                watched.finish()
    stops = {thought: watched.stop for thought, watched in guards.items() if watched.stop is not None}
    if not stops:
        return stream.finish(), None
    answer = stream.answer or Answer(
        text="",
        finish_reason="repetition",
        prompt_tokens=0,
        visual_tokens=sum(size.visual_tokens for size in stream.media),
        completion_tokens=0,
        media=stream.media,
    )
    kept = {kind: "".join(texts) for kind, texts in said.items()}
    for kind, stop in stops.items():
        kept[kind] = kept[kind][: stop.keep]
    where = "while thinking, " if True in stops else ""
    reason = where + next(iter(stops.values())).reason
    cut = dataclasses.replace(answer, text=kept[False], reasoning=kept[True], finish_reason="repetition")
    return cut, reason


def _added(first: Answer, more: Sequence[Answer]) -> Answer:
    answers = [first, *more]
    reasons = [a.finish_reason for a in answers]
    costs = [a.cost for a in answers if a.cost is not None]
    return dataclasses.replace(
        first,
        text="\n".join(a.text for a in answers),
        reasoning="\n".join(a.reasoning for a in answers if a.reasoning),
        finish_reason=next((reason for reason in reasons if reason != "stop"), "stop"),
        prompt_tokens=sum(a.prompt_tokens for a in answers),
        visual_tokens=sum(a.visual_tokens for a in answers),
        completion_tokens=sum(a.completion_tokens for a in answers),
        cached_tokens=sum(a.cached_tokens for a in answers),
        seconds={name: sum(a.seconds.get(name, 0.0) for a in answers) for name in first.seconds},
        decode_tokens_per_s=None,
        media=tuple(size for a in answers for size in a.media),
        token_ids=tuple(token for a in answers for token in a.token_ids),
        logprobs=tuple(entry for a in answers for entry in a.logprobs),
        notes=tuple(dict.fromkeys(note for a in answers for note in a.notes)),
        cost=dataclasses.replace(costs[0], amount=sum(c.amount for c in costs)) if costs else None,
    )
