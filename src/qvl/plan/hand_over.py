"""From the choice to the machine: the `qvl launch` command that plans and starts what was chosen."""

from __future__ import annotations

from qvl.plan.candidate import Candidate
from qvl.plan.requirement import Requirement
from qvl.plan.ways import workload_of

STARTED = ("vllm", "llama.cpp", "qvl")  # engines that launch writes commands for, of those that choose plans


def launch_command(req: Requirement, c: Candidate) -> str:
    """The whole command, with the work it was chosen for; empty for an API, and for engines that serve nobody."""
    if c.hardware is None or c.engine.partition("@")[0] not in STARTED:
        return ""
    work = workload_of(req, c.model)
    words = ["qvl launch", c.model.name.lower(), "--engine", c.engine, "--precision", c.precision]
    words += ["--gpu", c.hardware.name]
    for i in work.images:
        words += ["--image", f"{i.width}x{i.height}" + f"x{i.count}" * (i.count > 1)]
    for v in work.videos:
        words += ["--video", f"{v.seconds:g}s@{v.fps:g}fps"]
    numbers = {
        "--prompt-tokens": work.prompt_tokens,
        "--answer-tokens": work.answer_tokens,
        "--concurrency": c.concurrency if c.concurrency > 1 else work.concurrency,
        "--min-pixels": work.min_pixels,
        "--max-pixels": work.max_pixels,
    }
    for flag, number in numbers.items():
        words += [] if number is None else [flag, str(number)]
    return " ".join(words)
