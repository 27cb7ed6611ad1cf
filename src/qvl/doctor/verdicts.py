"""The two checks behind most plumbing probes: these answers must differ, those must agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qvl.backends.answer import Answer
from qvl.doctor.compare import Gap, largest
from qvl.doctor.endpoint import EndpointUnderTest
from qvl.doctor.probe import Finding, failed, not_supported, passed

Trial = Callable[[], tuple[Answer, Answer]]
TRIES = 5
NOISY_NATS = 0.5  # an endpoint that differs from itself by more can't show that a change was seen


def must_differ(endpoint: EndpointUnderTest, trials: Mapping[str, Trial], what: str) -> Finding:
    """Each trial asks about two things between which `what` changed; its name says where. Every change has to show.

    A change may by chance be smaller than what half precision keeps, so one that isn't noticed is tried again with
    another of its kind: what is hidden stays hidden.
    """
    noise = endpoint.noise
    gaps: dict[str, Gap] = {}
    for name, trial in trials.items():
        for _ in range(TRIES):
            gaps[name] = endpoint.gap(*trial())
            if gaps[name].differ(noise):
                break
    unseen = [name for name, g in gaps.items() if not g.differ(noise)]
    sizes = [g.any_nats for g in gaps.values() if g.any_nats is not None]
    numbers: dict[str, Any] = {
        "changes": len(gaps),
        "unnoticed": len(unseen),
        "unnoticed_where": ", ".join(unseen),
    }
    numbers |= {"noise_nats": noise} | ({"least_nats": round(min(sizes), 5)} if sizes else {})
    if not unseen:
        size = f", by {min(sizes):.3g} nats or more" if sizes else " in the text"
        return passed(
            f"{what}: {_count(len(gaps), 'change')} noticed{size} (asking twice: {noise:.2g}).", **numbers
        )
    few = f"{what}: {len(unseen)} of {_count(len(gaps), 'change')}"
    if not endpoint.has_logprobs:
        return not_supported(
            f"{few} left the text as it was, and the endpoint gives no log probabilities to look closer.",
            **numbers,
        )
    if noise > NOISY_NATS:
        return not_supported(
            f"{what}: asked twice the same, the endpoint differs by {noise:.2g} nats.", **numbers
        )
    return failed(f"{few} made no difference, tried {TRIES} times: {', '.join(unseen)}.", **numbers)


def must_agree(endpoint: EndpointUnderTest, pairs: Mapping[str, tuple[Answer, Answer]], what: str) -> Finding:
    """Each pair is the same question asked in two ways that mean the same."""
    return agreement(
        {name: endpoint.gap(a, b) for name, (a, b) in pairs.items()}, endpoint.has_logprobs, what
    )


def agreement(gaps: Mapping[str, Gap], has_logprobs: bool, what: str) -> Finding:
    """Without log probabilities one text in eight may differ: a near tie can't be told from a fault then."""
    apart = [name for name, g in gaps.items() if not g.agree]
    worst = largest(list(gaps.values()))
    numbers: dict[str, Any] = {
        "pairs": len(gaps),
        "apart": len(apart),
        "equal_texts": sum(g.same_text for g in gaps.values()),
    }
    numbers |= {} if worst is None else {"largest_nats": round(worst, 4)}
    size = "" if worst is None else f", log probabilities within {worst:.2g} nats"
    if len(apart) > (0 if has_logprobs else len(gaps) // 8):
        return failed(
            f"{what}: {len(apart)} of {len(gaps)} differ ({', '.join(apart[:6])}{size}).", **numbers
        )
    return passed(f"{what}: {numbers['equal_texts']} of {len(gaps)} texts equal{size}.", **numbers)


def one_sided(p: float, as_feared: bool) -> float:
    """Half of a two-sided p where the change lies on the side that counts, else no evidence at all."""
    return p / 2 if as_feared else 1.0


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def listed(items: Sequence[str], most: int = 4) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
