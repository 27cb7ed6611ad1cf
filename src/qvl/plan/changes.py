"""What would make it fit: single changes first, settings before precision before hardware; failing these, pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qvl.catalog.devices import Hardware, devices
from qvl.catalog.precisions import by_loss
from qvl.plan.evaluate import Change, evaluate, fits, largest_that
from qvl.plan.request import FitRequest, with_workload
from qvl.plan.resolve import resolve
from qvl.plan.setup import Setup
from qvl.plan.versions import version_problem
from qvl.units import format_bytes


def changes_that_fit(request: FitRequest) -> Iterator[Change]:
    """Single changes that make it fit, settings before precision before hardware; failing these, pairs."""
    before = evaluate(request).total_bytes
    found = False
    newer = _newer_engine(request)
    if newer is not None:  # nothing else helps an engine that does not know the model
        option, effect, changed = newer
        if fits(changed):
            yield _change(option, effect, changed, before)
            return
        for change in changes_that_fit(changed):
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
    after = evaluate(changed).total_bytes
    sizes = f"{format_bytes(before)} becomes {format_bytes(after)} in all"
    return Change(option, f"{effect}; {sizes}" if effect else sizes, changed)


def _newer_engine(request: FitRequest) -> tuple[str, str, FitRequest] | None:
    """(option, effect, request) with the nearest version that serves the model, where the one asked for does not."""
    setup = resolve(request)
    other = version_problem(
        setup.engine.name, setup.version, request.model, request.name, request.config.family
    )
    if other is None or not other.instead:
        return None
    engine = f"{setup.engine.name}@{other.instead}"
    which = "first version that knows" if other.is_first else "last that serves"
    return f"--engine {engine}", f"the {which} it", replace(request, engine=engine)


def _single_changes(request: FitRequest) -> Iterator[tuple[str, str, FitRequest]]:
    setup = resolve(request)
    work, media = setup.workload, setup.media
    vision = setup.config.vision
    token = (vision.patch_size * vision.spatial_merge_size) ** 2
    if media.items and setup.config.generation.fixed_size is None:
        largest = max(i.tokens for i in media.items)
        best = largest_that(
            4, largest, lambda n: fits(with_workload(request, max_pixels=n * token, min_pixels=None))
        )
        if best is not None:
            changed = with_workload(request, max_pixels=best * token, min_pixels=None)
            now = resolve(changed).media.visual_tokens
            if now < media.visual_tokens:
                effect = f"{now:,} visual tokens instead of {media.visual_tokens:,}"
                yield f"--max-pixels {best * token}", effect, changed
    if (
        words := largest_that(
            0, work.prompt_tokens - 1, lambda n: fits(with_workload(request, prompt_tokens=n))
        )
    ) is not None:
        effect = f"{work.prompt_tokens - words:,} fewer tokens of text"
        yield f"--prompt-tokens {words}", effect, with_workload(request, prompt_tokens=words)
    if (
        batch := largest_that(1, work.concurrency - 1, lambda n: fits(with_workload(request, concurrency=n)))
    ) is not None:
        yield (
            f"--concurrency {batch}",
            f"instead of {work.concurrency}",
            with_workload(request, concurrency=batch),
        )
    kv = setup.engine.eight_bit_kv
    if kv and request.kv_dtype == "auto" and fits(changed := replace(request, kv_dtype=kv)):
        yield f"--kv-dtype {kv}", "half the KV cache; check OCR and small print", changed
    if request.default_limits and fits(changed := replace(request, default_limits=False)):
        yield "--limit-media", "vLLM prepares for these images, not for the worst case", changed
    if not request.expert_parallel and setup.config.text.num_experts and setup.engine.tensor_parallel:
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
    for engine in smaller.get(setup.engine.name, ()):
        changed = replace(request, engine=engine, precision="bf16")
        if fits(changed):
            yield f"--engine {engine}", "adapters instead of all weights", changed
            break


def _precisions(request: FitRequest) -> Iterator[tuple[str, FitRequest]]:
    """Smaller precisions of this engine, the least loss first; any other where this one can't run as asked."""
    setup = resolve(request)
    if setup.training:
        return
    now = evaluate(request).total_bytes
    taken = setup.engine.precisions()
    for name in by_loss():
        if name in taken:
            changed = replace(request, precision=name)
            smaller = evaluate(changed).total_bytes < now
            other = setup.problems and taken[name] != setup.precision
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
    if not setup.engine.one_device:
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
