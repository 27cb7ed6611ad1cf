"""One deployment of a catalogue model, planned by `fit`'s parts and told in the words that `choose` needs.

`choose` asks about hundreds of deployments, so `evaluate` leaves out the searches for the longest context and
the largest batch; `limits` makes them for the few that are shown.
"""

from __future__ import annotations

from qvl.catalog.models import config_of
from qvl.errors import QvlError
from qvl.plan.choose.candidate import Ask, Evaluation, Limits
from qvl.plan.engines import gpu_bytes, memory_terms
from qvl.plan.fit import max_concurrency, max_context, shortfalls
from qvl.plan.memory import least_bytes
from qvl.plan.request import FitRequest, resolve
from qvl.plan.speed import SECONDS_PER_KERNEL, kernels, speed


def _request(ask: Ask) -> FitRequest:
    return FitRequest(
        config=config_of(ask.model),
        workload=ask.workload,
        name=ask.model.name,
        engine=ask.engine,
        precision=ask.precision,
        hardware=ask.hardware,
    )


def evaluate(ask: Ask) -> Evaluation:
    """Whether it fits, and how fast it is at best.

    Raises: PlanError for what fit refuses to plan, such as an engine that lacks the precision.
    """
    request = _request(ask)
    setup = resolve(request)
    terms = memory_terms(setup)
    per_gpu = gpu_bytes(terms)
    missing = shortfalls(setup, terms)
    pace = None if missing else speed(setup)
    each = " on each GPU" if ask.hardware.count > 1 else ""
    return Evaluation(
        fits=not missing,
        total_bytes=sum(per_gpu),
        per_gpu_bytes=max(per_gpu),
        # of the card: vLLM's graphs lie outside the share that its utilisation sets
        usable_bytes=ask.hardware.device.usable_bytes,
        prompt_tokens=setup.prompt_tokens,
        first_token_s=pace.ttft_s if pace else None,
        answer_s=pace.ttft_s + ask.workload.answer_tokens / pace.tokens_per_s if pace else None,
        requests_per_s=pace.requests_per_s if pace else None,
        limited_by=pace.limit if pace else "",
        why_not=missing[0].partition(";")[0] + each * (not setup.problems) if missing else "",
        impossible=bool(setup.problems),
        notes=setup.notes,
    )


def least_seconds(ask: Ask) -> float:
    """What no answer can beat: its tokens one after the other, each reading the weights and starting the kernels.

    Tower and token table aren't read for every token, but no kernel reaches the full bandwidth either.
    """
    device = ask.hardware.device
    ranks = ask.hardware.count if ask.engine.startswith("vllm") else 1  # dealt layers take turns
    size = least_bytes(ask.model.num_active_parameters or 0, ask.precision)
    start = kernels(config_of(ask.model).text) * SECONDS_PER_KERNEL if device.kind == "gpu" else 0.0
    return ask.workload.answer_tokens * (size / device.bandwidth_bytes_per_s / ranks + start)


class Remembered:
    """A planner that plans each deployment once, however often it is asked: requirements change, plans don't."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Evaluation | QvlError] = {}

    def evaluate(self, ask: Ask) -> Evaluation:
        key = (ask.model.name, ask.precision, ask.engine, ask.hardware.name, ask.workload)
        if key not in self._known:
            try:
                self._known[key] = evaluate(ask)
            except QvlError as e:
                self._known[key] = e
        known = self._known[key]
        if isinstance(known, QvlError):
            raise known
        return known

    def least_seconds(self, ask: Ask) -> float:
        return least_seconds(ask)

    def limits(self, ask: Ask) -> Limits:
        return limits(ask)


def limits(ask: Ask) -> Limits:
    """The longest request and the largest batch that still fit."""
    request = _request(ask)
    return Limits(max_context=max_context(request), max_concurrency=max_concurrency(request))
