"""Published scores as printed, with who ran them; where sources disagree all are kept and one is used.

A `series` other than "" is a paired run (a quantised model beside its own baseline under one harness): its
scores are for differences, never for comparison with headline scores.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from qvl.catalog.figures import DATA, Figure, read_json, sources
from qvl.errors import CatalogError, nearest

# The order in which documents of one maker win when they disagree and no row gives a reason of its own.
_RANK = {"official": 0, "measured": 1, "derived": 2, "third_party": 3}


@dataclass(frozen=True)
class Benchmark:
    name: str
    variant: str

    def __str__(self) -> str:
        return f"{self.name} ({self.variant})"


@dataclass(frozen=True)
class Score:
    model: str  # a catalogue name, name@snapshot for hosted ones, or a competitor's label
    precision: str
    series: str
    benchmark: Benchmark
    metric: str
    figure: Figure
    mode: str = (
        ""  # "thinking": the model thought before it answered; "" where it can't or the source doesn't say
    )

    @property
    def value(self) -> float:
        """On the scale that was printed; OCRBench counts to 1000."""
        return float(self.figure.value)

    @property
    def percent(self) -> float:
        """On a scale that ends at 100."""
        return self.value / 10 if self.metric == "points of 1000" else self.value


@dataclass(frozen=True, eq=False)
class Task:
    """What a user wants to do, and which published benchmarks speak about it."""

    name: str
    aliases: tuple[str, ...]
    needs: tuple[str, ...]  # abilities without which it can't be done
    benchmarks: tuple[Benchmark, ...]
    work: Mapping[str, Any]  # a usual request, for who gives none: image or video, answer_tokens


@cache
def rows() -> tuple[Score, ...]:
    """Every row, those that lost a disagreement included."""
    with open(DATA / "scores.csv", encoding="utf-8", newline="") as f:
        return tuple(_score(raw, line) for line, raw in enumerate(csv.DictReader(f), 2))


def _score(raw: Mapping[str, str], line: int) -> Score:
    source = sources().get(raw["source"])
    if source is None:
        raise CatalogError(f"scores.csv line {line}: source {raw['source']!r} is not in sources.json")
    # built directly: 738 rows are read on the way to an answer that takes a fraction of a second
    fig = Figure(
        value=float(raw["score"]),
        source=source,
        date=source.date,
        kind=raw["kind"],  # type: ignore[arg-type]
        note=raw["note"],
        reason=raw["used_because"],
    )
    bench = Benchmark(raw["benchmark"], raw["variant"])
    return Score(raw["model"], raw["precision"], raw["series"], bench, raw["metric"], fig, raw["mode"])


@cache
def used() -> tuple[Score, ...]:
    """One score for each (model, precision, series, benchmark, metric), with the others inside its figure."""
    groups: dict[tuple[object, ...], list[Score]] = {}
    for s in rows():
        groups.setdefault((s.model, s.precision, s.series, s.benchmark, s.metric), []).append(s)
    return tuple(_settle(group) for group in groups.values())


def _settle(group: list[Score]) -> Score:
    """The used row: one that gives a reason, else the better kind of source, else the youngest document."""
    youngest_first = sorted(group, key=lambda s: s.figure.date, reverse=True)
    best = min(youngest_first, key=lambda s: (not s.figure.reason, _RANK[s.figure.kind]))
    f = best.figure
    others = tuple(s.figure for s in group if s.value != best.value)
    reason = (f.reason or "the youngest document of the best kind of source") if others else ""
    fig = Figure(f.value, f.source, f.date, f.kind, f.verified, f.note, others, reason)
    return replace(best, figure=fig)


def scores_of(model: str, precision: str = "bf16") -> tuple[Score, ...]:
    """Headline scores of a catalogue model; for a hosted one those of its dated snapshots."""
    return tuple(
        s
        for s in used()
        if s.precision == precision and not s.series and (s.model == model or s.model.startswith(f"{model}@"))
    )


@cache
def tasks() -> Mapping[str, Task]:
    return {
        name: Task(
            name=name,
            aliases=tuple(raw["aliases"]),
            needs=tuple(raw["needs"]),
            benchmarks=tuple(Benchmark(*b) for b in raw["benchmarks"]),
            work=raw["work"],
        )
        for name, raw in read_json("tasks.json").items()
    }


def find_task(name: str) -> Task:
    """By name or alias. Raises: CatalogError with the nearest names."""
    wanted = name.strip().lower()
    for task in tasks().values():
        if wanted == task.name or wanted in task.aliases:
            return task
    raise CatalogError(f"no task {name!r}; {nearest(wanted, list(tasks()))}")
