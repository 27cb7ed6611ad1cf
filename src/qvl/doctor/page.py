"""The report as one page that needs nothing else: pictures inside, no script."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from qvl.doctor.run import Report, cause_text
from qvl.errors import QvlError

if TYPE_CHECKING:
    from PIL import Image

WIDEST = 640  # pixels a side; larger evidence is shrunk


def to_html(report: Report) -> str:
    """Everything that models and servers said is escaped."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    themes: dict[str, list[object]] = {}
    for result in report.results:
        themes.setdefault(result.probe.theme, []).append(result)
    return environment.from_string(template).render(
        report=report,
        themes=list(themes.items()),
        causes=[cause_text(key) for key in report.causes],
        cause_text=cause_text,
        data_url=data_url,
    )


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
