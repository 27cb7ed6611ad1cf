"""Which weights to load, and whether this version of the engine reads them rightly."""

from __future__ import annotations

from dataclasses import dataclass

from qvl.catalog.engines import Engine, parse_version
from qvl.catalog.models import Checkpoint, regressions_of
from qvl.catalog.precisions import PRECISIONS
from qvl.errors import PlanError
from qvl.plan.engines import ENGINES
from qvl.plan.launch.request import LaunchRequest
from qvl.plan.versions import version_problem


@dataclass(frozen=True)
class Weights:
    """What to load. `in_flight`: 16-bit weights that the engine quantises while loading."""

    source: str  # folder, hub id or file
    precision: str  # for the plan; empty means as stored
    in_flight: bool = False
    checkpoint: Checkpoint | None = None  # None: not one that the catalogue lists
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def check_version(request: LaunchRequest, engine: Engine, version: str) -> None:
    """Refuses versions that do not know this generation yet, or no longer."""
    family, numbers = request.config.family, parse_version(version) if version else ()
    name = request.model.name if request.model else family
    problem = version_problem(engine.name, numbers, request.model, name, family)
    if problem and problem.instead:
        more = " or later" if problem.is_first else f" ({problem.source})"
        raise PlanError(f"{problem.why}{more}: --engine {engine.name}@{problem.instead}")
    if problem:
        raise PlanError(f"{problem.why}: use --engine vllm@0.23.0 or --engine qvl")


def regression_warnings(
    request: LaunchRequest, engine: Engine, version: str, checkpoint: Checkpoint | None
) -> tuple[str, ...]:
    """Warnings; refuses versions that are known to be wrong for this generation or these weights."""
    warnings = []
    for r in regressions_of(engine.name, request.config.family):
        if not r.is_of(version):
            continue
        if r.third_party_only and (checkpoint is None or checkpoint.official):
            continue
        text = f"{engine.name} {version}: {r.what} ({r.note}); use {r.escape}"
        if not r.warn_only:
            raise PlanError(text)
        warnings.append(text)
    return tuple(warnings)


def weights_for(request: LaunchRequest, engine: Engine) -> Weights:
    """The published weights that the request means, or its own `source`.

    Raises: PlanError for a precision that isn't published, or that contradicts the checkpoint named.
    """
    asked = request.precision
    record = ENGINES[engine.name]
    if record.converts:
        asked = asked or "int4"
        if asked not in record.converts:
            raise PlanError(f"{engine.name} does not take {asked}; it takes {', '.join(record.converts)}")
        if request.checkpoint and request.checkpoint.precision != "bf16":
            raise PlanError(
                f"{engine.name} reads GGUF files, {request.checkpoint.hub_id} is {request.checkpoint.precision}: "
                "name the model itself, --precision int4 or int8 says which file"
            )
        if request.source.endswith(".gguf"):
            return Weights(request.source, asked)
        base = request.source or (request.model.name if request.model else "model")
        return Weights(f"{base}-{record.converts[asked]}.gguf", asked)
    if request.source:
        return Weights(request.source, asked)
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
        wanted = (asked or "bf16", *(PRECISIONS[asked].published_as if asked in PRECISIONS else ()))
        found = [c for p in wanted for c in model.checkpoints if c.precision == p]
        if not found and asked in record.quantizes_on_load:
            note = "no FP8 weights are published: vLLM quantises the 16-bit ones while loading"
            return Weights(model.hub_id, "fp8", in_flight=True, notes=(note,))
        if not found:
            if asked not in PRECISIONS:
                raise PlanError(f"no precision {asked!r}; known: {', '.join(PRECISIONS)}")
            known = ", ".join(dict.fromkeys(c.precision for c in model.checkpoints))
            raise PlanError(
                f"{model.name} is not published in {asked}; it is in {known}. "
                "Other weights: --source FOLDER_OR_HUB_ID"
            )
        chosen = found[0]
    notes, warnings = [], []
    if asked and chosen.precision != asked:
        notes.append(f"{asked} is published as {chosen.precision}: {chosen.hub_id}")
    if not chosen.official:
        notes.append(f"{chosen.hub_id} is not Qwen's own: check it on your images")
    if not chosen.verified:
        warnings.append(f"that {chosen.hub_id} exists was not confirmed here")
    precision = "fp16" if asked == "fp16" else chosen.precision
    return Weights(chosen.hub_id, precision, False, chosen, tuple(notes), tuple(warnings))
