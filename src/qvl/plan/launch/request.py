"""What a launch is asked for, and what it comes to: values that the planner, the writers and the formats share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qvl.catalog.devices import Hardware
from qvl.catalog.engines import Engine
from qvl.catalog.models import Checkpoint
from qvl.errors import PlanError
from qvl.plan.request import FitRequest
from qvl.plan.workload import Workload

if TYPE_CHECKING:
    from qvl.plan.evaluate import FitResult


@dataclass(frozen=True)
class Flag:
    """`value` is None for a switch. `reason` is one sentence from the plan.

    `copies_only`: needed where one process runs all copies, not where each copy is a pod or a replica.
    """

    name: str
    value: str | None
    reason: str
    copies_only: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        return (self.name,) if self.value is None else (self.name, self.value)


@dataclass(frozen=True)
class Variable:
    """An environment variable."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LaunchRequest(FitRequest):
    """A plan to start, and how the server is reached. `checkpoint` as catalog.models.resolve gives it."""

    hardware: Hardware
    checkpoint: Checkpoint | None = None
    source: str = ""  # folder or hub id to load instead of the published weights; needed without a model
    tensor_parallel_size: int | None = None
    max_model_len: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    media_domains: tuple[str, ...] = ()
    media_path: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.port <= 65535:
            raise PlanError(f"port {self.port}: it must be from 1 to 65535")
        if self.tensor_parallel_size is not None and self.tensor_parallel_size < 1:
            raise PlanError(f"tensor-parallel-size {self.tensor_parallel_size}: it must be at least 1")
        if not re.fullmatch(r"[A-Za-z0-9_.:\-\[\]%]+", self.host):
            raise PlanError(f"host {self.host!r}: give an address or a name, such as 127.0.0.1")
        if self.source and (self.source.startswith("-") or not self.source.isprintable()):
            raise PlanError(
                f"source {self.source!r}: give a folder or a hub id such as Qwen/Qwen3-VL-8B-Instruct"
            )
        for domain in self.media_domains:
            if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", domain):
                raise PlanError(
                    f"media domain {domain!r}: give a host name such as images.example.org, no URL"
                )
        if self.media_path and not self.media_path.startswith("/"):
            raise PlanError(f"media path {self.media_path!r}: give an absolute folder")
        if self.media_path in ("/", "/root", "/etc", "/home"):
            raise PlanError(
                f"media path {self.media_path!r} would let any request read the machine's files: give a folder "
                "that holds images only"
            )


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A checked command, with the plan of one copy.

    A copy of the model takes `gpus_per_replica` GPUs, there are `replicas` of them.
    """

    engine: Engine
    version: str  # "" where the engine has none that matters
    program: tuple[str, ...]
    model: str  # what to load
    name: str  # what people call it
    flags: tuple[Flag, ...]
    environment: tuple[Variable, ...]
    gpus_per_replica: int
    replicas: int
    precision: str
    weight_bytes: int  # of the whole model, as downloaded
    hardware: Hardware
    workload: Workload
    plan: FitResult  # of one copy
    host: str
    port: int
    media_path: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def command(self) -> tuple[str, ...]:
        """Words for exec, environment aside."""
        return (*self.program, *(w for f in self.flags for w in f.words))

    def flag(self, name: str) -> str | None:
        """The value of a flag, "" for a switch that is on, None when it is not there."""
        for f in self.flags:
            if f.name == name:
                return f.value or ""
        return None
