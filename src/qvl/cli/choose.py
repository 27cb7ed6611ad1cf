"""`qvl choose`: from requirements to a ranked list of model, precision, engine and hardware, each with its reasons."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl.cli.tables import console, print_json, table
from qvl.errors import PlanError, QvlError

if TYPE_CHECKING:
    from datetime import date

    from qvl.catalog.devices import Hardware
    from qvl.catalog.prices import Price, PriceBook
    from qvl.plan.choose import Choice
    from qvl.plan.choose.candidate import Candidate
    from qvl.plan.choose.requirement import Requirement


def run(
    task: Annotated[
        str, typer.Option(help="documents, charts, ocr, reasoning, video, agents, grounding, general")
    ] = "",
    gpu: Annotated[
        str, typer.Option(help="what you have: rtx4090, 2xl40s, m2-ultra; none looks at what to rent")
    ] = "",
    where: Annotated[str, typer.Option(help="own, rent, api; several with commas")] = "",
    private: Annotated[bool, typer.Option("--private", help="pictures stay in house: no hosted API")] = False,
    commercial: Annotated[bool, typer.Option("--commercial", help="the licence must permit it")] = False,
    needs: Annotated[
        str, typer.Option(help="boxes, points, html, video, agent, thinking; several with commas")
    ] = "",
    languages: Annotated[str, typer.Option(help="two letters each: ko,en")] = "",
    quality: Annotated[str, typer.Option(help="high, balanced, economy")] = "",
    min_quality: Annotated[float | None, typer.Option(help="least expected quality, 0 to 100")] = None,
    latency: Annotated[str, typer.Option(help="longest wait for a whole answer: 2s, 800ms")] = "",
    volume: Annotated[str, typer.Option(help="2M-pages/month, 500k/day, 3/s")] = "",
    budget: Annotated[float | None, typer.Option(help="US dollars a month")] = None,
    image: Annotated[list[str] | None, typer.Option(help="WxH or WxHxCOUNT of a request; repeatable")] = None,
    video: Annotated[list[str] | None, typer.Option(help="SECONDS@FPS of a request; repeatable")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="words of the question, in tokens")] = None,
    answer_tokens: Annotated[int | None, typer.Option(help="length of the answer, in tokens")] = None,
    concurrency: Annotated[int, typer.Option(help="requests at once that must fit")] = 1,
    min_pixels: Annotated[int | None, typer.Option()] = None,
    max_pixels: Annotated[int | None, typer.Option()] = None,
    engine: Annotated[
        str, typer.Option(help="vllm, llama.cpp, transformers, qvl; with @version if need be")
    ] = "",
    precision: Annotated[str, typer.Option(help="only these: bf16, fp8, awq, ...")] = "",
    thinking_factor: Annotated[
        float | None, typer.Option(help="how much longer Thinking variants answer")
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="TOML file with your own prices")] = None,
    max_age: Annotated[int, typer.Option(help="days that a price may be old")] = 180,
    allow_stale: Annotated[bool, typer.Option("--allow-stale", help="use older prices all the same")] = False,
    top: Annotated[int, typer.Option(help="how many of the ranking to show")] = 5,
    everything: Annotated[bool, typer.Option("--all", help="show all that was ruled out")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="picture of quality against memory and money (.png, .svg, .pdf)")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="one self-contained HTML page to hand on")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> int:
    """Which model, precision, engine and hardware, and why; what rules the others out."""
    if top < 1:
        raise PlanError(f"--top {top}: it must be at least 1")
    asked = any((task, gpu, where, private, commercial, needs, languages, quality, latency, volume))
    if not asked and min_quality is None and budget is None and not image and not video:
        if not sys.stdin.isatty():
            raise PlanError("nothing is required: give at least --task, for example --task documents")
        answers = ask(lambda question: typer.prompt(question, default="", show_default=False, err=True))
        task, gpu, languages, volume, latency, quality = (
            answers[k] for k in ("task", "gpu", "languages", "volume", "latency", "quality")
        )
        private, commercial = bool(answers["private"]), bool(answers["commercial"])

    from qvl.plan.choose import choose
    from qvl.plan.choose.relax import with_ways_out
    from qvl.plan.choose.requirement import (
        THINKING_FACTOR,
        Requirement,
        parse_languages,
        parse_latency,
        parse_tasks,
        parse_volume,
        usual_workload,
    )
    from qvl.plan.evaluate import CachedPlanner

    tasks = parse_tasks(task or "general")
    workload, assumed = usual_workload(
        tasks,
        tuple(image or ()),
        tuple(video or ()),
        prompt_tokens,
        answer_tokens,
        concurrency,
        min_pixels,
        max_pixels,
    )
    requirement = Requirement(
        tasks=tasks,
        workload=workload,
        assumed=assumed if task else ("general use, for want of a --task", *assumed),
        hardware=_hardware(gpu),
        where=_places(where, bool(gpu)),
        private=private,
        commercial=commercial,
        needs=_parts(needs),
        languages=parse_languages(languages),
        aim=quality or "balanced",  # type: ignore[arg-type]
        min_quality=min_quality,
        latency_s=parse_latency(latency) if latency else None,
        requests_per_month=parse_volume(volume) if volume else None,
        budget_per_month=budget,
        engine=engine,
        precisions=_parts(precision),
        thinking_factor=THINKING_FACTOR if thinking_factor is None else thinking_factor,
    )
    book, stale = _usable_prices(requirement, prices, max_age, allow_stale)
    planner = CachedPlanner()
    choice = choose(requirement, planner, book, detailed=top if as_json else 1)
    choice = with_ways_out(choice, planner, book)
    nothing = ("there is nothing to plot: no picture is written",) if plot and not choice.ranked else ()
    choice = replace(choice, warnings=(*choice.warnings, *stale, *nothing))
    _write_files(choice, plot, report)
    if as_json:
        from qvl.plan.choose.report import choice_dict

        print_json(choice_dict(choice))
    else:
        _print_choice(choice, top, everything)
    return 0 if choice.ranked else 1


def _parts(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(p.strip().lower() for p in text.split(",") if p.strip()))


def _hardware(gpu: str) -> Hardware | None:
    if not gpu:
        return None
    from qvl.catalog.devices import parse_hardware

    return parse_hardware(gpu)


def _places(where: str, has_gpu: bool) -> tuple[Any, ...]:
    """Who names hardware wants to use it; who doesn't is shown what can be rented and bought by the token."""
    return _parts(where) or (("own",) if has_gpu else ("rent", "api"))


# Prices


def _usable_prices(
    req: Requirement, prices: Path | None, max_age: int, allow_stale: bool
) -> tuple[PriceBook | None, tuple[str, ...]]:
    """(prices fresh enough to be used, or None; what to say about their age)."""
    if max_age < 0:
        raise PlanError(f"--max-age {max_age}: days can't be negative")
    if req.where == ("own",) and req.budget_per_month is None:
        return None, ()
    from datetime import date

    from qvl.catalog.prices import age_warnings, price_book

    today = date.today()
    book = price_book(prices)
    if allow_stale:
        return book, _ages(_in_use(book), today, max_age)

    def fresh(p: object) -> bool:
        return not age_warnings([p], today, max_age)  # type: ignore[list-item]

    # rents stand or fall together: machines are compared by them, and one fresh price would win unopposed
    rent = book.rent if all(fresh(r) for r in book.rent if r.used) else ()
    kept = replace(
        book,
        api={k: p for k, p in book.api.items() if fresh(p)},
        rent=tuple(r for r in rent if fresh(r)),
        exchange={k: e for k, e in book.exchange.items() if fresh(e)},
    )
    left_out = len(_in_use(book)) - len(_in_use(kept))
    if left_out and req.budget_per_month is not None:
        raise PlanError(
            f"no verdict on a budget: {left_out} prices are older than {max_age} days. "
            "Give current ones with --prices FILE, or accept these with --allow-stale"
        )
    if not kept.api and not kept.rent:
        return None, ()
    said = f"{left_out} prices older than {max_age} days are left out (--allow-stale takes them)"
    return kept, (said,) if left_out else ()


def _in_use(book: PriceBook) -> list[Price]:
    """Older and regional lists of a name, and tiers that are not the usual one, are for `qvl cost` alone."""
    return [*(p for p in book.api.values() if not p.variant), *(r for r in book.rent if r.used)]


def _ages(records: Sequence[Price], today: date, max_age: int) -> tuple[str, ...]:
    """One sentence however many are old."""
    ages = sorted(p.age_days(today) for p in records if p.age_days(today) > max_age)
    if not ages:
        return ()
    return (f"{len(ages)} of {len(records)} prices are older than {max_age} days: {ages[0]} to {ages[-1]}",)


# Questions


def ask(prompt: Callable[[str], str]) -> dict[str, str]:
    """A few questions, each with what an empty answer means; a wrong answer is asked again.

    `prompt` shows a question and returns the answer. Yes is returned as "yes", no as "".
    """
    from qvl.catalog.devices import parse_hardware
    from qvl.catalog.scores import tasks
    from qvl.plan.choose.requirement import AIMS, parse_languages, parse_latency, parse_tasks, parse_volume

    def one_of(text: str) -> object:
        if text not in AIMS:
            raise PlanError(f"{text!r}; known: {', '.join(AIMS)}")
        return text

    questions: tuple[tuple[str, str, Callable[[str], object] | None], ...] = (
        ("task", f"What is it for? {', '.join(tasks())} [general]", parse_tasks),
        (
            "gpu",
            "Which hardware do you have, such as rtx4090 or 2xl40s? [none: look at renting and APIs]",
            parse_hardware,
        ),
        ("private", "Must the pictures stay in house? y/n [n]", None),
        ("commercial", "Is it for commercial use? y/n [n]", None),
        ("languages", "Which languages, such as ko,en? [any]", parse_languages),
        ("volume", "How many requests, such as 100k/month? [not said]", parse_volume),
        ("latency", "How long may an answer take, such as 5s? [not said]", parse_latency),
        ("quality", "What counts most: high, balanced, economy? [balanced]", one_of),
    )
    answers: dict[str, str] = {}
    for key, question, check in questions:
        while True:
            text = prompt(question).strip()
            if check is None:
                answers[key] = "yes" if text.lower() in ("y", "yes") else ""
                if text.lower() in ("", "y", "yes", "n", "no"):
                    break
                question = f"Please answer y or n. {question.removeprefix('Please answer y or n. ')}"
                continue
            try:
                if text:
                    check(text)
            except QvlError as e:
                question = f"{e}. Again"
                continue
            answers[key] = text
            break
    return answers


# Output


def _write_files(choice: Choice, plot: Path | None, report: Path | None) -> None:
    title = "tasks: " + ", ".join(t.name for t in choice.requirement.tasks)
    if plot and choice.ranked:
        from qvl.plan.choose.pareto import pareto
        from qvl.plan.choose.pareto import plot as draw

        draw(pareto(choice.ranked), plot, title)
    if report:
        from datetime import date

        from qvl.plan.choose.report import html_report

        try:
            report.write_text(html_report(choice, date.today().isoformat()), encoding="utf-8")
        except OSError as e:
            raise PlanError(f"--report {report}: can't be written ({e.strerror})") from e


def _print_choice(choice: Choice, top: int, everything: bool) -> None:
    from rich.text import Text

    from qvl.plan.choose.report import launch_command

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
        out.print(Text("Nothing meets every requirement.", style="bold"))
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
    from qvl.units import format_bytes, format_seconds

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
    from qvl.plan.choose.pareto import pareto, pareto_rows

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
