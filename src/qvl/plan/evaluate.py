"""Does it fit, with how much to spare, and how fast at best.

Searches (the longest context, the largest batch) are made when they are read. Knows formulas only through
terms.memory_terms and speed.speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qvl.errors import PlanError, QvlError
from qvl.plan.memory import kv_bytes_per_token
from qvl.plan.request import FitRequest, with_workload
from qvl.plan.resolve import resolve
from qvl.plan.setup import GpuTerms, Setup
from qvl.plan.speed import Speed, speed
from qvl.plan.terms import gpu_bytes, memory_terms
from qvl.plan.workload import Media
from qvl.records import pick
from qvl.units import format_bytes

MAX_CONCURRENCY = 4096  # beyond this no engine batches; the search stops here


@dataclass(frozen=True)
class Change:
    """One way to make it fit: the option to give, and what it does."""

    option: str
    effect: str
    request: FitRequest

    def to_json(self) -> dict[str, str]:
        return pick(self, "option", "effect")


@dataclass(frozen=True)
class FitResult:
    """The answer. `fits` is None without hardware. Terms of all GPUs add up to `total_bytes`."""

    setup: Setup
    gpus: tuple[GpuTerms, ...]
    budget_bytes: int | None  # of one GPU
    reasons: tuple[str, ...]  # why it does not fit
    changes: tuple[Change, ...] = ()  # what would make it fit, where `fit` was asked

    @property
    def fits(self) -> bool | None:
        return None if self.budget_bytes is None else not self.reasons

    @cached_property
    def max_context(self) -> int | None:
        """Tokens of one request, all others held."""
        if self.budget_bytes is None or self.setup.training:
            return None
        return max_context(self.setup.request)

    @cached_property
    def max_concurrency(self) -> int | None:
        """Requests at once, all else held."""
        return None if self.budget_bytes is None else max_concurrency(self.setup.request)

    @cached_property
    def speed(self) -> Speed | None:
        return None if self.setup.problems else speed(self.setup)

    @property
    def answer_s(self) -> float | None:
        """From the request to the last token, at best."""
        pace = self.speed
        return pace.ttft_s + self.setup.workload.answer_tokens / pace.tokens_per_s if pace else None

    @property
    def requests_per_s(self) -> float | None:
        return self.speed.requests_per_s if self.speed else None

    @property
    def busiest_bytes(self) -> int:
        """What the fullest GPU needs."""
        return max(self.per_gpu_bytes)

    @property
    def total_bytes(self) -> int:
        return sum(self.per_gpu_bytes)

    @property
    def per_gpu_bytes(self) -> list[int]:
        return gpu_bytes(self.gpus)

    @cached_property
    def terms(self) -> dict[str, int]:
        """Bytes by name over all GPUs."""
        total: dict[str, int] = {}
        for terms in self.gpus:
            for t in terms:
                total[t.name] = total.get(t.name, 0) + t.bytes
        return total

    @property
    def busiest(self) -> GpuTerms:
        return max(self.gpus, key=lambda terms: sum(t.bytes for t in terms))

    @property
    def media(self) -> Media:
        return self.setup.media

    @property
    def visual_tokens(self) -> int:
        """Of one request."""
        return self.setup.media.visual_tokens

    @property
    def verdict(self) -> str:
        need = format_bytes(max(self.per_gpu_bytes))
        if self.fits is None:
            return f"needs {format_bytes(self.total_bytes)} (no hardware named: --gpu gives a verdict)"
        hardware = self.setup.request.hardware
        assert hardware is not None
        each = f" on each of {hardware.count} GPUs" if hardware.count > 1 else ""
        assert self.budget_bytes is not None
        room = format_bytes(self.budget_bytes)
        if self.fits:
            if self.setup.training:
                return f"fits {hardware.name}: {need} of {room}{each}"
            return (
                f"fits {hardware.name}: {need} of {room}{each}; up to {self.max_context:,} tokens of context, "
                f"or {self.max_concurrency:,} requests at once"
            )
        return f"does not fit {hardware.name}: " + "; ".join(self.reasons)

    @property
    def kv_pool_bytes(self) -> list[int] | None:
        """What is left for the KV cache on each GPU, of an engine that fills its share of the card with it.

        Graphs are outside the budget here, states of linear attention inside; None elsewhere.
        """
        if self.budget_bytes is None or not self.setup.engine.shares_card:
            return None
        outside = ("kv_cache", "cuda_graphs")
        held = [sum(t.bytes for t in terms if t.name not in outside) for terms in self.gpus]
        return [max(0, self.budget_bytes - size) for size in held]

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that the pools of all GPUs hold together: each GPU holds its heads of every token."""
        pools = self.kv_pool_bytes
        if pools is None:
            return None
        return min(pools) // kv_bytes_per_token(self.setup.config, self.setup.kv_dtype, self.setup.shards)

    def to_json(self) -> dict[str, Any]:
        request = self.setup.request
        return pick(
            self,
            "model=setup.request.name", "engine=setup.request.engine", "precision=setup.precision",
            "kv_dtype=setup.kv_dtype", "fits", "verdict", "total_bytes", "per_gpu_bytes",
            "budget_bytes_per_gpu=budget_bytes", "terms", "visual_tokens", "prompt_tokens=setup.prompt_tokens",
            "context_tokens=setup.context_tokens", "max_context", "max_concurrency", "kv_pool_bytes", "kv_tokens",
            "reasons", "notes=setup.notes",
            gpu=request.hardware.name if request.hardware else None,
            speed=self.speed.to_json() if self.speed else None,
            changes=[c.to_json() for c in self.changes],
        )  # fmt: skip


def evaluate(request: FitRequest) -> FitResult:
    """Plans the request, without a search for what would make it fit.

    Raises: PlanError for unknown names, impossible numbers and contradictions.
    """
    setup = resolve(request)
    gpus = memory_terms(setup)
    budget = budget_bytes(setup)
    return FitResult(setup, gpus, budget, _reasons(setup, gpus, budget))


def budget_bytes(setup: Setup) -> int | None:
    """What one GPU may hold: vLLM's share of the card, else what the system leaves."""
    device = setup.device
    if device is None:
        return None
    if setup.engine.shares_card:
        return int(device.usable_bytes * setup.request.gpu_memory_utilization)
    return device.usable_bytes


def _reasons(setup: Setup, gpus: tuple[GpuTerms, ...], budget: int | None) -> tuple[str, ...]:
    """Why this does not fit; empty when it does."""
    reasons = list(setup.problems)
    limit = setup.config.text.max_position_embeddings
    if setup.context_tokens > limit and not setup.training:
        reasons.append(f"a request takes {setup.context_tokens:,} tokens, the model's context is {limit:,}")
    if budget is None:
        return tuple(reasons)
    assert setup.device is not None
    usable = setup.device.usable_bytes
    for i, (terms, whole) in enumerate(zip(gpus, gpu_bytes(gpus), strict=True)):
        # vLLM captures its graphs after the budget is taken: they need room on the card, not in the budget
        need = whole - sum(t.bytes for t in terms if t.name == "cuda_graphs")
        if need > budget or whole > usable:
            where = f"GPU {i}: " if len(set(gpus)) > 1 else ""
            share = (
                f" ({setup.request.gpu_memory_utilization:.0%} of the card)"
                if setup.engine.shares_card
                else ""
            )
            top = max(terms, key=lambda t: t.bytes)
            reasons.append(
                f"{where}needs {format_bytes(need)}, {format_bytes(budget)} free{share}; "
                f"most of it {top.name} {format_bytes(top.bytes)}"
            )
            break
    return tuple(reasons)


def fits(request: FitRequest) -> bool:
    """Whether it fits, nothing else; False too where the request contradicts itself."""
    try:
        return not evaluate(request).reasons
    except PlanError:
        return False


def largest_that(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The largest whole number from low to high for which `holds`; it must hold below any number it holds for."""
    if low > high or not holds(low):
        return None
    if holds(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def max_context(request: FitRequest) -> int:
    """Tokens one request may take in all (images, words, answer) at this concurrency; 0 if none fits."""
    setup = resolve(request)
    others = setup.context_tokens - setup.workload.prompt_tokens
    most = setup.config.text.max_position_embeddings - others
    words = largest_that(0, most, lambda n: fits(with_workload(request, prompt_tokens=n)))
    return 0 if words is None else words + others


def max_concurrency(request: FitRequest) -> int:
    """How many such requests may run at once; 0 if none fits."""
    found = largest_that(1, MAX_CONCURRENCY, lambda n: fits(with_workload(request, concurrency=n)))
    return found or 0


class CachedPlanner:
    """`evaluate` that plans each deployment of a catalogue model once: requirements change, plans don't."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], FitResult | QvlError] = {}

    def __call__(self, request: FitRequest) -> FitResult:
        hardware = request.hardware
        key = (request.name, request.precision, request.engine, hardware and hardware.name, request.workload)
        known = self._known.get(key)
        if known is None:
            try:
                known = evaluate(request)
            except QvlError as e:
                known = e
            self._known[key] = known
        if isinstance(known, QvlError):
            raise known
        return known
