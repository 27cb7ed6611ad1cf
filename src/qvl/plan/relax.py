"""What to give up: which requirement, or which two, stand in the way when nothing meets them all.

Also looks at the engine that nobody named: what llama.cpp would hold where vLLM can't.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from qvl.errors import PlanError
from qvl.plan.candidate import Candidate, Planner, WayOut
from qvl.plan.choose import Choice, choose
from qvl.plan.requirement import Requirement
from qvl.units import format_count

if TYPE_CHECKING:
    from qvl.catalog.prices import PriceBook


ON_HARDWARE = frozenset(("engine", "memory", "latency", "volume", "budget", "quality"))


def with_ways_out(choice: Choice, planner: Planner | None = None, book: PriceBook | None = None) -> Choice:
    """The choice with what each single change would make possible; with pairs of changes if no single one does.

    Where something meets every requirement, only a better model on the other engine is looked for.
    """
    req = choice.requirement

    def ranked(change: _Change) -> tuple[Candidate, ...]:
        try:
            return choose(replace(req, **change.fields), planner, book, detailed=0).ranked
        except PlanError:  # two of what is left contradict each other
            return ()

    if choice.best:
        listed, floor = {c.model.name for c in choice.ranked}, choice.best.expected or 0.0
        better = (
            WayOut(change.words, (), c)
            for change in _other_engine(req)
            for c in ranked(change)
            if (c.expected or 0.0) > floor and c.model.name not in listed
        )
        return replace(choice, ways_out=tuple(better)[:1])

    def ways(changes: Iterable[_Change]) -> tuple[WayOut, ...]:
        return tuple(WayOut(c.words, c.gives_up, found[0]) for c in changes if (found := ranked(c)))

    changes = [*_droppable(req), *_other_engine(req)]
    seen = {r.requirement for r in choice.ruled_out}  # alone, what ruled nobody out stands in nobody's way
    pairs = (one + two for one, two in combinations(changes, 2) if not one.fields.keys() & two.fields.keys())
    return replace(choice, ways_out=ways(c for c in changes if seen & c.stages) or ways(pairs))


@dataclass(frozen=True)
class _Change:
    words: str
    gives_up: tuple[str, ...]
    fields: Mapping[str, Any]  # of the requirement
    stages: frozenset[str]  # under which it rules models out

    def __add__(self, other: _Change) -> _Change:
        return _Change(
            f"{self.words} and {other.words}",
            self.gives_up + other.gives_up,
            {**self.fields, **other.fields},
            self.stages | other.stages,
        )


def _other_engine(req: Requirement) -> Iterator[_Change]:
    if req.hardware and req.hardware.device.kind == "gpu" and not req.engine:
        yield _Change("with --engine llama.cpp", (), {"engine": "llama.cpp"}, ON_HARDWARE)


def _droppable(req: Requirement) -> Iterator[_Change]:
    """Everything that could be given up, one at a time."""

    def drop(flag: str, stages: frozenset[str], **fields: Any) -> _Change:
        return _Change(f"without {flag}", (flag,), fields, stages)

    # a latency bounds the batch, and with it the volume and its bill
    paced = frozenset(("latency", "volume", "budget"))
    if req.latency_s is not None:
        yield drop(f"--latency {req.latency_s:g}s", paced, latency_s=None)
    if req.requests_per_month is not None:
        volume = format_count(req.requests_per_month).replace(" ", "")
        yield drop(f"--volume {volume}/month", paced, requests_per_month=None)
    if req.budget_per_month is not None:
        yield drop(f"--budget {req.budget_per_month:g}", frozenset(("budget",)), budget_per_month=None)
    if req.min_quality is not None:
        yield drop(f"--min-quality {req.min_quality:g}", frozenset(("quality",)), min_quality=None)
    for need in req.needs:
        kept = tuple(n for n in req.needs if n != need)
        yield drop(f"--needs {need}", frozenset(("abilities", "engine")), needs=kept)
    if req.languages:
        yield drop(f"--languages {','.join(req.languages)}", frozenset(("languages",)), languages=())
    if req.precisions:
        yield drop(f"--precision {','.join(req.precisions)}", ON_HARDWARE, precisions=())
    if req.commercial:
        yield drop("--commercial", frozenset(("licence",)), commercial=False)
    if req.private and "api" in req.where:
        yield drop("--private", frozenset(("privacy",)), private=False)
    if req.engine:
        yield drop(f"--engine {req.engine}", ON_HARDWARE, engine="")
    if req.hardware:
        yield _Change(
            f"on other hardware than {req.hardware.name}",
            (f"--gpu {req.hardware.name}",),
            {"hardware": None, "where": ("rent",)},
            ON_HARDWARE,
        )
