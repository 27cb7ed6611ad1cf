"""The deployments of a model: on the user's hardware, on rented machines, through an API; each planned or refused.

Finds out what meets the requirements on memory, time, volume and money. Says nothing about which is best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import TYPE_CHECKING

from qvl.catalog.devices import Hardware
from qvl.catalog.models import Model
from qvl.errors import QvlError
from qvl.plan.choose.candidate import STAGES, Candidate, Failure, Outcome, Planner, bill, expected_quality
from qvl.plan.choose.hosted import through_api
from qvl.plan.choose.limits import too_little, within_limits
from qvl.plan.choose.machines import (
    CandidateMachine,
    least_seconds,
    own_machines,
    rented_machines,
    why_no_machine,
)
from qvl.plan.choose.quality import Quality, quantisation_loss, scored_thinking
from qvl.plan.choose.requirement import SECONDS_PER_MONTH, Requirement, Where
from qvl.plan.evaluate import FitResult
from qvl.plan.workload import Workload
from qvl.units import format_count, format_seconds

if TYPE_CHECKING:
    from qvl.catalog.prices import PriceBook

# An average month uses less than a peak hour; the share that a server is planned to be busy.
UTILISATION = 0.3
MAX_BATCH = 1024  # growing stops here


@dataclass(frozen=True)
class _Case:
    """One model under one requirement. Without `reasons` what is sure to fail isn't planned at all."""

    req: Requirement
    model: Model
    quality: tuple[Quality, ...]
    planner: Planner
    book: PriceBook | None
    reasons: bool
    workload: Workload

    def plan(self, machine: CandidateMachine, workload: Workload | None = None) -> FitResult:
        return self.planner(machine.request(workload or self.workload))


def deployments(
    req: Requirement, model: Model, quality: tuple[Quality, ...], planner: Planner, book: PriceBook | None,
    *, reasons: bool = True,
) -> Iterator[Outcome]:  # fmt: skip
    """Every way to run the model that meets `req`, and failures: the nearest miss among them where `reasons` are
    wanted, and every stage at which one failed."""
    case = _Case(req, model, quality, planner, book, reasons, workload_of(req, model))
    if not model.hosted:
        if not model.shape:
            yield Failure("engine", "its config.json was not seen, so no plan: qvl fit --config takes yours")
        elif req.hardware and "own" in req.where:
            yield from _own(case, req.hardware)
        elif not req.hardware and "rent" in req.where:
            yield from _rented(case)
    if req.may_use_api and (not req.hardware or model.hosted):
        yield through_api(req, model, quality, case.workload, book)


def workload_of(req: Requirement, model: Model) -> Workload:
    """Whose scores were taken while it thought is planned with its thoughts, so that like is compared with like."""
    if not scored_thinking(model.name):
        return req.workload
    return replace(req.workload, answer_tokens=round(req.workload.answer_tokens * req.thinking_factor))


def _own(case: _Case, hardware: Hardware) -> Iterator[Outcome]:
    machines = own_machines(case.req, case.model, hardware)
    if not machines:
        yield Failure("engine", why_no_machine(case.req, case.model, hardware))
    for machine in machines:
        sure = None if case.reasons else _sure_to_fail(case, machine)
        yield sure or _try(case, machine, "own", brief=not case.reasons)


def _rented(case: _Case) -> Iterator[Outcome]:
    """For each precision the better of the two cheapest machines that meet everything."""
    by_plan: dict[tuple[str, str], list[tuple[Candidate, CandidateMachine]]] = {}
    failures: dict[int, Failure] = {}
    late: list[tuple[float, int]] = []
    reached = -1 if case.reasons else len(STAGES)  # what can't come further than this isn't planned
    over: dict[
        tuple[str, str, str], Failure
    ] = {}  # more cards of the device can't be cheaper a prompt than one
    machines = rented_machines(case.req, case.model, case.book)
    for i, machine in enumerate(machines):
        kept = by_plan.setdefault((machine.engine, machine.precision), [])
        if len(kept) >= 2 or machine.is_far_too_small():
            continue
        limit = case.req.latency_s
        if limit is not None and (seconds := least_seconds(machine, case.workload)) > limit:
            late.append((seconds, i))
            continue
        device = (machine.engine, machine.precision, machine.hardware.device.name)
        sure = _sure_to_fail(case, machine) or over.get(device)
        if sure and STAGES.index(sure.stage) <= reached:
            outcome: Outcome = sure
        else:
            outcome = _try(case, machine, "rent", brief=STAGES.index("budget") <= reached)
        if isinstance(outcome, Candidate):
            kept.append((outcome, machine))
        else:
            failures[i] = outcome
            if outcome.hopeless and machine.hardware.count == 1:
                over[device] = outcome
            reached = max(reached, STAGES.index(outcome.stage))
    found = [_cheapest(kept) for kept in by_plan.values() if kept]
    yield from (_with_request_price(case, c, machine) for c, machine in found)
    if not found:
        failures |= _too_late(case, machines, late, failures, reached)
        yield from (failures[i] for i in sorted(failures))
        yield Failure("memory", "larger than every machine that is looked at, up to 8 GPUs")


def _cheapest(kept: Sequence[tuple[Candidate, CandidateMachine]]) -> tuple[Candidate, CandidateMachine]:
    cost = bill([c for c, _ in kept])
    return min(kept, key=lambda item: cost(item[0]))


def _too_late(
    case: _Case, machines: Sequence[CandidateMachine], late: Sequence[tuple[float, int]], others: Mapping[int, Failure],
    reached: int,
) -> Iterator[tuple[int, Failure]]:  # fmt: skip
    """What is sure to break the latency; planned, the fastest first, until the rest can't be a nearer miss."""
    nearest = 0.0  # where others came further it does not matter
    if reached <= STAGES.index("latency"):
        nearest = min((f.gap for f in others.values() if f.stage == "latency" and f.gap), default=inf)
    for seconds, i in sorted(late):
        outcome: Outcome = Failure("latency", "reading the weights alone takes longer", seconds)
        if seconds <= nearest:
            outcome = _try(case, machines[i], "rent")
        assert isinstance(outcome, Failure)
        yield i, outcome
        if outcome.stage == "latency":
            nearest = min(nearest, outcome.gap or inf)


def _sure_to_fail(case: _Case, machine: CandidateMachine) -> Failure | None:
    """What needs no plan to be seen: a budget below the rent of one such machine, too little quality."""
    budget = case.req.budget_per_month
    if budget is not None and machine.rent() > budget:
        return Failure("budget", f"{machine.hardware.name}: its rent alone is more than the budget")
    loss = quantisation_loss(case.model, machine.precision)
    return too_little(case.req, expected_quality(case.quality, loss))


def _try(case: _Case, machine: CandidateMachine, where: Where, *, brief: bool = False) -> Outcome:
    """`brief`: by how much it misses volume or budget isn't asked."""
    model, workload, precision, hardware = case.model, case.workload, machine.precision, machine.hardware
    try:
        plan = case.plan(machine)
    except QvlError as e:
        return Failure("memory", str(e))
    longest = int(model.context.value)
    needed = plan.setup.prompt_tokens + workload.answer_tokens
    if needed > longest:
        return Failure("context", f"a request has {needed:,} tokens, its context is {longest:,}")
    if not plan.fits:
        impossible = bool(plan.setup.problems)
        each = " on each GPU" if hardware.count > 1 and not impossible else ""
        why = f"{hardware.name} in {precision}: {plan.reasons[0].partition(';')[0]}{each}"
        return Failure("engine", why) if impossible else Failure("memory", why, plan.busiest_bytes)
    if brief and (over := _too_many(case.req, plan, machine, where)):
        return over
    candidate = Candidate(
        model=model, where=where, precision=precision, engine=machine.engine, hardware=hardware,
        checkpoint=machine.checkpoint, quality=case.quality, loss=quantisation_loss(model, precision), plan=plan,
        as_asked=plan,
    )  # fmt: skip
    loaded = _under_load(case, machine, candidate)
    if isinstance(loaded, Failure):
        return loaded
    return within_limits(case.req, _with_rent(loaded, machine))


def _too_many(req: Requirement, plan: FitResult, machine: CandidateMachine, where: Where) -> Failure | None:
    """What servers that did nothing but read the prompts would break already, however large their batches."""
    if req.requests_per_month is None or plan.speed is None:
        return None
    servers = _servers(_wanted(req.requests_per_month) * plan.speed.ttft_s)
    what = f"{machine.hardware.name}: reading the prompts alone takes {servers} such machines"
    if where == "own" and servers > 1:
        return Failure("volume", what)
    budget = req.budget_per_month
    if budget is not None and machine.rent(servers) > budget:
        share = _wanted(req.requests_per_month) * plan.speed.ttft_s  # of servers, before rounding up
        return Failure("budget", what, hopeless=share * machine.rent() > budget)
    return None


def _servers(busy: float) -> int:
    """How many it takes where one would be so many times too busy; less rounding."""
    return max(1, ceil(busy - 1e-9))


def _wanted(requests_per_month: float) -> float:
    """Requests a second that the servers are planned for."""
    return requests_per_month / SECONDS_PER_MONTH / UTILISATION


def _under_load(case: _Case, machine: CandidateMachine, candidate: Candidate) -> Outcome:
    """Latency and volume: as many at once as the volume needs and the latency allows.

    Batches grow until the rate suffices; the largest that keeps the latency counts.
    """
    req, plan, hardware = case.req, candidate.plan, machine.hardware
    assert plan
    what = f"{hardware.name} in {candidate.precision}"
    if req.latency_s is not None:
        if plan.speed is None or plan.answer_s is None:
            return Failure("latency", f"{what}: no speed is known for {hardware.device.title}, so no promise")
        if plan.answer_s > req.latency_s:
            return Failure(
                "latency",
                f"{what}: {format_seconds(plan.answer_s)} an answer at best, "
                f"{format_seconds(req.latency_s)} allowed; limited by {plan.speed.limit}",
                plan.answer_s,
            )
    if req.requests_per_month is None:
        return candidate
    if plan.requests_per_s is None:
        return Failure("volume", f"{what}: no speed is known for {hardware.device.title}, so no promise")
    wanted = _wanted(req.requests_per_month)
    best, batch = _batched(case, machine, plan, wanted)
    servers = _servers(wanted / (best.requests_per_s or 1e-9))
    if candidate.where == "own" and servers > 1:
        can = (best.requests_per_s or 0) * UTILISATION * SECONDS_PER_MONTH
        return Failure(
            "volume",
            f"{what}: {format_count(can)} requests a month at {UTILISATION:.0%} load, "
            f"{format_count(req.requests_per_month)} wanted; {servers} such machines would do",
            servers,
        )
    return replace(candidate, plan=best, num_servers=servers, concurrency=batch)


def _batched(case: _Case, machine: CandidateMachine, plan: FitResult, wanted: float) -> tuple[FitResult, int]:
    """The smallest batch that serves `wanted` requests a second, or the one that serves most in time."""
    best, best_batch, step = plan, case.workload.concurrency, 4
    while (best.requests_per_s or 0) < wanted and best_batch * step <= MAX_BATCH:
        load = replace(case.workload, concurrency=best_batch * step)
        more = case.plan(machine, load)
        late = case.req.latency_s is not None and (more.answer_s or 0) > case.req.latency_s
        if not more.fits or late or (more.requests_per_s or 0) <= (best.requests_per_s or 0) * 1.02:
            if step == 2:
                break
            step = 2  # a long stride failed, a short one may not
        else:
            best, best_batch = more, best_batch * step
    return best, best_batch


def _with_rent(candidate: Candidate, machine: CandidateMachine) -> Candidate:
    price = machine.price
    if price is None:
        return candidate
    return replace(
        candidate,
        cost_per_month=machine.rent(candidate.num_servers),
        priced_by=f"${price.typical:.2f} a GPU hour, {price.cite()}",
    )


def _with_request_price(case: _Case, candidate: Candidate, machine: CandidateMachine) -> Candidate:
    """Without a volume, the price of a request is that of a server with as much to do as it can batch."""
    month = candidate.cost_per_month
    if month is None or candidate.plan is None:
        return candidate
    wanted = case.req.requests_per_month
    if wanted is None:
        rate = _batched(case, machine, candidate.plan, inf)[0].requests_per_s
        wanted = rate * UTILISATION * SECONDS_PER_MONTH if rate else None
    return replace(candidate, cost_per_1000=month / wanted * 1000 if wanted else None)
