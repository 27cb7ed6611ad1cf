"""`qvl eval published MODEL`: published scores, with measured runs beside them and what differs in setting."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qvl.catalog.models import find_model
from qvl.catalog.scores import Score, scores_of
from qvl.cli.options import JsonOption, command, option
from qvl.cli.tables import console, print_json, table
from qvl.errors import CatalogError
from qvl.evaluate.runner import Result, read_result

NOTE = "Two figures are comparable only where items, prompt, pixels, decoding and rule agree."


@command
def run(
    model: Annotated[str, typer.Argument(help="A model of the catalogue, such as qwen2.5-vl-7b.")],
    run: list[str] | None = option(
        None, "A measured run to compare with (repeatable; default: none).", metavar="FOLDER"
    ),
    precision: str = option("bf16", "The precision of the published scores."),
    as_json: JsonOption = False,
) -> int:
    """Published scores of a model with their sources, next to measured runs."""
    name = find_model(model).name
    published = scores_of(name, precision)
    if not published:
        raise CatalogError(f"no score of {name} in {precision} is published in the catalogue")
    measured = [read_result(folder) for folder in run or ()]
    rows = [row(score, measured) for score in published]
    if as_json:
        print_json({"model": name, "precision": precision, "note": NOTE, "scores": rows})
        return 0
    cells = [
        (r["benchmark"], r["variant"], f"{r['published']:g}", _measured(r), r["source"], r["note"])
        for r in rows
    ]
    print(f"{name}, {precision}: {len(rows)} published scores")
    console().print(
        table(("benchmark", "variant", "score", "measured", "source", "setting"), cells, right=(2,))
    )
    for result in measured:
        if not any(r["measured"] and r["measured"]["folder"] == str(result.folder) for r in rows):
            print(f"{result.folder}: no published score is about {benchmark_of(result) or 'these items'}")
    print(NOTE)
    return 0


def benchmark_of(result: Result) -> str | None:
    found = result.about.get("data", {}).get("benchmark")
    return None if found is None else str(found)


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def row(score: Score, measured: list[Result]) -> dict[str, Any]:
    """One published score; `measured` is the run of the same benchmark, with its settings."""
    beside = next(
        (m for m in measured if _plain(benchmark_of(m) or "?") == _plain(score.benchmark.name)), None
    )
    found: dict[str, Any] = {
        "benchmark": score.benchmark.name, "variant": score.benchmark.variant, "metric": score.metric,
        "published": score.value, "source": score.figure.source.title, "date": str(score.figure.date),
        "kind": score.figure.kind, "note": score.figure.note or "", "measured": None,
    }  # fmt: skip
    if beside is not None:
        keys = ("data", "prompt", "scorer", "settings")
        found["measured"] = {
            "score": beside.score, "low": beside.summary.get("low"), "high": beside.summary.get("high"),
            "num": beside.summary["num"], "folder": str(beside.folder),
            "setting": {k: beside.about.get(k) for k in keys},
        }  # fmt: skip
    return found


def _measured(r: dict[str, Any]) -> str:
    m = r["measured"]
    return (
        ""
        if m is None
        else f"{m['score'] * 100:.1f} ({m['low'] * 100:.1f} to {m['high'] * 100:.1f}, n {m['num']})"
    )
