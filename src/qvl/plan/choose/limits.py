"""Budget and quality: the requirements that are checked of every way to run a model, however it is run."""

from __future__ import annotations

from qvl.plan.choose.candidate import Candidate, Failure, Outcome
from qvl.plan.choose.requirement import Requirement


def within_limits(req: Requirement, candidate: Candidate) -> Outcome:
    cost, budget = candidate.cost_per_month, req.budget_per_month
    if budget is not None and cost is None:
        return Failure("budget", f"{candidate.place}: its price is not known")
    if budget is not None and cost is not None and cost > budget:
        return Failure("budget", f"{candidate.place}: ${cost:,.0f} a month, ${budget:,.0f} allowed")
    return too_little(req, candidate.expected) or candidate


def too_little(req: Requirement, expected: float | None) -> Failure | None:
    if req.min_quality is None or (expected is not None and expected >= req.min_quality):
        return None
    got = "no published score" if expected is None else f"{expected:.1f} expected"
    return Failure("quality", f"{got}, at least {req.min_quality:g} asked for")
