"""Trains the embedded model on the GPU for some minutes and scores what came out on unseen pictures.

    python benchmarks/gpu/train_mini.py [--minutes 6] [--samples 100]

Runs training/train_mini.py and training/pack_mini.py as anybody would, then `qvl synth --score`.
Goal: 95% of answers right, which may take longer than a queue's eight minutes: --state keeps the state, a later call
goes on where it stopped, and --total-minutes says how long the schedule of all calls together is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, arguments, device_of, goal, report


def run(command: list[str]) -> str:
    """A Python command's standard output. Raises: RuntimeError with the end of what it said."""
    paths = [str(ROOT / "src"), str(ROOT / "training")]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
        )
    return done.stdout


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--total-minutes", type=float, default=0.0, help="of the whole schedule, all calls")
    parser.add_argument("--samples", type=int, default=100, help="of each kind")
    parser.add_argument("--state", type=Path, help="folder of the training state; OUT/mini")
    parser.add_argument("--scratch", action="store_true", help="from nothing, not from the packed weights")
    args = parser.parse_args(argv)
    device = device_of(args)
    state = (args.state or args.out / "mini").resolve()
    samples = 1 if args.dry_run else args.samples
    train = ["training/train_mini.py", "--out", str(state), "--device", device.type]
    train += ["--minutes", str(args.minutes), "--total-minutes", str(args.total_minutes)]
    train += ["--decay-minutes", str(args.minutes / 3)]
    if args.dry_run:
        train += ["--stop-steps", str(last_step() + 1), "--micro-batches", "1"]
    else:
        train += ["--workers", str(max(1, (os.cpu_count() or 2) - 2)), "--micro-batches", "8"]
    if not args.scratch:
        train += ["--start", "src/qvl/mini", "--fresh-optimizer"]
    began = time.perf_counter()
    said = run(train)
    trained_s = time.perf_counter() - began
    packed = state / "packed"
    run(["training/pack_mini.py", str(state), str(packed)])
    kinds = ["--kind", "count"] if args.dry_run else []
    scored = run(
        ["-m", "qvl.cli.main", "synth", *kinds, "--score", str(packed), "-n", str(samples), "--json"]
    )
    scores = json.loads(scored)["kinds"]
    result = {
        "train_s": trained_s,
        "training": json.loads((packed / "training.json").read_text(encoding="utf-8")),
        "samples_of_each_kind": samples,
        "scores": scores,
        "said": said.splitlines()[-5:],
    }
    goals = [goal("answers right, all kinds", sum(s["share"] for s in scores) / len(scores), 0.95)]
    return report(args, "train_mini", result, goals)


def last_step() -> int:
    """Where the packed weights' own training ended."""
    return json.loads((ROOT / "src/qvl/mini/training.json").read_text(encoding="utf-8"))["step"]


if __name__ == "__main__":
    raise SystemExit(main())
