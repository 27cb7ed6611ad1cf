"""`qvl check FOLDER`: what is wrong with a checkpoint or adapter, and what to do, without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qvl.checkpoint.check import Report


def run(
    folder: Annotated[Path, typer.Argument(help="Checkpoint or adapter folder, hub id or mini.")],
    tensor_parallel_size: Annotated[
        int | None, typer.Option(help="GPUs it must be cut over; without it illegal cuts are only reported")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> int:
    """Examines a checkpoint without loading it. Exit status 1 when something is wrong."""
    from qvl.checkpoint.check import check
    from qvl.checkpoint.checkpoint import open_checkpoint

    report = check(open_checkpoint(folder), tensor_parallel_size)
    if as_json:
        import json

        print(
            json.dumps(
                {
                    "folder": str(report.folder),
                    "summary": report.summary,
                    "failed": report.failed,
                    "findings": [vars(f) for f in report.findings],
                }
            )
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
