"""Which candidates no other beats on quality, bill and memory at once; as words and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log2
from pathlib import Path
from typing import NamedTuple

from qvl.errors import PlanError
from qvl.plan.choose.candidate import Candidate
from qvl.units import format_bytes


@dataclass(frozen=True)
class Point:
    """One candidate on the three axes. `cost` is dollars per 1,000 requests; None where it is not known."""

    candidate: Candidate
    quality: float
    cost: float | None
    memory: int  # bytes over all GPUs; 0 for an API, which takes none of ours
    front: bool  # no other is at least as good on every axis and better on one

    @property
    def label(self) -> str:
        """`Qwen3-VL-8B`, `Qwen3-VL-32B (API)`."""
        return self.candidate.model.name.removesuffix("-Instruct") + " (API)" * (
            self.candidate.where == "api"
        )


def pareto(candidates: Sequence[Candidate]) -> tuple[Point, ...]:
    """Points of all scored candidates, best quality first."""
    scored = [c for c in candidates if c.expected is not None]
    with_costs = bool(scored) and all(c.cost_per_1000 is not None for c in scored)
    axes = {id(c): _axes(c, with_costs) for c in scored}
    points = [
        Point(
            candidate=c,
            quality=c.expected or 0.0,
            cost=c.cost_per_1000,
            memory=c.memory_bytes,
            front=not any(_beats(axes[id(o)], axes[id(c)]) for o in scored if o is not c),
        )
        for c in scored
    ]
    return tuple(sorted(points, key=lambda p: -p.quality))


def _axes(c: Candidate, with_costs: bool) -> tuple[float, ...]:
    """What is to be small. Without prices for all the bill is left out rather than guessed."""
    return (-(c.expected or 0.0), float(c.memory_bytes), *((c.cost_per_1000 or 0.0,) if with_costs else ()))


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def pareto_rows(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """(mark, model, place, quality, cost, memory) for a table."""
    return [
        (
            "●" if p.front else "",
            p.candidate.model.name,
            p.candidate.place,
            f"{p.quality:.1f}",
            "-" if p.cost is None else f"${p.cost:,.2f}",
            format_bytes(p.memory) if p.memory else "none",
        )
        for p in points
    ]


class Dot(NamedTuple):
    x: float
    y: float
    number: (
        int  # in the key at the right, 0 off the front: names would lie over each other where models crowd
    )
    point: Point


@dataclass(frozen=True)
class Scatter:
    """Where everything of a drawing stands, in pixels: values on a log scale to the right, quality upwards."""

    unit: str
    columns: tuple[tuple[float, str], ...]  # grid lines with their labels
    rows: tuple[tuple[float, str], ...]
    dots: tuple[Dot, ...]
    width: int = 760
    height: int = 380
    left: int = 46
    right: int = 560
    top: int = 16
    bottom: int = 340


def scatter(placed: Sequence[Point], values: Sequence[float], tick: str) -> Scatter | None:
    """None where there are too few to draw."""
    if len(placed) < 2:
        return None
    blank = Scatter(tick.format(1), (), (), ())
    xs = [log2(v) for v in values]
    x0, x1 = min(xs) - 0.3, max(xs) + 0.3
    y0, y1 = min(p.quality for p in placed) - 1.5, max(p.quality for p in placed) + 1.5

    def column(x: float) -> int:
        return round(blank.left + (x - x0) / (x1 - x0) * (blank.right - blank.left))

    def row(y: float) -> int:
        return round(blank.bottom - (y - y0) / (y1 - y0) * (blank.bottom - blank.top))

    step = 5 if y1 - y0 > 12 else 2
    front = [p for p in placed if p.front]
    return replace(
        blank,
        columns=tuple((column(n), tick.format(2.0**n)) for n in range(ceil(x0), floor(x1) + 1)),
        rows=tuple((row(n), str(n)) for n in range(int(y0) + 1, int(y1) + 1) if n % step == 0),
        dots=tuple(
            Dot(column(x), row(p.quality), front.index(p) + 1 if p.front else 0, p)
            for p, x in zip(placed, xs, strict=True)
        ),
    )


def plot(points: Sequence[Point], path: str | Path, title: str) -> None:
    """Quality over memory (and over the bill where it is known), the front joined; PNG, SVG or PDF by suffix.

    Raises: PlanError without matplotlib, for a suffix it can't write, or for a place that can't be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise PlanError(f"--plot {path}: the name must end in .png, .svg or .pdf")
    if not points:
        raise PlanError("nothing to plot: no candidate meets every requirement")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise PlanError("--plot needs matplotlib: pip install 'qvl[plot]'") from e
    axes = [("memory over all GPUs, GiB", [p.memory / 2**30 for p in points])]
    if all(p.cost is not None for p in points):
        axes.append(("dollars per 1,000 requests", [p.cost or 0.0 for p in points]))
    figure = Figure(figsize=(7.5 * len(axes), 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (label, values) in enumerate(axes, 1):
        ax = figure.add_subplot(1, len(axes), i)
        _draw(ax, points, values)
        ax.set_xlabel(label)
        ax.set_ylabel("expected quality, mean of published scores")
    figure.suptitle(title)
    try:
        figure.savefig(path, dpi=140)
    except OSError as e:
        raise PlanError(f"--plot {path}: can't be written ({e.strerror})") from e


def _draw(ax: object, points: Sequence[Point], values: Sequence[float]) -> None:
    """One panel. Its front is of its own two axes: best quality for at most so much."""
    order = sorted(range(len(points)), key=lambda i: (values[i], -points[i].quality))
    front: list[int] = []
    for i in order:
        if not front or points[i].quality > points[front[-1]].quality:
            front.append(i)
    ax.scatter(values, [p.quality for p in points], color="#9aa5b1", zorder=2)  # type: ignore[attr-defined]
    xs, ys = [values[i] for i in front], [points[i].quality for i in front]
    ax.plot(xs, ys, color="#1f6feb", marker="o", drawstyle="steps-post", zorder=3)  # type: ignore[attr-defined]
    # numbers with a key: names would lie over each other where models crowd
    for number, i in enumerate(front, 1):
        ax.plot([], [], " ", label=f"{number}  {points[i].label}")  # type: ignore[attr-defined]
        ax.annotate(  # type: ignore[attr-defined]
            str(number),
            (values[i], points[i].quality),
            xytext=(-4, 7),
            textcoords="offset points",
            fontsize=9,
        )
    # beside the axes: inside it would hide points
    ax.legend(  # type: ignore[attr-defined]
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=8,
        handlelength=0,
        title="none better for less",
    )
    positive = [v for v in values if v > 0]
    if len(positive) == len(values) and max(positive) / min(positive) > 8:
        ax.set_xscale("log")  # type: ignore[attr-defined]
    ax.grid(alpha=0.25)  # type: ignore[attr-defined]
    ax.margins(x=0.1, y=0.1)  # type: ignore[attr-defined]
