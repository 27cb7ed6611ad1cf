"""Runs this folder's scripts one after the other within a time budget: one JSON each, and a table at the end.

    python benchmarks/gpu/run_all.py --out runs/gpu [--budget-minutes 25] [--only decode vision] [--skip train_mini]

What is cheap and says most goes first. A script that fails or takes longer than eight minutes ends alone, and one that
the budget has no room for is named as not run. Exit status: 1 when something failed, took too long or missed a goal.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
QUEUE = (
    "paged_attention",
    "parity",
    "decode",
    "vision",
    "memory",
    "clients",
    "int4_matmul",
    "train_mini",
)
LIMIT_S = 8 * 60
LEAST_S = 30  # no script is begun with less than this left
NO_DRY_RUN = {"int4_matmul"}  # without a GPU it says so and ends


def run_one(name: str, out: Path, dry_run: bool, limit_s: float) -> dict[str, object]:
    dry = dry_run and name not in NO_DRY_RUN
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    if name not in NO_DRY_RUN:
        command += ["--out", str(out)]
    command += ["--dry-run"] if dry else []
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            p for p in (str(FOLDER.parents[1] / "src"), os.environ.get("PYTHONPATH", "")) if p
        )
    }
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"script": name, "state": f"stopped after {limit_s:.0f} s", "seconds": limit_s}
    (out / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if name in NO_DRY_RUN and done.stdout.strip().startswith("{"):
        (out / f"{name}.json").write_text(done.stdout, encoding="utf-8")
    result: dict[str, object] = {"script": name, "seconds": round(time.perf_counter() - began, 1)}
    goals = _goals(out / f"{name}.json") if done.returncode in (0, 1) else []
    if done.returncode and not goals:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return result | {"state": f"failed: {last}"}
    missed = [g["goal"] for g in goals if not g["met"]] if not dry else []
    return result | {"state": f"missed: {', '.join(missed)}" if missed else "ok", "goals": goals}


def _goals(file: Path) -> list[dict]:
    if not file.exists():
        return []
    return json.loads(file.read_text(encoding="utf-8")).get("goals", [])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--budget-minutes", type=float, default=25.0)
    parser.add_argument("--only", nargs="+", choices=QUEUE, default=list(QUEUE))
    parser.add_argument("--skip", nargs="+", choices=QUEUE, default=[])
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in QUEUE:  # an earlier run's answer must not pass for this one's
        (args.out / f"{name}.json").unlink(missing_ok=True)
    ends = time.perf_counter() + 60 * args.budget_minutes
    rows: list[dict[str, object]] = []
    for name in (n for n in QUEUE if n in args.only and n not in args.skip):
        left = ends - time.perf_counter()
        if left < LEAST_S:
            rows.append({"script": name, "state": f"not run: {max(0, left):.0f} s left", "seconds": 0.0})
        else:
            rows.append(run_one(name, args.out, args.dry_run, min(LIMIT_S, left)))
        print(f"{name:16} {rows[-1]['seconds']:>7} s  {rows[-1]['state']}", flush=True)
        (args.out / "run_all.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(any(row["state"] != "ok" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
