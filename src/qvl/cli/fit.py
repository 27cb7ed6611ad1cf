"""`qvl fit MODEL`: memory term by term, verdict and speed bounds for your pictures on your hardware."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qvl.plan.fit import FitResult
    from qvl.plan.setup import GpuTerms


def run(
    model: Annotated[str, typer.Argument(help="a name of `qvl models`; leave out with --config")] = "",
    engine: Annotated[
        str,
        typer.Option(
            help="qvl, transformers, vllm, llama.cpp, train-full, train-lora, train-qlora; @VERSION may follow"
        ),
    ] = "vllm",
    precision: Annotated[
        str,
        typer.Option(
            help="bf16, fp8, int8, int4, awq, gptq-int8, gptq-int4; as the checkpoint is stored if left out"
        ),
    ] = "",
    prompt_tokens: Annotated[int, typer.Option(help="tokens of text in a request")] = 256,
    answer_tokens: Annotated[int, typer.Option(help="tokens of its answer")] = 256,
    image: Annotated[list[str] | None, typer.Option(help="WxH or WxHxCOUNT, again for other sizes")] = None,
    video: Annotated[list[str] | None, typer.Option(help="SECONDS@FPS, again for other clips")] = None,
    video_size: Annotated[str, typer.Option(help="WxH of the clips")] = "1280x720",
    concurrency: Annotated[
        int, typer.Option(help="requests at once; for training, the batch of one GPU")
    ] = 1,
    gpu: Annotated[str, typer.Option(help="NAME or COUNTxNAME; without it only bytes are told")] = "",
    min_pixels: Annotated[int | None, typer.Option(help="smallest area a picture is enlarged to")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="largest area a picture keeps")] = None,
    kv_dtype: Annotated[str, typer.Option(help="auto (16 bits), fp8; llama.cpp: q8_0")] = "auto",
    config: Annotated[str, typer.Option(help="a local config.json (or its folder) instead of MODEL")] = "",
    flash_attention: Annotated[
        bool | None,
        typer.Option("--flash-attention/--no-flash-attention", help="as the device has it if left out"),
    ] = None,
    gpu_memory_utilization: Annotated[float, typer.Option(help="vllm: share of the card")] = 0.9,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(help="vllm, qvl: tokens of a prefill step")
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="vllm: widest batch it prepares for")] = None,
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="vllm: no CUDA graphs")] = False,
    default_limits: Annotated[
        bool,
        typer.Option("--default-limits/--limit-media", help="vllm started without --limit-mm-per-prompt"),
    ] = False,
    expert_parallel: Annotated[
        bool, typer.Option("--expert-parallel", help="vllm: deal experts whole")
    ] = False,
    lora_rank: Annotated[int, typer.Option(help="train-lora, train-qlora")] = 8,
    train_vision: Annotated[bool, typer.Option("--train-vision", help="train the tower too")] = False,
    sharding: Annotated[str, typer.Option(help="copies, zero2, zero3, tensor, layers")] = "copies",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing/--no-checkpointing", help="recompute activations")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Memory and speed of a model for your pictures on your hardware."""
    from typing import get_args

    from qvl.catalog.devices import parse_hardware
    from qvl.errors import PlanError
    from qvl.plan.fit import fit
    from qvl.plan.request import FitRequest, Sharding, Training
    from qvl.plan.resolve import request_for
    from qvl.plan.workload import Workload, parse_image, parse_videos

    if bool(model) == bool(config):
        raise PlanError(
            "name one model, or give --config config.json" if not model else f"both {model} and --config"
        )
    if sharding not in get_args(Sharding):
        raise PlanError(f"no sharding {sharding!r}; known: {', '.join(get_args(Sharding))}")
    clips = parse_videos(video or (), video_size)
    work = Workload(
        images=tuple(parse_image(i) for i in image or ()),
        videos=clips,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        concurrency=concurrency,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
    )
    fields = dict(
        workload=work,
        engine=engine,
        precision=precision,
        hardware=parse_hardware(gpu) if gpu else None,
        kv_dtype=kv_dtype,
        flash_attention=flash_attention,
        gpu_memory_utilization=gpu_memory_utilization,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        enforce_eager=enforce_eager,
        default_limits=default_limits,
        expert_parallel=expert_parallel,
        training=Training(
            lora_rank=lora_rank,
            train_vision=train_vision,
            sharding=sharding,  # type: ignore[arg-type]
            checkpoint_language=checkpointing,
            checkpoint_vision=checkpointing,
        ),
    )
    if config:
        from qvl.checkpoint.checkpoint import local_checkpoint

        request = FitRequest(config=local_checkpoint(config).config, name=config, **fields)  # type: ignore[arg-type]
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
    from qvl.catalog.models import resolve

    checkpoint = resolve(model)[1] if model else None
    return checkpoint is not None and checkpoint.precision != "bf16"


def describe(result: FitResult) -> str:
    """The verdict first, then every term with its formula, then speed and what would make it fit."""
    from qvl.units import format_bytes, format_seconds

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
            ("first token", format_seconds(s.ttft_s), "pictures and prompt of a request alone"),
            ("pictures", format_seconds(s.vision.seconds), f"{s.vision.formula}; limit: {s.vision.limit}"),
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
