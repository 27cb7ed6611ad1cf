"""The embedded model in AWQ's and GPTQ's published layouts, scored beside its bf16 self on the same pictures.

    python benchmarks/quantised_mini.py [-n 200] [--kind read ...] [--group-size 32] [--out FOLDER] [--json]

Writes FOLDER/awq, FOLDER/gptq (with the writers of the tests; weights are rounded to the nearest code, the narrower
range with the smaller squared error; no calibration), and runs `qvl synth --score` on `mini` and both. Exit status 1
when one loses more than --most points over all kinds together.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import quantized_writers as writers  # noqa: E402

MINI = ROOT / "src" / "qvl" / "mini"
STEPS = 20  # ranges tried for each group


def write_folders(out: Path, group_size: int) -> dict[str, Path]:
    """Plain tensors keep their bf16, so that only the linear layers of the decoder differ from mini."""
    layouts: dict[str, tuple[Any, dict[str, Any]]] = {
        "awq": (
            lambda w: writers.awq(w, group_size, clip_steps=STEPS),
            writers.awq_config(group_size),
        ),
        "gptq": (
            lambda w: writers.gptq(w, 4, group_size, clip_steps=STEPS),
            writers.gptq_config(4, group_size),
        ),
    }
    for name, (make, config) in layouts.items():
        writers.write(MINI, out / name, make, config, dtype=None)
    return {name: out / name for name in layouts}


def score(model: str, kinds: list[str], num: int, difficulty: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "qvl.cli.main", "synth", "--score", model, "-n", str(num), "--json"]
    command += ["--difficulty", str(difficulty)] + [word for kind in kinds for word in ("--kind", kind)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)["kinds"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", "--num", type=int, default=200, help="pictures a kind")
    parser.add_argument("--kind", action="append", help="kinds to score; default: read, field, find, count")
    parser.add_argument("--difficulty", type=int, default=1)
    parser.add_argument("--group-size", type=int, default=32, help="inputs that share a scale")
    parser.add_argument(
        "--most", type=float, default=2.0, help="points that may be lost over all kinds together"
    )
    parser.add_argument("--out", type=Path, help="an empty folder to keep the checkpoints in")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    kinds = args.kind or ["read", "field", "find", "count"]
    with tempfile.TemporaryDirectory() as temporary:
        folders = write_folders(args.out or Path(temporary), args.group_size)
        models = {"bf16": "mini", **{name: str(path) for name, path in folders.items()}}
        results = {name: score(model, kinds, args.num, args.difficulty) for name, model in models.items()}
        sizes = {name: (path / "model.safetensors").stat().st_size for name, path in folders.items()}
    sizes["bf16"] = (MINI / "model.safetensors").stat().st_size
    total = {
        name: sum(r["right"] for r in rows) / sum(r["n"] for r in rows) for name, rows in results.items()
    }
    lost = {name: 100 * (total["bf16"] - share) for name, share in total.items() if name != "bf16"}
    if args.json:
        print(
            json.dumps(
                {"group_size": args.group_size, "results": results, "lost_points": lost, "bytes": sizes}
            )
        )
    else:
        print(f"{'':<6} {'bytes':>11} " + "".join(f"{kind:>22}" for kind in kinds) + f"{'all':>9}{'lost':>7}")
        for name, rows in results.items():
            cells = "".join(f"{r['share']:>7.1%} ({r['low']:.1%}-{r['high']:.1%})".rjust(22) for r in rows)
            print(f"{name:<6} {sizes[name]:>11} {cells}{total[name]:>9.1%}{lost.get(name, 0):>7.2f}")
        print(
            f"n = {args.num} a kind, groups of {args.group_size}; 95% Wilson intervals; lost in points over all kinds"
        )
    return int(any(points > args.most for points in lost.values()))


if __name__ == "__main__":
    sys.exit(main())
