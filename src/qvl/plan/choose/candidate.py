"""One way to run one model, how it is planned, or why it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qvl.catalog.devices import Hardware
from qvl.catalog.models import Checkpoint, Model
from qvl.plan.choose.quality import Loss, Quality
from qvl.plan.choose.requirement import Where
from qvl.plan.evaluate import FitResult
from qvl.plan.request import FitRequest
from qvl.units import format_bytes, format_seconds

Planner = Callable[[FitRequest], FitResult]  # plan.evaluate.evaluate, or one that remembers


@dataclass(frozen=True)
class Failure:
    """Why one deployment won't do. `gap` compares failures of one stage: the smallest is the nearest miss.

    `hopeless`: more cards of the same device would break the same requirement.
    """

    stage: str
    reason: str
    gap: float = 0.0
    hopeless: bool = False


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to run one model that meets every requirement. Money is US dollars."""

    model: Model
    where: Where
    precision: str
    engine: str
    hardware: Hardware | None
    checkpoint: Checkpoint | None
    quality: tuple[Quality, ...]  # one a task; empty without a published score
    loss: Loss
    plan: FitResult | None  # None for an API
    as_asked: FitResult | None = None  # before its batch grew to serve a volume
    num_servers: int = 1
    cost_per_month: float | None = None
    cost_per_1000: float | None = None
    priced_by: str = ""  # the price that the bill stands on, with its source and date
    why: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # other deployments of the model that also meet everything
    detailed: bool = False  # its longest context and largest batch are told
    concurrency: int = 1  # requests at once that the plan is for

    @property
    def expected(self) -> float | None:
        return expected_quality(self.quality, self.loss)

    @property
    def memory_bytes(self) -> int:
        """Over all GPUs of all servers; an API takes none of ours."""
        return self.plan.total_bytes * self.num_servers if self.plan else 0

    @property
    def place(self) -> str:
        """`own 2xl40s, vllm, fp8`, `hosted API`."""
        if self.hardware is None:
            return "hosted API"
        servers = f"{self.num_servers} x " if self.num_servers > 1 else ""
        rented = "rented " if self.where == "rent" else ""
        return f"{rented}{servers}{self.hardware.name}, {self.engine}, {self.precision}"


@dataclass(frozen=True)
class Relaxation:
    """What could be given up, in the words of the command line, and the best that it makes possible."""

    change: str  # `without --latency 2s`, `with --engine llama.cpp`
    gives_up: tuple[str, ...]  # the requirements themselves: `--latency 2s`, or two of them
    candidate: Candidate

    def describe(self) -> str:
        c, plan = self.candidate, self.candidate.plan
        parts = [f"{c.expected or 0.0:.1f} expected"]
        if plan and c.hardware:
            parts.append(format_bytes(plan.busiest_bytes) + " on each GPU" * (c.hardware.count > 1))
        if plan and plan.answer_s:
            parts.append(f"an answer in {format_seconds(plan.answer_s)} at best")
        if c.cost_per_month or c.cost_per_1000:
            month = f"${c.cost_per_month:,.0f} a month" if c.cost_per_month else ""
            parts.append(month or f"${c.cost_per_1000:,.2f} per 1,000 requests")
        return f"{self.change}: {c.model.name} on {c.place} ({', '.join(parts)})"


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

Outcome = Candidate | Failure


def expected_quality(quality: Sequence[Quality], loss: Loss) -> float | None:
    """Mean quality over the tasks less what quantising cost where it was measured; gains aren't credited."""
    if not quality:
        return None
    return sum(q.value for q in quality) / len(quality) - max(0.0, loss.points)


def bill(found: Sequence[Candidate]) -> Callable[[Candidate], float]:
    """The measure by which all of `found` can be compared: money, time, or memory; above 0.

    Whoever owns the hardware has paid for it: there an answer costs the time that it takes.
    """
    if all(c.where == "own" and c.plan and c.plan.answer_s for c in found):
        return lambda c: (c.plan.answer_s if c.plan else None) or 1.0
    for name in ("cost_per_month", "cost_per_1000"):
        if all(getattr(c, name) for c in found):
            return lambda c: float(getattr(c, name))
    if all(c.hardware for c in found):
        return lambda c: float(c.hardware.memory_bytes * c.num_servers) if c.hardware else 1.0
    return lambda c: 1.0
