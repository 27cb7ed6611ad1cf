"""`qvl launch MODEL`: the command that starts an engine, each flag with its reason, checked before it is run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qvl.plan.launch import Launch


def run(
    model: Annotated[str, typer.Argument(help="a name of `qvl models`; leave out with --config")] = "",
    gpu: Annotated[str, typer.Option(help="NAME or COUNTxNAME, such as 2xl40s")] = "",
    engine: Annotated[str, typer.Option(help="vllm, sglang, llama.cpp, qvl; @VERSION may follow")] = "vllm",
    precision: Annotated[
        str, typer.Option(help="bf16, fp8, int8, int4, awq, gptq-int8, gptq-int4; bf16 if left out")
    ] = "",
    image: Annotated[list[str] | None, typer.Option(help="WxH or WxHxCOUNT in a request, repeatable")] = None,
    video: Annotated[list[str] | None, typer.Option(help="SECONDS@FPS in a request, repeatable")] = None,
    video_size: Annotated[str, typer.Option(help="WxH of the clips")] = "1280x720",
    text_only: Annotated[bool, typer.Option("--text-only", help="no pictures: the tower stays out")] = False,
    prompt_tokens: Annotated[int, typer.Option(help="tokens of text in a request")] = 256,
    answer_tokens: Annotated[int, typer.Option(help="tokens of its answer")] = 1024,
    concurrency: Annotated[int, typer.Option(help="requests at once, over all copies")] = 8,
    min_pixels: Annotated[int | None, typer.Option(help="smallest area a picture is enlarged to")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="largest area a picture keeps")] = None,
    tensor_parallel_size: Annotated[
        int | None, typer.Option(help="GPUs of one copy; chosen if left out")
    ] = None,
    expert_parallel: Annotated[bool, typer.Option("--expert-parallel", help="deal experts whole")] = False,
    max_model_len: Annotated[int | None, typer.Option(help="tokens; as the work needs if left out")] = None,
    gpu_memory_utilization: Annotated[float, typer.Option(help="share of the card that vLLM takes")] = 0.9,
    kv_dtype: Annotated[str, typer.Option(help="auto (16 bits), fp8, q8_0")] = "auto",
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="vllm: no CUDA graphs")] = False,
    config: Annotated[str, typer.Option(help="a local config.json (or its folder) instead of MODEL")] = "",
    source: Annotated[
        str, typer.Option(help="folder or hub id to load instead of the published weights")
    ] = "",
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 8000,
    media_domain: Annotated[
        list[str] | None, typer.Option(help="host that requests may name, repeatable")
    ] = None,
    media_path: Annotated[str, typer.Option(help="folder whose files requests may name")] = "",
    form: Annotated[str, typer.Option("--format", help="shell, compose, kubernetes, ray")] = "shell",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """A checked command that starts an engine, each flag with its reason."""
    from qvl.catalog.devices import parse_hardware
    from qvl.errors import PlanError
    from qvl.plan.launch import LaunchRequest, plan_launch
    from qvl.plan.launch.formats import FORMATS, format_launch
    from qvl.plan.workload import Image, Workload, parse_image, parse_videos

    if form not in FORMATS:
        raise PlanError(f"no format {form!r}; known: {', '.join(FORMATS)}")
    if bool(model) == bool(config):
        raise PlanError(
            f"both {model} and --config: give one"
            if model
            else "name one model, or give --config config.json"
        )
    if not gpu:
        raise PlanError("give --gpu NAME or COUNTxNAME, such as --gpu 2xl40s")
    if text_only and (image or video):
        raise PlanError(
            f"--text-only and {'--image' if image else '--video'} contradict each other: drop one"
        )
    images = tuple(parse_image(i) for i in image or ())
    clips = parse_videos(video or (), video_size)
    if not images and not clips and not text_only:
        images = (Image(1240, 1754),)  # one A4 page at 150 dpi
        print("qvl launch: planned for one 1240x1754 picture a request; --image, --video or --text-only say otherwise",
              file=sys.stderr)  # fmt: skip
    known: dict[str, Any]
    if config:
        from qvl.checkpoint.checkpoint import local_checkpoint

        opened = local_checkpoint(config)
        known = {"config": opened.config, "source": source or str(opened.folder)}
    else:
        from qvl.catalog.models import config_of, resolve

        found, checkpoint = resolve(model)
        if found.hosted:
            raise PlanError(f"{found.name} is hosted: there are no weights to start; see `qvl cost`")
        known = {"config": config_of(found), "model": found, "checkpoint": checkpoint, "source": source}
    launch = plan_launch(
        LaunchRequest(
            **known,
            hardware=parse_hardware(gpu),
            engine=engine,
            precision=precision,
            workload=Workload(
                images=images,
                videos=clips,
                prompt_tokens=prompt_tokens,
                answer_tokens=answer_tokens,
                concurrency=concurrency,
                min_pixels=min_pixels,
                max_pixels=max_pixels,
            ),
            tensor_parallel_size=tensor_parallel_size,
            expert_parallel=expert_parallel,
            max_model_len=max_model_len,
            gpu_memory_utilization=gpu_memory_utilization,
            kv_dtype=kv_dtype,
            enforce_eager=enforce_eager,
            host=host,
            port=port,
            media_domains=tuple(media_domain or ()),
            media_path=media_path,
        )
    )
    if as_json:
        import json

        print(json.dumps(as_dict(launch, form), indent=1))
    else:
        print(format_launch(launch, form), end="")


def as_dict(launch: Launch, form: str) -> dict[str, Any]:
    """For programs: the words to execute, the environment, every reason, and the text of the format."""
    from qvl.plan.launch.formats import format_launch

    return {
        "model": launch.name,
        "weights": launch.model,
        "precision": launch.precision,
        "engine": launch.engine.name,
        "version": launch.version,
        "gpu": launch.hardware.name,
        "gpus_per_replica": launch.gpus_per_replica,
        "replicas": launch.replicas,
        "command": list(launch.command),
        "environment": {v.name: v.value for v in launch.environment},
        "flags": [{"name": f.name, "value": f.value, "reason": f.reason} for f in launch.flags],
        "notes": list(launch.notes),
        "warnings": list(launch.warnings),
        "format": form,
        "text": format_launch(launch, form),
    }
