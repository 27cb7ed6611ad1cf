"""Plots a load test: the distribution of latencies, and the answers over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl.evaluate.load_requests import LoadError

if TYPE_CHECKING:
    from qvl.evaluate.load_test import LoadResult

SUFFIXES = (".png", ".svg", ".pdf")
BINS = 60


def check_plot(path: Path) -> None:
    """So that a long test isn't run for a plot that can't be drawn. Raises: LoadError."""
    if path.suffix.lower() not in SUFFIXES:
        raise LoadError(f"--plot {path}: a name that ends in {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise LoadError(f"--plot {path}: there is no such folder")
    _figure()


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise LoadError("--plot needs matplotlib: pip install 'qvl[plot]'") from e
    return Figure


def save_plot(result: LoadResult, path: Path) -> None:
    """Raises: LoadError without matplotlib, for another suffix, or for a place that can't be written."""
    check_plot(path)
    figure = _figure()(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, seconds in result.series.items():
        if seconds:
            values = sorted(1e3 * s for s in seconds)
            shares = [100 * (i + 1) / len(values) for i in range(len(values))]
            left.step(values, shares, where="post", label=f"{name} ({len(values)})")
    left.set(xscale="log", xlabel="milliseconds", ylabel="% at least so fast", ylim=(0, 100))
    left.grid(alpha=0.3)
    if result.good:
        left.legend(loc="lower right", fontsize=8)

    wall = max(result.wall_s, 1e-9)
    begin = min((o.sent for o in result.outcomes), default=0.0)
    pieces = [o.sent - begin + at for o in result.good for at in o.pieces]
    right.hist(pieces, bins=BINS, range=(0, wall), weights=[BINS / wall] * len(pieces), color="tab:blue")
    right.set(xlabel="seconds", ylabel="pieces of answers a second", xlim=(0, wall))
    failed = [o.sent - begin + o.ended for o in result.outcomes if o.error is not None]
    if failed:
        right.plot(
            failed, [0] * len(failed), "x", color="tab:red", clip_on=False, label=f"errors ({len(failed)})"
        )
        right.legend(fontsize=8)
    figure.suptitle(
        f"{result.model}: {len(result.good)} of {result.planned} answered in {result.wall_s:.1f} s"
    )
    try:
        figure.savefig(path, dpi=120)
    except OSError as e:
        raise LoadError(f"--plot {path}: {e.strerror or e}") from e
