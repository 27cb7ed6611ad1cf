"""Cold start of the verbs that plan, as a user feels it: python benchmarks/cold_start.py [--repeats 11]

Each command runs in a fresh process; prints one JSON object with the median, the least and the most of the wall
seconds and the processor seconds, the machine and the versions. Goal: at most 0.4 s. Bytecode is kept, as pip leaves
it when it installs a package, even where PYTHONDONTWRITEBYTECODE forbids that: compiling is no part of a start.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    "--help": ["--help"],
    "ask --help": ["ask", "--help"],
    "models": ["models"],
    "fit": ["fit", "qwen2.5-vl-7b", "--gpu", "rtx4090", "--image", "1240x1754x3"],
    "choose": ["choose", "--task", "documents", "--gpu", "rtx4090", "--private", "--commercial"],
    # what nothing meets takes longest: ways out are looked for
    "choose, nothing fits": "choose --task documents --gpu rtx4090 --min-quality 99".split(),
    "choose, two in the way": "choose --task documents --gpu rtx4090 --latency 0.2s --volume 5M/month".split(),
    "choose, rented": "choose --task documents --allow-stale --latency 0.1s --min-quality 99".split(),
    "choose, rented, budget": "choose --task documents --allow-stale --volume 10M/month --budget 10".split(),
    "choose, all of it": (
        "choose --task agents --allow-stale --private --commercial --needs boxes,points,agent,video --languages ja "
        "--latency 50ms --volume 1M/month --budget 20 --min-quality 95"
    ).split(),
    "choose, many plans": (
        "choose --task reasoning --gpu a100 --private --languages ko --volume 100M/month --budget 3000 --allow-stale "
        "--engine vllm@0.8.1"
    ).split(),
    "cost": "cost --model qwen3.7-plus --image 1280x720 --requests 100000 --gpu 1xh100 --allow-stale".split(),
    "launch": ["launch", "qwen2.5-vl-7b", "--engine", "vllm@0.32", "--gpu", "l40s"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--only", choices=list(COMMANDS), help="one command; all if left out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as bytecode:
        print(json.dumps(measure(arguments.repeats, arguments.only, bytecode), indent=1))


def measure(repeats: int, only: str | None, bytecode: str) -> dict[str, object]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    qvl = shutil.which("qvl") or str(Path(sys.executable).parent / "qvl")
    results = {}
    for name, command in COMMANDS.items():
        if only not in (None, name):
            continue
        wall, cpu = [], []
        for _ in range(repeats + 1):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            began = time.perf_counter()
            done = subprocess.run(
                [qvl, *command],
                check=False,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            if done.returncode not in (0, 1):  # 1: nothing meets every requirement
                raise SystemExit(f"qvl {' '.join(command)}: exit {done.returncode}")
            wall.append(time.perf_counter() - began)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        # the first run of each writes bytecode and reads files into the page cache
        results[name] = {
            key: {"median": round(statistics.median(v), 3), "min": round(min(v), 3), "max": round(max(v), 3)}
            for key, v in (("wall_s", wall[1:]), ("cpu_s", cpu[1:]))
        }
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    load = os.getloadavg()[0]
    return {"repeats": repeats, "python": platform.python_version(), **machine, "load": load, **results}


if __name__ == "__main__":
    main()
