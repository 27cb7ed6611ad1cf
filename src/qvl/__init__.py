"""qvl: choose, plan, run, check and adapt Qwen-VL models.

`import qvl` costs nothing; `qvl.load(...)` brings in what running a model needs.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def load(source: str = "mini", **options: Any) -> Any:
    """A model to ask: a checkpoint folder, a hub id, or `mini`, the embedded one. See `qvl.backends.native`."""
    from qvl.backends.native import load as load_native

    return load_native(source, **options)


def connect(endpoint: str, model: str | None = None, **options: Any) -> Any:
    """A model behind an OpenAI-compatible server, to ask the same way. See `qvl.backends.http`."""
    from qvl.backends.http import connect as connect_http

    return connect_http(endpoint, model, **options)
