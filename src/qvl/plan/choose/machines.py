"""Machines that a model could run on, with what each is to run: the user's own, or those that can be rented."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from qvl.catalog.devices import Hardware, find_device
from qvl.catalog.engines import engines
from qvl.catalog.models import Checkpoint, Model, config_of
from qvl.catalog.precisions import PRECISIONS
from qvl.plan.choose.requirement import SECONDS_PER_MONTH, Requirement
from qvl.plan.engines import ENGINES
from qvl.plan.memory import least_bytes
from qvl.plan.request import FitRequest
from qvl.plan.resolve import parse_engine
from qvl.plan.speed import SECONDS_PER_KERNEL, kernels
from qvl.plan.workload import Workload

if TYPE_CHECKING:
    from qvl.catalog.prices import PriceBook, RentPrice

GPU_COUNTS = (1, 2, 4, 8)  # of a rented machine


@dataclass(frozen=True)
class CandidateMachine:
    """A machine, what it costs, and what it is to run."""

    model: Model
    hardware: Hardware
    price: RentPrice | None
    engine: str
    precision: str
    checkpoint: Checkpoint | None

    def request(self, workload: Workload) -> FitRequest:
        return FitRequest(
            config=config_of(self.model),
            workload=workload,
            model=self.model,
            name=self.model.name,
            engine=self.engine,
            precision=self.precision,
            hardware=self.hardware,
        )

    def rent(self, servers: int = 1) -> float:
        """Dollars a month; 0 for the user's own."""
        if self.price is None:
            return 0.0
        return self.price.typical * self.hardware.count * servers * SECONDS_PER_MONTH / 3600

    def is_far_too_small(self) -> bool:
        return least_bytes(self.model.num_parameters or 0, self.precision) > self.hardware.memory_bytes


def own_machines(req: Requirement, model: Model, hardware: Hardware) -> list[CandidateMachine]:
    return [CandidateMachine(model, hardware, None, *plan) for plan in _plans(req, model, hardware)]


def rented_machines(req: Requirement, model: Model, book: PriceBook | None) -> list[CandidateMachine]:
    """Cheapest first; by memory where prices may not be used."""
    return [
        CandidateMachine(model, hardware, price, *plan)
        for hardware, price in _rentable(book)
        for plan in _plans(req, model, hardware)
    ]


def _rentable(book: PriceBook | None) -> list[tuple[Hardware, RentPrice | None]]:
    """Machines that can be rented, cheapest first; by memory where prices may not be used."""
    if book is None or not any(p.used for p in book.rent):
        names = ("rtx4090", "l40s", "a100", "h100", "h200")
        machines = [Hardware(find_device(n), c) for n in names for c in GPU_COUNTS]
        return [(h, None) for h in sorted(machines, key=lambda h: h.memory_bytes)]
    priced = [
        (p.typical * c, Hardware(find_device(p.device), c), p)
        for p in book.rent
        if p.used
        for c in GPU_COUNTS
    ]
    return [(h, p) for _, h, p in sorted(priced, key=lambda machine: machine[0])]


def _plans(
    req: Requirement, model: Model, hardware: Hardware
) -> Iterator[tuple[str, str, Checkpoint | None]]:
    """(engine, precision, published weights) that this hardware can be given."""
    for engine in (_still_serving(e, model) for e in _engines(req, hardware)):
        record, _ = parse_engine(engine)
        if record.name not in model.engines or (not record.takes_video and _wants_video(req)):
            continue
        options = [(c.precision, c) for c in model.checkpoints]
        if record.converts:  # its tool quantises 16-bit weights; others read what is published
            options = [(p, model.checkpoints[0]) for p in record.converts if PRECISIONS[p].published]
        for precision, checkpoint in options:
            if not req.precisions or precision in req.precisions:
                yield engine, precision, checkpoint


def _engines(req: Requirement, hardware: Hardware) -> tuple[str, ...]:
    """The user's, or the usual ones there: times are bounds of the hardware, so engines are not ranked by them."""
    kind = hardware.device.kind
    usual = [e for e in ENGINES.values() if kind in e.usual_on]
    return (
        (req.engine,) if req.engine else tuple(e.name for e in sorted(usual, key=lambda e: e.usual_on[kind]))
    )


@cache
def _still_serving(engine: str, model: Model) -> str:
    """`vllm@0.23.0` for a generation that later ones dropped, where no version is named."""
    known = engines().get(engine)
    dropped = known.dropped(model.family, known.version) if known else None
    return f"{engine}@{dropped.version}" if dropped and dropped.version else engine


def _wants_video(req: Requirement) -> bool:
    return bool(req.workload.videos) or "video" in req.all_needs


def why_no_machine(req: Requirement, model: Model, hardware: Hardware) -> str:
    engines = _engines(req, hardware)
    if _wants_video(req) and not any(parse_engine(e)[0].takes_video for e in engines):
        return f"{engines[0]}'s server takes images, no videos; frames can be planned as images (--image)"
    parts = [f"no weights in {', '.join(req.precisions)}"] if req.precisions else []
    parts += [f"{req.engine} is not known to run it"] if req.engine else []
    has = ", ".join(dict.fromkeys(c.precision for c in model.checkpoints))
    why = " and ".join(parts) or "no engine known for this hardware"
    return f"{why}; it comes in {has} for {', '.join(model.engines)}"


def least_seconds(machine: CandidateMachine, workload: Workload) -> float:
    """What no answer can beat: its tokens one after the other, each reading the weights and starting the kernels.

    Tower and token table aren't read for every token, but no kernel reaches the full bandwidth either.
    """
    device = machine.hardware.device
    # dealt layers take turns
    ranks = machine.hardware.count if parse_engine(machine.engine)[0].tensor_parallel else 1
    size = least_bytes(machine.model.num_active_parameters or 0, machine.precision)
    start = kernels(config_of(machine.model)) * SECONDS_PER_KERNEL if device.kind == "gpu" else 0.0
    return workload.answer_tokens * (size / device.bandwidth_bytes_per_s / ranks + start)
