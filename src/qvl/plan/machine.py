"""This machine as the planner sees it, and which weights of a model qvl's own engine runs on it.

Reads /proc and asks nvidia-smi where there is one; knows nothing of torch. Figures without a source stay
unknown: a processor that the catalogue lacks has memory and no speed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qvl import moved
from qvl.catalog.devices import Device, Hardware, find_device
from qvl.catalog.figures import Figure, Source
from qvl.catalog.models import Checkpoint, Model, config_of
from qvl.catalog.precisions import by_loss
from qvl.errors import CatalogError, PlanError
from qvl.plan.evaluate import evaluate
from qvl.plan.request import FitRequest
from qvl.plan.workload import Image, Workload
from qvl.records import pick
from qvl.units import GiB, MiB, format_bytes

SMI_SECONDS = 1.0  # a driver that has to wake up takes longer; a list is not worth the wait
_SMI = ("nvidia-smi", "--query-gpu=name,memory.free,memory.total", "--format=csv,noheader,nounits")
_HERE = Source("here", "read on this machine", "", "measured")


@dataclass(frozen=True)
class Machine:
    """`hardware` holds what is free now as its memory. `speed_as`: whose figures its speed rests on, "" when none
    has measured such a device."""

    title: str
    hardware: Hardware
    total_bytes: int
    speed_as: str
    note: str = ""

    @property
    def free_bytes(self) -> int:
        return self.hardware.device.memory_bytes

    def __str__(self) -> str:
        return f"{self.title}, {format_bytes(self.free_bytes)} of {format_bytes(self.total_bytes)} free"


@dataclass(frozen=True)
class Run:
    """One checkpoint on a machine, planned by `fit`. Times are bounds; None where they are not known."""

    checkpoint: Checkpoint
    fits: bool
    total_bytes: int
    tokens_per_s: float | None = None  # of one answer
    first_token_s: float | None = None
    why_not: str = ""

    def to_json(self) -> dict[str, Any]:
        return pick(
            self,
            "hub_id=checkpoint.hub_id", "precision=checkpoint.precision", "fits", "total_bytes", "tokens_per_s",
            "first_token_s",
            why_not=self.why_not or None,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------- machine


def host_memory(proc: Path = Path("/proc"), group: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """(bytes that can be had now, bytes in all) of the host within its control group's limit; None if unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = total
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        free = total = 0
    try:
        text = (proc / "meminfo").read_text(encoding="ascii")
        lines = dict(line.split(":", 1) for line in text.splitlines())
        total = int(lines["MemTotal"].split()[0]) * 1024
        free = int(lines["MemAvailable"].split()[0]) * 1024
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            # cached file pages of the group count as its memory, and are given back when needed
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
            free, total = min(free, int(limit) - used), min(total, int(limit))
    except (OSError, ValueError, KeyError):
        pass  # not Linux, or no control group: what is known so far
    return (free, total) if total > 0 else None


def ask_nvidia_smi(seconds: float = SMI_SECONDS) -> str:
    """What it prints, a GPU a line: name, free and total MiB; "" without one or when it takes too long."""
    if shutil.which(_SMI[0]) is None:
        return ""
    try:
        done = subprocess.run(_SMI, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def this_machine(
    proc: Path = Path("/proc"),
    group: Path = Path("/sys/fs/cgroup"),
    smi: Callable[[], str] = ask_nvidia_smi,
) -> Machine:
    """The GPU with the most free memory (qvl's engine runs on one), else the processor.

    Raises: PlanError where the system doesn't tell its memory.
    """
    gpus = _gpus(smi())
    if gpus:
        name, free, total = max(gpus, key=lambda gpu: gpu[1])
        known = _known(name)
        of = f" (the freest of {len(gpus)})" if len(gpus) > 1 else ""
        device = known or _unknown(name, "gpu")
        return _machine(f"{name}{of}", device, free, total, known.title if known else "")
    memory = host_memory(proc, group)
    if memory is None:
        raise PlanError("the memory size of this system is unknown; name hardware with --gpu")
    name, flags, count = _processor(proc)
    known = _known(name)
    if "hypervisor" in flags:
        # a virtual machine has some cores of a chip and an unknown share of its bandwidth
        small = count == 2 and "avx512_bf16" in flags
        known = find_device("cpu-2core") if small else None
    title = f"{name or 'a processor'}, {count} {'cores' if count != 1 else 'core'}"
    return _machine(title, known or _unknown(title, "cpu"), *memory, known.title if known else "")


def machine_of(hardware: Hardware) -> Machine:
    """Hardware of the catalogue, all of it free. Of several devices qvl's engine uses one."""
    device = hardware.device
    note = f"qvl's engine runs on one of {hardware.count}" if hardware.count > 1 else ""
    return Machine(device.title, Hardware(device), device.memory_bytes, device.title, note)


def _machine(title: str, device: Device, free: int, total: int, speed_as: str) -> Machine:
    memory = Figure(max(0, free) / GiB, _HERE, "", "measured")
    # what the system keeps is not in the free bytes, so nothing more is taken off
    return Machine(title, Hardware(replace(device, memory=memory, system_share=0.0)), total, speed_as)


def _unknown(title: str, kind: Any) -> Device:
    """A device that the catalogue lacks: its bandwidth is never read, as `speed_as` is empty."""
    nothing = Figure(0, _HERE, "", "measured")
    return Device(
        name="this machine", title=title, aliases=(), kind=kind, memory=nothing, bandwidth=nothing, rates={},
        watts=None, link=None,
    )  # fmt: skip


def _known(name: str) -> Device | None:
    try:
        return find_device(name)
    except CatalogError:
        return None


def _gpus(said: str) -> list[tuple[str, int, int]]:
    """(name, free bytes, total bytes) of each line; lines that hold something else (MIG's [N/A]) are left out."""
    found = []
    for line in said.splitlines():
        match = re.fullmatch(r"\s*(.+?)\s*,\s*(\d+)\s*,\s*(\d+)\s*", line)
        if match:
            found.append((match[1], int(match[2]) * MiB, int(match[3]) * MiB))
    return found


def _processor(proc: Path) -> tuple[str, frozenset[str], int]:
    """(name as the catalogue writes it, flags, number of cores this process may use)."""
    try:
        lines = (proc / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    name = re.sub(r"\((R|TM)\)|\bCPU\b|\d+-Core Processor|@.*", "", told.get("model name", ""), flags=re.I)
    count = sum(line.startswith("processor") for line in lines) or os.cpu_count() or 1
    return " ".join(name.split()), frozenset(told.get("flags", "").split()), count


# ------------------------------------------------------------------------------------------------- models


def usual_workload() -> Workload:
    """One question about one 1280x720 image: what a list compares models by."""
    return Workload(images=(Image(1280, 720),))


def runs_on(model: Model, machine: Machine, workload: Workload | None = None) -> list[Run]:
    """Each published checkpoint that qvl's engine reads, the least quantised first; empty without a known shape."""
    if not model.shape:
        return []
    found = []
    order = by_loss(read_by_qvl=True)  # qvl's engine doesn't choose a precision
    readable = [c for c in model.checkpoints if c.precision in order]
    for checkpoint in sorted(readable, key=lambda c: order.index(c.precision)):
        result = evaluate(
            FitRequest(
                config=config_of(model),
                workload=workload or usual_workload(),
                model=model,
                name=model.name,
                engine="qvl",
                precision=checkpoint.precision,
                hardware=machine.hardware,
            )
        )
        pace = result.speed if machine.speed_as and result.fits else None
        found.append(
            Run(
                checkpoint=checkpoint,
                fits=bool(result.fits),
                total_bytes=result.total_bytes,
                tokens_per_s=pace.tokens_per_s if pace else None,
                # without an arithmetic rate the bytes alone would promise too much
                first_token_s=pace.ttft_s if pace and not pace.note else None,
                why_not="; ".join(result.reasons),
            )
        )
    return found


def best_run(runs: Sequence[Run]) -> Run | None:
    """The least quantised that fits."""
    return next((run for run in runs if run.fits), None)


__getattr__ = moved.names(__name__)
