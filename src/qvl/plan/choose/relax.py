"""Which requirement, or which two, to drop when nothing meets them all.

Also looks at the engine that was not named: what llama.cpp would hold where vLLM can't.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from qvl.errors import PlanError
from qvl.plan.choose.candidate import STAGES, Candidate, Planner, Relaxation
from qvl.plan.choose.ranking import Choice, choose
from qvl.plan.choose.requirement import Requirement
from qvl.plan.evaluate import evaluate
from qvl.units import format_count

if TYPE_CHECKING:
    from qvl.catalog.prices import PriceBook


ON_HARDWARE = frozenset(("engine", "memory", "latency", "volume", "budget", "quality"))

Failed = Mapping[str, frozenset[str]]  # model → the stages at which some way to run it fails


def with_ways_out(choice: Choice, planner: Planner = evaluate, book: PriceBook | None = None) -> Choice:
    """The choice with what each single change would make possible; with pairs of changes if no single one does.

    Where something meets every requirement, only a better model on the other engine is looked for.
    """
    req = choice.requirement
    failed: Failed = {r.model.name: r.stages for r in choice.ruled_out}

    def tried(change: _Change, among: Collection[str]) -> tuple[tuple[Candidate, ...], Failed]:
        """Those of these models that the change lets pass, best first, and what still stops the others."""
        try:
            found = choose(replace(req, **change.fields), planner, book, detailed=0, among=among)
        except PlanError:  # two of what is left contradict each other: giving up either might help
            return (), dict.fromkeys(among, frozenset(STAGES))
        return found.ranked, {r.model.name: r.stages for r in found.ruled_out}

    if choice.best:
        floor = choice.best.expected or 0.0
        wanted = {r.model.name for r in choice.ruled_out if (r.expected or 0.0) > floor}
        better = (
            Relaxation(change.words, (), c)
            for change in _other_engine(req)
            for c in tried(change, wanted)[0]
            if (c.expected or 0.0) > floor
        )
        return replace(choice, ways_out=tuple(better)[:1])

    # a change helps only a model that fails at what it changes, a second one only if that is what fails next
    alone = [(c, *tried(c, _helped(c, failed))) for c in [*_droppable(req), *_other_engine(req)]]
    ways = [Relaxation(c.words, c.gives_up, ranked[0]) for c, ranked, _ in alone if ranked]
    if not ways:
        pairs = (
            (one + two, _helped(two, after_one) | _helped(one, after_two))
            for (one, _, after_one), (two, _, after_two) in combinations(alone, 2)
            if not one.fields.keys() & two.fields.keys()
        )
        both = ((c, tried(c, among)[0]) for c, among in pairs)
        ways = [Relaxation(c.words, c.gives_up, ranked[0]) for c, ranked in both if ranked]
    return replace(choice, ways_out=tuple(ways))


def _helped(change: _Change, failed: Failed) -> set[str]:
    return {name for name, stages in failed.items() if stages & change.stages}


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

    anywhere = ON_HARDWARE | {"place"}  # an API may do it then
    if req.latency_s is not None:
        # it bounds the batch, and with it the volume and its bill
        paced = frozenset(("latency", "volume", "budget"))
        yield drop(f"--latency {req.latency_s:g}s", paced, latency_s=None)
    if req.requests_per_month is not None:
        volume = format_count(req.requests_per_month).replace(" ", "")
        bulk = frozenset(("volume", "budget"))
        yield drop(f"--volume {volume}/month", bulk, requests_per_month=None)
    if req.budget_per_month is not None:
        yield drop(f"--budget {req.budget_per_month:g}", frozenset(("budget",)), budget_per_month=None)
    if req.context is not None:
        yield drop(f"--context {req.context}", ON_HARDWARE | {"context"}, context=None)
    if req.min_quality is not None:
        yield drop(f"--min-quality {req.min_quality:g}", frozenset(("quality",)), min_quality=None)
    for need in req.needs:
        kept = tuple(n for n in req.needs if n != need)
        # without videos llama.cpp may be planned too
        stages = ON_HARDWARE if need == "video" else frozenset[str]()
        yield drop(f"--needs {need}", stages | {"abilities"}, needs=kept)
    if req.languages:
        yield drop(f"--languages {','.join(req.languages)}", frozenset(("languages",)), languages=())
    if req.precisions:
        yield drop(f"--precision {','.join(req.precisions)}", anywhere, precisions=())
    if req.commercial:
        yield drop("--commercial", frozenset(("licence",)), commercial=False)
    if req.private and "api" in req.where:
        yield drop("--private", anywhere | {"privacy"}, private=False)
    if req.engine:
        yield drop(f"--engine {req.engine}", anywhere, engine="")
    if req.hardware:
        yield _Change(
            f"on other hardware than {req.hardware.name}",
            (f"--gpu {req.hardware.name}",),
            {"hardware": None, "where": ("rent",)},
            ON_HARDWARE,
        )
