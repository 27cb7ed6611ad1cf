"""`qvl choose`: from requirements to a ranked list of model, precision, engine and hardware, each with its reasons."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qvl.catalog.devices import parse_hardware
from qvl.catalog.prices import age_warnings, price_book
from qvl.catalog.scores import tasks as known_tasks
from qvl.cli.choose_print import print_choice
from qvl.cli.options import JsonOption, command, option
from qvl.cli.tables import print_json
from qvl.cli.workload import ImageOption, MaxPixelsOption, MinPixelsOption, PriceOptions, VideoOption
from qvl.errors import PlanError, QvlError
from qvl.plan.choose import choose
from qvl.plan.choose.pareto import pareto
from qvl.plan.choose.pareto import plot as plot_front
from qvl.plan.choose.relax import with_ways_out
from qvl.plan.choose.report import choice_dict, html_report
from qvl.plan.choose.requirement import (
    AIMS,
    ROOM_FOR_IMAGES,
    THINKING_FACTOR,
    Requirement,
    parse_context,
    parse_languages,
    parse_latency,
    parse_tasks,
    parse_volume,
    usual_workload,
)
from qvl.plan.evaluate import CachedPlanner

if TYPE_CHECKING:
    from qvl.catalog.prices import Price, PriceBook
    from qvl.plan.choose import Choice


@dataclass(frozen=True)
class RequirementOptions:
    """What is required; each that is left out rules nothing out."""

    task: str = option(
        "",
        "What it is for: documents, charts, ocr, reasoning, video, agents, grounding or general; several "
        "with commas (default: general).",
    )
    gpu: str = option(
        "",
        "The hardware you have, such as rtx4090, 2xl40s or m2-ultra (default: none; rented machines and APIs "
        "are considered).",
    )
    where: str = option("", "Where it may run: own, rent, api (default: own with --gpu, else rent,api).")
    private: bool = option(False, "Keep images on your own or rented machines: no hosted API.", "--private")
    commercial: bool = option(False, "Require a licence for commercial use.", "--commercial")
    needs: str = option(
        "", "What it must be able to do: boxes, points, html, video, agent, thinking (default: nothing more)."
    )
    languages: str = option("", "The languages it must know, two letters each, such as ko,en (default: any).")
    quality: str = option(
        "", "How quality is weighed against cost: high, balanced or economy (default: balanced)."
    )
    memory: str = option(
        "",
        "The memory of that machine, such as 64GB, where device and machine share it (default: as listed).",
    )
    context: str = option(
        "", "The longest request in tokens, answer included, such as 200k (default: as needed)."
    )
    min_quality: float | None = option(None, "The least expected quality, from 0 to 100 (default: any).")
    latency: str = option("", "The longest wait for a whole answer, such as 2s or 800ms (default: any).")
    volume: str = option("", "The traffic, such as 2M-pages/month, 500k/day or 3/s (default: not known).")
    budget: float | None = option(None, "The most that it may cost, in US dollars a month (default: any).")
    engine: str = option(
        "", "Only this engine: vllm, llama.cpp, transformers, qvl; @VERSION may follow (default: any)."
    )
    precision: str = option("", "Only these precisions: bf16, fp8, awq, ... (default: any).")
    thinking_factor: float | None = option(
        None, f"How much longer Thinking variants answer (default: {THINKING_FACTOR:g} times)."
    )


@dataclass(frozen=True)
class WorkOptions:
    """A request; what is left out is as usual for the task."""

    image: ImageOption = None
    video: VideoOption = None
    prompt_tokens: int | None = option(None, "Tokens of text in a request (default: as usual for the task).")
    answer_tokens: int | None = option(None, "Tokens of its answer (default: as usual for the task).")
    concurrency: int = option(1, "How many requests must fit at once.")
    min_pixels: MinPixelsOption = None
    max_pixels: MaxPixelsOption = None


@command
def run(
    wanted: RequirementOptions,
    work: WorkOptions,
    pricing: PriceOptions,
    top: int = option(5, "How many of the ranking to show."),
    everything: bool = option(False, "Show everything that was ruled out.", "--all"),
    plot: Path | None = option(None, "Draw quality against memory and money (.png, .svg, .pdf)."),
    report: Path | None = option(None, "Write a self-contained HTML page."),
    as_json: JsonOption = False,
) -> int:
    """Recommend a model, precision, engine and hardware, with reasons; say what rules the others out."""
    if top < 1:
        raise PlanError(f"--top {top}: it must be at least 1")
    matters = replace(wanted, engine="", precision="", thinking_factor=None)
    if matters == RequirementOptions() and not work.image and not work.video:
        if not sys.stdin.isatty():
            raise PlanError("nothing is required: give at least --task, for example --task documents")
        answers = ask(lambda question: typer.prompt(question, default="", show_default=False, err=True))
        yes = {name: bool(answers[name]) for name in ("private", "commercial")}
        wanted = replace(wanted, **(answers | yes))  # type: ignore[arg-type]
    requirement = _requirement(wanted, work)
    book, stale = _usable_prices(requirement, pricing)
    planner = CachedPlanner()
    choice = choose(requirement, planner, book, detailed=top if as_json else 1)
    if stale and not pricing.allow_stale and not choice.ranked:
        stale += _with_old_prices(requirement, planner, pricing)
    choice = with_ways_out(choice, planner, book)
    nothing = ("there is nothing to plot: no image is written",) if plot and not choice.ranked else ()
    choice = replace(choice, warnings=(*choice.warnings, *stale, *nothing))
    _write_files(choice, plot, report)
    if as_json:
        print_json(choice_dict(choice))
    else:
        print_choice(choice, top, everything)
    return 0 if choice.ranked else 1


def _requirement(wanted: RequirementOptions, work: WorkOptions) -> Requirement:
    tasks = parse_tasks(wanted.task or "general")
    if wanted.memory and not wanted.gpu:
        raise PlanError(f"--memory {wanted.memory} needs --gpu: of which machine?")
    context = parse_context(wanted.context) if wanted.context else None
    if context is not None and work.prompt_tokens is not None:
        raise PlanError("--context and --prompt-tokens contradict each other: give one")
    workload, assumed = usual_workload(
        tasks,
        tuple(work.image or ()),
        tuple(work.video or ()),
        work.prompt_tokens,
        work.answer_tokens,
        work.concurrency,
        work.min_pixels,
        work.max_pixels,
    )
    factor = wanted.thinking_factor
    if context is not None:
        text = max(workload.prompt_tokens, context - ROOM_FOR_IMAGES - workload.answer_tokens)
        workload = replace(workload, prompt_tokens=text)
    gpu = f"{wanted.gpu}@{wanted.memory}" if wanted.memory else wanted.gpu
    return Requirement(
        tasks=tasks,
        workload=workload,
        assumed=assumed if wanted.task else ("general use, for want of a --task", *assumed),
        hardware=parse_hardware(gpu) if gpu else None,
        where=_places(wanted.where, bool(wanted.gpu)),
        private=wanted.private,
        commercial=wanted.commercial,
        needs=_parts(wanted.needs),
        languages=parse_languages(wanted.languages),
        aim=wanted.quality or "balanced",  # type: ignore[arg-type]
        context=context,
        min_quality=wanted.min_quality,
        latency_s=parse_latency(wanted.latency) if wanted.latency else None,
        requests_per_month=parse_volume(wanted.volume) if wanted.volume else None,
        budget_per_month=wanted.budget,
        engine=wanted.engine,
        precisions=_parts(wanted.precision),
        thinking_factor=THINKING_FACTOR if factor is None else factor,
    )


def _parts(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(p.strip().lower() for p in text.split(",") if p.strip()))


def _places(where: str, has_gpu: bool) -> tuple[Any, ...]:
    """Who names hardware wants to use it; who doesn't is shown what can be rented and bought by the token."""
    return _parts(where) or (("own",) if has_gpu else ("rent", "api"))


# Prices


def _usable_prices(req: Requirement, pricing: PriceOptions) -> tuple[PriceBook | None, tuple[str, ...]]:
    """(prices fresh enough to be used, or None; what to say about their age)."""
    max_age = pricing.max_age
    if max_age < 0:
        raise PlanError(f"--max-age {max_age}: days can't be negative")
    if req.where == ("own",) and req.budget_per_month is None:
        return None, ()
    today = date.today()
    book = price_book(pricing.prices)
    if pricing.allow_stale:
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
        too_old=tuple(p for p in book.api.values() if not fresh(p)),
    )
    left_out = len(_in_use(book)) - len(_in_use(kept))
    if left_out and req.budget_per_month is not None:
        raise PlanError(
            f"no verdict on a budget: {left_out} prices are older than {max_age} days. "
            "Give current ones with --prices FILE, or accept these with --allow-stale"
        )
    said = (
        f"{left_out} of {len(_in_use(book))} prices are older than {max_age} days and left out "
        "(--allow-stale takes them)"
    )
    if not kept.api and not kept.rent:
        return None, (said,)
    return kept, (said,) if left_out else ()


def _with_old_prices(req: Requirement, planner: CachedPlanner, pricing: PriceOptions) -> tuple[str, ...]:
    """What would win if their age were accepted, where nothing can be ranked without."""
    best = choose(req, planner, price_book(pricing.prices), detailed=0).best
    if best is None:
        return ()
    bill = f", ${best.cost_per_1000:,.2f} per 1,000 requests" if best.cost_per_1000 else ""
    return (f"with --allow-stale {best.model.name} would win: {best.place}{bill}",)


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

    def one_of(text: str) -> object:
        if text not in AIMS:
            raise PlanError(f"{text!r}; known: {', '.join(AIMS)}")
        return text

    questions: tuple[tuple[str, str, Callable[[str], object] | None], ...] = (
        ("task", f"What is it for? {', '.join(known_tasks())} [general]", parse_tasks),
        (
            "gpu",
            "Which hardware do you have, such as rtx4090 or 2xl40s? [none: look at renting and APIs]",
            parse_hardware,
        ),
        ("private", "Must the images stay on your own or rented machines? y/n [n]", None),
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


# Files


def _write_files(choice: Choice, plot: Path | None, report: Path | None) -> None:
    if plot and choice.ranked:
        plot_front(
            pareto(choice.ranked), plot, "tasks: " + ", ".join(t.name for t in choice.requirement.tasks)
        )
    if report:
        try:
            report.write_text(html_report(choice, date.today().isoformat()), encoding="utf-8")
        except OSError as e:
            raise PlanError(f"--report {report}: can't be written ({e.strerror})") from e
