"""Runs the probes one after the other and sums up."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from qvl.doctor import answers, consistency, places, safety, sight, text, times, tokens
from qvl.doctor.causes import CAUSES
from qvl.doctor.patient import Patient
from qvl.doctor.probe import Finding, Probe, Status, failed, not_supported
from qvl.errors import BackendError, MediaError, PromptError, QvlError, nearest

# In this order they are run and shown: what is cheap and telling comes first.
PROBES: tuple[Probe, ...] = (
    *tokens.PROBES,
    *sight.PROBES,
    *times.PROBES,
    *text.PROBES,
    *consistency.PROBES,
    *safety.PROBES,
    *answers.PROBES,
    *places.PROBES,
)
THEMES = tuple(dict.fromkeys(probe.theme for probe in PROBES))
LEVELS = tuple(dict.fromkeys(probe.level for probe in PROBES))


@dataclass(frozen=True, eq=False)
class Result:
    probe: Probe
    finding: Finding
    seconds: float


@dataclass(frozen=True, eq=False)
class Report:
    """`standard` names what answers were compared with."""

    model: str
    family: str | None
    seed: int
    standard: str | None
    made: str
    versions: str
    num_asked: int
    seconds: float
    has_logprobs: bool
    results: tuple[Result, ...]

    @property
    def failed(self) -> tuple[Result, ...]:
        return tuple(r for r in self.results if r.finding.status == "failed")

    @property
    def ok(self) -> bool:
        return not self.failed

    def count(self, status: Status) -> int:
        return sum(r.finding.status == status for r in self.results)

    @property
    def counts(self) -> str:
        named: tuple[Status, ...] = ("passed", "failed", "measured", "not supported")
        return ", ".join(f"{self.count(s)} {s}" for s in named if self.count(s))

    @property
    def causes(self) -> tuple[str, ...]:
        """Keys of the causes that failed probes name, most named first."""
        named = [cause for r in self.failed for cause in r.probe.causes]
        return tuple(sorted(dict.fromkeys(named), key=lambda cause: -named.count(cause)))

    def to_dict(self) -> dict[str, Any]:
        """For JSON; pictures are left to the HTML report."""
        head = {k: v for k, v in vars(self).items() if k != "results"}
        probes = [
            {
                "name": r.probe.name,
                "theme": r.probe.theme,
                "level": r.probe.level,
                "shows": r.probe.shows,
                "status": r.finding.status,
                "evidence": r.finding.evidence,
                "numbers": dict(r.finding.numbers),
                "seconds": round(r.seconds, 3),
                "causes": [cause_text(c) for c in r.probe.causes] if r.finding.status == "failed" else [],
            }
            for r in self.results
        ]
        named: tuple[Status, ...] = ("passed", "failed", "measured", "not supported")
        return {**head, "ok": self.ok, "counts": {s: self.count(s) for s in named}, "probes": probes}


def cause_text(key: str) -> str:
    """A cause with its threads, the date they were read, and what to do."""
    cause = CAUSES[key]
    where = f" ({'; '.join(cause.where)}; read {cause.read})" if cause.where else ""
    return f"{cause.what}{where}" + (f". {cause.do[0].upper()}{cause.do[1:]}" if cause.do else "") + "."


def chosen(only: Collection[str] = (), skip: Collection[str] = ()) -> tuple[Probe, ...]:
    """Probes by name, theme or level. Raises: PromptError for a word that is none of them, or when none are left."""
    known = [*THEMES, *LEVELS, *(p.name for p in PROBES)]
    for word in (*only, *skip):
        if word not in known:
            raise PromptError(f"no probe, theme or level {word!r}; {nearest(word, known)}")

    def named(probe: Probe, words: Collection[str]) -> bool:
        return any(word in (probe.name, probe.theme, probe.level) for word in words)

    left = tuple(p for p in PROBES if (not only or named(p, only)) and not named(p, skip))
    if not left:
        raise PromptError("no probe is left: --skip takes away all that --only names")
    return left


def examine(
    patient: Patient,
    probes: Iterable[Probe] = PROBES,
    on_result: Callable[[Result], object] | None = None,
) -> Report:
    """Runs the probes. A probe that the endpoint can't take is "not supported"; one that it breaks on has failed.

    Raises: BackendError when the server is gone (it can't be reached, or refuses the key) in the middle.
    """
    began = time.perf_counter()
    results = []
    for probe in probes:
        start = time.perf_counter()
        result = Result(probe, _find(probe, patient), time.perf_counter() - start)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return Report(
        model=patient.name,
        family=patient.family,
        seed=patient.seed,
        standard=patient.standard.title if patient.standard else None,
        made=time.strftime("%Y-%m-%d %H:%M"),
        versions=_versions(),
        num_asked=patient.num_asked,
        seconds=round(time.perf_counter() - began, 2),
        has_logprobs=patient.has_logprobs,
        results=tuple(results),
    )


def _find(probe: Probe, patient: Patient) -> Finding:
    try:
        return probe.run(patient)
    except BackendError as e:
        if e.status in (401, 403):
            raise
        if e.status in (400, 404, 413, 415, 422, 501):
            return not_supported(f"refused: {e}")
        return failed(f"the endpoint broke: {e}")
    except (PromptError, MediaError) as e:
        return not_supported(f"{e}")
    except QvlError as e:
        return not_supported(f"{e}")


def _versions() -> str:
    from qvl import __version__

    return f"qvl {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
