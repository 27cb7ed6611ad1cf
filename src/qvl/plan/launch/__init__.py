"""From a plan to the command that starts an engine: every flag with its reason, and refusals before a GPU is paid for.

`plan_launch` chooses weights, version, cut and copies with the same functions that `fit` uses; the file of each
engine then writes its flags. Nothing is started here; `launch.formats` turns the result into shell, compose,
Kubernetes or Ray text.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qvl.catalog.engines import find_engine
from qvl.plan.engines import ENGINES
from qvl.plan.launch.place import place
from qvl.plan.launch.request import Flag, Launch, LaunchRequest, Variable
from qvl.plan.launch.weights import check_version, regression_warnings, weights_for
from qvl.plan.launch.writer import NO_HOST, FlagWriter
from qvl.plan.memory import weight_bytes

if TYPE_CHECKING:
    from qvl.catalog.config import ModelConfig
    from qvl.catalog.models import Model

__all__ = ["NO_HOST", "WRITERS", "Flag", "Launch", "LaunchRequest", "Variable", "plan_launch"]

# engine → who writes its flags; only the one in use is imported
WRITERS = {e.name: e.flags for e in ENGINES.values() if e.flags}


# Tokens for thoughts and answer together where no number is given; 1,024 are for an answer alone.
ROOM_FOR_THOUGHTS = 8192


def thinks(config: ModelConfig, model: Model | None) -> bool:
    """Whether it thinks before it answers unless it is told not to."""
    return bool(config.generation.reasoning_parser) or (model is not None and model.variant == "thinking")


def _of_thoughts(request: LaunchRequest) -> tuple[list[str], list[str]]:
    """(notes, warnings) on a model that thinks: where its thoughts count, and how to do without."""
    if not thinks(request.config, request.model):
        return [], []
    tokens = request.workload.answer_tokens
    off = (
        'switch them off with "chat_template_kwargs": {"enable_thinking": false} in a request'
        if request.config.generation.reasoning_parser
        else "the Instruct variant answers without"
    )
    notes = [f"it thinks before it answers: {tokens:,} tokens hold thoughts and answer together; {off}"]
    if tokens >= ROOM_FOR_THOUGHTS // 2:
        return notes, []
    return notes, [
        f"{tokens:,} answer tokens leave thoughts no room, answers would be cut: give --answer-tokens "
        f"{ROOM_FOR_THOUGHTS}, or switch thinking off"
    ]


def plan_launch(request: LaunchRequest) -> Launch:
    """Chooses, checks and writes.

    Raises: PlanError for an illegal combination, with the nearest legal one; CapacityError when the work
    does not fit, with the smallest change that makes it.
    """
    engine, version = find_engine(request.engine)
    check_version(request, engine, version)
    weights = weights_for(request, engine)
    warnings = regression_warnings(request, engine, version, weights.checkpoint) if version else ()
    fit, replicas = place(request, engine, version, weights.precision)
    setup = fit.setup
    module, _, name = ENGINES[engine.name].flags.partition(":")
    writer: FlagWriter = getattr(import_module(module), name)(
        request, engine, version, setup, replicas, weights
    )
    writer.write()
    notes, doubts = _of_thoughts(request)
    return Launch(
        engine=engine,
        version=version,
        program=writer.command,
        model=weights.source,
        name=request.model.name if request.model else weights.source,
        flags=tuple(writer.flags),
        environment=tuple(writer.environment),
        gpus_per_replica=setup.gpus,
        replicas=replicas,
        precision=setup.precision,
        weight_bytes=weight_bytes(request.config, "bf16" if weights.in_flight else setup.precision).total,
        hardware=request.hardware,
        workload=request.workload,
        plan=fit,
        host=request.host,
        port=request.port,
        media_path=request.media_path,
        notes=tuple(dict.fromkeys([*weights.notes, *setup.notes, *writer.notes, *notes])),
        warnings=tuple(dict.fromkeys([*warnings, *weights.warnings, *writer.warnings, *doubts])),
    )
