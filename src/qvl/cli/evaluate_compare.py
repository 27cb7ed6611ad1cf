"""`qvl eval compare A B [C ...]`: whether runs on the same items differ, and which answers changed."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from qvl.cli.media import check_writable
from qvl.cli.options import JsonOption, command, option
from qvl.cli.tables import print_json
from qvl.errors import PlanError
from qvl.evaluate.compare import Comparison, compare_all
from qvl.evaluate.page import compare_page, write_page
from qvl.evaluate.runner import read_result

_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%|pts?|points?)?\s*\Z")


def parse_share(text: str, name: str) -> float:
    """`10%`, `1pt`, `0.01` as a part of 1. Raises: PlanError."""
    match = _SHARE.match(text)
    if match is None:
        raise PlanError(f"--{name} {text!r}: write 1pt, 1% or 0.01")
    share = float(match[1]) / (100 if match[2] else 1)
    if not 0 < share <= 1:
        raise PlanError(f"--{name} {text!r}: needs to be above 0 and at most 100%; for 1 point write 1pt")
    return share


@command
def run(
    runs: Annotated[
        list[str], typer.Argument(help="Folders of runs; the others are compared with the first.")
    ],
    max_drop: str | None = option(None, "The drop to exclude (default: none).", metavar="1pt|0.01"),
    detect: str | None = option(
        None, "How many items this difference would take (default: the one seen).", metavar="1pt|0.01"
    ),
    seed: int = option(0, "The seed of the bootstrap and of the sign flips."),
    report: str | None = option(None, "Write a page with the answers that changed.", metavar="OUT.html"),
    as_json: JsonOption = False,
) -> int:
    """Compare runs on the same items: difference, interval, test, changed answers. Exit 1: a drop isn't excluded."""
    check_writable(report)
    found = compare_all(
        [read_result(folder) for folder in runs],
        max_drop=None if max_drop is None else parse_share(max_drop, "max-drop"),
        detect=None if detect is None else parse_share(detect, "detect"),
        seed=seed,
    )
    told = [told_lines(c) for c in found]
    if report is not None:
        write_page(compare_page(found, told), report)
    if as_json:
        print_json({"comparisons": [c.to_dict() for c in found]})
    else:
        for comparison, lines in zip(found, told):
            print(f"{comparison.second} against {comparison.first}")
            print("\n".join(f"  {line}" for line in lines))
    return 1 if any(c.no_worse is False for c in found) else 0


def told_lines(c: Comparison) -> list[str]:
    """What a comparison found, the difference first."""
    lines = [
        f"{c.score_first:.1%} -> {c.score_second:.1%}: {_points(c.difference)}, 95% interval {_points(c.low)} to "
        f"{_points(c.high)} ({c.interval_method})",
        f"{c.num} items on both sides; {len(c.lost)} worse, {len(c.won)} better, {c.discordant:.1%} changed",
    ]
    if left := [
        f"{n} only in {name}" for n, name in ((c.only_first, c.first), (c.only_second, c.second)) if n
    ]:
        lines.append(f"left out: {', '.join(left)}")
    if c.other_truth:
        lines.append(f"left out: {c.other_truth} items with another truth")
    if any(c.num_errors):
        lines.append(f"errors, counted as 0: {c.num_errors[0]} and {c.num_errors[1]}")
    mid = "" if c.mid_p is None else f"; McNemar exact {c.exact:.4g}, mid-p {c.mid_p:.4g}"
    holm = "" if c.adjusted_p is None else f"; by Holm {c.adjusted_p:.4g}"
    lines.append(f"p = {c.p:.4g} ({c.p_method}){mid}{holm}")
    lines.append(f"bootstrap interval {_points(c.bootstrap.low)} to {_points(c.bootstrap.high)}")
    if c.max_drop is not None and c.drop_bound is not None:
        verdict = "excluded" if c.no_worse else "not excluded"
        lines.append(
            f"a drop of {c.max_drop * 100:g} points is {verdict}: the one-sided 95% bound is {_points(c.drop_bound)}"
        )
    if c.needed is not None and c.detect is not None:
        lines.append(
            f"to find a difference of {c.detect * 100:.2g} points with 80% power: {c.needed:,} items, when "
            f"{c.discordant:.1%} change"
        )
    if c.changed_settings:
        lines.append(f"settings that differ: {'; '.join(c.changed_settings)}")
    return lines


def _points(share: float) -> str:
    return f"{share * 100:+.1f} points"
