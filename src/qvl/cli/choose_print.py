"""What `qvl choose` prints: the pick with its reasons, the ranking, what was ruled out and by what."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from qvl.cli.tables import console, table
from qvl.plan.choose.pareto import pareto, pareto_rows
from qvl.plan.choose.report import launch_command
from qvl.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from qvl.plan.choose import Choice
    from qvl.plan.choose.candidate import Candidate


def print_choice(choice: Choice, top: int, everything: bool) -> None:
    from rich.text import Text

    out = console()
    best = choice.best
    if best:
        out.print(Text(f"{best.model.name}", style="bold"), Text(f"on {best.place}"))
        for line in (*best.why, *(f"also meets everything: {other}" for other in best.also[:3])):
            out.print(
                Text(textwrap.fill(line, out.width - 1, initial_indent="  · ", subsequent_indent="    "))
            )
        if command := launch_command(choice.requirement, best):
            several = f" on each of {best.num_servers} machines" * (best.num_servers > 1)
            lines = textwrap.wrap(command, out.width - 6, break_on_hyphens=False)
            out.print(Text(f"\nplan its start{several}:\n  " + " \\\n    ".join(lines)))
    else:
        said = "Nothing that can be ranked." if choice.unranked else "Nothing meets every requirement."
        out.print(Text(said, style="bold"))
    if choice.decisive():
        out.print(Text(f"\n{choice.decisive()}"))
    if choice.ways_out:
        out.print("")
        _print_ways_out(choice)
    if choice.ranked:
        out.print("")
        _print_ranking(choice, top)
    if choice.unranked:
        names = ", ".join(c.model.name for c in choice.unranked)
        out.print(Text(f"\nWould do, but have no published score for this: {names}"))
    _print_ruled_out(choice, everything)
    _print_front(choice)
    for warning in choice.warnings:
        out.print(Text(f"note: {warning}", style="dim"))


def _print_ways_out(choice: Choice) -> None:
    from rich.text import Text

    out = console()
    for line in (w.describe() for w in choice.ways_out):
        out.print(Text(textwrap.fill(line, out.width - 1, initial_indent="  · ", subsequent_indent="    ")))


def _print_ranking(choice: Choice, top: int) -> None:
    rows = []
    for i, c in enumerate(choice.ranked[:top], 1):
        plan = c.plan
        rows.append(
            (
                str(i),
                c.model.name,
                c.place,
                f"{c.expected:.1f}",
                format_bytes(c.memory_bytes) if plan else "-",
                format_seconds(plan.answer_s) if plan and plan.answer_s else "-",
                _money(c),
            )
        )
    headers = ("", "model", "runs on", "quality", "memory", "answer", "money")
    out = console()
    out.print(table(headers, rows, right=(3, 4, 5, 6), whole=(1,)))
    rest = len(choice.ranked) - top
    if rest > 0:
        out.print(f"and {rest} more (--top {len(choice.ranked)})")


def _money(c: Candidate) -> str:
    if c.cost_per_month:
        return f"${c.cost_per_month:,.0f}/month"
    return f"${c.cost_per_1000:,.2f}/1000" if c.cost_per_1000 else "-"


def _print_ruled_out(choice: Choice, everything: bool) -> None:
    shown = choice.ruled_out if everything else choice.ruled_out[:8]
    if not shown:
        return
    rows = [
        (r.model.name, r.requirement, r.reason, "-" if r.expected is None else f"{r.expected:.1f}")
        for r in shown
    ]
    out = console()
    out.print("")
    out.print(table(("ruled out", "by", "because", "quality"), rows, right=(3,), whole=(0, 1)))
    if len(choice.ruled_out) > len(shown):
        out.print(f"and {len(choice.ruled_out) - len(shown)} more (--all)")


def _print_front(choice: Choice) -> None:
    """The Pareto view: only what no other beats on all axes at once."""
    front = [p for p in pareto(choice.ranked) if p.front]
    if len(front) < 2:
        return
    priced = any(p.cost is not None for p in front)  # on hardware of one's own none is
    rows = [(*row[1:4], *row[4:5] * priced, row[5]) for row in pareto_rows(front)]
    out = console()
    axes = "quality, money and memory" if all(p.cost is not None for p in front) else "quality and memory"
    out.print(f"\nNo other beats these on {axes} at once:")
    headers = ("model", "runs on", "quality", *("per 1,000",) * priced, "memory")
    out.print(table(headers, rows, right=tuple(range(2, len(headers))), whole=(0,)))
