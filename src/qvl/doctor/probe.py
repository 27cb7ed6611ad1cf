"""What a probe is and what it finds. Themes are one file each; `run.PROBES` lists them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from qvl import moved
from qvl.doctor.endpoint import EndpointUnderTest

# measured: a number with nothing to hold it against; not supported: the endpoint gives nothing to tell by
Status = Literal["passed", "failed", "measured", "not supported"]
# plumbing holds for any weights; same compares with how the same weights answer elsewhere; skill with how well
Level = Literal["plumbing", "same", "skill"]


@dataclass(frozen=True, eq=False)
class EvidenceImage:
    """Evidence to look at."""

    caption: str
    image: Image.Image


@dataclass(frozen=True, eq=False)
class Finding:
    """`evidence` is one or two sentences with the numbers; `numbers` holds them for machines."""

    status: Status
    evidence: str
    numbers: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)
    images: tuple[EvidenceImage, ...] = ()


Run = Callable[["EndpointUnderTest"], Finding]


@dataclass(frozen=True, eq=False)
class Probe:
    """One question to an endpoint. `shows` says what passing proves; `causes` are keys of `causes.CAUSES`."""

    name: str
    theme: str
    level: Level
    shows: str
    run: Run
    causes: tuple[str, ...] = ()


def passed(evidence: str, **numbers: float | int | str | bool | None) -> Finding:
    return Finding("passed", evidence, numbers)


def failed(evidence: str, **numbers: float | int | str | bool | None) -> Finding:
    return Finding("failed", evidence, numbers)


def not_supported(evidence: str, **numbers: float | int | str | bool | None) -> Finding:
    return Finding("not supported", evidence, numbers)


def plumbing(theme: str, *rows: tuple[str, str, Run, *tuple[str, ...]]) -> tuple[Probe, ...]:
    """Probes of one theme that hold for any weights, each row (name, what it shows, run, causes ...)."""
    return tuple(
        Probe(name, theme, "plumbing", shows, run, tuple(causes)) for name, shows, run, *causes in rows
    )


__getattr__ = moved.names(__name__)
