"""Pages and files that are written from templates (Jinja2) instead of glued from strings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qvl.records import as_printable


def render(template: Path, *, autoescape: bool = False, **values: Any) -> str:
    """The template filled in. `| s` writes a string as JSON, which YAML reads the same way."""
    from jinja2 import Environment, StrictUndefined

    env = Environment(
        autoescape=autoescape,
        undefined=StrictUndefined,
        finalize=as_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters["s"] = lambda text: json.dumps(text, ensure_ascii=False)
    return env.from_string(template.read_text(encoding="utf-8")).render(values)
