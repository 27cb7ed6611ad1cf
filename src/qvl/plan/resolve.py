"""Resolves a request: engine and version, precision, cut and cache, and what can't be.

Names are looked up here and nowhere later; the planner hands on the records.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qvl.catalog.models import config_of
from qvl.catalog.models import resolve as resolve_name
from qvl.catalog.precisions import PRECISIONS, find_precision
from qvl.errors import PlanError
from qvl.plan.engines import ENGINES
from qvl.plan.memory import KvDtype, Precision, Shards, check_kv_dtype, stored_precision
from qvl.plan.request import FitRequest
from qvl.plan.setup import EngineRecord, Setup
from qvl.plan.split import best_split, split_problems
from qvl.plan.versions import faults_of, version_problem

if TYPE_CHECKING:
    pass


def planned_engines() -> list[str]:
    """Names of the engines that have memory formulas."""
    return [e.name for e in ENGINES.values() if e.memory]


def parse_engine(text: str) -> tuple[EngineRecord, tuple[int, ...]]:
    """`vllm@0.8.1` → (vLLM's record, (0, 8, 1)).

    Raises: PlanError for an unknown engine or a version that is no number.
    """
    name, _, version = text.strip().lower().partition("@")
    engine = ENGINES.get(name)
    if engine is None:
        raise PlanError(f"no engine {name!r}; known: {', '.join(planned_engines())}")
    if engine.planned_as:
        other = ENGINES[engine.planned_as]
        raise PlanError(
            f"{engine.title} has no memory formulas of its own here: fit and choose would print {other.title}'s under "
            f"another name. Ask for --engine {other.name}; `qvl launch --engine {name}` starts what that plan holds"
        )
    if not version:
        if "@" in text:
            raise PlanError(f"engine {text!r}: a version must follow the @, such as {name}@1.2")
        return engine, ()
    if not re.fullmatch(r"\d+(\.\d+)*", version):
        raise PlanError(f"engine {text!r}: {version!r} is not a version, such as 0.11 or 4.57.6")
    return engine, tuple(int(part) for part in version.split("."))


def resolve(request: FitRequest) -> Setup:
    """Fills in what was left open and lists what can't be.

    Raises: PlanError for unknown names and settings that contradict each other.
    """
    engine, version = parse_engine(request.engine)
    asked = request.precision or stored_precision(request.config)
    known = engine.precisions()
    if asked not in known:
        find_precision(asked)
        raise PlanError(f"{engine.name} does not take {asked}; it takes {', '.join(known)}")
    precision = known[asked]
    device, gpus = (request.hardware.device, request.hardware.count) if request.hardware else (None, 1)
    problems, notes = _fitness(engine, asked, request) if device else ((), ())
    if other := version_problem(engine.name, version, request.model, request.name, request.config.family):
        problems += (other.why,)
    if version:
        faults = faults_of(engine.name, version, request.config.family)
        notes += faults
        if engine.shares_card and any("limit_mm_per_prompt" in fault for fault in faults):
            request = replace(request, default_limits=True)  # it prepares for the worst whatever is asked
    if not engine.takes_video and request.workload.videos:
        notes += (f"{engine.name}'s server takes images, no videos: send their frames as images",)
    shards = Shards()
    if engine.tensor_parallel and gpus > 1:
        shards = _shards(request, precision, gpus)
        problems += split_problems(request.config, precision, shards)
    if engine.one_device and gpus > 1:
        problems += (f"qvl's own engine runs on one device, not {gpus}: use vllm",)
    kv: KvDtype = "fp32" if precision == "fp32" else "bf16"
    if request.kv_dtype != "auto":
        kv = check_kv_dtype(request.kv_dtype)
        if engine.kv_dtypes and kv not in engine.kv_dtypes:
            raise PlanError(
                f"{engine.name} keeps no KV cache in {kv}; it takes {', '.join(engine.kv_dtypes)}"
            )
    flash = request.flash_attention
    if flash is None:
        # PyTorch's CPU attention works in blocks too
        flash = engine.own_attention or device is None or device.kind == "cpu" or device.has_flash_attention
    return Setup(
        request=request,
        engine=engine,
        version=version,
        precision=precision,
        kv_dtype=kv,
        gpus=gpus,
        shards=shards,
        flash_attention=flash,
        max_num_batched_tokens=request.max_num_batched_tokens or engine.prefill_chunk(device),
        max_num_seqs=max(request.max_num_seqs or 256, request.workload.concurrency),
        problems=problems,
        notes=notes,
    )


def request_for(model: str, **fields: Any) -> FitRequest:
    """A request for a model of the catalogue by any name people use; a quantised checkpoint's name sets the precision.

    Raises: CatalogError for an unknown name or a model whose shape is not known here.
    """
    found, checkpoint = resolve_name(model)
    if checkpoint is not None:
        asked = fields.get("precision") or checkpoint.precision
        if checkpoint.precision not in ("bf16", asked):
            raise PlanError(
                f"{model} is {checkpoint.precision}, --precision says {asked}: drop one, or name the model itself"
            )
        fields["precision"] = asked
    return FitRequest(config=config_of(found), model=found, name=found.name, **fields)


def _shards(request: FitRequest, precision: Precision, gpus: int) -> Shards:
    if request.vision != "auto":
        return Shards(gpus, request.expert_parallel, request.vision)
    # experts are dealt whole only when asked for, as engines do
    best = best_split(request.config, precision, gpus, expert_parallel=request.expert_parallel)
    return best or Shards(gpus, request.expert_parallel)


def _fitness(
    engine: EngineRecord, asked: str, request: FitRequest
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(why it can't run, what it really is) from the device's number formats."""
    assert request.hardware is not None
    device, precision = request.hardware.device, PRECISIONS[engine.precisions()[asked]]
    problems, notes = list(engine.problems(device)), []
    capability = float(device.compute_capability or 0)
    if device.kind == "gpu" and not device.has_bf16 and precision.name == "bf16":
        notes.append(f"{device.title} has no bf16: it runs in fp16 (--dtype half), the same bytes")
    if 0 < capability < precision.capability:
        problems.append(
            f"{precision.needs} compute capability {precision.capability}, {device.title} has {capability}"
        )
    elif precision.name == "nvfp4" and device.kind == "gpu" and not capability and "fp4" in device.rates:
        # CDNA 4 computes with MXFP4, whose groups and scales are others
        problems.append(f"NVFP4 is NVIDIA's format, {device.title} does not read it")
    elif precision.name == "fp8" and device.kind == "gpu" and not device.has_fp8:
        notes.append(f"{device.title} has no fp8 arithmetic: weights keep 8 bits, the sums run in 16")
    if request.kv_dtype == "fp8" and 0 < capability < 8.0:
        problems.append(f"an fp8 KV cache needs compute capability 8.0, {device.title} has {capability}")
    if asked != precision.name:
        notes.append(f"{engine.name} stores {asked} as {precision.name}")
    return tuple(problems), tuple(notes)
