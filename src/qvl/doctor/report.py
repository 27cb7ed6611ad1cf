"""What probes found, summed up: for a table, for JSON and for one HTML page that needs nothing else."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, StrictUndefined
from PIL import Image

from qvl.doctor.causes import CAUSES
from qvl.doctor.probe import Finding, Probe, Status
from qvl.errors import QvlError
from qvl.records import as_printable, pick

STATUSES: tuple[Status, ...] = get_args(Status)
WIDEST = 640  # pixels a side; larger evidence is shrunk


@dataclass(frozen=True, eq=False)
class Result:
    probe: Probe
    finding: Finding
    seconds: float


@dataclass(frozen=True, eq=False)
class Report:
    """`compared_with` names the expected answers; `title` heads the page."""

    model: str
    family: str | None
    seed: int
    compared_with: str | None
    made: str
    versions: str
    num_asked: int
    seconds: float
    has_logprobs: bool
    results: tuple[Result, ...]
    title: str = "qvl doctor"
    stopped: str | None = None  # why not all probes were run

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
        return ", ".join(f"{self.count(s)} {s}" for s in STATUSES if self.count(s))

    @property
    def themes(self) -> dict[str, list[Result]]:
        """Results by theme, in the order in which they were found."""
        themes: dict[str, list[Result]] = {}
        for result in self.results:
            themes.setdefault(result.probe.theme, []).append(result)
        return themes

    @property
    def causes(self) -> tuple[str, ...]:
        """Keys of the causes that failed probes name, most named first."""
        named = [cause for r in self.failed for cause in r.probe.causes]
        return tuple(sorted(dict.fromkeys(named), key=lambda cause: -named.count(cause)))

    def to_dict(self) -> dict[str, Any]:
        """For JSON; images are left to the HTML report."""
        probes = [
            pick(
                r,
                "name=probe.name", "theme=probe.theme", "level=probe.level", "shows=probe.shows",
                "status=finding.status", "evidence=finding.evidence",
                numbers=dict(r.finding.numbers),
                seconds=round(r.seconds, 3),
                causes=[cause_text(c) for c in r.probe.causes] if r.finding.status == "failed" else [],
            )
            for r in self.results
        ]  # fmt: skip
        names = {"compared_with": "standard"}  # the key keeps the name that scripts read
        head = {names.get(k, k): v for k, v in vars(self).items() if k not in ("results", "title", "stopped")}
        return {**head, "ok": self.ok, "counts": {s: self.count(s) for s in STATUSES}, "probes": probes}


def cause_text(key: str) -> str:
    """A cause with its threads, the date they were read, and what to do."""
    cause = CAUSES[key]
    where = f" ({'; '.join(cause.where)}; read {cause.read})" if cause.where else ""
    return f"{cause.what}{where}" + (f". {cause.do[0].upper()}{cause.do[1:]}" if cause.do else "") + "."


def to_html(report: Report) -> str:
    """Everything that models and servers said is escaped."""
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=as_printable)
    return environment.from_string(template).render(report=report, cause_text=cause_text, data_url=data_url)


def data_url(image: Image.Image) -> str:
    shown = image.convert("RGB")
    shown.thumbnail((WIDEST, WIDEST))
    out = BytesIO()
    shown.save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"


def write_html(report: Report, path: str) -> None:
    """Raises: QvlError when the file can't be written."""
    try:
        Path(path).write_text(to_html(report), encoding="utf-8")
    except OSError as e:
        raise QvlError(f"{path}: the report can't be written ({e.strerror or e})") from e
