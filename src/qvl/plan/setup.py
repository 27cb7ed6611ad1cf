"""A request with nothing left open, and the record of the engine that it is planned for.

`Setup` is FitRequest with every "as usual" replaced by its value, so that it can be printed and so that the memory
and speed formulas have nothing left to decide. `EngineRecord` is everything the planner knows of an engine; the
records stand in plan/engines/, dated facts about versions in catalog.engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from qvl.catalog.config import ModelConfig
from qvl.catalog.devices import Device
from qvl.catalog.precisions import PRECISIONS
from qvl.plan.memory import KvDtype, Precision, Shards, WeightBytes, rest_in_8_bits, weight_bytes
from qvl.plan.request import FitRequest
from qvl.plan.workload import Media, Workload, media_of, prompt_length


@dataclass(frozen=True)
class Term:
    """One part of the memory of one GPU, and how it was reckoned."""

    name: str
    bytes: int
    formula: str


GpuTerms = tuple[Term, ...]


class Terms(list[Term]):
    """Terms of one GPU as they are reckoned; what takes no memory is left out."""

    def put(self, name: str, size: int, formula: str) -> None:
        if size:
            self.append(Term(name, size, formula))


def _usual_chunk(_: Device | None) -> int:
    return 2048


def _no_problems(_: Device) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """What an engine loads, where it runs, how its memory is reckoned, and who writes its command line.

    `stores`: every precision it takes, and how it stores each; None: all that checkpoints come in, less `renames`.
    """

    name: str
    title: str = ""  # as its makers write it, where that differs
    memory: Callable[[Setup], tuple[GpuTerms, ...]] | None = None  # None: planned with another's formulas
    planned_as: str = ""  # that other engine
    flags: str = ""  # "module:class" of qvl.plan.launch; "" where nothing is to be started
    stores: Mapping[str, Precision] | None = None
    renames: Mapping[str, Precision] = field(default_factory=dict)
    converts: Mapping[str, str] = field(
        default_factory=dict
    )  # precisions its own tool makes of 16 bits → file suffix
    quantizes_on_load: tuple[Precision, ...] = ()  # of published 16-bit weights
    kv_dtypes: tuple[KvDtype, ...] = ()  # what its option for the cache takes; (): it has none
    eight_bit_kv: KvDtype | None = None
    usual_on: Mapping[str, int] = field(
        default_factory=dict
    )  # kind of device → rank among engines choose plans there
    trains: bool = False
    adapters: bool = False  # trains these, not the weights
    tensor_parallel: bool = False
    one_device: bool = False
    rounds_on_load: bool = False  # as models/on_load does
    chunked_prefill: bool = False
    shares_card: bool = False  # its budget is gpu_memory_utilization of the card
    own_attention: bool = False  # kernels of its own in place of flash attention
    takes_video: bool = True
    ray: bool = False  # Ray Serve runs it
    prefill_chunk: Callable[[Device | None], int] = _usual_chunk  # tokens of one step unless told
    problems: Callable[[Device], tuple[str, ...]] = _no_problems  # why it can't run there

    def precisions(self) -> Mapping[str, Precision]:
        """What people call a precision → how this engine stores it."""
        if self.stores is not None:
            return self.stores
        taken = [p.name for p in PRECISIONS.values() if p.engines is None or self.name in p.engines]
        return {name: self.renames.get(name, name) for name in taken}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A request with nothing left open."""

    request: FitRequest
    engine: EngineRecord
    version: tuple[int, ...]  # () means the newest
    precision: Precision  # as the engine stores it
    kv_dtype: KvDtype
    gpus: int
    shards: Shards
    flash_attention: bool
    max_num_batched_tokens: int
    max_num_seqs: int
    problems: tuple[str, ...]  # why this can't run at all, whatever the memory
    notes: tuple[str, ...]  # what it really is

    @property
    def config(self) -> ModelConfig:
        return self.request.config

    @property
    def workload(self) -> Workload:
        return self.request.workload

    @property
    def device(self) -> Device | None:
        return self.request.hardware.device if self.request.hardware else None

    @cached_property
    def media(self) -> Media:
        return media_of(self.config, self.workload)

    @cached_property
    def prompt_tokens(self) -> int:
        """Text, images and their marks."""
        return prompt_length(self.workload, self.media)

    @property
    def context_tokens(self) -> int:
        """Held in the KV cache when the answer is complete."""
        return self.prompt_tokens + self.workload.answer_tokens

    @cached_property
    def small_rest(self) -> bool:
        """See plan.memory. Our engine runs on a CPU wherever there is no CUDA."""
        on_cpu = self.device is not None and self.device.kind != "gpu"
        return self.engine.rounds_on_load and rest_in_8_bits(self.config, self.precision, on_cpu)

    @cached_property
    def weights(self) -> WeightBytes:
        """Of the whole model."""
        return weight_bytes(self.config, self.precision, small_rest=self.small_rest)

    @property
    def training(self) -> bool:
        return self.engine.trains

    def older_than(self, *version: int) -> bool:
        return bool(self.version) and self.version < version
