"""`qvl models`: the family as a list, one model in full, or several side by side; every figure's source in reach."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from qvl.catalog.devices import parse_hardware
from qvl.catalog.figures import Figure
from qvl.catalog.models import Model, Other, config_of, find_model, models, other_named
from qvl.catalog.scores import scores_of
from qvl.cli.models_print import (
    prices_of,
    print_all_sources,
    print_comparison,
    print_list,
    print_model,
    print_sources,
    regressions_of,
)
from qvl.cli.options import JsonOption, command, option
from qvl.cli.tables import console, print_json, table
from qvl.errors import CatalogError, PlanError
from qvl.plan import machine as machines
from qvl.plan.machine import Machine, best_run, machine_of, runs_on
from qvl.records import pick


@command
def run(
    names: Annotated[
        list[str] | None, typer.Argument(help="Models, by name, alias or hub id; without one all are listed.")
    ] = None,
    compare: bool = option(False, "Compare the models side by side.", "--compare"),
    sources: bool = option(False, "Show where each figure comes from.", "--sources"),
    gpu: str = option(
        "", "The hardware of the catalogue to run them on (default: this machine).", metavar="NAME"
    ),
    as_json: JsonOption = False,
) -> None:
    """Models of the Qwen-VL family: shapes, licences, abilities, scores, and what this machine can run."""
    if sources and gpu:
        raise CatalogError("--sources and --gpu can't be combined: drop one")
    beside = [] if compare else [o for o in map(other_named, names or ()) if o]
    chosen = [find_model(name) for name in names or () if not (beside and other_named(name))]
    if compare and len(chosen) < 2:
        raise CatalogError(f"--compare needs at least two models, {len(chosen)} given")
    if sources and not as_json and not compare:
        for model in chosen:
            print_sources(model)
        for other in beside:
            print_other(other)
        return None if names else print_all_sources()
    machine = _machine(gpu)
    if as_json:
        listed = chosen or ([] if beside else models())
        found = [model_dict(m) | {"here": here_dict(m, machine)} for m in listed]
        of_other = ("name", "what", "status", "licence", "source=source.title", "date=source.date")
        found += [pick(o, *of_other) for o in beside]
        print_json(found[0] if len(found) == 1 and not compare else found)
    elif compare:
        print_comparison(chosen, machine)
    elif names:
        for model in chosen:
            print_model(model, machine)
        for other in beside:
            print_other(other)
    else:
        print_list(models(), machine)
    return None


def _machine(gpu: str) -> Machine | str:
    """The hardware that is named, or this machine; a word why not where the system tells nothing."""
    if gpu:
        return machine_of(parse_hardware(gpu))
    try:
        return machines.this_machine()
    except PlanError as e:
        return str(e)


def print_other(other: Other) -> None:
    """A name of the wider family: what it is for, and whether qvl runs it."""
    out = console()
    out.print(f"{other.name}  {other.what}", markup=False)
    rows = [("here", other.status), ("read in", f"{other.source.title}, {other.source.date}")]
    rows[1:1] = [("licence", other.licence)] if other.licence else []
    out.print(table(("", ""), rows, whole=(0,)), "")


def figure_dict(f: Figure) -> dict[str, Any]:
    found = pick(f, "value", "source=source.title", "date", "kind", "verified")
    if f.note:
        found["note"] = f.note
    if f.others:
        found |= {"others": [figure_dict(o) for o in f.others], "reason": f.reason}
    return found


def model_dict(model: Model) -> dict[str, Any]:
    """One model with all its figures, for `--json`."""
    checkpoints = [
        pick(c, "hub_id", "precision", "official", "source=source.title", "verified")
        for c in model.checkpoints
    ]
    scores = [
        pick(s, "benchmark=benchmark.name", "variant=benchmark.variant", "metric", "of=model")
        | figure_dict(s.figure)
        for s in scores_of(model.name)
    ]
    prices = [
        pick(p, "name=key", "provider", "currency", "source=source.title", "date", "kind=source.kind",
             per_million_tokens=[asdict(t) for t in p.tiers])
        for p in prices_of(model)
    ]  # fmt: skip
    regressions = [
        pick(r, "engine", "versions", "what", "escape", "threads=note") for r in regressions_of(model)
    ]
    return pick(
        model,
        "name", "title", "family", "variant", "aliases", "hosted",
        hub_id=model.hub_id or None,
        licence=pick(model.licence, "key", "title", "commercial", "permits"),
        figures={name: figure_dict(f) for name, f in model.figures().items()},
        checkpoints=checkpoints,
        config=config_of(model).to_dict() if model.shape else None,
        scores=scores,
        prices=prices,
        regressions=regressions,
    )  # fmt: skip


def here_dict(model: Model, machine: Machine | str) -> dict[str, Any] | None:
    """What the machine runs of it, for `--json`; None for hosted models, which need no machine."""
    if model.hosted:
        return None
    if isinstance(machine, str):
        return {"machine": None, "why": machine}
    found = runs_on(model, machine)
    best = best_run(found)
    return pick(
        machine,
        "machine=title", "free_bytes", "total_bytes",
        speed_as=machine.speed_as or None,
        engine="qvl",
        workload="one 1280x720 image, 256 tokens of text, 256 of answer",
        fits=best is not None if found else None,
        precision=best.checkpoint.precision if best else None,
        runs=[run.to_json() for run in found],
    )  # fmt: skip
