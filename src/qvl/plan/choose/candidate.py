"""One way to run one model, what a planner said of it, and why it failed: the words that choose is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from qvl.catalog.models import Checkpoint, Model
from qvl.plan.choose.quality import Loss, Quality
from qvl.plan.choose.requirement import Where
from qvl.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from qvl.catalog.devices import Hardware
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
    def least_seconds(self, ask: Ask) -> float: ...
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
    priced_by: str = ""  # the price that the bill stands on, with its source and date
    why: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # other deployments of the model that also meet everything
    limits: Limits | None = None  # for the first of a ranking
    concurrency: int = 1  # requests at once that the evaluation is for

    @property
    def expected(self) -> float | None:
        return expected_quality(self.quality, self.loss)

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
class WayOut:
    """What could be given up, in the words of the command line, and the best that it makes possible."""

    change: str  # `without --latency 2s`, `with --engine llama.cpp`
    gives_up: tuple[str, ...]  # the requirements themselves: `--latency 2s`, or two of them
    candidate: Candidate

    def describe(self) -> str:
        c, ev = self.candidate, self.candidate.evaluation
        parts = [f"{c.expected or 0.0:.1f} expected"]
        if ev and c.hardware:
            parts.append(format_bytes(ev.per_gpu_bytes) + " on each GPU" * (c.hardware.count > 1))
        if ev and ev.answer_s:
            parts.append(f"an answer in {format_seconds(ev.answer_s)} at best")
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
    if all(c.where == "own" and c.evaluation and c.evaluation.answer_s for c in found):
        return lambda c: (c.evaluation.answer_s if c.evaluation else None) or 1.0
    for name in ("cost_per_month", "cost_per_1000"):
        if all(getattr(c, name) for c in found):
            return lambda c: float(getattr(c, name))
    if all(c.hardware for c in found):
        return lambda c: float(c.hardware.memory_bytes * c.num_servers) if c.hardware else 1.0
    return lambda c: 1.0
