"""`qvl launch MODEL`: the command that starts an engine, each flag with its reason, checked before it is run."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qvl.catalog.devices import parse_hardware
from qvl.catalog.models import config_of, resolve
from qvl.catalog.precisions import by_loss
from qvl.cli.options import JsonOption, command, option
from qvl.cli.workload import (
    ConfigOption,
    EagerOption,
    ExpertParallelOption,
    KvDtypeOption,
    ModelArgument,
    UtilizationOption,
    WorkloadOptions,
    check_named,
)
from qvl.errors import PlanError
from qvl.plan.launch import ROOM_FOR_THOUGHTS, WRITERS, LaunchRequest, plan_launch, thinks
from qvl.plan.launch.formats import FORMATS, format_launch
from qvl.plan.workload import Image
from qvl.records import pick

if TYPE_CHECKING:
    from qvl.plan.launch import Launch


@dataclass(frozen=True)
class LaunchWorkload(WorkloadOptions):
    answer_tokens: int = option(
        0, "Tokens of its answer, thoughts included (default: 1024, of a model that thinks 8192)."
    )
    concurrency: int = option(8, "Requests at once, over all replicas.")


@dataclass(frozen=True)
class EngineOptions:
    """How the engine is started, by the names of `LaunchRequest`."""

    engine: str = option("vllm", f"The engine: {', '.join(WRITERS)}; @VERSION may follow.")
    precision: str = option("", f"The weights: {', '.join(by_loss())} (default: bf16, or those named).")
    tensor_parallel_size: int | None = option(
        None, "GPUs of one replica (default: chosen by memory and speed)."
    )
    expert_parallel: ExpertParallelOption = False
    max_model_len: int | None = option(
        None, "The longest prompt and answer in tokens (default: as the workload needs)."
    )
    gpu_memory_utilization: UtilizationOption = 0.9
    kv_dtype: KvDtypeOption = "auto"
    enforce_eager: EagerOption = False


@dataclass(frozen=True)
class AddressOptions:
    """Where it listens, and which media it may read."""

    host: str = option("127.0.0.1", "The address to listen on.")
    port: int = option(8000, "The port to listen on.")
    media_domain: list[str] | None = option(
        None, "A host that requests may load media from (repeatable; default: none)."
    )
    media_path: str = option("", "A folder that requests may load files from (default: none).")


@command
def run(
    work: LaunchWorkload,
    engine: EngineOptions,
    address: AddressOptions,
    model: ModelArgument = "",
    gpu: str = option("", "The hardware, such as 2xl40s; there is no default.", metavar="NAME|COUNTxNAME"),
    text_only: bool = option(
        False, "Plan without images, so that the vision tower isn't loaded.", "--text-only"
    ),
    config: ConfigOption = "",
    source: str = option("", "The folder or hub id to load (default: the published weights)."),
    form: str = option("shell", "The output format: shell, compose, kubernetes or ray.", "--format"),
    as_json: JsonOption = False,
) -> None:
    """Write a checked command that starts an engine, with a reason for each flag."""
    if form not in FORMATS:
        raise PlanError(f"no format {form!r}; known: {', '.join(FORMATS)}")
    check_named(model, config)
    if not gpu:
        raise PlanError("give --gpu NAME or COUNTxNAME, such as --gpu 2xl40s")
    images = work.images
    if text_only and (images or work.video):
        raise PlanError(
            f"--text-only and {'--image' if images else '--video'} contradict each other: drop one"
        )
    if not images and not work.videos and not text_only:
        images = (Image(1240, 1754),)  # one A4 page at 150 dpi
        print("qvl launch: planned for one 1240x1754 image a request; --image, --video or --text-only say otherwise",
              file=sys.stderr)  # fmt: skip
    known: dict[str, Any]
    if config:
        from qvl.checkpoint.checkpoint import local_checkpoint  # not for a start without --config

        opened = local_checkpoint(config)
        known = {"config": opened.config, "source": source or str(opened.folder)}
    else:
        found, checkpoint = resolve(model)
        if found.hosted:
            raise PlanError(f"{found.name} is hosted: there are no weights to start; see `qvl cost`")
        known = {"config": config_of(found), "model": found, "checkpoint": checkpoint, "source": source}
    if work.answer_tokens == 0:
        room = ROOM_FOR_THOUGHTS if thinks(known["config"], known.get("model")) else 1024
        work = replace(work, answer_tokens=room)
    launch = plan_launch(
        LaunchRequest(
            **known,
            hardware=parse_hardware(gpu),
            **vars(engine),
            workload=work.workload(images),
            host=address.host,
            port=address.port,
            media_domains=tuple(address.media_domain or ()),
            media_path=address.media_path,
        )
    )
    if as_json:
        print(json.dumps(as_dict(launch, form), indent=1))
    else:
        print(format_launch(launch, form), end="")


def as_dict(launch: Launch, form: str) -> dict[str, Any]:
    """For programs: the words to execute, the environment, every reason, and the text of the format."""
    return pick(
        launch,
        "model=name", "weights=model", "precision", "engine=engine.name", "version", "gpu=hardware.name",
        "gpus_per_replica", "replicas", "command", "notes", "warnings",
        environment={v.name: v.value for v in launch.environment},
        flags=[pick(f, "name", "value", "reason") for f in launch.flags],
        format=form,
        text=format_launch(launch, form),
    )  # fmt: skip
