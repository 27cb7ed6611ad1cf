"""`qvl eval DATA`: a model's score on the user's own items. Exit 1: some failed, or the run was stopped."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl.backends.spend import parse_amount
from qvl.catalog.prices import price_book
from qvl.cli.evaluate_data import (
    BenchmarkOptions,
    Items,
    ScoreOptions,
    benchmark_items,
    find_benchmark,
    own_items,
)
from qvl.cli.gate import own
from qvl.cli.media import check_writable
from qvl.cli.options import AnswerOptions, JsonOption, SourceOptions, command, option
from qvl.cli.show import terminal_safe
from qvl.cli.tables import console, print_json, table
from qvl.errors import PlanError, PromptError
from qvl.evaluate.page import run_page, write_page
from qvl.evaluate.runner import Progress, Result, read_result, rescore
from qvl.evaluate.runner import run as run_items
from qvl.evaluate.samples import choose
from qvl.evaluate.scorers.judge import agreement, order_consistency, read_labelled
from qvl.evaluate.scorers.structure import field_scores
from qvl.evaluate.weights_digest import source_digest
from qvl.units import format_seconds

if TYPE_CHECKING:
    from qvl.tasks.model import Model

RUNS = Path("runs")


@dataclass(frozen=True)
class AskedOptions(AnswerOptions):
    """How a model answers the items."""

    seed: int | None = option(
        None, "The seed of the choice of items, and of sampling (default: 0, and another sampling each time)."
    )
    min_pixels: int | None = option(None, "Enlarge images to this area (default: the checkpoint's limit).")
    confidence: bool = option(False, "Record the model's confidence in each answer.", "--confidence")
    concurrency: int | None = option(None, "The most items in flight (default: the model's limit).", min=1)

    def settings(self) -> dict[str, Any]:
        found = {k: v for k, v in super().settings().items() if k not in ("concurrency", "confidence")}
        return found | ({"logprobs": 1} if self.confidence else {})


@dataclass(frozen=True)
class FolderOptions:
    """Where a run is kept, and how it goes on."""

    out: Path | None = option(
        None, "The run's folder (default: runs/, named after the data and the model).", "-o", "--out"
    )
    resume: bool = option(False, "Resume a stopped run; this is the default.", "--resume")
    fresh: bool = option(False, "Start from scratch and delete the folder's run.", "--fresh")
    rescore: bool = option(False, "Score the stored answers again without asking the model.", "--rescore")
    limit_cost: str | None = option(
        None, "Stop before the whole run costs more than this (default: no limit).", metavar="0.50|$2|3CNY"
    )
    report: str | None = option(None, "Write a page with the worst cases.", metavar="OUT.html")


@command
def run(
    source: SourceOptions,
    answers: AskedOptions,
    scoring: ScoreOptions,
    bench_options: BenchmarkOptions,
    folder: FolderOptions,
    data: Annotated[
        str,
        typer.Argument(help="A .jsonl or .csv file, a folder of images with truths, or a benchmark's name."),
    ],
    num: int | None = option(
        None, "Ask only this many of the items, drawn by --seed (default: all).", "-n", "--num"
    ),
    as_json: JsonOption = False,
) -> int:
    """Score a model on your own items or on a benchmark; the same command resumes a stopped run."""
    bench = find_benchmark(data, bench_options)
    if bench is not None and bench_options.how:
        print(bench.how())
        return 0
    check_writable(folder.report)
    if folder.fresh and (folder.resume or folder.rescore):
        raise PromptError("--fresh starts from scratch: it can't be combined with --resume or --rescore")
    items = (
        own_items(data, scoring) if bench is None else None
    )  # a fault in them is told before a model is opened
    judged = None
    if (
        scoring.judge_labels is not None and items is not None
    ):  # before the long run: is the judge to be believed?
        judged = agreement(items.scorer, read_labelled(scoring.judge_labels))
        print_agreement(judged)
    out = folder.out or RUNS / _run_name(data, source)
    if folder.rescore:
        if items is None:
            assert bench is not None
            family = read_result(out).about["model"].get("family")
            items = benchmark_items(bench, bench_options, scoring, family)
        result = rescore(out, items.samples, items.scorer)
    else:
        with source.open() as model:
            if items is None:
                assert bench is not None
                items = benchmark_items(bench, bench_options, scoring, model.family)
            result = _ask(model, items, source, answers, folder, {"source": data, "num": num}, out)
    if folder.report is not None:
        write_page(run_page(result), folder.report)
    figures = items.figures(result)
    by_field = fields_of(result)
    if as_json:
        more = {
            "fields": by_field,
            "figures": figures,
            "judge_agreement": judged,
            "judge_order": order_consistency(result.lines),
        }
        print_json(result_dict(result) | {k: v for k, v in more.items() if v})
    else:
        print_result(result)
        if by_field:
            rows = [(name, str(f["num"]), f"{f['right']:.1%}") for name, f in by_field.items()]
            console().print(table(("field", "items", "right"), rows, right=(1, 2)))
        for name, value in figures.items():
            print(f"{name}: {value:.4g}")
        if (steady := order_consistency(result.lines)) is not None:
            print(f"the judge gave the same verdict in both orders on {steady:.1%}")
    return 0 if result.status == "complete" and not result.summary.get("num_errors") else 1


def _run_name(data: str, source: SourceOptions) -> str:
    model = source.model or ("mini" if source.endpoint is None else "served")
    words = [Path(data).stem, model, source.weights or ""]
    return re.sub(r"[^\w.-]+", "-", "-".join(w for w in words if w)).strip("-")[:100]


def _ask(
    model: Model,
    items: Items,
    source: SourceOptions,
    answers: AskedOptions,
    folder: FolderOptions,
    data: dict[str, Any],
    out: Path,
) -> Result:
    seed = answers.seed or 0
    about = {
        "data": {"source": data["source"], "seed": seed, **items.about},
        "model": {
            "source": source.model, "endpoint": source.endpoint, "weights": source.weights,
            "digest": source_digest(source.model, source.endpoint),
        },
    }  # fmt: skip
    result = run_items(
        model,
        choose(items.samples, data["num"], seed),
        items.scorer,
        out,
        prompt=items.prompt,
        settings={**items.settings, **answers.settings()},
        about=about,
        limit_cost=_limit(model, folder.limit_cost, source.prices),
        fresh=folder.fresh,
        concurrency=answers.concurrency,
        on_line=show_progress,
    )
    if result.lines:
        print(file=sys.stderr)
    return result


def _limit(model: Model, limit: str | None, prices: str | None) -> float | None:
    if limit is None:
        return None
    if model.meter is None:
        raise PlanError(f"--limit-cost: no price is known for {model.name}; give it with --prices FILE")
    return parse_amount(limit, model.meter.price.currency, price_book(prices))


def show_progress(line: Any, progress: Progress, scored: bool = True) -> None:
    left = progress.seconds_left
    parts = [
        f"{progress.num_done}/{progress.num}", f"{progress.rate:.1f}/s",
        f"ETA {'-' if left is None else format_seconds(left)}",
    ]  # fmt: skip
    if scored:
        parts.append(f"score {progress.score:.1%}")
    if progress.num_errors:
        parts.append(f"{progress.num_errors} errors")
    print(f"\r{'  '.join(parts):<70}", end="", file=own(sys.stderr), flush=True)


def result_dict(result: Result) -> dict[str, Any]:
    """run.json with the score beside it, numbers unrounded."""
    folder = None if result.folder is None else str(result.folder)
    return dict(result.about) | {"summary": dict(result.summary), "folder": folder}


def fields_of(result: Result) -> dict[str, Any]:
    """How often each field was right, where fields were scored."""
    scorer = result.about.get("scorer", {})
    if scorer.get("name") != "fields":
        return {}
    return field_scores(((r.get("truth"), r.get("parsed")) for r in result.lines), **scorer["options"])


def print_agreement(found: dict[str, Any]) -> None:
    kappa = "-" if found["kappa"] is None else f"{found['kappa']:.2f}"
    print(
        f"judge against {found['num']} labels: agrees on {found['agreement']:.1%} ({found['low']:.1%} to "
        f"{found['high']:.1%}), kappa {kappa}, same verdict in both orders {found['order_consistent']:.1%}, "
        f"{found['no_verdict']} without a verdict",
        file=sys.stderr,
    )


def print_result(result: Result) -> None:
    about, summary = result.about, result.summary
    print(f"{about['data'].get('source')}, {about['model']['name']}, scorer {about['scorer']['name']}")
    if not result.lines:
        print(f"nothing was asked: {result.reason}")
        return
    print(
        f"score {summary['score']:.1%}   95% interval {summary['low']:.1%} to {summary['high']:.1%} "
        f"({summary['method']}), {summary['num']} items"
    )
    print(
        f"{summary['num_errors']} errors, {summary['num_parse_failures']} answers without anything to judge, "
        f"{summary['num_cut']} cut at the limit"
    )
    if cost := summary.get("cost"):
        print(f"cost {cost['amount']:.4f} {cost['currency']}")
    for kind, parts in summary["strata"].items():
        rows = [
            (name, str(p["num"]), f"{p['score']:.1%}", f"{p['low']:.1%} to {p['high']:.1%}")
            for name, p in parts.items()
        ]
        console().print(table((kind, "items", "score", "95% interval"), rows, right=(1, 2), whole=(3,)))
    if result.status != "complete":
        print(f"stopped: {terminal_safe(str(result.reason))}; the same command goes on", file=sys.stderr)
    errors = [r for r in result.lines if r.get("error")]
    for line in errors[:3]:
        print(f"{line['id']}: {terminal_safe(line['error'])}", file=sys.stderr)
    if result.folder is not None:
        print(f"kept in {result.folder}")
