"""How many requests a second a machine answers at best: every way to fill its GPUs with copies, the fastest taken.

The figure is `plan.speed`'s upper bound. A cost that rests on it flatters own hardware, never the API.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qvl.catalog.devices import Hardware
from qvl.errors import CapacityError, PlanError
from qvl.plan.evaluate import evaluate, fits, max_concurrency
from qvl.plan.fit import fit
from qvl.plan.request import FitRequest, with_workload
from qvl.plan.resolve import resolve
from qvl.plan.split import best_split

MOST_AT_ONCE = 256  # requests in one batch: more gains little and no engine seats them by default


@dataclass(frozen=True)
class Capacity:
    """All copies together. `concurrency` is of one copy."""

    requests_per_s: float
    concurrency: int
    gpus_per_replica: int
    replicas: int
    limit: str


def capacity_of_copies(one: FitRequest, copies: int) -> Capacity | None:
    """What so many copies of this deployment answer, each with as many at once as fit; None if not even one does."""
    one = with_workload(one, concurrency=1)
    if one.hardware is None or not fits(one):
        return None
    at_once = min(MOST_AT_ONCE, max_concurrency(one))
    pace = evaluate(with_workload(one, concurrency=at_once)).speed
    if pace is None:
        return None
    return Capacity(pace.requests_per_s * copies, at_once, one.hardware.count, copies, pace.limit)


def best_capacity(request: FitRequest) -> Capacity:
    """Raises: CapacityError when no legal way of filling the machine holds even one request."""
    hardware = request.hardware
    if hardware is None:
        raise PlanError("capacity needs hardware: give --gpu")
    precision = resolve(with_workload(replace(request, hardware=None), concurrency=1)).precision
    best: Capacity | None = None
    for gpus in (n for n in range(1, hardware.count + 1) if hardware.count % n == 0):
        cut = best_split(request.config, precision, gpus)
        if cut is None:
            continue
        one = replace(
            request,
            hardware=Hardware(hardware.device, gpus),
            expert_parallel=cut.expert_parallel,
            vision=cut.vision if gpus > 1 else "auto",
            max_num_seqs=MOST_AT_ONCE,
        )
        found = capacity_of_copies(one, hardware.count // gpus)
        if found and (best is None or found.requests_per_s > best.requests_per_s):
            best = found
    if best is None:
        result = fit(with_workload(request, concurrency=1))
        helps = ", or ".join(c.option for c in result.changes[:3])
        raise CapacityError(
            f"{request.name or 'the model'}: {result.verdict}" + (f". Try {helps}" if helps else "")
        )
    return best
