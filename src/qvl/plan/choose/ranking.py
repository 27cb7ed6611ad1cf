"""Which model, in which precision, on which engine and hardware: a ranked list, and what ruled the others out.

Hard requirements are checked one after the other and never traded away. What is left is ordered by expected
quality less what the bill takes off: each doubling of it must buy so many points (`DOUBLING`). Every candidate
says why it is there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import TYPE_CHECKING

from qvl.catalog.models import Model, models, regressions_of
from qvl.errors import PlanError
from qvl.plan.choose.candidate import STAGES, Candidate, Failure, Planner, Relaxation, bill
from qvl.plan.choose.deployments import UTILISATION, deployments
from qvl.plan.choose.quality import combined_quality
from qvl.plan.choose.requirement import DOUBLING, Requirement
from qvl.plan.evaluate import evaluate
from qvl.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from qvl.catalog.prices import PriceBook


@dataclass(frozen=True)
class RuledOut:
    model: Model
    requirement: str  # one of STAGES
    reason: str
    expected: float | None  # what it would have been worth
    stages: frozenset[str]  # at which some way to run it failed, the above among them


@dataclass(frozen=True)
class Choice:
    requirement: Requirement
    ranked: tuple[Candidate, ...]
    unranked: tuple[Candidate, ...]  # meet everything known, but no score is published for the task
    ruled_out: tuple[RuledOut, ...]
    warnings: tuple[str, ...]
    ways_out: tuple[Relaxation, ...] = ()  # filled in by choose.relax

    @property
    def best(self) -> Candidate | None:
        return self.ranked[0] if self.ranked else None

    def decisive(self) -> str:
        """The requirement that keeps the most better models out, in a sentence; empty when none does."""
        best = self.best
        if not best and self.ways_out:
            return _stands_in_the_way(self.ways_out)
        floor = (best.expected or 0.0) if best else 0.0
        better = [r for r in self.ruled_out if r.expected is not None and r.expected > floor]
        if not best and self.unranked:
            return self._unscored()
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

    def _unscored(self) -> str:
        """Where only models without a score are left, the cheapest is the answer to begin with."""
        what = "1 model meets" if len(self.unranked) == 1 else f"{len(self.unranked)} models meet"
        text = f"{what} every requirement, but no score is published for this, so they can't be ranked"
        priced = [c for c in self.unranked if c.cost_per_1000]
        if priced:
            least = min(priced, key=lambda c: c.cost_per_1000 or 0.0)
            text += f"; the cheapest is {least.model.name}, ${least.cost_per_1000:,.2f} per 1,000 requests"
        return f"{text}. Measure them on your own files: qvl eval"


def choose(
    req: Requirement, planner: Planner = evaluate, book: PriceBook | None = None, detailed: int = 1,
    among: Collection[str] | None = None,
) -> Choice:  # fmt: skip
    """All models that meet `req`, best first, and the others with what rules each out.

    `book` holds the prices that may be used; without one nothing is said about money. The first `detailed` of
    the ranking are searched for the longest context and the largest batch they can hold. `among`: only these
    models, and any reason will do for what rules one out.
    Raises: PlanError when a budget is asked for and there are no prices to keep it by.
    """
    if req.budget_per_month is not None and book is None:
        raise PlanError("a budget needs prices: give --prices FILE or --allow-stale")
    if req.budget_per_month is not None and req.requests_per_month is None and "api" in req.where:
        raise PlanError("a budget for an API needs a volume: give --volume, for example 100k/month")
    candidates: list[Candidate] = []
    ruled_out: list[RuledOut] = []
    for model in models():
        if among is not None and model.name not in among:
            continue
        quality = combined_quality(req.tasks, model.name) or ()
        worth = sum(q.value for q in quality) / len(quality) if quality else None
        failed = _fails_hard(req, model)
        if failed:
            ruled_out.append(RuledOut(model, failed.stage, failed.reason, worth, frozenset((failed.stage,))))
            continue
        found: list[Candidate] = []
        failures: list[Failure] = []
        for outcome in deployments(req, model, quality, planner, book, reasons=among is None):
            found.append(outcome) if isinstance(outcome, Candidate) else failures.append(outcome)
        if found:
            candidates.append(_best_of(req, found))
        else:
            nearest = _furthest(failures)
            stages = frozenset(f.stage for f in (nearest, *failures))
            ruled_out.append(RuledOut(model, nearest.stage, nearest.reason, worth, stages))
    ranked = _rank(req, [c for c in candidates if c.expected is not None])
    ranked[:detailed] = [replace(c, detailed=True) for c in ranked[:detailed]]
    ruled_out.sort(key=lambda r: -(r.expected or -1.0))
    return Choice(
        requirement=req,
        ranked=tuple(replace(c, why=_why(req, c)) for c in ranked),
        unranked=tuple(replace(c, why=_why(req, c)) for c in candidates if c.expected is None),
        ruled_out=tuple(ruled_out),
        warnings=_general_warnings(req, book),
    )


def _furthest(failures: Sequence[Failure]) -> Failure:
    """The failure of the deployment that came furthest and missed by least: what a small change could mend."""
    if not failures:
        return Failure("engine", "no way to run it is known here")
    return max(failures, key=lambda f: (STAGES.index(f.stage), -f.gap))


# Requirements on the model itself


def _fails_hard(req: Requirement, model: Model) -> Failure | None:
    if model.hosted and req.private:
        return Failure("privacy", "hosted only: the images would leave your premises")
    if model.retired:
        return Failure("place", f"switched off on {model.retired.value}; use {model.replacement}")
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
    if req.context is not None and model.context.value < req.context:
        return Failure("context", f"its context is {model.context.value:,} tokens, {req.context:,} asked")
    known = model.languages.value
    missing = [code for code in req.languages if code not in known]
    if missing and "*" not in known:
        said = f"{', '.join(missing)} not among {' '.join(known)}"
        return Failure("languages", f"{said} ({model.languages.source.title})")
    if req.workload.videos and not model.generation.takes_video:
        return Failure("abilities", "takes images only, no videos")
    return None


# Order


def _best_of(req: Requirement, found: Sequence[Candidate]) -> Candidate:
    """One deployment a model; the others are named in `also`."""
    if found[0].expected is None:
        return found[0]
    ranked = _rank(req, found)
    return replace(ranked[0], also=tuple(c.place for c in ranked[1:]))


def _rank(req: Requirement, found: Sequence[Candidate]) -> list[Candidate]:
    """By expected quality less DOUBLING points for each doubling of the bill over the smallest one."""
    cost = bill(found)
    least = min((cost(c) for c in found), default=1.0)

    def worth(c: Candidate) -> float:
        return (c.expected or 0.0) - DOUBLING[req.aim] * log2(cost(c) / least)

    return sorted(found, key=lambda c: (-worth(c), -(c.expected or 0.0)))


# Words


def _stands_in_the_way(ways_out: Sequence[Relaxation]) -> str:
    """Requirements that each open a way when given up can't all be met, though any of them alone can."""
    given_up = [w.gives_up[0] for w in ways_out if len(w.gives_up) == 1]
    if not given_up:
        return "no single requirement decides: two at once would have to give way"
    if len(given_up) == 1:
        return f"{given_up[0]} decides: all else can be met"
    names = f"{', '.join(given_up[:-1])} and {given_up[-1]}"
    return f"{names} contradict each other: giving up any one of them is enough"


def _why(req: Requirement, c: Candidate) -> tuple[str, ...]:
    lines = []
    for q in c.quality:
        lines.append(f"{q.task} {q.value:.1f}: {q.describe()}")
    if c.quality:
        lines.append(
            f"scores as printed in {'; '.join(dict.fromkeys(s for q in c.quality for s in q.sources))}"
        )
    else:
        lines.append("no published score for this task: it can't be ranked, only tried (qvl evaluate)")
    if c.precision and c.precision != "bf16":
        said = f"; {'; '.join(c.loss.sources)}" if c.loss.sources else ""
        lines.append(f"{c.precision}: {c.loss.describe()}{said}")
    plan = c.plan
    if plan and c.as_asked and c.hardware:
        each = " on each GPU" if c.hardware.count > 1 else ""
        lines.append(
            f"needs {format_bytes(plan.busiest_bytes)} of {format_bytes(c.hardware.device.usable_bytes)}{each}"
            + (f" for {c.concurrency} requests at once" if c.concurrency > 1 else "")
            + (f"; up to {c.as_asked.max_context:,} tokens of context" if c.detailed else "")
            + (f" or {c.as_asked.max_concurrency:,} such requests at once" if c.detailed else "")
        )
        if plan.speed and plan.answer_s:
            lines.append(
                f"first token in {format_seconds(plan.speed.ttft_s)}, "
                f"answer in {format_seconds(plan.answer_s)} at best; limited by {plan.speed.limit}"
            )
    by = f"; {c.priced_by}" if c.priced_by else ""
    if c.cost_per_month:
        lines.append(f"${c.cost_per_month:,.0f} a month, ${c.cost_per_1000 or 0:,.2f} per 1,000 requests{by}")
    elif c.cost_per_1000:
        lines.append(f"${c.cost_per_1000:,.2f} per 1,000 requests{by}")
    lines.append(f"{c.model.licence.title}: {c.model.licence.permits}")
    return (*lines, *_warnings(req, c), *c.warnings)


def _warnings(req: Requirement, c: Candidate) -> Iterator[str]:
    if c.checkpoint and not c.checkpoint.verified:
        yield f"check that {c.checkpoint.hub_id} exists: unverified here"
    if c.checkpoint and not c.checkpoint.official:
        yield f"{c.checkpoint.hub_id} is made by a third party"
    if not c.model.licence_figure.verified:
        yield f"its licence, {c.model.licence.title}, is unverified: read the LICENSE file"
    if req.commercial and c.model.licence.commercial == "with limits":
        yield "commercial use is limited by the number of users"
    chinese = any(b.name == "CC-OCR" or b.variant == "Chinese" for t in req.tasks for b in t.benchmarks)
    silent = [code for code in req.languages if code != "en" and not (chinese and code == "zh")]
    if silent and c.quality:
        yield (
            f"{', '.join(silent)}: no score that ranks here is of that language alone; published elsewhere are "
            "MTVQA and CC-OCR's multilingual part, which mix several. Measure on your own files: qvl eval"
        )
    unlisted = [code for code in req.languages if code not in c.model.languages.value]
    if unlisted:
        yield f"{', '.join(unlisted)}: not in the list we read, which says there are more"
    if c.engine == "llama.cpp":  # its builds have no versions to compare
        yield from (
            f"llama.cpp {r.versions}: {r.what}; {r.escape} ({r.note})"
            for r in regressions_of(c.engine, c.model.family)
        )
    if c.where == "api" and req.latency_s is not None:
        yield "no provider promises the latency of an API: measure it"
    if c.where == "api" and c.model.hosted:
        yield "the name refers to changing snapshots; published scores are of old ones"
    if c.plan:
        yield from c.plan.setup.notes


def _general_warnings(req: Requirement, book: PriceBook | None) -> tuple[str, ...]:
    found = [f"assumed: {what}" for what in req.assumed]
    if book is None and ("rent" in req.where or req.may_use_api) and not req.hardware:
        found.append(
            "money is left out: the prices here are too old (--allow-stale takes them, --prices FILE replaces them)"
        )
    if book is not None and book.rent and "rent" in req.where and not req.hardware:
        found.append("the bill of a rented machine is its rent: `qvl cost` adds the people who run it")
    if req.requests_per_month:
        found.append(
            f"servers are planned to be {UTILISATION:.0%} busy over the month, leaving room for peaks"
        )
    return tuple(found)
