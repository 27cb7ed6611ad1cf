"""From a plan to the command that starts an engine: every flag with its reason, and refusals before a GPU is paid for.

`plan_launch` chooses weights, version, cut and copies with the same functions that `fit` uses, then writes the
flags in the spelling of that engine, version and generation. Nothing is started here; `launch_formats` turns
the result into shell, compose, Kubernetes or Ray text.
Source: argument parsers of vLLM 0.32.0 and sglang 0.5.23 (catalog.engines says which version has what).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from qvl.catalog.config import ModelConfig
from qvl.catalog.engines import Engine, find_engine, parse_version
from qvl.errors import CapacityError, PlanError
from qvl.plan.memory import (
    PRECISIONS,
    Precision,
    Shards,
    check_precision,
    stored_precision,
    weight_bytes,
)
from qvl.plan.request import FitRequest, Setup
from qvl.plan.split import best_split, legal_splits, split_problems
from qvl.plan.workload import Image, Workload, image_limits

if TYPE_CHECKING:
    from qvl.catalog.devices import Hardware
    from qvl.catalog.models import Checkpoint, Model
    from qvl.plan.fit import FitResult

# A host name that can't exist (RFC 2606). An empty list would allow every host: vLLM skips the check then.
NO_HOST = "media.invalid"
# Share of the best bound that a narrower cut must reach to be preferred. vLLM's recipes run 7B as four copies
# on four A100 and 72B cut over four; both follow from any share between 0.1 and 0.9.
NEAR_BEST = 0.7
# what people call a precision → published precisions that are it, best liked by the engines first
_ALSO = {"int4": ("awq", "gptq-int4"), "int8": ("int8", "gptq-int8"), "fp16": ("bf16",)}
_GGUF = {"bf16": "BF16", "fp16": "F16", "int8": "Q8_0", "int4": "Q4_K_M"}
# regressions that only touch some checkpoints, or that a warning is enough for, by their thread
_WARN_ONLY = ("vllm 38459",)
_ONLY_COMPRESSOR = ("vllm 23645",)


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
class LaunchRequest:
    """`model` and `checkpoint` as catalog.models.resolve gives them; `config` is the shape to plan with."""

    config: ModelConfig
    hardware: Hardware
    model: Model | None = None  # None: a config file of the user's own, then `source` is needed
    checkpoint: Checkpoint | None = None
    source: str = ""  # folder or hub id to load instead of the published weights
    engine: str = "vllm"
    precision: str = ""
    workload: Workload = field(default_factory=Workload)
    tensor_parallel_size: int | None = None
    expert_parallel: bool = False
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    kv_dtype: str = "auto"
    enforce_eager: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    media_domains: tuple[str, ...] = ()
    media_path: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise PlanError(f"port {self.port}: it must be from 1 to 65535")
        if self.tensor_parallel_size is not None and self.tensor_parallel_size < 1:
            raise PlanError(f"tensor-parallel-size {self.tensor_parallel_size}: it must be at least 1")
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
                "that holds pictures only"
            )


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A checked command. One copy of the model takes `gpus_per_replica` GPUs, there are `replicas` of them."""

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


def plan_launch(request: LaunchRequest) -> Launch:
    """Chooses, checks and writes.

    Raises: PlanError for an illegal combination, with the nearest legal one; CapacityError when the work
    does not fit, with the smallest change that makes it.
    """
    engine, version = find_engine(request.engine)
    _check_version(request, engine, version)
    source, precision, in_flight, checkpoint, notes = _weights(request, engine)
    warnings = list(_regressions(request, engine, version, checkpoint)) if version else []
    warnings += [n for n in notes if "not confirmed" in n]
    notes = [n for n in notes if "not confirmed" not in n]
    fit, replicas = _place(request, engine, version, precision)
    setup = fit.setup
    notes += setup.notes
    writer = _Writer(request, engine, version, setup, replicas, source, in_flight)
    program, flags, environment = {
        "vllm": writer.vllm,
        "sglang": writer.sglang,
        "llama.cpp": writer.llama_cpp,
        "qvl": writer.qvl,
    }[engine.name]()
    return Launch(
        engine=engine,
        version=version,
        program=program,
        model=source,
        name=request.model.name if request.model else source,
        flags=tuple(flags),
        environment=tuple(environment),
        gpus_per_replica=setup.gpus,
        replicas=replicas,
        precision=setup.precision,
        weight_bytes=weight_bytes(request.config, "bf16" if in_flight else setup.precision).total,
        hardware=request.hardware,
        workload=request.workload,
        host=request.host,
        port=request.port,
        media_path=request.media_path,
        notes=tuple(dict.fromkeys([*notes, *writer.notes])),
        warnings=tuple(dict.fromkeys([*warnings, *writer.warnings])),
    )


# Version


def _check_version(request: LaunchRequest, engine: Engine, version: str) -> None:
    """Refuses versions that do not know this generation yet, or no longer."""
    family = request.config.family
    name = request.model.name if request.model else family
    dropped = engine.dropped(family, version)
    if dropped and dropped.version:
        raise PlanError(
            f"{engine.name} {version or 'today'} no longer serves {name}; the last that does is "
            f"{dropped.version} ({dropped.source.title}): --engine {engine.name}@{dropped.version}"
        )
    if dropped:
        raise PlanError(f"{engine.name} does not serve {name}: use --engine vllm@0.23.0 or --engine qvl")
    if request.model:
        found = request.model.engines.get(engine.name)
        first = str(found.value) if found else ""
        if version and re.fullmatch(r"\d+(\.\d+)*", first) and parse_version(version) < parse_version(first):
            raise PlanError(
                f"{engine.name} {version} does not know {name}; it needs {first} or later: "
                f"--engine {engine.name}@{first}"
            )


def _regressions(
    request: LaunchRequest, engine: Engine, version: str, checkpoint: Checkpoint | None
) -> tuple[str, ...]:
    """Warnings; refuses versions that are known to be wrong for this generation or these weights."""
    from qvl.catalog.models import regressions

    warnings = []
    for r in regressions():
        if r.engine != engine.name or request.config.family not in r.families:
            continue
        named = r.versions.replace(",", " ").split()
        if not all(re.fullmatch(r"\d+(\.\d+)*", v) for v in named):
            continue  # a span of builds, not a version that can be compared
        if parse_version(version) not in [parse_version(v) for v in named]:
            continue
        if r.note.startswith(_ONLY_COMPRESSOR) and (checkpoint is None or checkpoint.official):
            continue
        text = f"{engine.name} {version}: {r.what} ({r.note}); use {r.escape}"
        if not r.note.startswith(_WARN_ONLY):
            raise PlanError(text)
        warnings.append(text)
    return tuple(warnings)


# Weights


def _weights(request: LaunchRequest, engine: Engine) -> tuple[str, str, bool, Checkpoint | None, list[str]]:
    """(what to load, its precision for the plan, quantised while loading, the published checkpoint, notes)."""
    asked = request.precision
    if engine.name == "llama.cpp":
        asked = asked or "int4"
        if asked not in _GGUF:
            raise PlanError(f"llama.cpp does not take {asked}; it takes {', '.join(_GGUF)}")
        base = request.source or (request.model.name if request.model else "model")
        return f"{base}-{_GGUF[asked]}.gguf", asked, False, None, []
    if request.source:
        return request.source, asked, False, None, []
    assert request.model is not None, "a config without a model needs a source"
    model = request.model
    if model.hosted:
        raise PlanError(f"{model.name} is hosted: there are no weights to start, see `qvl cost`")
    if request.checkpoint and (not asked or request.checkpoint.precision == asked):
        chosen = request.checkpoint
    elif request.checkpoint and request.checkpoint.precision != "bf16":
        raise PlanError(
            f"{request.checkpoint.hub_id} is {request.checkpoint.precision}, --precision says {asked}: drop one"
        )
    else:
        wanted = (asked or "bf16", *_ALSO.get(asked, ()))
        found = [c for p in wanted for c in model.checkpoints if c.precision == p]
        if not found and asked == "fp8" and engine.name == "vllm":
            note = "no FP8 weights are published: vLLM quantises the 16-bit ones while loading"
            return model.hub_id, "fp8", True, None, [note]
        if not found:
            if asked not in PRECISIONS and asked not in ("nvfp4",):
                raise PlanError(f"no precision {asked!r}; known: {', '.join(PRECISIONS)}")
            known = ", ".join(dict.fromkeys(c.precision for c in model.checkpoints))
            raise PlanError(
                f"{model.name} is not published in {asked}; it is in {known}. "
                "Other weights: --source FOLDER_OR_HUB_ID"
            )
        chosen = found[0]
    notes = []
    if asked and chosen.precision != asked:
        notes.append(f"{asked} is published as {chosen.precision}: {chosen.hub_id}")
    if not chosen.official:
        notes.append(f"{chosen.hub_id} is not Qwen's own: check it on your pictures")
    if not chosen.verified:
        notes.append(f"that {chosen.hub_id} exists was not confirmed here")
    precision = "fp16" if asked == "fp16" else chosen.precision
    return chosen.hub_id, precision, False, chosen, notes


# Place: how many GPUs a copy takes, and how many copies


def _fit_request(
    request: LaunchRequest,
    engine: Engine,
    version: str,
    precision: str,
    shards: Shards,
    gpus: int,
    replicas: int,
) -> FitRequest:
    from qvl.catalog.devices import Hardware

    at_once = ceil(request.workload.concurrency / replicas)
    planned = engine.name if engine.name != "sglang" else "vllm"
    if planned == "vllm" and engine.name == "vllm" and version:
        planned += f"@{version}"
    return FitRequest(
        config=request.config,
        name=request.model.name if request.model else "",
        workload=replace(request.workload, concurrency=at_once),
        engine=planned,
        precision=precision,
        hardware=Hardware(request.hardware.device, gpus),
        kv_dtype=request.kv_dtype,
        gpu_memory_utilization=request.gpu_memory_utilization,
        max_num_seqs=max(8, at_once),
        enforce_eager=request.enforce_eager,
        expert_parallel=shards.expert_parallel,
        vision=shards.vision,
    )


def _place(request: LaunchRequest, engine: Engine, version: str, precision: str) -> tuple[FitResult, int]:
    """The narrowest legal cut that holds the work and whose copies together come near the best rate there is.

    Copies need no all-reduce, but a copy that weights fill to the brim answers few at once. The planner's
    bound is kind to wide cuts (links at their peak, no waiting), so a wider one must promise a good deal more.
    """
    from qvl.plan.capacity import Capacity, capacity_of_copies
    from qvl.plan.fit import fit

    count, forced = request.hardware.count, request.tensor_parallel_size

    def planned(shards: Shards, gpus: int, replicas: int) -> FitRequest:
        return _fit_request(request, engine, version, precision, shards, gpus, replicas)

    def accept(asked: FitRequest) -> FitResult:
        result = fit(asked, changes=False)
        if result.setup.problems:
            raise PlanError("; ".join(result.setup.problems))
        if not result.fits:
            raise CapacityError(_too_large(request, asked))
        return result

    if engine.name in ("llama.cpp", "qvl"):
        if forced and forced > 1:
            raise PlanError(f"{engine.name} has no tensor parallelism as planned here: use vllm or sglang")
        return accept(planned(Shards(), count if engine.name == "llama.cpp" else 1, 1)), 1
    legal_as = check_precision(precision) if precision else stored_precision(request.config)
    may_copy = engine.name != "vllm" or engine.has("--mm-encoder-tp-mode", version)
    if forced:
        shards = _forced_split(request, legal_as, forced, may_copy)
        if count % forced:
            sizes = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
            raise PlanError(f"{count} GPUs do not divide into copies of {forced}: use {sizes}")
        return accept(planned(shards, forced, count // forced)), count // forced
    last: FitRequest | None = None
    candidates: list[tuple[Capacity, FitRequest]] = []
    for gpus in (n for n in range(1, count + 1) if count % n == 0):
        cut = best_split(request.config, legal_as, gpus, any_vision=may_copy)
        if cut is None:
            continue
        last = planned(cut, gpus, count // gpus)
        result = fit(last, changes=False)
        if result.setup.problems:
            return accept(last), count // gpus
        if result.fits:
            pace = capacity_of_copies(last, count // gpus)
            if pace:
                candidates.append((pace, last))
    if candidates:
        enough = NEAR_BEST * max(pace.requests_per_s for pace, _ in candidates)
        pace, chosen = next(c for c in candidates if c[0].requests_per_s >= enough)
        return accept(chosen), pace.replicas
    assert last is not None, "one GPU is always a legal cut"
    text = _too_large(request, last)
    if count > 1 and best_split(request.config, legal_as, count, any_vision=may_copy) is None:
        text += f". More GPUs a copy are not legal: {_illegal(request, legal_as, count)}"
    raise CapacityError(text)


def _forced_split(request: LaunchRequest, precision: Precision, gpus: int, may_copy: bool) -> Shards:
    """The cut that the user forces. Experts are dealt whole only when that was said too."""
    for vision in ("split", "replicate") if may_copy else ("split",):
        shards = Shards(gpus, request.expert_parallel, vision)
        if not split_problems(request.config, precision, shards):
            return shards
    raise PlanError(_illegal(request, precision, gpus))


def _illegal(request: LaunchRequest, precision: Precision, gpus: int) -> str:
    """Why a cut is not legal, and the nearest that is: without expert parallelism, and with it if that is nearer."""
    name = request.model.name if request.model else request.config.family
    shards = Shards(gpus, request.expert_parallel, "replicate")
    why = "; ".join(split_problems(request.config, precision, shards))
    legal = legal_splits(request.config, precision, 2 * gpus)
    plain = [s.tensor for s in legal if not s.expert_parallel]
    near = min(plain, key=lambda n: (abs(n - gpus), n))
    text = f"{name} in {precision} can't be cut over {gpus} GPUs: {why}. Nearest legal: {near}"
    if any(s.expert_parallel and s.tensor == gpus for s in legal):
        text += f", or {gpus} with --expert-parallel"
    return text


def _too_large(request: LaunchRequest, asked: FitRequest) -> str:
    """What is missing, and the smallest changes that help; precisions only as far as weights are published."""
    from qvl.plan.fit import fit

    result = fit(asked)
    published = {c.precision for c in request.model.checkpoints} if request.model else set()
    useful = [
        c.option
        for c in result.changes
        if not c.option.startswith("--precision") or c.option.split()[1] in published or not request.model
    ]
    return result.verdict + (f". Any of these helps: {', or '.join(useful[:4])}" if useful else "")


# Flags


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


class _Writer:
    """Writes one engine's flags from the resolved plan; collects notes and warnings on the way."""

    def __init__(
        self,
        request: LaunchRequest,
        engine: Engine,
        version: str,
        setup: Setup,
        replicas: int,
        source: str,
        in_flight: bool,
    ):
        self.request, self.engine, self.version = request, engine, version
        self.setup, self.replicas, self.source, self.in_flight = setup, replicas, source, in_flight
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.flags: list[Flag] = []
        self.environment: list[Variable] = []

    def add(self, name: str, value: object | None, reason: str, copies_only: bool = False) -> None:
        self.flags.append(Flag(name, None if value is None else str(value), reason, copies_only))

    def has(self, feature: str) -> bool:
        return self.engine.has(feature, self.version)

    # what engines share

    @property
    def text_only(self) -> bool:
        return not self.request.workload.images and not self.request.workload.videos

    @property
    def num_images(self) -> int:
        return sum(i.count for i in self.request.workload.images)

    @property
    def num_videos(self) -> int:
        return sum(v.count for v in self.request.workload.videos)

    @property
    def largest_image(self) -> Image | None:
        return max(self.request.workload.images, key=lambda i: i.width * i.height, default=None)

    @property
    def frames(self) -> int:
        """Most frames that a planned clip is sampled to."""
        vision = self.request.config.vision
        counts = [i.patches // i.segment for i in self.setup.media.items if i.kind == "video"]
        return max(counts, default=0) * vision.temporal_patch_size

    def context(self) -> tuple[int, str]:
        """(max_model_len, reason)."""
        setup, most = self.setup, self.request.config.text.max_position_embeddings
        need = setup.context_tokens
        parts = f"{self.request.workload.prompt_tokens:,} tokens of text"
        if setup.media.visual_tokens:
            parts += f" + {setup.media.visual_tokens + setup.media.extra_tokens:,} of pictures or clips"
        parts += f" + {self.request.workload.answer_tokens:,} answer = {need:,}"
        if self.request.max_model_len is not None:
            if not need <= self.request.max_model_len <= most:
                raise PlanError(
                    f"max-model-len {self.request.max_model_len:,}: the work needs {need:,} ({parts}) and the "
                    f"model takes {most:,}"
                )
            return self.request.max_model_len, f"as asked; the work needs {parts}"
        if need > most:
            raise CapacityError(f"one request is {parts}, the model's context is {most:,}: send less at once")
        chosen = min(most, ceil(need / 1024) * 1024)
        return chosen, f"{parts}, rounded up to 1,024"

    def pixel_cap(self) -> tuple[int | None, int | None, str]:
        """(min, max) pixels of one picture, and why there is a cap."""
        work = self.request.workload
        if self.request.config.family == "qwen_vl" or not work.images:
            return work.min_pixels, work.max_pixels, "as asked"
        if work.max_pixels is not None:
            return (
                work.min_pixels,
                work.max_pixels,
                f"as asked: at most {self._tokens(work.max_pixels):,} tokens a picture",
            )
        limits = image_limits(self.request.config, work)
        from qvl.inputs.geometry import smart_resize

        seen = [smart_resize(i.height, i.width, limits) for i in work.images]
        most = max(s.height * s.width for s in seen)
        return (
            work.min_pixels,
            most,
            f"the largest planned picture, {self._tokens(most):,} tokens: a larger one is shrunk to it, instead of "
            "exhausting memory that the plan did not count",
        )

    def _tokens(self, pixels: int) -> int:
        vision = self.request.config.vision
        return pixels // (vision.patch_size * vision.spatial_merge_size) ** 2

    def network(self, port_flag: str = "--port") -> None:
        host = self.request.host
        why = "this machine only" if host in ("127.0.0.1", "localhost") else "as asked"
        self.add("--host", host, f"{why}; put a proxy with authentication in front before opening it")
        self.add(port_flag, self.request.port, "where it listens")
        if host not in ("127.0.0.1", "localhost", "::1"):
            self.warnings.append(f"{host} is reachable from outside and asks for no key: set an API key")

    # vLLM

    def vllm(self) -> tuple[tuple[str, ...], list[Flag], list[Variable]]:
        request, setup, shards = self.request, self.setup, self.setup.shards
        config, device = request.config, request.hardware.device
        self.add("--max-model-len", *self.context())
        self.add(
            "--gpu-memory-utilization",
            f"{request.gpu_memory_utilization:g}",
            "share of the whole card that vLLM takes, weights included; the plan fits in it",
        )
        self.add(
            "--max-num-seqs",
            setup.max_num_seqs,
            f"{setup.workload.concurrency} at once on each copy is planned; fewer seats, fewer graphs",
        )
        self.add(
            "--max-num-batched-tokens",
            setup.max_num_batched_tokens,
            "tokens of one prefill step, and the floor of the encoder's budget; the plan's own figure",
        )
        cut = f"weights and KV over {setup.gpus} GPUs" if setup.gpus > 1 else "one GPU holds a copy"
        self.add("--tensor-parallel-size", setup.gpus, cut)
        if self.replicas > 1:
            if self.has("--data-parallel-size"):
                self.add(
                    "--data-parallel-size",
                    self.replicas,
                    f"{self.replicas} copies: no all-reduce between them, and by the plan's bounds near the best rate",
                    copies_only=True,
                )
            else:
                self.warnings.append(
                    f"vLLM {self.version} has no --data-parallel-size: start {self.replicas} servers of "
                    f"{setup.gpus} GPU(s) behind a balancer"
                )
        total = setup.gpus * self.replicas
        mixed = self.replicas > 1 and config.text.num_experts > 0
        if shards.expert_parallel or mixed:
            if mixed and config.text.num_experts % total:
                raise PlanError(
                    f"{config.text.num_experts} experts do not divide by {total} GPUs, over which vLLM deals them "
                    f"when it runs {self.replicas} copies: give --gpu for one copy and start the servers apart"
                )
            if not self.has("--enable-expert-parallel"):
                since = self.engine.features["--enable-expert-parallel"].version
                raise PlanError(
                    f"this cut deals experts whole, vLLM {self.version} can't: use {since} or later"
                )
            why = "their width can't be cut this often"
            only = mixed and not shards.expert_parallel
            if only:
                why = f"else vLLM cuts their width over all {total} GPUs of all copies, not over {setup.gpus}"
            self.add("--enable-expert-parallel", None, f"experts are dealt whole: {why}", copies_only=only)
        if setup.gpus > 1 and shards.vision == "replicate":
            self.add(
                "--mm-encoder-tp-mode",
                "data",
                "every GPU keeps a whole vision tower, which can't be cut this often",
            )
        self._vllm_precision()
        if device.kind == "gpu" and not device.has_bf16:
            self.add("--dtype", "half", f"{device.title} has no bf16")
        if request.enforce_eager:
            self.add("--enforce-eager", None, "as asked: no CUDA graphs, less memory, slower answers")
        self._vllm_media()
        if config.family == "qwen_vl":
            self.add(
                "--trust-remote-code", None, "the first generation's tokenizer is code in its repository"
            )
            self.add(
                "--hf-overrides",
                _compact({"architectures": ["QwenVLForConditionalGeneration"]}),
                "its config names the text class, which would ignore pictures",
            )
            self.warnings.append(
                "--trust-remote-code runs code from the model's repository: pin a revision you read"
            )
        if config.family in ("qwen3_5", "qwen3_5_moe"):
            self.add("--reasoning-parser", "qwen3", "thoughts go to their own field instead of the answer")
            self.notes.append("prefix caching is experimental with hybrid attention")
        self._vllm_safety()
        self.network()
        return ("vllm", "serve", self.source), self.flags, self.environment

    def _vllm_precision(self) -> None:
        if self.in_flight:
            self.add("--quantization", "fp8", "the 16-bit weights are quantised while loading")
        if self.setup.kv_dtype in ("fp8",):
            self.add("--kv-cache-dtype", "fp8", "as asked: half the KV bytes; check small print and digits")
        elif self.setup.kv_dtype not in ("bf16", "fp16"):
            raise PlanError(f"vLLM keeps KV in 16 bits or fp8, not {self.setup.kv_dtype}")

    def _vllm_media(self) -> None:
        work = self.request.workload
        if self.text_only:
            if self.has("--language-model-only"):
                self.add("--language-model-only", None, "no pictures are planned: the tower is not loaded")
            else:
                self.add(
                    "--limit-mm-per-prompt",
                    self._limit(),
                    "no pictures are planned: nothing is reserved for them",
                )
            return
        sized = self.has("limit sizes")
        why = f"{self.num_images} picture(s) and {self.num_videos} clip(s) a request; profiling reserves for that"
        why += " at the planned sizes" if sized else ", though at the largest size the processor may yield"
        why += ", not for the worst case" if sized else ""
        self.add("--limit-mm-per-prompt", self._limit(), why)
        low, high, reason = self.pixel_cap()
        sizes: dict[str, Any] = {}
        if self.request.config.vision.patch_size == 14:
            sizes = {k: v for k, v in (("min_pixels", low), ("max_pixels", high)) if v is not None}
        elif high is not None or low is not None:
            base = image_limits(self.request.config, work)
            low = min(base.min_pixels, high or base.min_pixels) if low is None else low
            size = {"shortest_edge": low, "longest_edge": base.max_pixels if high is None else high}
            sizes = {"size": size}
            reason += " (areas, whatever the keys say)"
            if work.videos and self.has("nested processor kwargs"):
                sizes = {"images_kwargs": sizes}
            elif work.videos:
                sizes = {}
                self.warnings.append(
                    f"vLLM {self.version} has one size for pictures and clips: no cap on pictures is set, keep them "
                    "to the planned size before sending"
                )
        if sizes and self.request.config.family != "qwen_vl":
            self.add("--mm-processor-kwargs", _compact(sizes), reason)
        if work.videos:
            self.add(
                "--media-io-kwargs",
                _compact({"video": {"num_frames": self.frames}}),
                f"the plan's {self.frames} frames a clip; vLLM's own default is 32 however long it is",
            )

    def _limit(self) -> str:
        work, counts = self.request.workload, {"image": self.num_images, "video": self.num_videos}
        if not self.has("limit json"):
            return ",".join(f"{k}={v}" for k, v in counts.items())
        value: dict[str, Any] = dict(counts)
        if self.has("limit sizes"):
            image = self.largest_image
            if image:
                value["image"] = {"count": counts["image"], "width": image.width, "height": image.height}
            if work.videos:
                clip = max(work.videos, key=lambda v: v.width * v.height)
                value["video"] = {
                    "count": counts["video"],
                    "num_frames": self.frames,
                    "width": clip.width,
                    "height": clip.height,
                }
        return _compact(value)

    def _vllm_safety(self) -> None:
        request = self.request
        if request.media_path:
            self.add(
                "--allowed-local-media-path", request.media_path, "as asked: requests may name files in it"
            )
        if not self.has("--allowed-media-domains"):
            since = self.engine.features["--allowed-media-domains"].version
            self.warnings.append(
                f"vLLM {self.version} fetches any address a request names (CVE-2025-6242): use {since} or later, or "
                "cut the server off from your network"
            )
            return
        if request.media_domains:
            # one flag with all names would swallow a positional argument; nothing positional follows here
            self.flags.append(
                Flag(
                    "--allowed-media-domains",
                    request.media_domains[0],
                    "as asked: requests may name addresses there",
                )
            )
            self.flags += [Flag(d, None, "and there") for d in request.media_domains[1:]]
        else:
            self.add(
                "--allowed-media-domains",
                NO_HOST,
                "no address is fetched (SSRF): send pictures inside the request. An empty list would allow all",
            )
        self.environment.append(
            Variable("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0", "a redirect would lead around the list of hosts")
        )

    # SGLang

    def sglang(self) -> tuple[tuple[str, ...], list[Flag], list[Variable]]:
        request, setup, shards = self.request, self.setup, self.setup.shards
        self.notes.append("memory is planned with vLLM's formulas; SGLang's reserve differs by some GiB")
        self.add("--model-path", self.source, "what to load")
        self.add("--context-length", *self.context())
        # SGLang's share covers weights and KV only, activations live outside it
        self.add(
            "--mem-fraction-static",
            f"{min(0.85, request.gpu_memory_utilization - 0.1):.2f}",
            "share for weights and KV; the tower's activations live outside it",
        )
        self.add(
            "--max-running-requests",
            setup.max_num_seqs,
            f"{setup.workload.concurrency} at once on each copy is planned",
        )
        self.add(
            "--chunked-prefill-size", setup.max_num_batched_tokens, "tokens of one prefill step, as planned"
        )
        self.add("--tp-size", setup.gpus, "GPUs that hold one copy")
        if self.replicas > 1:
            self.add("--dp-size", self.replicas, f"{self.replicas} copies", copies_only=True)
        if shards.expert_parallel:
            self.add("--ep-size", setup.gpus, "experts are dealt whole: their width can't be cut this often")
        if setup.gpus > 1 and shards.vision == "replicate":
            self.add("--mm-enable-dp-encoder", None, "every GPU keeps a whole vision tower")
        if setup.kv_dtype == "fp8":
            self.add("--kv-cache-dtype", "fp8_e4m3", "as asked: half the KV bytes")
        if not request.hardware.device.has_bf16:
            self.add("--dtype", "half", f"{request.hardware.device.title} has no bf16")
        if self.text_only and self.has("--language-model-only"):
            self.add("--language-model-only", None, "no pictures are planned: the tower is not loaded")
        if not self.text_only and self.has("--limit-mm-data-per-request"):
            self.add(
                "--limit-mm-data-per-request",
                _compact({"image": self.num_images, "video": self.num_videos}),
                "as planned; more in one request is refused",
            )
        if not self.text_only and self.has("--mm-process-config"):
            _, high, reason = self.pixel_cap()
            if high is not None and self.request.workload.images:
                self.add("--mm-process-config", _compact({"image": {"max_pixels": high}}), reason)
        if self.has("--allowed-media-domains"):
            hosts = request.media_domains or (NO_HOST,)
            why = (
                "as asked" if request.media_domains else "no address is fetched (SSRF); unset would allow all"
            )
            self.flags.append(Flag("--allowed-media-domains", hosts[0], why))
            self.flags += [Flag(d, None, "and there") for d in hosts[1:]]
        else:
            self.warnings.append(
                f"SGLang {self.version} fetches any address a request names: cut it off from your network"
            )
        if request.media_path:
            self.warnings.append("SGLang has no list of folders: --media-path is not passed on")
        self.network()
        return ("python3", "-m", "sglang.launch_server"), self.flags, self.environment

    # llama.cpp

    def llama_cpp(self) -> tuple[tuple[str, ...], list[Flag], list[Variable]]:
        request, setup = self.request, self.setup
        length, reason = self.context()
        slots = setup.workload.concurrency
        self.add("--model", self.source, "the language model's file")
        if not self.text_only:
            stem = self.source.rpartition("-")[0]
            self.add("--mmproj", f"mmproj-{stem}-F16.gguf", "the vision tower's file, kept in 16 bits")
        self.add("--ctx-size", length * slots, f"{reason}, times {slots} slot(s): the size is shared by all")
        self.add("--parallel", slots, "requests at once")
        if request.hardware.device.kind != "cpu":
            self.add("--n-gpu-layers", 999, "all layers on the device")
        if request.hardware.count > 1:
            self.add(
                "--tensor-split",
                ",".join(["1"] * request.hardware.count),
                "layers dealt evenly to equal GPUs",
            )
        if setup.flash_attention:
            self.add("--flash-attn", "on", "without it one large picture takes tens of GiB")
        if setup.kv_dtype == "q8_0":
            self.add("--cache-type-k", "q8_0", "as asked")
            self.add("--cache-type-v", "q8_0", "as asked")
        if not self.text_only:
            _, high, why = self.pixel_cap()
            most = min(self._tokens(high) if high else 4096, 16_384)
            least = min(1024, most)
            self.add("--image-max-tokens", most, why)
            self.add(
                "--image-min-tokens", least, "boxes want about 1,024 tokens a picture (llama.cpp issue 16842)"
            )
        if request.workload.videos:
            self.warnings.append(
                "llama.cpp's server takes pictures, no clips: send sampled frames as pictures"
            )
        if request.media_path:
            self.add("--media-path", request.media_path, "as asked: requests may name files in it")
        self.notes.append("file names are those of your conversion or download: put the real ones in")
        self.network()
        return ("llama-server",), self.flags, self.environment

    # ours

    def qvl(self) -> tuple[tuple[str, ...], list[Flag], list[Variable]]:
        request = self.request
        length, reason = self.context()
        if request.hardware.count > 1:
            self.notes.append(f"qvl's own engine runs on one device; {request.hardware.count - 1} stay idle")
        self.add("--model", self.source, "what to load")
        self.add("--max-model-len", length, reason)
        self.add(
            "--max-num-seqs", self.setup.max_num_seqs, f"{self.setup.workload.concurrency} at once is planned"
        )
        if request.kv_dtype != "auto":
            self.add("--kv-dtype", request.kv_dtype, "as asked")
        for domain in request.media_domains:
            self.add("--allow-media-host", domain, "as asked: requests may name addresses there")
        if request.media_path:
            self.add("--allow-media-path", request.media_path, "as asked: requests may name files in it")
        self.network()
        return ("qvl", "serve"), self.flags, self.environment
