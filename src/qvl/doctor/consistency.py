"""Consistency: other requests in the batch, repetition and caches change nothing. Holds for any weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qvl.backends.answer import Answer
from qvl.doctor.endpoint import EndpointUnderTest
from qvl.doctor.images import blocks
from qvl.doctor.probe import Finding, failed, not_supported, passed, plumbing
from qvl.doctor.verdicts import must_agree, must_differ

WORDS = "What is shown here?"


def _repeat(endpoint: EndpointUnderTest) -> Finding:
    rng, unit = endpoint.rng("repeat"), endpoint.unit
    pairs = {}
    for name, size in (("small", 8), ("middle", 14)):
        image = blocks(rng, size * unit, size * unit, unit)
        pairs[name] = tuple(endpoint.ask([image], WORDS, max_new_tokens=8) for _ in range(2))
    return must_agree(endpoint, pairs, "the same question twice")  # type: ignore[arg-type]


def _batch(endpoint: EndpointUnderTest) -> Finding:
    """Eight questions of different lengths together, half of them asked alone before and half after: a cache that one
    way filled can't make both look right.
    """
    rng, unit = endpoint.rng("batch"), endpoint.unit
    questions: list[tuple[list[Any], str]] = []
    for i in range(8):
        rows, columns = (int(n) for n in rng.integers(4, 13, 2))
        images = [blocks(rng, rows * unit, columns * unit, unit) for _ in range(i % 3)]
        questions.append(
            (images, WORDS if i % 2 else f"{WORDS} Say what you see, number {i}, in a few words.")
        )
    alone: dict[int, Answer] = {i: endpoint.ask(*questions[i], max_new_tokens=8) for i in range(0, 8, 2)}
    together = endpoint.ask_many(questions, max_new_tokens=8)
    alone |= {i: endpoint.ask(*questions[i], max_new_tokens=8) for i in range(1, 8, 2)}
    pairs = {f"question {i + 1}": (alone[i], together[i]) for i in range(8)}
    found = must_agree(endpoint, pairs, "eight questions together or one by one")
    counts = [(alone[i].prompt_tokens, together[i].prompt_tokens) for i in range(8)]
    if found.status == "passed" and any(a != b for a, b in counts):
        return failed(f"prompt tokens differ, alone and together: {counts}.")
    return found


def _cache(endpoint: EndpointUnderTest) -> Finding:
    """An image asked again: the prompt or at least its features come from a cache. Only its being right is judged."""
    rng, unit = endpoint.rng("cache"), endpoint.unit
    side = min(endpoint.large, 20 * unit)
    image = blocks(rng, side, side, unit)
    words = "Which colours are here?"
    first, again = (endpoint.ask([image], words, max_new_tokens=4) for _ in range(2))
    numbers: dict[str, Any] = {"cached_tokens": again.cached_tokens}
    times = [_time_to_first(a) for a in (first, again)]
    if None not in times:
        numbers |= {"first_ms": round(times[0] * 1000, 2), "again_ms": round(times[1] * 1000, 2)}  # type: ignore[operator]
    if not endpoint.gap(first, again).agree:
        return failed(
            "the second answer to the same image is another one: what was kept is wrong.", **numbers
        )
    shown = (
        "" if None in times else f", {numbers['first_ms']:g} ms first and {numbers['again_ms']:g} ms again"
    )
    if again.cached_tokens > 0:
        text = f"{again.cached_tokens} of {again.prompt_tokens} prompt tokens came from a cache{shown}"
        return passed(f"{text}; the answer is the same.", **numbers)
    if shown and times[1] * 1.3 < times[0]:  # type: ignore[operator]
        return passed(f"no cached tokens are reported{shown}; the answer is the same.", **numbers)
    return not_supported(f"no sign of a cache{shown}; the answer is the same.", **numbers)


def _time_to_first(answer: Answer) -> float | None:
    """Seconds until the first token, or for the whole where only that is known."""
    seconds = answer.seconds
    if "prefill" in seconds:
        return seconds["prefill"] + seconds.get("vision", 0.0) + seconds.get("queue", 0.0)
    return seconds.get("first", seconds.get("total"))


def _mixed(endpoint: EndpointUnderTest) -> Finding:
    """Two images of one size in turn: a cache that knows images by their place in the text mixes them up."""
    rng, unit = endpoint.rng("mixed"), endpoint.unit
    rounds: list[list[Answer]] = []

    def trial() -> tuple[Answer, Answer]:
        a, b = (blocks(rng, 9 * unit, 12 * unit, unit) for _ in range(2))
        rounds.append([endpoint.ask([p], "What do you see?", max_new_tokens=6) for p in (a, b, a, b)])
        return rounds[-1][0], rounds[-1][1]

    apart = must_differ(endpoint, {"A, B": trial}, "A and B in turn")
    if apart.status != "passed":
        return apart
    a, b, again_a, again_b = rounds[-1]
    found = must_agree(
        endpoint, {"A": (a, again_a), "B": (b, again_b)}, "A and B, each asked again after the other"
    )
    return replace(found, numbers={**apart.numbers, **found.numbers})


PROBES = plumbing(
    "consistency",
    ("repeat", "the same question gives the same answer", _repeat, "unsteady"),
    ("batch", "eight together are answered as one by one", _batch, "right-padding", "batch-mask"),
    ("cache", "an image asked again is answered right, and faster", _cache, "cache-text-only"),
    ("cache-mixed", "images of one size aren't mistaken for each other", _mixed, "cache-text-only"),
)
