"""Does it fit, with how much to spare, how fast at best; and if not, what is the smallest change that makes it.

`fit(FitRequest) -> FitResult` is what `qvl fit`, choose, cost and launch call. Knows formulas only through
engines.memory_terms and speed.speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from qvl.catalog.devices import Hardware, devices
from qvl.errors import PlanError
from qvl.plan.engines import GpuTerms, gpu_bytes, memory_terms
from qvl.plan.request import (
    STORED_AS,
    FitRequest,
    Setup,
    needed_version,
    resolve,
    version_that_serves,
    with_workload,
)
from qvl.plan.speed import Speed, speed
from qvl.plan.workload import Media
from qvl.units import format_bytes

MAX_CONCURRENCY = 4096  # beyond this no engine batches; the search stops here
# tried in this order: the first that fits loses least
SMALLER_PRECISIONS = ("bf16", "fp8", "int8", "gptq-int8", "awq", "gptq-int4", "int4")
EIGHT_BIT_KV = {"vllm": "fp8", "qvl": "fp8", "llama.cpp": "q8_0"}


@dataclass(frozen=True)
class Change:
    """One way to make it fit: the option to give, and what it does."""

    option: str
    effect: str
    request: FitRequest

    def to_json(self) -> dict[str, str]:
        return {"option": self.option, "effect": self.effect}


@dataclass(frozen=True)
class FitResult:
    """The answer. `fits` is None without hardware. Terms of all GPUs add up to `total_bytes`."""

    setup: Setup
    gpus: tuple[GpuTerms, ...]
    budget_bytes: int | None  # of one GPU
    fits: bool | None
    reasons: tuple[str, ...]  # why it does not fit
    max_context: int | None  # tokens of one request, all others held
    max_concurrency: int | None  # requests at once, all else held
    speed: Speed | None
    changes: tuple[Change, ...]

    @property
    def total_bytes(self) -> int:
        return sum(self.per_gpu_bytes)

    @property
    def per_gpu_bytes(self) -> list[int]:
        return gpu_bytes(self.gpus)

    @cached_property
    def terms(self) -> dict[str, int]:
        """Bytes by name over all GPUs."""
        total: dict[str, int] = {}
        for terms in self.gpus:
            for t in terms:
                total[t.name] = total.get(t.name, 0) + t.bytes
        return total

    @property
    def busiest(self) -> GpuTerms:
        return max(self.gpus, key=lambda terms: sum(t.bytes for t in terms))

    @property
    def media(self) -> Media:
        return self.setup.media

    @property
    def visual_tokens(self) -> int:
        """Of one request."""
        return self.setup.media.visual_tokens

    @property
    def verdict(self) -> str:
        need = format_bytes(max(self.per_gpu_bytes))
        if self.fits is None:
            return f"needs {format_bytes(self.total_bytes)} (no hardware named: --gpu gives a verdict)"
        hardware = self.setup.request.hardware
        assert hardware is not None
        each = f" on each of {hardware.count} GPUs" if hardware.count > 1 else ""
        assert self.budget_bytes is not None
        room = format_bytes(self.budget_bytes)
        if self.fits:
            if self.setup.training:
                return f"fits {hardware.name}: {need} of {room}{each}"
            return (
                f"fits {hardware.name}: {need} of {room}{each}; up to {self.max_context:,} tokens of context, "
                f"or {self.max_concurrency:,} requests at once"
            )
        return f"does not fit {hardware.name}: " + "; ".join(self.reasons)

    def to_json(self) -> dict[str, Any]:
        setup, request = self.setup, self.setup.request
        return {
            "model": request.name,
            "engine": request.engine,
            "precision": setup.precision,
            "kv_dtype": setup.kv_dtype,
            "gpu": request.hardware.name if request.hardware else None,
            "fits": self.fits,
            "verdict": self.verdict,
            "total_bytes": self.total_bytes,
            "per_gpu_bytes": self.per_gpu_bytes,
            "budget_bytes_per_gpu": self.budget_bytes,
            "terms": self.terms,
            "visual_tokens": self.visual_tokens,
            "prompt_tokens": setup.prompt_tokens,
            "context_tokens": setup.context_tokens,
            "max_context": self.max_context,
            "max_concurrency": self.max_concurrency,
            "speed": self.speed.to_json() if self.speed else None,
            "changes": [c.to_json() for c in self.changes],
            "reasons": list(self.reasons),
            "notes": list(setup.notes),
        }


def fit(request: FitRequest, *, changes: bool = True) -> FitResult:
    """Plans the request. `changes=False` skips the search for what would make it fit.

    Raises: PlanError for unknown names, impossible numbers and contradictions.
    """
    setup = resolve(request)
    gpus = memory_terms(setup)
    budget = budget_bytes(setup)
    reasons = _reasons(setup, gpus, budget)
    fits = None if budget is None else not reasons
    return FitResult(
        setup=setup,
        gpus=gpus,
        budget_bytes=budget,
        fits=fits,
        reasons=reasons,
        max_context=max_context(request) if budget is not None and not setup.training else None,
        max_concurrency=max_concurrency(request) if budget is not None else None,
        speed=speed(setup) if not setup.problems else None,
        changes=tuple(_changes(request)) if changes and fits is False else (),
    )


def budget_bytes(setup: Setup) -> int | None:
    """What one GPU may hold: vLLM's share of the card, else what the system leaves."""
    device = setup.device
    if device is None:
        return None
    if setup.engine == "vllm":
        return int(device.usable_bytes * setup.request.gpu_memory_utilization)
    return device.usable_bytes


def _reasons(setup: Setup, gpus: tuple[GpuTerms, ...], budget: int | None) -> tuple[str, ...]:
    """Why this does not fit; empty when it does."""
    reasons = list(setup.problems)
    limit = setup.config.text.max_position_embeddings
    if setup.context_tokens > limit and not setup.training:
        reasons.append(f"a request takes {setup.context_tokens:,} tokens, the model's context is {limit:,}")
    if budget is None:
        return tuple(reasons)
    assert setup.device is not None
    usable = setup.device.usable_bytes
    for i, (terms, whole) in enumerate(zip(gpus, gpu_bytes(gpus), strict=True)):
        # vLLM captures its graphs after the budget is taken: they need room on the card, not in the budget
        need = whole - sum(t.bytes for t in terms if t.name == "cuda_graphs")
        if need > budget or whole > usable:
            where = f"GPU {i}: " if len(set(gpus)) > 1 else ""
            share = (
                f" ({setup.request.gpu_memory_utilization:.0%} of the card)" if setup.engine == "vllm" else ""
            )
            top = max(terms, key=lambda t: t.bytes)
            reasons.append(
                f"{where}needs {format_bytes(need)}, {format_bytes(budget)} free{share}; "
                f"most of it {top.name} {format_bytes(top.bytes)}"
            )
            break
    return tuple(reasons)


def shortfalls(setup: Setup, gpus: tuple[GpuTerms, ...]) -> tuple[str, ...]:
    """Why a setup whose terms are known does not fit; empty when it does."""
    return _reasons(setup, gpus, budget_bytes(setup))


def fits(request: FitRequest) -> bool:
    """Whether it fits, nothing else; False too where the request contradicts itself."""
    try:
        setup = resolve(request)
        gpus = memory_terms(setup)
    except PlanError:
        return False
    return not _reasons(setup, gpus, budget_bytes(setup))


def _most(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The largest whole number from low to high for which `holds`; it must hold below any number it holds for."""
    if low > high or not holds(low):
        return None
    if holds(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def max_context(request: FitRequest) -> int:
    """Tokens one request may take in all (pictures, words, answer) at this concurrency; 0 if none fits."""
    setup = resolve(request)
    others = setup.context_tokens - setup.workload.prompt_tokens
    most = setup.config.text.max_position_embeddings - others
    words = _most(0, most, lambda n: fits(with_workload(request, prompt_tokens=n)))
    return 0 if words is None else words + others


def max_concurrency(request: FitRequest) -> int:
    """How many such requests may run at once; 0 if none fits."""
    found = _most(1, MAX_CONCURRENCY, lambda n: fits(with_workload(request, concurrency=n)))
    return found or 0


# What would make it fit


def _changes(request: FitRequest) -> Iterator[Change]:
    """Single changes that make it fit, settings before precision before hardware; failing these, pairs."""
    before = sum(gpu_bytes(memory_terms(resolve(request))))
    found = False
    newer = _newer_engine(request)
    if newer is not None:  # nothing else helps an engine that does not know the model
        option, effect, changed = newer
        if fits(changed):
            yield _change(option, effect, changed, before)
            return
        for change in _changes(changed):
            yield _change(f"{option} {change.option}", "both together", change.request, before)
        return
    for option, effect, changed in _single_changes(request):
        found = True
        yield _change(option, effect, changed, before)
    if found:
        return
    for precision_option, smaller in _precisions(request):
        for option, changed in _hardware(smaller):
            if fits(changed):
                yield _change(f"{precision_option} {option}", "both together", changed, before)
                break


def _change(option: str, effect: str, changed: FitRequest, before: int) -> Change:
    after = sum(gpu_bytes(memory_terms(resolve(changed))))
    sizes = f"{format_bytes(before)} becomes {format_bytes(after)} in all"
    return Change(option, f"{effect}; {sizes}" if effect else sizes, changed)


def _newer_engine(request: FitRequest) -> tuple[str, str, FitRequest] | None:
    """(option, effect, request) with the nearest version that serves the model, where the one asked for does not."""
    setup = resolve(request)
    other = version_that_serves(setup.engine, setup.version, request.name, request.config.family)
    if other is None or not other[0]:
        return None
    engine = f"{setup.engine}@{other[0]}"
    which = (
        "first version that knows"
        if other[0] == needed_version(setup.engine, request.name, request.config.family)
        else "last that serves"
    )
    return f"--engine {engine}", f"the {which} it", replace(request, engine=engine)


def _single_changes(request: FitRequest) -> Iterator[tuple[str, str, FitRequest]]:
    setup = resolve(request)
    work, media = setup.workload, setup.media
    vision = setup.config.vision
    token = (vision.patch_size * vision.spatial_merge_size) ** 2
    if media.items and setup.config.family != "qwen_vl":
        largest = max(i.tokens for i in media.items)
        best = _most(
            4, largest, lambda n: fits(with_workload(request, max_pixels=n * token, min_pixels=None))
        )
        if best is not None:
            changed = with_workload(request, max_pixels=best * token, min_pixels=None)
            now = resolve(changed).media.visual_tokens
            if now < media.visual_tokens:
                effect = f"{now:,} visual tokens instead of {media.visual_tokens:,}"
                yield f"--max-pixels {best * token}", effect, changed
    if (
        words := _most(0, work.prompt_tokens - 1, lambda n: fits(with_workload(request, prompt_tokens=n)))
    ) is not None:
        effect = f"{work.prompt_tokens - words:,} fewer tokens of text"
        yield f"--prompt-tokens {words}", effect, with_workload(request, prompt_tokens=words)
    if (
        batch := _most(1, work.concurrency - 1, lambda n: fits(with_workload(request, concurrency=n)))
    ) is not None:
        yield (
            f"--concurrency {batch}",
            f"instead of {work.concurrency}",
            with_workload(request, concurrency=batch),
        )
    kv = EIGHT_BIT_KV.get(setup.engine)
    if kv and request.kv_dtype == "auto" and fits(changed := replace(request, kv_dtype=kv)):
        yield f"--kv-dtype {kv}", "half the KV cache; check OCR and small print", changed
    if request.default_limits and fits(changed := replace(request, default_limits=False)):
        yield "--limit-media", "vLLM prepares for these pictures, not for the worst there are", changed
    if not request.expert_parallel and setup.config.text.num_experts and setup.engine == "vllm":
        changed = replace(request, expert_parallel=True)
        if setup.problems and fits(changed):
            yield "--expert-parallel", "experts dealt whole to GPUs", changed
    yield from _training_changes(request, setup)
    for option, changed in _precisions(request):
        if fits(changed):
            yield option, f"instead of {setup.precision}", changed
            break
    for option, changed in _hardware(request):
        if fits(changed):
            yield option, "", changed


def _training_changes(request: FitRequest, setup: Setup) -> Iterator[tuple[str, str, FitRequest]]:
    if not setup.training:
        return
    how = request.training
    if not (how.checkpoint_language and how.checkpoint_vision):
        changed = replace(request, training=replace(how, checkpoint_language=True, checkpoint_vision=True))
        if fits(changed):
            yield "--checkpointing", "activations are recomputed, about a quarter slower", changed
    if setup.gpus > 1 and how.sharding == "copies":
        changed = replace(request, training=replace(how, sharding="zero3"))
        if fits(changed):
            yield "--sharding zero3", f"weights and states dealt to {setup.gpus} GPUs", changed
    smaller = {"train-full": ("train-lora", "train-qlora"), "train-lora": ("train-qlora",)}
    for engine in smaller.get(setup.engine, ()):
        changed = replace(request, engine=engine, precision="bf16")
        if fits(changed):
            yield f"--engine {engine}", "adapters instead of all weights", changed
            break


def _precisions(request: FitRequest) -> Iterator[tuple[str, FitRequest]]:
    """Smaller precisions of this engine, the least loss first; any other where this one can't run as asked."""
    setup = resolve(request)
    if setup.training:
        return
    now = sum(gpu_bytes(memory_terms(setup)))
    for name in SMALLER_PRECISIONS:
        if name in STORED_AS[setup.engine]:
            changed = replace(request, precision=name)
            smaller = sum(gpu_bytes(memory_terms(resolve(changed)))) < now
            other = setup.problems and STORED_AS[setup.engine][name] != setup.precision
            if smaller or other:
                yield f"--precision {name}", changed


def _hardware(request: FitRequest) -> Iterator[tuple[str, FitRequest]]:
    """The fewest more GPUs of the same kind, then the smallest other single GPU."""
    hardware = request.hardware
    if hardware is None:
        return
    setup = resolve(request)
    if setup.problems and hardware.count > 1:
        for count in range(hardware.count - 1, 0, -1):
            changed = replace(request, hardware=Hardware(hardware.device, count))
            if fits(changed):
                yield f"--gpu {changed.hardware.name if changed.hardware else ''}", changed
                break
    if setup.engine != "qvl":
        for count in (2, 4, 8, 16):
            if count > hardware.count:
                option = f"--gpu {count}x{hardware.device.name}"
                changed = replace(request, hardware=Hardware(hardware.device, count))
                if setup.training and request.training.sharding == "copies":
                    option += " --sharding zero3"  # more whole copies take no less on each
                    changed = replace(changed, training=replace(request.training, sharding="zero3"))
                if fits(changed):
                    yield option, changed
                    break
    larger = [d for d in devices() if d.kind == "gpu" and d.memory_bytes > hardware.device.memory_bytes]
    for device in sorted(larger, key=lambda d: (d.memory_bytes, d.bandwidth_bytes_per_s)):
        changed = replace(request, hardware=Hardware(device, hardware.count))
        if fits(changed):
            yield f"--gpu {changed.hardware.name if changed.hardware else ''}", changed
            return
