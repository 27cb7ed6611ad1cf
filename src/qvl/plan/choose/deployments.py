"""The ways to run a model: on the user's hardware, on rented machines, through an API; each planned or refused.

Finds out what meets the requirements on memory, time, volume and money. Says nothing about which is best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import TYPE_CHECKING, NamedTuple

from qvl.catalog.models import Checkpoint, Model, find_model
from qvl.errors import CatalogError, QvlError
from qvl.plan.choose.candidate import (
    STAGES,
    Ask,
    Candidate,
    Evaluation,
    Failure,
    Outcome,
    Planner,
    bill,
    expected_quality,
)
from qvl.plan.choose.quality import Quality, quantisation_loss
from qvl.plan.choose.requirement import SECONDS_PER_MONTH, Requirement, Where
from qvl.plan.memory import least_bytes
from qvl.units import format_count, format_seconds

if TYPE_CHECKING:
    from qvl.catalog.devices import Hardware
    from qvl.catalog.prices import ApiPrice, PriceBook, RentPrice
    from qvl.plan.workload import Workload

# An average month uses less than a peak hour; the share that a server is planned to be busy.
UTILISATION = 0.3
MAX_BATCH = 1024  # growing stops here
LADDER_COUNTS = (1, 2, 4, 8)  # GPUs of a rented machine
# What is planned where nobody names an engine. Bounds are the hardware's, so engines are not ranked by them.
ENGINES_OF = {"gpu": ("vllm",), "apple": ("llama.cpp",), "cpu": ("qvl", "llama.cpp")}


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

    def ask(self, rung: _Rung) -> Ask:
        return Ask(self.model, rung.precision, rung.engine, rung.hardware, self.workload)


class _Rung(NamedTuple):
    """A machine, what it costs, and what it is given to run."""

    hardware: Hardware
    price: RentPrice | None
    engine: str
    precision: str
    checkpoint: Checkpoint | None


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
        yield from _hosted(case)


def _plans(
    req: Requirement, model: Model, hardware: Hardware
) -> Iterator[tuple[str, str, Checkpoint | None]]:
    """(engine, precision, published weights) that this hardware can be given."""
    for engine in (_still_serving(e, model) for e in _engines(req, hardware)):
        name = engine.partition("@")[0]
        if name not in model.engines or (name == "llama.cpp" and _wants_clips(req)):
            continue
        if name == "llama.cpp":
            # its converter quantises 16-bit weights; the others read what is published
            options = [(p, model.checkpoints[0]) for p in ("bf16", "int8", "int4")]
        else:
            options = [(c.precision, c) for c in model.checkpoints]
        for precision, checkpoint in options:
            if not req.precisions or precision in req.precisions:
                yield engine, precision, checkpoint


def workload_of(req: Requirement, model: Model) -> Workload:
    """A thinking variant's answers are longer by what it thinks."""
    if model.variant != "thinking":
        return req.workload
    return replace(req.workload, answer_tokens=round(req.workload.answer_tokens * req.thinking_factor))


def _own(case: _Case, hardware: Hardware) -> Iterator[Outcome]:
    rungs = [_Rung(hardware, None, *plan) for plan in _plans(case.req, case.model, hardware)]
    if not rungs:
        yield Failure("engine", _no_plan(case.req, case.model, hardware))
    for rung in rungs:
        sure = None if case.reasons else _sure_to_fail(case, rung)
        yield sure or _try(case, rung, "own", brief=not case.reasons)


def _engines(req: Requirement, hardware: Hardware) -> tuple[str, ...]:
    return (req.engine,) if req.engine else ENGINES_OF[hardware.device.kind]


def _still_serving(engine: str, model: Model) -> str:
    """`vllm@0.23.0` for a generation that later ones dropped, where nobody named a version."""
    from qvl.catalog.engines import engines

    known = engines().get(engine)
    dropped = known.dropped(model.family, known.version) if known else None
    return f"{engine}@{dropped.version}" if dropped and dropped.version else engine


def _wants_clips(req: Requirement) -> bool:
    return bool(req.workload.videos) or "video" in req.all_needs


def _no_plan(req: Requirement, model: Model, hardware: Hardware) -> str:
    if _wants_clips(req) and all(e.startswith("llama.cpp") for e in _engines(req, hardware)):
        return "llama.cpp's server takes pictures, no clips; frames can be planned as pictures (--image)"
    parts = [f"no weights in {', '.join(req.precisions)}"] if req.precisions else []
    parts += [f"{req.engine} is not known to run it"] if req.engine else []
    has = ", ".join(dict.fromkeys(c.precision for c in model.checkpoints))
    why = " and ".join(parts) or "no engine known for this hardware"
    return f"{why}; it comes in {has} for {', '.join(model.engines)}"


def _rented(case: _Case) -> Iterator[Outcome]:
    """For each precision the better of the two cheapest machines that meet everything."""
    by_plan: dict[tuple[str, str], list[Candidate]] = {}
    failures: dict[int, Failure] = {}
    late: list[tuple[float, int]] = []
    reached = -1 if case.reasons else len(STAGES)  # what can't come further than this isn't planned
    rungs = [
        _Rung(hardware, price, *plan)
        for hardware, price in _ladder(case.book)
        for plan in _plans(case.req, case.model, hardware)
    ]
    for i, rung in enumerate(rungs):
        kept = by_plan.setdefault((rung.engine, rung.precision), [])
        if len(kept) >= 2 or _far_too_big(case.model, rung):
            continue
        if (seconds := _least_seconds(case, rung)) > (case.req.latency_s or inf):
            late.append((seconds, i))
            continue
        sure = _sure_to_fail(case, rung)
        if sure and STAGES.index(sure.stage) <= reached:
            outcome: Outcome = sure
        else:
            outcome = _try(case, rung, "rent", brief=STAGES.index("budget") <= reached)
        if isinstance(outcome, Candidate):
            kept.append(outcome)
        else:
            failures[i] = outcome
            reached = max(reached, STAGES.index(outcome.stage))
    found = [min(kept, key=bill(kept)) for kept in by_plan.values() if kept]
    yield from (_with_request_price(case, c) for c in found)
    if not found:
        failures |= _too_late(case, rungs, late, failures, reached)
        yield from (failures[i] for i in sorted(failures))
        yield Failure("memory", "larger than every machine that is looked at, up to 8 GPUs")


def _too_late(
    case: _Case, rungs: Sequence[_Rung], late: Sequence[tuple[float, int]], others: Mapping[int, Failure],
    reached: int,
) -> Iterator[tuple[int, Failure]]:  # fmt: skip
    """What is sure to break the latency; planned, the fastest first, until the rest can't be a nearer miss."""
    nearest = 0.0  # where others came further nobody asks
    if reached <= STAGES.index("latency"):
        nearest = min((f.gap for f in others.values() if f.stage == "latency" and f.gap), default=inf)
    for seconds, i in sorted(late):
        outcome: Outcome = Failure("latency", "reading the weights alone takes longer", seconds)
        if seconds <= nearest:
            outcome = _try(case, rungs[i], "rent")
        assert isinstance(outcome, Failure)
        yield i, outcome
        if outcome.stage == "latency":
            nearest = min(nearest, outcome.gap or inf)


def _sure_to_fail(case: _Case, rung: _Rung) -> Failure | None:
    """What needs no plan to be seen: a budget below the rent of one such machine, too little quality."""
    budget = case.req.budget_per_month
    if budget is not None and rung.price and _rent(rung.price, rung.hardware) > budget:
        return Failure("budget", f"{rung.hardware.name}: its rent alone is more than the budget")
    loss = quantisation_loss(case.model, rung.precision)
    return _too_little(case.req, expected_quality(case.quality, loss))


def _ladder(book: PriceBook | None) -> list[tuple[Hardware, RentPrice | None]]:
    """Machines that can be rented, cheapest first; by memory where prices may not be used."""
    from qvl.catalog.devices import Hardware, find_device

    if book is None or not any(p.used for p in book.rent):
        names = ("rtx4090", "l40s", "a100", "h100", "h200")
        machines = [Hardware(find_device(n), c) for n in names for c in LADDER_COUNTS]
        return [(h, None) for h in sorted(machines, key=lambda h: h.memory_bytes)]
    rungs = [
        (p.typical * c, Hardware(find_device(p.device), c), p)
        for p in book.rent
        if p.used
        for c in LADDER_COUNTS
    ]
    return [(h, p) for _, h, p in sorted(rungs, key=lambda rung: rung[0])]


def _far_too_big(model: Model, rung: _Rung) -> bool:
    return least_bytes(model.num_parameters or 0, rung.precision) > rung.hardware.memory_bytes


def _least_seconds(case: _Case, rung: _Rung) -> float:
    return 0.0 if case.req.latency_s is None else case.planner.least_seconds(case.ask(rung))


def _try(case: _Case, rung: _Rung, where: Where, *, brief: bool = False) -> Outcome:
    """`brief`: by how much it misses volume or budget isn't asked."""
    model, workload, precision, hardware = case.model, case.workload, rung.precision, rung.hardware
    try:
        ev = case.planner.evaluate(case.ask(rung))
    except QvlError as e:
        return Failure("memory", str(e))
    longest = int(model.context.value)
    needed = ev.prompt_tokens + workload.answer_tokens
    if needed > longest:
        return Failure("context", f"a request has {needed:,} tokens, its context is {longest:,}")
    if ev.impossible:
        return Failure("engine", f"{hardware.name} in {precision}: {ev.why_not}")
    if not ev.fits:
        return Failure("memory", f"{hardware.name} in {precision}: {ev.why_not}", ev.per_gpu_bytes)
    if brief and (over := _too_many(case.req, ev, rung, where)):
        return over
    candidate = Candidate(
        model=model, where=where, precision=precision, engine=rung.engine, hardware=hardware,
        checkpoint=rung.checkpoint, quality=case.quality, loss=quantisation_loss(model, precision), evaluation=ev,
    )  # fmt: skip
    loaded = _under_load(case, candidate)
    if isinstance(loaded, Failure):
        return loaded
    return _within_limits(case.req, _with_rent(loaded, rung.price))


def _too_many(req: Requirement, ev: Evaluation, rung: _Rung, where: Where) -> Failure | None:
    """What servers that did nothing but read the prompts would break already, however large their batches."""
    if req.requests_per_month is None or ev.first_token_s is None:
        return None
    servers = _servers(_wanted(req.requests_per_month) * ev.first_token_s)
    what = f"{rung.hardware.name}: reading the prompts alone takes {servers} such machines"
    if where == "own" and servers > 1:
        return Failure("volume", what)
    budget, price = req.budget_per_month, rung.price
    if budget is not None and price and _rent(price, rung.hardware, servers) > budget:
        return Failure("budget", what)
    return None


def _servers(busy: float) -> int:
    """How many it takes where one would be so many times too busy; less rounding."""
    return max(1, ceil(busy - 1e-9))


def _wanted(requests_per_month: float) -> float:
    """Requests a second that the servers are planned for."""
    return requests_per_month / SECONDS_PER_MONTH / UTILISATION


def _under_load(case: _Case, candidate: Candidate) -> Outcome:
    """Latency and volume: as many at once as the volume needs and the latency allows.

    Batches grow until the rate suffices; the largest that keeps the latency counts.
    """
    req, ev, hardware = case.req, candidate.evaluation, candidate.hardware
    assert ev
    assert hardware
    what = f"{hardware.name} in {candidate.precision}"
    if req.latency_s is not None:
        if ev.answer_s is None:
            return Failure("latency", f"{what}: no speed is known for {hardware.device.title}, so no promise")
        if ev.answer_s > req.latency_s:
            return Failure(
                "latency",
                f"{what}: {format_seconds(ev.answer_s)} an answer at best, "
                f"{format_seconds(req.latency_s)} allowed; limited by {ev.limited_by}",
                ev.answer_s,
            )
    if req.requests_per_month is None:
        return candidate
    if ev.requests_per_s is None:
        return Failure("volume", f"{what}: no speed is known for {hardware.device.title}, so no promise")
    wanted = _wanted(req.requests_per_month)
    best, batch = _batched(case, candidate, wanted)
    servers = _servers(wanted / (best.requests_per_s or 1e-9))
    if candidate.where == "own" and servers > 1:
        can = (best.requests_per_s or 0) * UTILISATION * SECONDS_PER_MONTH
        return Failure(
            "volume",
            f"{what}: {format_count(can)} requests a month at {UTILISATION:.0%} load, "
            f"{format_count(req.requests_per_month)} wanted; {servers} such machines would do",
            servers,
        )
    return replace(candidate, evaluation=best, num_servers=servers, concurrency=batch)


def _batched(case: _Case, candidate: Candidate, wanted: float) -> tuple[Evaluation, int]:
    """The smallest batch that serves `wanted` requests a second, or the one that serves most in time."""
    assert candidate.evaluation
    assert candidate.hardware
    best, best_batch, step = candidate.evaluation, case.workload.concurrency, 4
    while (best.requests_per_s or 0) < wanted and best_batch * step <= MAX_BATCH:
        load = replace(case.workload, concurrency=best_batch * step)
        more = case.planner.evaluate(
            Ask(candidate.model, candidate.precision, candidate.engine, candidate.hardware, load)
        )
        late = case.req.latency_s is not None and (more.answer_s or 0) > case.req.latency_s
        if not more.fits or late or (more.requests_per_s or 0) <= (best.requests_per_s or 0) * 1.02:
            if step == 2:
                break
            step = 2  # a long stride failed, a short one may not
        else:
            best, best_batch = more, best_batch * step
    return best, best_batch


def _rent(price: RentPrice, hardware: Hardware, servers: int = 1) -> float:
    """Dollars a month."""
    return price.typical * hardware.count * servers * SECONDS_PER_MONTH / 3600


def _with_rent(candidate: Candidate, price: RentPrice | None) -> Candidate:
    if price is None or candidate.hardware is None:
        return candidate
    return replace(
        candidate,
        cost_per_month=_rent(price, candidate.hardware, candidate.num_servers),
        priced_by=f"${price.typical:.2f} a GPU hour, {price.cite()}",
    )


def _with_request_price(case: _Case, candidate: Candidate) -> Candidate:
    """Without a volume, the price of a request is that of a server with as much to do as it can batch."""
    month = candidate.cost_per_month
    if month is None:
        return candidate
    wanted = case.req.requests_per_month
    if wanted is None:
        rate = _batched(case, candidate, float("inf"))[0].requests_per_s
        wanted = rate * UTILISATION * SECONDS_PER_MONTH if rate else None
    return replace(candidate, cost_per_1000=month / wanted * 1000 if wanted else None)


def _hosted(case: _Case) -> Iterator[Outcome]:
    """Through an API: the maker's for hosted names, a third party's for open weights that one sells."""
    req, model, book, work = case.req, case.model, case.book, case.workload
    price = _api_price(model, book)
    if price is None and not model.hosted:
        yield Failure("place", "its weights are open, but no API that sells it is among the prices used here")
        return
    candidate = Candidate(
        model=model, where="api", precision="", engine="", hardware=None, checkpoint=None, quality=case.quality,
        loss=quantisation_loss(model, "bf16"), evaluation=None,
    )  # fmt: skip
    if price is None or book is None:
        yield candidate
        return
    from qvl.plan.cost import Traffic, api_bill

    traffic = Traffic(
        requests_per_month=req.requests_per_month or 1000,
        images=work.images,
        videos=work.videos,
        prompt_tokens=work.prompt_tokens,
        answer_tokens=work.answer_tokens,
    )
    try:
        bill = api_bill(traffic, price)
    except CatalogError as e:
        yield replace(candidate, warnings=(str(e),))
        return
    except QvlError as e:
        yield Failure("context", str(e))
        return
    try:
        each = book.convert(bill.per_request, bill.currency, "USD")
    except CatalogError as e:
        yield replace(candidate, warnings=(f"its price is in {bill.currency}: {e}",))
        return
    yield _within_limits(
        req,
        replace(
            candidate,
            cost_per_1000=each * 1000,
            cost_per_month=each * req.requests_per_month if req.requests_per_month else None,
            priced_by=f"{price.key} by {price.cite()}",
            warnings=bill.notes,
        ),
    )


def _api_price(model: Model, book: PriceBook | None) -> ApiPrice | None:
    for price in book.api.values() if book else ():
        if not price.variant:
            try:
                if find_model(price.name) is model:
                    return price
            except CatalogError:
                continue  # a user's price for a model that isn't of this family
    return None


def _within_limits(req: Requirement, candidate: Candidate) -> Outcome:
    cost, budget = candidate.cost_per_month, req.budget_per_month
    if budget is not None and cost is None:
        return Failure("budget", f"{candidate.place}: its price is not known")
    if budget is not None and cost is not None and cost > budget:
        return Failure("budget", f"{candidate.place}: ${cost:,.0f} a month, ${budget:,.0f} allowed")
    return _too_little(req, candidate.expected) or candidate


def _too_little(req: Requirement, expected: float | None) -> Failure | None:
    if req.min_quality is None or (expected is not None and expected >= req.min_quality):
        return None
    got = "no published score" if expected is None else f"{expected:.1f} expected"
    return Failure("quality", f"{got}, at least {req.min_quality:g} asked for")
