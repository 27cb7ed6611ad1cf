"""A run or a comparison as one HTML page that needs nothing else: images inside, no script, all text escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qvl.errors import QvlError
from qvl.evaluate.compare import Change, Comparison
from qvl.evaluate.runner import Result
from qvl.inputs.image import load_image
from qvl.records import as_printable

WIDEST = 480  # pixels a side; larger images are shrunk
MOST = 30  # cases on a page, of each kind


def run_page(result: Result) -> str:
    """The score, its parts, and the worst cases. Raises: QvlError for a run without lines."""
    if not result.lines:
        raise QvlError("a page needs at least one line")
    worst = sorted(result.lines, key=lambda r: (float(r["score"]), not r.get("error")))[:MOST]
    cases = [
        {"line": r, "images": images_of(r), "truth": as_text(r.get("truth"))} for r in worst if r["score"] < 1
    ]
    about = result.about
    facts = [
        f"scorer {about['scorer']['name']} {about['scorer']['version']}",
        f"model {about['model']['name']}",
    ]
    facts += [f"{k} {v}" for k, v in about.get("settings", {}).items()]
    title = f"{about.get('data', {}).get('source', 'evaluation')}: {about['model']['name']}"
    return _render("run.html", title=title, facts=" · ".join(facts), summary=result.summary, cases=cases)


def compare_page(comparisons: Sequence[Comparison], told: Sequence[Sequence[str]]) -> str:
    """told: the lines that say what each comparison found. Flips both ways are shown with their images."""

    def shown(changes: Sequence[Change]) -> list[dict[str, Any]]:
        return [
            {"change": c, "images": images_of(c.before), "truth": as_text(c.before.get("truth"))}
            for c in changes[:MOST]
        ]

    found = [
        {"comparison": c, "told": lines, "lost": shown(c.lost), "won": shown(c.won)}
        for c, lines in zip(comparisons, told)
    ]
    return _render("compare.html", title=f"{comparisons[0].first} compared", comparisons=found)


def _render(name: str, **values: Any) -> str:
    loader = FileSystemLoader(Path(__file__).with_name("pages"))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, finalize=as_printable
    )
    return environment.get_template(name).render(**values)


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def images_of(line: Mapping[str, Any], most: int = 3) -> list[str]:
    """Data URLs of a line's images that are still there; videos and images of addresses are left out."""
    urls: list[str] = []
    for path in line.get("files") or ():
        if len(urls) == most or not Path(path).is_file():
            continue
        try:
            image = load_image(path).convert("RGB")
        except (QvlError, OSError):
            continue
        image.thumbnail((WIDEST, WIDEST))
        out = BytesIO()
        image.save(out, "JPEG", quality=80)
        urls.append(f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode('ascii')}")
    return urls


def write_page(html: str, path: str | Path) -> None:
    """Raises: QvlError when the file can't be written."""
    try:
        Path(path).write_text(html, encoding="utf-8", errors="replace")
    except OSError as e:
        raise QvlError(f"{path}: the page can't be written ({e.strerror or e})") from e
