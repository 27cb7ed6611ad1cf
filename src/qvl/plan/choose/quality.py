"""How well a model is expected to do a task, from published scores alone; and what quantising costs it.

Models are scored on different benchmarks, so plain means don't compare: a model tried on the hard ones only
would look bad. Scores are therefore read as model + benchmark (two additive effects, least squares), and a
model's expected quality is its mean over all of the task's benchmarks with the unpublished ones filled in.
A filled-in cell is never better than the best that was published on that benchmark, nor than the score of a
model that wins wherever both were tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt

from qvl.catalog.models import Model, find_model, models
from qvl.catalog.precisions import PRECISIONS
from qvl.catalog.scores import Benchmark, Score, Task, used

# The mean that Qwen3-VL's report prints for RefCOCO, +, g: earlier reports print the eight parts.
REFCOCO_AVG = Benchmark("RefCOCO-avg", "8 splits")
REFCOCO_PARTS = (
    *(Benchmark("RefCOCO", v) for v in ("val", "testA", "testB")),
    *(Benchmark("RefCOCO+", v) for v in ("val", "testA", "testB")),
    *(Benchmark("RefCOCOg", v) for v in ("val", "test")),
)


@dataclass(frozen=True)
class Quality:
    """`value` is on a 0 to 100 scale, the task's benchmarks weighing alike.

    `error` is the root mean square by which published scores of this model miss the additive reading: how
    far to trust a filled-in cell. It is 0 by construction where only one benchmark exists.
    """

    task: str
    value: float
    error: float
    scores: tuple[tuple[Benchmark, float], ...]  # as published, in percent
    filled: tuple[tuple[Benchmark, float], ...]  # not published; expected from the other scores
    sources: tuple[str, ...]
    elsewhere: tuple[tuple[Benchmark, tuple[float, ...]], ...] = ()  # what other sources print, in percent

    @property
    def coverage(self) -> float:
        """Share of the task's benchmarks with a published score."""
        return len(self.scores) / (len(self.scores) + len(self.filled))

    def describe(self) -> str:
        """`DocVQA (test) 95.7, ChartQA (test avg) 87.3; expected: TextVQA (val) 84.1 ± 1.2`."""
        others = dict(self.elsewhere)
        text = ", ".join(
            f"{b} {v:.1f}" + "".join(f" (elsewhere {o:.1f})" for o in others.get(b, ()))
            for b, v in self.scores
        )
        if self.filled:
            # with one score there is no residual to estimate an error from
            doubt = f" ± {self.error:.1f}" if len(self.scores) > 1 else ""
            text += "; not published, expected: " + ", ".join(f"{b} {v:.1f}{doubt}" for b, v in self.filled)
        return text


@cache
def _published() -> Mapping[tuple[str, Benchmark], Score]:
    """Headline scores of catalogue models in 16 bits. Old snapshots of hosted names are left out."""
    known = {m.name for m in models()}
    return {
        (s.model, s.benchmark): s
        for s in used()
        if s.model in known and s.precision == "bf16" and not s.series
    }


@cache
def scored_thinking(model: str) -> bool:
    """Whether its headline scores were taken while it thought: then thoughts belong to what an answer costs."""
    found = [s for (name, _), s in _published().items() if name == model]
    return any(s.mode == "thinking" for s in found) if found else find_model(model).variant == "thinking"


def published_percent(model: str, benchmark: Benchmark) -> tuple[float, str] | None:
    """(score on a 0-100 scale, its source), or None when none is published."""
    found = _published().get((model, benchmark))
    if found is not None:
        return found.percent, _cite(found)
    if benchmark == REFCOCO_AVG:
        parts = [_published().get((model, b)) for b in REFCOCO_PARTS]
        if all(parts):
            kept = [p for p in parts if p is not None]
            return sum(p.percent for p in kept) / len(kept), f"{_cite(kept[0])}, mean of 8 splits"
    return None


def _cite(score: Score) -> str:
    f = score.figure
    return f"{f.source.title} ({f.date}, {f.kind.replace('_', ' ')})"


def _printed_elsewhere(model: str, benchmark: Benchmark) -> tuple[float, ...]:
    """What sources that disagree with the used one print, on the same scale."""
    found = _published().get((model, benchmark))
    if found is None:
        return ()
    return tuple(float(o.value) * found.percent / found.value for o in found.figure.others)


@cache
def task_quality(task: Task) -> Mapping[str, Quality]:
    """Expected quality of every model that has at least one published score on the task's benchmarks."""
    found = {
        (m.name, b): p
        for m in models()
        for b in task.benchmarks
        if (p := published_percent(m.name, b)) is not None
    }
    table = {key: value for key, (value, _) in found.items()}
    model_effect, benchmark_effect = additive_fit(table)
    best = {
        b: max((v for (_, other), v in table.items() if other == b), default=100.0) for b in task.benchmarks
    }
    result = {}
    for name in model_effect:
        own = [(b, table[name, b]) for b in task.benchmarks if (name, b) in table]
        better = [other for other in model_effect if other != name and _beats(other, own, table)]
        filled = []
        for b in task.benchmarks:
            if (name, b) not in table:
                caps = [best[b], *(table[other, b] for other in better if (other, b) in table)]
                filled.append((b, max(0.0, min(model_effect[name] + benchmark_effect[b], *caps))))
        misses = [value - model_effect[name] - benchmark_effect[b] for b, value in own]
        every = [value for _, value in own + filled]
        result[name] = Quality(
            task=task.name,
            value=sum(every) / len(every),
            error=sqrt(sum(m * m for m in misses) / len(misses)),
            scores=tuple(own),
            filled=tuple(filled),
            sources=tuple(dict.fromkeys(found[name, b][1] for b, _ in own)),
            elsewhere=tuple((b, other) for b, _ in own if (other := _printed_elsewhere(name, b))),
        )
    return result


def _beats(
    other: str, own: Sequence[tuple[Benchmark, float]], table: Mapping[tuple[str, Benchmark], float]
) -> bool:
    """Whether `other` was tried on all of `own`'s benchmarks and is better on each."""
    return all(table.get((other, b), -1.0) > value for b, value in own)


def additive_fit(
    table: Mapping[tuple[str, Benchmark], float], rounds: int = 200
) -> tuple[dict[str, float], dict[Benchmark, float]]:
    """Least squares of value = model + benchmark over the cells there are, by alternating means.

    Benchmark effects are centred on 0, so that a model's effect is its quality on a typical benchmark.
    """
    rows = {name: [k for k in table if k[0] == name] for name in dict.fromkeys(k[0] for k in table)}
    columns = {b: [k for k in table if k[1] == b] for b in dict.fromkeys(k[1] for k in table)}
    row_effect, column_effect = dict.fromkeys(rows, 0.0), dict.fromkeys(columns, 0.0)
    for _ in range(rounds):
        before = dict(row_effect)
        for name, cells in rows.items():
            row_effect[name] = sum(table[k] - column_effect[k[1]] for k in cells) / len(cells)
        for b, cells in columns.items():
            column_effect[b] = sum(table[k] - row_effect[k[0]] for k in cells) / len(cells)
        centre = sum(column_effect.values()) / max(1, len(column_effect))
        column_effect = {b: v - centre for b, v in column_effect.items()}
        row_effect = {name: v + centre for name, v in row_effect.items()}
        if max(abs(row_effect[name] - before[name]) for name in rows) < 1e-4:
            break
    return row_effect, column_effect


def combined_quality(tasks: Sequence[Task], model: str) -> tuple[Quality, ...] | None:
    """One quality a task, or None when some task has no published score of this model."""
    found = [task_quality(task).get(model) for task in tasks]
    return None if None in found else tuple(q for q in found if q is not None)


# What quantising costs


@dataclass(frozen=True)
class Loss:
    """Points lost (negative: gained) against 16 bits under one and the same harness, on a 0-100 scale.

    `own` says whether it was measured on this very model; else it stands on others of the family.
    """

    points: float
    low: float
    high: float
    count: int
    own: bool
    on: tuple[str, ...]  # models, with the format where it is another one
    sources: tuple[str, ...]

    def describe(self) -> str:
        if not self.count:
            return "no measurement is known: test it on your own images"
        where = "measured" if self.own else f"not measured on this model; on {', '.join(self.on)}"
        lost = f"{self.points:.1f} points lost" if self.points > 0 else f"{-self.points:.1f} points gained"
        runs = "1 score" if self.count == 1 else f"{self.count} scores"
        # + 0.0 turns a negative zero into a plain one
        return f"{where}: {lost} on average (scores moved by {-self.high + 0.0:+.1f} to {-self.low + 0.0:+.1f}; {runs})"


NO_LOSS = Loss(0.0, 0.0, 0.0, 0, True, (), ())


@cache
def _paired_losses() -> tuple[tuple[str, str, Score, float], ...]:
    """(model, precision, quantised score, points lost) for every pair printed by one harness."""
    base = {
        (s.model, s.series, s.benchmark, s.metric): s for s in used() if s.precision == "bf16" and s.series
    }
    return tuple(
        (s.model, s.precision, s, base[key].percent - s.percent)
        for s in used()
        if s.precision != "bf16" and (key := (s.model, s.series, s.benchmark, s.metric)) in base
    )


def quantisation_loss(model: Model | str, precision: str) -> Loss:
    """Mean, least and most loss that was printed for this precision: on this model, else on the nearest sizes."""
    return _loss(model if isinstance(model, str) else model.name, precision)


@cache
def _loss(name: str, precision: str) -> Loss:
    model = find_model(name)
    if PRECISIONS[precision].is_plain:
        return NO_LOSS
    alike = PRECISIONS[precision].measured_as or (precision,)
    pairs = [p for p in _paired_losses() if p[1] in alike]
    own = [p for p in pairs if p[0] == model.name]
    taken = own or _nearest_size(model, pairs)
    if not taken:
        return Loss(0.0, 0.0, 0.0, 0, False, (), ())
    losses = [p[3] for p in taken]
    return Loss(
        points=sum(losses) / len(losses),
        low=min(losses),
        high=max(losses),
        count=len(losses),
        own=bool(own) and precision in {p[1] for p in own},
        on=tuple(dict.fromkeys(p[0] if p[1] == precision else f"{p[0]} in {p[1]}" for p in taken)),
        sources=tuple(dict.fromkeys(_cite(p[2]) for p in taken)),
    )


def _nearest_size(
    model: Model, pairs: Sequence[tuple[str, str, Score, float]]
) -> list[tuple[str, str, Score, float]]:
    """Pairs of the measured models whose parameter count is closest in ratio: small models lose most."""
    if model.num_parameters is None or not pairs:
        return list(pairs)
    mine = model.num_parameters
    sizes = {name: find_model(name).num_parameters or mine for name in {p[0] for p in pairs}}
    ratio = {name: max(other, mine) / min(other, mine) for name, other in sizes.items()}
    closest = min(ratio.values())
    return [p for p in pairs if ratio[p[0]] <= closest * 1.2]
