"""A planned launch as text: shell, Docker Compose, Kubernetes or Ray Serve. Each flag keeps its reason as a comment.

Strings are written as JSON strings, which YAML reads the same way, so no value can change its meaning.
Source: Compose Specification; Kubernetes apps/v1, v1; NVIDIA GPU feature discovery; Ray Serve LLM's build_openai_app.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from qvl.errors import PlanError
from qvl.plan.engines import ENGINES
from qvl.plan.launch import Flag, Launch
from qvl.plan.templates import render
from qvl.units import GiB

MODELS = "/models"  # where weights lie in a container; HF_HOME leads downloads there


def to_shell(launch: Launch) -> str:
    """Comments with the reasons, then one command; it can be pasted as it is."""
    named = [(v.name, v.reason) for v in launch.environment]
    named += [(" ".join(f.words), f.reason) for f in launch.flags]
    width = min(48, max(len(name) for name, _ in named))
    lines = [" ".join(f"# {name:<{width}}  {reason}".splitlines()) for name, reason in named]
    words = [f"{v.name}={shlex.quote(v.value)}" for v in launch.environment]
    words += [shlex.join(launch.program)]
    words += [shlex.join(group) for group in _groups(launch)]
    return "\n".join([*_head(launch), *lines, "", " \\\n  ".join(words), ""])


def to_compose(launch: Launch) -> str:
    """One service. The port is published to this machine only unless --host says otherwise."""
    return _filled("compose", launch, image=_image(launch), flags=_in_container(launch))


def to_kubernetes(launch: Launch) -> str:
    """A Deployment with one pod a copy, a Service inside the cluster, and a claim for the weights."""
    return _filled(
        "kubernetes",
        launch,
        image=_image(launch),
        flags=_in_container(launch),
        # twice the weights: a download is written beside the old revision
        storage=max(20, ceil(2 * launch.weight_bytes / GiB / 10) * 10),
        labels=f"app.kubernetes.io/name: {json.dumps(_label(launch))}",
    )


def to_ray(launch: Launch) -> str:
    """A Ray Serve application (`serve deploy FILE`): copies are replicas, placed on any node with the GPUs.

    Raises: PlanError for engines that Ray Serve does not run.
    """
    if not ENGINES[launch.engine.name].ray:
        raise PlanError(
            f"Ray Serve runs vLLM here, not {launch.engine.name}: --engine vllm, or another --format"
        )
    outside = ("--host", "--port", "--allowed-media-domains")
    # further names of the list of hosts are flags without dashes
    named = [f for f in launch.flags if f.name.startswith("--")]
    hosts = [f.name for f in launch.flags if not f.name.startswith("--")]
    domains = launch.flag("--allowed-media-domains")
    settings = [
        (f.name[2:].replace("-", "_"), _engine_value(f), f.reason)
        for f in named
        if not f.copies_only and f.name not in outside
    ]
    return _filled("ray", launch, settings=settings, domains=[] if domains is None else [domains, *hosts])


FORMATS: Mapping[str, Callable[[Launch], str]] = {
    "shell": to_shell,
    "compose": to_compose,
    "kubernetes": to_kubernetes,
    "ray": to_ray,
}


def format_launch(launch: Launch, name: str) -> str:
    """The launch in one of FORMATS.

    Raises: PlanError for an unknown format.
    """
    if name not in FORMATS:
        raise PlanError(f"no format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name](launch)


# Parts


def _filled(name: str, launch: Launch, **values: Any) -> str:
    template = Path(__file__).parent / "templates" / f"{name}.jinja"
    head = "\n".join(_head(launch))
    return render(template, launch=launch, head=head, label=_label(launch), models=MODELS, **values)


def _label(launch: Launch) -> str:
    """A name that Kubernetes, Compose and Ray accept: lower case, digits and dashes, at most 40 of them."""
    plain = re.sub(r"[^a-z0-9]+", "-", launch.name.lower().rpartition("/")[2]).strip("-")
    return (plain if plain[:1].isalpha() else f"model-{plain}")[:40].strip("-")


def _head(launch: Launch) -> list[str]:
    version = f" {launch.version}" if launch.version else ""
    copies = f"{launch.replicas} copies of {launch.gpus_per_replica} GPU(s)" if launch.replicas > 1 else ""
    what = f"# {launch.model} ({launch.precision}) on {launch.engine.name}{version}, {launch.hardware.name}"
    lines = [what + (f": {copies}" if copies else "")]
    lines += [f"# note: {n}" for n in launch.notes]
    lines += [f"# WARNING: {w}" for w in launch.warnings]
    return [" ".join(line.splitlines()) for line in lines]  # a comment ends where the line does


def _groups(launch: Launch) -> list[tuple[str, ...]]:
    """Flags with their values; further values of a list stay with their flag."""
    found: list[tuple[str, ...]] = []
    for f in launch.flags:
        if f.name.startswith("-"):
            found.append(f.words)
        else:
            found[-1] += f.words
    return found


def _image(launch: Launch) -> str:
    image = launch.engine.container(launch.version)
    device = launch.hardware.device
    if device.kind == "gpu" and not device.compute_capability:
        raise PlanError(f"no container recipe for {device.title} here: --format shell")
    if not image:
        raise PlanError(f"no container image of {launch.engine.name} is published: --format shell")
    return image


def _in_container(launch: Launch) -> list[Flag]:
    """Inside a container the engine must listen on every address; the outside decides who reaches it."""
    return [
        replace(f, value="0.0.0.0", reason="inside the container; the published port decides who reaches it")
        if f.name == "--host"
        else f
        for f in launch.flags
    ]


def _engine_value(flag: Flag) -> str:
    if flag.value is None:
        return "true"
    if re.fullmatch(
        r"\w+=\d+(,\w+=\d+)*", flag.value
    ):  # the old spelling is a command line's; here it is a dict
        pairs = (part.split("=") for part in flag.value.split(","))
        return json.dumps({key: int(count) for key, count in pairs})
    try:
        json.loads(flag.value)
    except ValueError:
        return json.dumps(flag.value, ensure_ascii=False)
    return flag.value  # numbers and JSON objects are YAML already


__all__ = ["FORMATS", "format_launch", "to_compose", "to_kubernetes", "to_ray", "to_shell"]
