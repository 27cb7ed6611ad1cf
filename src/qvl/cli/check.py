"""`qvl check FOLDER`: what is wrong with a checkpoint or adapter, and what to do, without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvl.checkpoint.check import Report, check
from qvl.checkpoint.checkpoint import open_checkpoint
from qvl.cli.options import JsonOption, command, option
from qvl.cli.tables import print_json
from qvl.records import pick


@command
def run(
    folder: Annotated[Path, typer.Argument(help="A checkpoint or adapter folder, a hub id or mini.")],
    tensor_parallel_size: int | None = option(
        None, "The number of GPUs to split it over (default: impossible splits are only noted)."
    ),
    as_json: JsonOption = False,
) -> int:
    """Find faults in a checkpoint without loading it. Exit status 1 when something is wrong."""
    report = check(open_checkpoint(folder), tensor_parallel_size)
    if as_json:
        findings = [vars(f) for f in report.findings]
        print_json(
            pick(report, "summary", "failed", folder=str(report.folder), findings=findings), indent=None
        )
    else:
        print_report(report)
    return int(report.failed)


def print_report(report: Report) -> None:
    print(f"{report.folder}: {report.summary}")
    for f in report.findings:
        print(f"{f.level:<8} {f.rule}: {f.what}\n{'':<8} fix: {f.fix}")
    counts = [(n, level) for level in ("error", "warning", "note") if (n := report.count(level))]
    print(", ".join(f"{n} {level}{'' if n == 1 else 's'}" for n, level in counts) or "nothing to report")
