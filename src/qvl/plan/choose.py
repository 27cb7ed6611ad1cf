"""Which model, in which precision, on which engine and hardware: a ranked list, and what ruled the others out.

Hard requirements are checked one after the other and never traded away. What is left is ordered by expected
quality less what the bill takes off: each doubling of it must buy so many points (`DOUBLING`). Every candidate
says why it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, log2
from typing import TYPE_CHECKING, Protocol

from qvl.catalog.models import Checkpoint, Model, find_model, models
from qvl.errors import CatalogError, PlanError, QvlError
from qvl.plan.quality import Loss, Quality, combined_quality, quantisation_loss
from qvl.plan.requirement import DOUBLING, SECONDS_PER_MONTH, Requirement, Where
from qvl.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from qvl.catalog.devices import Hardware
    from qvl.catalog.prices import ApiPrice, PriceBook, RentPrice
    from qvl.plan.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What plan.fit says of one deployment at one load. Times are bounds: no real server is faster."""

    fits: bool
    total_bytes: int
    per_gpu_bytes: int  # the fullest one
    usable_bytes: int  # of each GPU, less what the system keeps
    prompt_tokens: int  # pictures included
    first_token_s: float | None = None
    answer_s: float | None = None  # first token included
    requests_per_s: float | None = None
    limited_by: str = ""
    why_not: str = ""  # when it doesn't fit
    impossible: bool = False  # not for want of memory: the hardware or the engine can't do it at all
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    model: Model
    precision: str
    engine: str
    hardware: Hardware
    workload: Workload


@dataclass(frozen=True)
class Limits:
    max_context: int  # tokens of one request
    max_concurrency: int  # such requests at once


class Planner(Protocol):
    """What choose needs of plan.fit; `plan.deployment` is it."""

    def evaluate(self, ask: Ask) -> Evaluation: ...
    def limits(self, ask: Ask) -> Limits: ...


@dataclass(frozen=True)
class Failure:
    """Why one deployment won't do. `gap` compares failures of one stage: the smallest is the nearest miss."""

    stage: str
    reason: str
    gap: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to run one model that meets every requirement. Money is US dollars."""

    model: Model
    where: Where
    precision: str
    engine: str
    hardware: Hardware | None
    checkpoint: Checkpoint | None
    quality: tuple[Quality, ...]  # one a task; empty when nobody printed a score
    loss: Loss
    evaluation: Evaluation | None  # None for an API
    num_servers: int = 1
    cost_per_month: float | None = None
    cost_per_1000: float | None = None
    why: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # other deployments of the model that also meet everything
    limits: Limits | None = None  # for the first of a ranking
    concurrency: int = 1  # requests at once that the evaluation is for

    @property
    def expected(self) -> float | None:
        """Mean quality over the tasks less what quantising cost where it was measured; gains aren't credited."""
        if not self.quality:
            return None
        mean = sum(q.value for q in self.quality) / len(self.quality)
        return mean - max(0.0, self.loss.points)

    @property
    def memory_bytes(self) -> int:
        """Over all GPUs of all servers; an API takes none of ours."""
        return self.evaluation.total_bytes * self.num_servers if self.evaluation else 0

    @property
    def place(self) -> str:
        """`own 2xl40s, vllm, fp8`, `hosted API`."""
        if self.hardware is None:
            return "hosted API"
        servers = f"{self.num_servers} x " if self.num_servers > 1 else ""
        rented = "rented " if self.where == "rent" else ""
        return f"{rented}{servers}{self.hardware.name}, {self.engine}, {self.precision}"


@dataclass(frozen=True)
class RuledOut:
    model: Model
    requirement: (
        str  # licence, privacy, abilities, languages, context, memory, latency, volume, budget, quality
    )
    reason: str
    expected: float | None  # what it would have been worth


@dataclass(frozen=True)
class Choice:
    requirement: Requirement
    ranked: tuple[Candidate, ...]
    unranked: tuple[Candidate, ...]  # meet everything known, but nobody printed a score for the task
    ruled_out: tuple[RuledOut, ...]
    warnings: tuple[str, ...]

    @property
    def best(self) -> Candidate | None:
        return self.ranked[0] if self.ranked else None

    def decisive(self) -> str:
        """The requirement that keeps the most better models out, in a sentence; empty when none does."""
        best = self.best
        floor = (best.expected or 0.0) if best else 0.0
        better = [r for r in self.ruled_out if r.expected is not None and r.expected > floor]
        if not better:
            return "" if best else "nothing meets every requirement"
        counts: dict[str, list[RuledOut]] = {}
        for r in better:
            counts.setdefault(r.requirement, []).append(r)
        name, kept = max(counts.items(), key=lambda item: len(item[1]))
        top = max(kept, key=lambda r: r.expected or 0.0)
        models_word = "1 model" if len(kept) == 1 else f"{len(kept)} models"
        would = "that would score higher" if best else "with a published score"
        return (
            f"{name} decides: it keeps out {models_word} {would}, the best of them "
            f"{top.model.name} ({top.expected:.1f}): {top.reason}"
        )


# Order matters: a model is reported under the requirement that it fails last, having passed those before.
STAGES = (
    "place",  # hosted, where an API is not asked for
    "privacy",
    "licence",
    "abilities",
    "languages",
    "context",
    "engine",
    "memory",
    "latency",
    "volume",
    "budget",
    "quality",
)


def choose(
    req: Requirement, planner: Planner | None = None, book: PriceBook | None = None, detailed: int = 1
) -> Choice:
    """All models that meet `req`, best first, and the others with what rules each out.

    `book` holds the prices that may be used; without one nothing is said about money. The first `detailed` of
    the ranking are searched for the longest context and the largest batch they can hold.
    Raises: PlanError when a budget is asked for and there are no prices to keep it by.
    """
    if planner is None:
        from qvl.plan import deployment

        planner = deployment
    if req.budget_per_month is not None and book is None:
        raise PlanError("a budget needs prices: give --prices FILE or --allow-stale")
    if req.budget_per_month is not None and req.requests_per_month is None and "api" in req.where:
        raise PlanError("a budget for an API needs a volume: give --volume, for example 100k/month")
    candidates: list[Candidate] = []
    ruled_out: list[RuledOut] = []
    for model in models():
        quality = combined_quality(req.tasks, model.name) or ()
        worth = sum(q.value for q in quality) / len(quality) if quality else None
        failed = _fails_hard(req, model)
        if failed:
            ruled_out.append(RuledOut(model, failed.stage, failed.reason, worth))
            continue
        found: list[Candidate] = []
        failures: list[Failure] = []
        for outcome in _deployments(req, model, quality, planner, book):
            found.append(outcome) if isinstance(outcome, Candidate) else failures.append(outcome)
        if found:
            candidates.append(_best_of(req, found))
        else:
            nearest = _furthest(failures)
            ruled_out.append(RuledOut(model, nearest.stage, nearest.reason, worth))
    ranked = _rank(req, [c for c in candidates if c.expected is not None])
    ranked[:detailed] = [_with_limits(req, c, planner) for c in ranked[:detailed]]
    ruled_out.sort(key=lambda r: -(r.expected or -1.0))
    return Choice(
        requirement=req,
        ranked=tuple(replace(c, why=_why(req, c)) for c in ranked),
        unranked=tuple(replace(c, why=_why(req, c)) for c in candidates if c.expected is None),
        ruled_out=tuple(ruled_out),
        warnings=_general_warnings(req, book),
    )


def _with_limits(req: Requirement, c: Candidate, planner: Planner) -> Candidate:
    if c.hardware is None:
        return c
    return replace(
        c, limits=planner.limits(Ask(c.model, c.precision, c.engine, c.hardware, _workload(req, c.model)))
    )


def _furthest(failures: Sequence[Failure]) -> Failure:
    """The failure of the deployment that came furthest and missed by least: what a small change could mend."""
    if not failures:
        return Failure("engine", "no way to run it is known here")
    return max(failures, key=lambda f: (STAGES.index(f.stage), -f.gap))


# Requirements on the model itself


def _fails_hard(req: Requirement, model: Model) -> Failure | None:
    if model.hosted and req.private:
        return Failure("privacy", "hosted only: pictures would leave the house")
    if model.hosted and not req.may_use_api:
        return Failure("place", "hosted only, and an API is not asked for")
    if req.commercial and model.licence.commercial == "no":
        return Failure("licence", f"{model.licence.title}: {model.licence.permits}")
    for need in req.all_needs:
        f = model.abilities[need]
        if f.value != "yes":
            words = {"no": "does not do", "weak": "is weak at", "unknown": "is not confirmed to do"}
            note = f" ({f.note})" if f.note else ""
            return Failure("abilities", f"{words[str(f.value)]} {need}{note}")
    known = model.languages.value
    missing = [code for code in req.languages if code not in known]
    if missing and "*" not in known:
        said = f"{', '.join(missing)} not among {' '.join(known)}"
        return Failure("languages", f"{said} ({model.languages.source.title})")
    if model.family == "qwen_vl" and req.workload.videos:
        return Failure("abilities", "takes pictures only, no clips")
    return None


# Ways to run it

Outcome = Candidate | Failure


def _deployments(
    req: Requirement, model: Model, quality: tuple[Quality, ...], planner: Planner, book: PriceBook | None
) -> Iterator[Outcome]:
    if not model.hosted:
        if not model.shape:
            yield Failure("memory", "its config.json was not seen, so no plan: qvl fit --config takes yours")
        elif req.hardware and "own" in req.where:
            yield from _own(req, model, quality, planner)
        elif not req.hardware and "rent" in req.where:
            yield from _rented(req, model, quality, planner, book)
    if req.may_use_api and (not req.hardware or model.hosted):
        yield from _hosted(req, model, quality, book)


def _plans(
    req: Requirement, model: Model, hardware: Hardware
) -> Iterator[tuple[str, str, Checkpoint | None]]:
    """(engine, precision, published weights) that this hardware can be given."""
    kind = hardware.device.kind
    engines = (
        [req.engine]
        if req.engine
        else {"gpu": ["vllm"], "apple": ["llama.cpp"], "cpu": ["qvl", "llama.cpp"]}[kind]
    )
    for engine in engines:
        if engine.partition("@")[0] not in model.engines:
            continue
        if engine.partition("@")[0] in ("llama.cpp", "qvl"):
            # both quantise 16-bit weights by themselves
            options = [(p, model.checkpoints[0]) for p in ("bf16", "int8", "int4")]
        else:
            options = [(c.precision, c) for c in model.checkpoints]
        for precision, checkpoint in options:
            if not req.precisions or precision in req.precisions:
                yield engine, precision, checkpoint


def _workload(req: Requirement, model: Model) -> Workload:
    """A thinking variant's answers are longer by what it thinks."""
    if model.variant != "thinking":
        return req.workload
    return replace(req.workload, answer_tokens=round(req.workload.answer_tokens * req.thinking_factor))


def _own(req: Requirement, model: Model, quality: tuple[Quality, ...], planner: Planner) -> Iterator[Outcome]:
    assert req.hardware
    plans = list(_plans(req, model, req.hardware))
    if not plans:
        yield Failure("engine", _no_plan(req, model))
    for engine, precision, checkpoint in plans:
        yield _try(req, model, quality, planner, engine, precision, checkpoint, req.hardware, "own", None)


def _no_plan(req: Requirement, model: Model) -> str:
    parts = [f"no weights in {', '.join(req.precisions)}"] if req.precisions else []
    parts += [f"{req.engine} is not known to run it"] if req.engine else []
    has = ", ".join(dict.fromkeys(c.precision for c in model.checkpoints))
    why = " and ".join(parts) or "no engine known for this hardware"
    return f"{why}; it comes in {has} for {', '.join(model.engines)}"


def _rented(
    req: Requirement, model: Model, quality: tuple[Quality, ...], planner: Planner, book: PriceBook | None
) -> Iterator[Outcome]:
    """For each precision the better of the two cheapest machines that meet everything."""
    by_plan: dict[tuple[str, str], list[Candidate]] = {}
    failures: list[Outcome] = []
    for hardware, price in _ladder(book):
        for engine, precision, checkpoint in _plans(req, model, hardware):
            kept = by_plan.setdefault((engine, precision), [])
            if len(kept) >= 2 or _far_too_big(model, precision, hardware):
                continue
            outcome = _try(
                req, model, quality, planner, engine, precision, checkpoint, hardware, "rent", price
            )
            kept.append(outcome) if isinstance(outcome, Candidate) else failures.append(outcome)
    found = [min(kept, key=_bill(kept)) for kept in by_plan.values() if kept]
    yield from found
    if not found:
        yield from failures
        yield Failure("memory", "larger than every machine that is looked at, up to 8 GPUs")


LADDER_COUNTS = (1, 2, 4, 8)


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


def _far_too_big(model: Model, precision: str, hardware: Hardware) -> bool:
    """Half a byte a parameter is less than any format takes: no need to plan the rest."""
    bytes_each = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "gptq-int8": 1.0}.get(precision, 0.5)
    return (model.num_parameters or 0) * bytes_each * 0.9 > hardware.memory_bytes


def _try(
    req: Requirement, model: Model, quality: tuple[Quality, ...], planner: Planner, engine: str, precision: str,
    checkpoint: Checkpoint | None, hardware: Hardware, where: Where, price: RentPrice | None,
) -> Outcome:  # fmt: skip
    workload = _workload(req, model)
    try:
        ev = planner.evaluate(Ask(model, precision, engine, hardware, workload))
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
    candidate = Candidate(
        model=model, where=where, precision=precision, engine=engine, hardware=hardware, checkpoint=checkpoint,
        quality=quality, loss=quantisation_loss(model, precision), evaluation=ev,
    )  # fmt: skip
    loaded = _under_load(req, candidate, planner, workload)
    if isinstance(loaded, Failure):
        return loaded
    return _within_limits(req, _with_rent(req, loaded, price, planner, workload))


def _under_load(req: Requirement, candidate: Candidate, planner: Planner, workload: Workload) -> Outcome:
    """Latency and volume: as many at once as the volume needs and the latency allows.

    Batches grow until the rate suffices; the largest that keeps the latency counts.
    """
    ev, hardware = candidate.evaluation, candidate.hardware
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
    wanted = req.requests_per_month / SECONDS_PER_MONTH / UTILISATION
    best, batch = _batched(req, candidate, planner, workload, wanted)
    servers = max(1, ceil(wanted / (best.requests_per_s or 1e-9) - 1e-9))
    if candidate.where == "own" and servers > 1:
        can = (best.requests_per_s or 0) * UTILISATION * SECONDS_PER_MONTH
        return Failure(
            "volume",
            f"{what}: {format_count(can)} requests a month at {UTILISATION:.0%} load, "
            f"{format_count(req.requests_per_month)} wanted; {servers} such machines would do",
            servers,
        )
    return replace(candidate, evaluation=best, num_servers=servers, concurrency=batch)


def _batched(
    req: Requirement, candidate: Candidate, planner: Planner, workload: Workload, wanted: float
) -> tuple[Evaluation, int]:
    """The smallest batch that serves `wanted` requests a second, or the one that serves most in time."""
    assert candidate.evaluation
    assert candidate.hardware
    best, best_batch, step = candidate.evaluation, workload.concurrency, 4
    while (best.requests_per_s or 0) < wanted and best_batch * step <= MAX_BATCH:
        load = replace(workload, concurrency=best_batch * step)
        more = planner.evaluate(
            Ask(candidate.model, candidate.precision, candidate.engine, candidate.hardware, load)
        )
        late = req.latency_s is not None and (more.answer_s or 0) > req.latency_s
        if not more.fits or late or (more.requests_per_s or 0) <= (best.requests_per_s or 0) * 1.02:
            if step == 2:
                break
            step = 2  # a long stride failed, a short one may not
        else:
            best, best_batch = more, best_batch * step
    return best, best_batch


MAX_BATCH = 1024  # growing stops here

# An average month uses less than a peak hour; the share that a server is planned to be busy.
UTILISATION = 0.3


def _with_rent(
    req: Requirement, candidate: Candidate, price: RentPrice | None, planner: Planner, workload: Workload
) -> Candidate:
    """Without a volume, the price of a request is that of a server with as much to do as it can batch."""
    if price is None or candidate.hardware is None:
        return candidate
    hour = price.typical * candidate.hardware.count * candidate.num_servers
    month = hour * SECONDS_PER_MONTH / 3600
    if req.requests_per_month:
        per_1000: float | None = month / req.requests_per_month * 1000
    else:
        rate = _batched(req, candidate, planner, workload, float("inf"))[0].requests_per_s
        per_1000 = hour / (rate * UTILISATION * 3600) * 1000 if rate else None
    return replace(candidate, cost_per_month=month, cost_per_1000=per_1000)


def _hosted(
    req: Requirement, model: Model, quality: tuple[Quality, ...], book: PriceBook | None
) -> Iterator[Outcome]:
    """Through an API: the maker's for hosted names, a third party's for open weights that one sells."""
    price = _api_price(model, book)
    if price is None and not model.hosted:
        return
    candidate = Candidate(
        model=model, where="api", precision="", engine="", hardware=None, checkpoint=None, quality=quality,
        loss=quantisation_loss(model, "bf16"), evaluation=None,
    )  # fmt: skip
    if price is None or book is None:
        yield candidate
        return
    from qvl.plan.cost import Traffic, api_bill

    if req.workload.videos:
        yield replace(candidate, warnings=("clips are billed by rules this price list doesn't hold",))
        return
    work = _workload(req, model)
    traffic = Traffic(
        requests_per_month=req.requests_per_month or 1000,
        images=work.images,
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
    expected = candidate.expected
    if req.min_quality is not None and (expected is None or expected < req.min_quality):
        got = "no published score" if expected is None else f"{expected:.1f} expected"
        return Failure("quality", f"{got}, at least {req.min_quality:g} asked for")
    return candidate


# Order


def _best_of(req: Requirement, found: Sequence[Candidate]) -> Candidate:
    """One deployment a model; the others are named in `also`."""
    if found[0].expected is None:
        return found[0]
    ranked = _rank(req, found)
    return replace(ranked[0], also=tuple(c.place for c in ranked[1:]))


def _rank(req: Requirement, found: Sequence[Candidate]) -> list[Candidate]:
    """By expected quality less DOUBLING points for each doubling of the bill over the smallest one."""
    bill = _bill(found)
    least = min((bill(c) for c in found), default=1.0)

    def worth(c: Candidate) -> float:
        return (c.expected or 0.0) - DOUBLING[req.aim] * log2(bill(c) / least)

    return sorted(found, key=lambda c: (-worth(c), -(c.expected or 0.0)))


def _bill(found: Sequence[Candidate]) -> Callable[[Candidate], float]:
    """The measure by which all of `found` can be compared: money, time, or memory; above 0.

    Whoever owns the hardware has paid for it: there an answer costs the time that it takes.
    """
    if all(c.where == "own" and c.evaluation and c.evaluation.answer_s for c in found):
        return lambda c: (c.evaluation.answer_s if c.evaluation else None) or 1.0
    for name in ("cost_per_month", "cost_per_1000"):
        if all(getattr(c, name) for c in found):
            return lambda c: float(getattr(c, name))
    if all(c.hardware for c in found):
        return lambda c: float(c.hardware.memory_bytes * c.num_servers) if c.hardware else 1.0
    return lambda c: 1.0


# Words


def _why(req: Requirement, c: Candidate) -> tuple[str, ...]:
    lines = []
    for q in c.quality:
        lines.append(f"{q.task} {q.value:.1f}: {q.describe()}")
    if not c.quality:
        lines.append("no published score for this task: it can't be ranked, only tried (qvl evaluate)")
    if c.precision and c.precision != "bf16":
        lines.append(f"{c.precision}: {c.loss.describe()}")
    ev = c.evaluation
    if ev and c.hardware:
        each = " on each GPU" if c.hardware.count > 1 else ""
        lines.append(
            f"needs {format_bytes(ev.per_gpu_bytes)} of {format_bytes(ev.usable_bytes)}{each}"
            + (f" for {c.concurrency} requests at once" if c.concurrency > 1 else "")
            + (f"; up to {c.limits.max_context:,} tokens of context" if c.limits else "")
            + (f" or {c.limits.max_concurrency:,} such requests at once" if c.limits else "")
        )
        if ev.answer_s is not None and ev.first_token_s is not None:
            lines.append(
                f"first token in {format_seconds(ev.first_token_s)}, answer in {format_seconds(ev.answer_s)} at best; "
                f"limited by {ev.limited_by}"
            )
    if c.cost_per_month:
        lines.append(f"${c.cost_per_month:,.0f} a month, ${c.cost_per_1000 or 0:,.2f} per 1,000 requests")
    elif c.cost_per_1000:
        lines.append(f"${c.cost_per_1000:,.2f} per 1,000 requests")
    lines.append(f"{c.model.licence.title}: {c.model.licence.permits}")
    return (*lines, *_warnings(req, c), *c.warnings)


def _warnings(req: Requirement, c: Candidate) -> Iterator[str]:
    if c.checkpoint and not c.checkpoint.verified:
        yield f"check that {c.checkpoint.hub_id} exists: we know of it by hearsay"
    if c.checkpoint and not c.checkpoint.official:
        yield f"{c.checkpoint.hub_id} is made by a third party"
    if not c.model.licence_figure.verified:
        yield f"its licence is {c.model.licence.title} by hearsay: read the LICENSE file"
    if req.commercial and c.model.licence.commercial == "with limits":
        yield "commercial use is limited by the number of users"
    unlisted = [code for code in req.languages if code not in c.model.languages.value]
    if unlisted:
        yield f"{', '.join(unlisted)}: not in the list we read, which says there are more"
    if c.where == "api" and req.latency_s is not None:
        yield "nobody promises the latency of an API: measure it"
    if c.where == "api" and c.model.hosted:
        yield "the name stands for changing snapshots; published scores are of old ones"
    if c.evaluation:
        yield from c.evaluation.notes


def _general_warnings(req: Requirement, book: PriceBook | None) -> tuple[str, ...]:
    found = [f"assumed: {what}" for what in req.assumed]
    if book is None and ("rent" in req.where or req.may_use_api) and not req.hardware:
        found.append(
            "money is left out: the prices here are too old (--allow-stale takes them, --prices FILE replaces them)"
        )
    if req.requests_per_month:
        found.append(
            f"servers are planned to be {UTILISATION:.0%} busy over the month, leaving room for peaks"
        )
    return tuple(found)
