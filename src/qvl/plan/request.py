"""What a fit is asked for: model, engine and version, precision, workload, hardware; checked and resolved.

`FitRequest` is what people write; `Setup` is the same with every "as usual" replaced by its value, so that
it can be printed and so that the memory and speed formulas have nothing left to decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

from qvl.catalog.config import ModelConfig
from qvl.errors import CatalogError, PlanError
from qvl.plan.memory import (
    KvDtype,
    Precision,
    Shards,
    WeightBytes,
    check_kv_dtype,
    check_precision,
    rest_in_8_bits,
    stored_precision,
    weight_bytes,
)
from qvl.plan.split import best_split, split_problems
from qvl.plan.workload import Media, Workload, media_of, prompt_length
from qvl.units import GiB

if TYPE_CHECKING:
    from qvl.catalog.devices import Device, Hardware

ENGINES = ("qvl", "transformers", "vllm", "llama.cpp", "train-full", "train-lora", "train-qlora")

_ALL: dict[str, Precision] = {
    "bf16": "bf16", "fp16": "fp16", "fp32": "fp32", "fp8": "fp8", "int8": "int8", "int4": "int4", "awq": "awq",
    "gptq-int8": "gptq-int8", "gptq-int4": "gptq-int4",
}  # fmt: skip
# engine → what people call a precision → how that engine stores it
STORED_AS: dict[str, dict[str, Precision]] = {
    "qvl": dict(_ALL),
    "transformers": {**_ALL, "int4": "nf4"},  # bitsandbytes
    "vllm": {**_ALL, "nvfp4": "nvfp4"},
    "llama.cpp": {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32", "int8": "q8_0", "int4": "q4_k_m"},
    "train-full": {"bf16": "bf16"},
    "train-lora": {"bf16": "bf16", "awq": "awq", "gptq-int4": "gptq-int4", "gptq-int8": "gptq-int8"},
    "train-qlora": {"bf16": "nf4", "int4": "nf4"},
}
# what an engine's own option for the cache takes
KV_TAKEN: dict[str, tuple[KvDtype, ...]] = {
    "qvl": ("fp32", "bf16", "fp16", "fp8"),
    "vllm": ("bf16", "fp16", "fp8"),
    "llama.cpp": ("fp32", "bf16", "fp16", "q8_0"),
}
Sharding = Literal["copies", "zero2", "zero3", "tensor", "layers"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a fine-tuning run is set up. The batch per GPU is the workload's concurrency.

    `sharding`: whole copies on every GPU, DeepSpeed ZeRO 2 or 3, tensor parallel (Megatron, with fp32
    gradients and expert parallel for mixtures), or layers dealt to GPUs.
    """

    lora_rank: int = 8
    train_vision: bool = False
    sharding: Sharding = "copies"
    checkpoint_language: bool = True
    checkpoint_vision: bool = True
    fused_loss: bool = False  # Liger or Megatron: the full logits never exist
    fused_kernels: bool = False  # Liger norms and MLPs keep less for the backward pass
    reference_model: bool = False  # DPO
    expert_adapters: bool = False  # LoRA on every expert too

    def __post_init__(self) -> None:
        if not 1 <= self.lora_rank <= 4096:
            raise PlanError(f"lora_rank is {self.lora_rank}; it must be from 1 to 4096")


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """One question to the planner. Empty values mean "as usual", see Setup."""

    config: ModelConfig
    workload: Workload = field(default_factory=Workload)
    name: str = ""  # of the model, for people
    engine: str = "vllm"  # with a version if it matters: "vllm@0.8.1"
    precision: str = ""  # as the checkpoint is stored
    hardware: Hardware | None = None  # None: bytes without a verdict
    kv_dtype: str = "auto"  # 16 bits
    flash_attention: bool | None = None  # as the device has it
    gpu_memory_utilization: float = 0.9  # vllm
    max_num_batched_tokens: int | None = None  # vllm, qvl: tokens of one prefill step
    max_num_seqs: int | None = None  # vllm
    enforce_eager: bool = False  # vllm: no CUDA graphs
    default_limits: bool = False  # vllm started without --limit-mm-per-prompt
    expert_parallel: bool = False
    vision: Literal["auto", "split", "replicate"] = "auto"
    block_size: int = 16  # KV tokens a block
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory_utilization <= 1:
            raise PlanError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must be above 0, at most 1"
            )
        for name in ("max_num_batched_tokens", "max_num_seqs", "block_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PlanError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A request with nothing left open."""

    request: FitRequest
    engine: str
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
        """Text, pictures and their marks."""
        return prompt_length(self.workload, self.media)

    @property
    def context_tokens(self) -> int:
        """Held in the KV cache when the answer is complete."""
        return self.prompt_tokens + self.workload.answer_tokens

    @cached_property
    def small_rest(self) -> bool:
        """See plan.memory. Our engine runs on a CPU wherever there is no CUDA."""
        on_cpu = self.device is not None and self.device.kind != "gpu"
        return self.engine == "qvl" and rest_in_8_bits(self.config, self.precision, on_cpu)

    @cached_property
    def weights(self) -> WeightBytes:
        """Of the whole model."""
        return weight_bytes(self.config, self.precision, small_rest=self.small_rest)

    @property
    def training(self) -> bool:
        return self.engine.startswith("train-")

    def older_than(self, *version: int) -> bool:
        return bool(self.version) and self.version < version


def parse_engine(text: str) -> tuple[str, tuple[int, ...]]:
    """`vllm@0.8.1` → ("vllm", (0, 8, 1)).

    Raises: PlanError for an unknown engine or a version that is no number.
    """
    name, _, version = text.strip().lower().partition("@")
    if name == "sglang":
        raise PlanError(
            "SGLang has no memory formulas of its own here: fit and choose would print vLLM's under another name. "
            "Ask for --engine vllm; `qvl launch --engine sglang` starts what that plan holds"
        )
    if name not in ENGINES:
        raise PlanError(f"no engine {name!r}; known: {', '.join(ENGINES)}")
    if not version:
        if "@" in text:
            raise PlanError(f"engine {text!r}: a version must follow the @, such as {name}@1.2")
        return name, ()
    if not re.fullmatch(r"\d+(\.\d+)*", version):
        raise PlanError(f"engine {text!r}: {version!r} is not a version, such as 0.11 or 4.57.6")
    return name, tuple(int(part) for part in version.split("."))


def resolve(request: FitRequest) -> Setup:
    """Fills in what was left open and lists what can't be.

    Raises: PlanError for unknown names and settings that contradict each other.
    """
    engine, version = parse_engine(request.engine)
    asked = request.precision or stored_precision(request.config)
    known = STORED_AS[engine]
    if asked not in known:
        check_precision(asked)
        raise PlanError(f"{engine} does not take {asked}; it takes {', '.join(known)}")
    precision = known[asked]
    hardware = request.hardware
    device, gpus = (hardware.device, hardware.count) if hardware else (None, 1)
    problems, notes = _fitness(engine, asked, precision, request)
    if other := version_that_serves(engine, version, request.name, request.config.family):
        problems += (other[1],)
    if version:
        faults = _faults(engine, version, request.config.family)
        notes += faults
        if engine == "vllm" and any("limit_mm_per_prompt" in fault for fault in faults):
            request = replace(request, default_limits=True)  # it prepares for the worst whatever is asked
    if engine == "llama.cpp" and request.workload.videos:
        notes += ("llama.cpp's server takes pictures, no clips: their frames have to be sent as pictures",)
    shards = Shards()
    if engine == "vllm" and gpus > 1:
        shards = _shards(request, precision, gpus)
        problems += split_problems(request.config, precision, shards)
    if engine == "qvl" and gpus > 1:
        problems += (f"qvl's own engine runs on one device, not {gpus}: use vllm",)
    if request.kv_dtype != "auto" and engine in KV_TAKEN:
        kv = check_kv_dtype(request.kv_dtype)
        if kv not in KV_TAKEN[engine]:
            raise PlanError(f"{engine} keeps no KV cache in {kv}; it takes {', '.join(KV_TAKEN[engine])}")
    auto_kv: KvDtype = "fp32" if precision == "fp32" else "bf16"
    flash = request.flash_attention
    if flash is None:
        # llama.cpp brings its own kernels for old cards and Metal; PyTorch's CPU attention is blocked too
        flash = engine == "llama.cpp" or device is None or device.kind == "cpu" or device.has_flash_attention
    return Setup(
        request=request,
        engine=engine,
        version=version,
        precision=precision,
        kv_dtype=auto_kv if request.kv_dtype == "auto" else check_kv_dtype(request.kv_dtype),
        gpus=gpus,
        shards=shards,
        flash_attention=flash,
        max_num_batched_tokens=request.max_num_batched_tokens or _default_chunk(engine, device),
        max_num_seqs=max(request.max_num_seqs or 256, request.workload.concurrency),
        problems=problems,
        notes=notes,
    )


def request_for(model: str, **fields: Any) -> FitRequest:
    """A request for a model of the catalogue by any name people use; a quantised checkpoint's name sets the precision.

    Raises: CatalogError for an unknown name or a model whose shape is not known here.
    """
    from qvl.catalog.models import config_of
    from qvl.catalog.models import resolve as resolve_name

    found, checkpoint = resolve_name(model)
    if checkpoint is not None:
        asked = fields.get("precision") or checkpoint.precision
        if checkpoint.precision not in ("bf16", asked):
            raise PlanError(
                f"{model} is {checkpoint.precision}, --precision says {asked}: drop one, or name the model itself"
            )
        fields["precision"] = asked
    return FitRequest(config=config_of(found), name=found.name, **fields)


def with_workload(request: FitRequest, **changes: object) -> FitRequest:
    return replace(request, workload=replace(request.workload, **changes))  # type: ignore[arg-type]


def _default_chunk(engine: str, device: Device | None) -> int:
    """Tokens of one prefill step. vLLM serves with 8,192 on cards of 70 GiB and more save the A100, else 2,048."""
    if engine == "vllm" and device is not None:
        return 8192 if device.memory_bytes >= 70 * GiB and "a100" not in device.name.lower() else 2048
    return 2048


def _shards(request: FitRequest, precision: Precision, gpus: int) -> Shards:
    if request.vision == "auto" and not request.expert_parallel:
        # experts are dealt whole only when asked for: engines don't do it by themselves
        for vision in ("split", "replicate"):
            shards = Shards(gpus, False, vision)
            if not split_problems(request.config, precision, shards):
                return shards
        return Shards(gpus)
    if request.vision == "auto":
        best = best_split(request.config, precision, gpus)
        return Shards(gpus, True, best.vision if best else "split")
    return Shards(gpus, request.expert_parallel, request.vision)


def needed_version(engine: str, name: str, family: str) -> str:
    """The first version of the engine that serves the model; "" where any will do or nobody wrote it down.

    A local config needs what the models of its family need; a request without a name is not asked.
    """
    from qvl.catalog.models import find_model, first_version

    if not name:
        return ""
    try:
        return first_version(find_model(name), engine)
    except CatalogError:
        return first_version(family, engine)


@cache  # like the faults, of a model and an engine, whatever the machine and the load
def version_that_serves(
    engine: str, version: tuple[int, ...], name: str, family: str
) -> tuple[str, str] | None:
    """(version to name instead, why) where the one asked for is too old or too new for the model.

    The version is "" where none ever served it; without a version the catalogue's own is judged.
    """
    from qvl.catalog.engines import engines, parse_version

    if not name:  # nobody's model: only arithmetic
        return None
    text = ".".join(map(str, version))
    first = needed_version(engine, name, family) if version else ""
    if first and parse_version(text) < parse_version(first):
        return first, f"{engine} {text} does not know {name}, which needs {first}"
    known = engines().get(engine)
    dropped = known.dropped(family, text or known.version) if known else None
    if dropped is None or known is None:
        return None
    if not dropped.version:
        return "", f"{engine} does not serve {name}"
    return (
        dropped.version,
        f"{engine} {text or known.version} no longer serves {name}; the last that does is {dropped.version}",
    )


@cache
def _faults(engine: str, version: tuple[int, ...], family: str) -> tuple[str, ...]:
    """What is known to be wrong with this version, from the catalogue."""
    from qvl.catalog.engines import parse_version
    from qvl.catalog.models import regressions

    text = ".".join(map(str, version))

    def named(listed: str) -> bool:  # `0.8.0, 0.8.1`; words about builds name no version
        numbers = (v for v in listed.split(", ") if re.fullmatch(r"\d+(\.\d+)*", v))
        return parse_version(text) in map(parse_version, numbers)

    return tuple(
        f"{engine} {text}: {r.what}; way out: {r.escape} ({r.note})"
        for r in regressions()
        if r.engine == engine and family in r.families and named(r.versions)
    )


def _fitness(
    engine: str, asked: str, precision: Precision, request: FitRequest
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(why it can't run, what it really is) from the device's number formats."""
    if request.hardware is None:
        return (), ()
    device, problems, notes = request.hardware.device, [], []
    capability = float(device.compute_capability or 0)
    if engine == "vllm" and device.kind == "apple":
        problems.append(f"vLLM does not run on {device.title}: use llama.cpp")
    if engine == "vllm" and 0 < capability < 7.0:
        problems.append(f"vLLM needs compute capability 7.0, {device.title} has {capability}")
    if device.kind == "gpu" and not device.has_bf16 and precision == "bf16":
        notes.append(f"{device.title} has no bf16: it runs in fp16 (--dtype half), the same bytes")
    if precision == "fp8" and device.kind == "gpu" and not device.has_fp8:
        if 0 < capability < 8.0:
            problems.append(f"fp8 weights need compute capability 8.0, {device.title} has {capability}")
        else:
            notes.append(f"{device.title} has no fp8 arithmetic: weights keep 8 bits, the sums run in 16")
    if precision == "awq" and 0 < capability < 7.5:
        problems.append(f"AWQ kernels need compute capability 7.5, {device.title} has {capability}")
    if precision == "nvfp4" and 0 < capability < 10.0:
        problems.append(f"NVFP4 needs compute capability 10.0, {device.title} has {capability}")
    if request.kv_dtype == "fp8" and 0 < capability < 8.0:
        problems.append(f"an fp8 KV cache needs compute capability 8.0, {device.title} has {capability}")
    if asked != precision:
        notes.append(f"{engine} stores {asked} as {precision}")
    return tuple(problems), tuple(notes)
