"""qvl: choose, plan, run, check and adapt Qwen-VL models.

`import qvl` costs nothing; `qvl.load(...)` brings in what running a model needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qvl import moved

if TYPE_CHECKING:
    from pathlib import Path

    from qvl.tasks.model import Model

__version__ = "0.1.0"

moved.install()


def load(source: str | Path = "mini", **options: Any) -> Model:
    """A model to ask, whatever is behind it.

    source: a checkpoint folder, a hub id, `mini` (the embedded one), a hosted flagship such as `qwen-vl-max`, or the
    http address of a server. options: those of `qvl.backends.native.load`, or of `qvl.backends.http.connect`.
    """
    from qvl.tasks.open import open_backend

    return open_backend(source, **options)


def connect(endpoint: str, model: str | None = None, **options: Any) -> Model:
    """A model behind an OpenAI-compatible server, by its name there. See `qvl.backends.http.connect`."""
    from qvl.backends.http import connect as connect_http
    from qvl.tasks.model import Model

    return Model(connect_http(endpoint, model, **options))
