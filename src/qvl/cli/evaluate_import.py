"""`qvl eval import LOG`: import another harness's answers, to score and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvl.cli.evaluate import RUNS, print_result, result_dict
from qvl.cli.options import JsonOption, command, option
from qvl.cli.tables import print_json
from qvl.evaluate.benchmarks import BENCHMARKS, benchmark
from qvl.evaluate.imports import import_run
from qvl.evaluate.samples import read_samples
from qvl.evaluate.scorers import SCORERS, find_scorer


@command
def run(
    log: Annotated[
        str,
        typer.Argument(help="A samples_*.jsonl of lmms-eval, or a VLMEvalKit .tsv with a column prediction."),
    ],
    out: Path | None = option(None, "The run's folder (default: runs/, named after the log).", "-o", "--out"),
    data: str | None = option(
        None,
        "The items that the log's numbers refer to, in their order (default: the numbers are the ids).",
        metavar="DATA",
    ),
    scorer: str | None = option(
        None,
        "The scoring rule, or a benchmark's (default: one that fits the truth).",
        metavar=f"{'|'.join(SCORERS)}|BENCHMARK",
    ),
    fresh: bool = option(False, "Replace the run that the folder holds.", "--fresh"),
    as_json: JsonOption = False,
) -> int:
    """Import another harness's answers as a run, to score by our rules and compare item by item."""
    known = scorer is not None and scorer in BENCHMARKS
    rule = benchmark(scorer or "").scorer if known else find_scorer(scorer) if scorer else None
    items = None if data is None else read_samples(data)
    result = import_run(log, out or RUNS / Path(log).stem, rule, items=items, fresh=fresh)
    if as_json:
        print_json(result_dict(result))
    else:
        print_result(result)
    return 0
