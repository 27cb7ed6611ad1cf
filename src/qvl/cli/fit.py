"""`qvl fit MODEL`: memory term by term, verdict and speed bounds for your images on your hardware."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from qvl.catalog.devices import parse_hardware
from qvl.catalog.models import resolve
from qvl.catalog.precisions import by_loss
from qvl.cli.options import JsonOption, command, option
from qvl.cli.workload import (
    ConfigOption,
    EagerOption,
    ExpertParallelOption,
    GpuOption,
    KvDtypeOption,
    ModelArgument,
    UtilizationOption,
    WorkloadOptions,
    check_named,
)
from qvl.errors import PlanError
from qvl.plan.fit import fit
from qvl.plan.request import FitRequest, Sharding, Training
from qvl.plan.resolve import planned_engines, request_for
from qvl.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from qvl.plan.fit import FitResult
    from qvl.plan.setup import GpuTerms


@dataclass(frozen=True)
class EngineOptions:
    """How the model is run, by the names of `FitRequest`."""

    engine: str = option("vllm", f"The engine: {', '.join(planned_engines())}; @VERSION may follow.")
    precision: str = option(
        "", f"The weights: {', '.join(by_loss())} (default: as the checkpoint is stored)."
    )
    kv_dtype: KvDtypeOption = "auto"
    flash_attention: bool | None = option(
        None,
        "Whether flash attention is used (default: if the device supports it).",
        "--flash-attention/--no-flash-attention",
    )
    gpu_memory_utilization: UtilizationOption = 0.9
    max_num_batched_tokens: int | None = option(
        None, "Tokens of a prefill step of vLLM or qvl (default: the engine's own)."
    )
    max_num_seqs: int | None = option(None, "The largest batch that vLLM prepares for (default: vLLM's own).")
    enforce_eager: EagerOption = False
    default_limits: bool = option(
        False, "Whether vLLM is started without --limit-mm-per-prompt.", "--default-limits/--limit-media"
    )
    expert_parallel: ExpertParallelOption = False


@dataclass(frozen=True)
class TrainingOptions:
    """How it is trained, where the engine is one that trains."""

    lora_rank: int = option(8, "The rank of train-lora and train-qlora.")
    train_vision: bool = option(False, "Train the vision tower too.", "--train-vision")
    sharding: str = option("copies", "How GPUs share the work: copies, zero2, zero3, tensor or layers.")
    checkpointing: bool = option(
        True, "Whether activations are recomputed.", "--checkpointing/--no-checkpointing"
    )

    def training(self) -> Training:
        if self.sharding not in get_args(Sharding):
            raise PlanError(f"no sharding {self.sharding!r}; known: {', '.join(get_args(Sharding))}")
        return Training(
            lora_rank=self.lora_rank,
            train_vision=self.train_vision,
            sharding=self.sharding,  # type: ignore[arg-type]
            checkpoint_language=self.checkpointing,
            checkpoint_vision=self.checkpointing,
        )


@command
def run(
    work: WorkloadOptions,
    engine: EngineOptions,
    trained: TrainingOptions,
    model: ModelArgument = "",
    config: ConfigOption = "",
    gpu: GpuOption = "",
    as_json: JsonOption = False,
) -> None:
    """Memory and speed of a model for your images on your hardware."""
    check_named(model, config)
    fields: dict[str, Any] = {
        **vars(engine),
        "training": trained.training(),
        "workload": work.workload(),
        "hardware": parse_hardware(gpu) if gpu else None,
    }
    if config:
        from qvl.checkpoint.checkpoint import local_checkpoint  # not for a start without --config

        request = FitRequest(config=local_checkpoint(config).config, name=config, **fields)
    else:
        request = request_for(model, **fields)
    result = fit(request)
    if as_json:
        print(json.dumps(result.to_json(), indent=1))
        return
    print(describe(result))
    if any("--precision" in change.option for change in result.changes) and _names_weights(model):
        print(f"note: --precision goes with the model's own name, {request.name}, not with {model}")


def _names_weights(model: str) -> bool:
    """Whether the name is that of quantised weights, which have one precision."""
    checkpoint = resolve(model)[1] if model else None
    return checkpoint is not None and checkpoint.precision != "bf16"


def describe(result: FitResult) -> str:
    """The verdict first, then every term with its formula, then speed and what would make it fit."""
    setup = result.setup
    request = setup.request
    lines = [f"{request.name} in {setup.precision} on {request.engine}: {result.verdict}", ""]
    lines += [f"note: {note}" for note in setup.notes]
    requests = "" if setup.workload.concurrency == 1 else f", {setup.workload.concurrency} at once"
    lines.append(
        f"one request: {setup.workload.prompt_tokens:,} tokens of text + {result.visual_tokens:,} visual + "
        f"{setup.media.extra_tokens:,} marks + {setup.workload.answer_tokens:,} answer = "
        f"{setup.context_tokens:,}{requests}"
    )
    groups: dict[GpuTerms, list[int]] = {}
    for i, terms in enumerate(result.gpus):
        groups.setdefault(terms, []).append(i)
    for terms, where in groups.items():
        title = "memory" if len(result.gpus) == 1 else f"memory of GPU {_span(where)}"
        total = sum(t.bytes for t in terms)
        rows = [
            (
                "all",
                format_bytes(total),
                f"of {format_bytes(result.budget_bytes)}" if result.budget_bytes else "",
            )
        ]
        rows += [(t.name.replace("_", " "), format_bytes(t.bytes), t.formula) for t in terms]
        lines += ["", title, *_table(rows)]
    if result.speed is not None:
        s = result.speed
        answer = (
            f"each, {s.total_tokens_per_s:,.0f} tok/s in all; {s.decode.formula}; limit: {s.decode.limit}"
        )
        rows = [
            ("first token", format_seconds(s.ttft_s), "images and prompt of a request alone"),
            ("images", format_seconds(s.vision.seconds), f"{s.vision.formula}; limit: {s.vision.limit}"),
            ("prompt", format_seconds(s.prefill.seconds), f"{s.prefill.formula}; limit: {s.prefill.limit}"),
            ("answer", f"{s.tokens_per_s:.1f} tok/s", answer),
            ("requests", f"{s.requests_per_s:.2f} /s", f"most of each goes to {s.limit}"),
        ]
        lines += ["", "speed at best (80% of peak rates; engines stay below)", *_table(rows)]
        if s.note:
            lines.append(f"note: {s.note}")
    if result.changes:
        lines += ["", "any one of these makes it fit"]
        lines += _table([(c.option, "", c.effect) for c in result.changes])
    elif result.fits is False:
        lines += ["", "no single change or pair of changes makes it fit"]
    return "\n".join(lines)


def _span(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    names, sizes = max(len(r[0]) for r in rows), max(len(r[1]) for r in rows)
    return [f"  {n:<{names}}  {s:>{sizes}}  {why}".rstrip() for n, s, why in rows]
