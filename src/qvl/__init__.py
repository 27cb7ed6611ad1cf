"""qvl: choose, plan, run, check and adapt Qwen-VL models.

`import qvl` costs nothing; `qvl.load(...)` brings in what running a model needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Unpack

from qvl import moved

if TYPE_CHECKING:
    from pathlib import Path

    from qvl.backends.answer import Answer
    from qvl.backends.base import AsyncStream, Backend, Capabilities, Stream
    from qvl.backends.fake import FakeModel
    from qvl.backends.settings import ConnectOptions, LoadOptions, Settings
    from qvl.errors import QvlError
    from qvl.tasks.model import Model

__version__ = "0.1.0"

moved.install()

# the public API; docs/backends.md describes it
__all__ = [
    "Answer", "AsyncStream", "Backend", "Capabilities", "ConnectOptions", "FakeModel", "LoadOptions", "Model",
    "QvlError", "Settings", "Stream", "__version__", "connect", "load",
]  # fmt: skip

_HOMES = {
    "Answer": "qvl.backends.answer",
    "AsyncStream": "qvl.backends.base",
    "Backend": "qvl.backends.base",
    "Capabilities": "qvl.backends.base",
    "ConnectOptions": "qvl.backends.settings",
    "FakeModel": "qvl.backends.fake",
    "LoadOptions": "qvl.backends.settings",
    "Model": "qvl.tasks.model",
    "QvlError": "qvl.errors",
    "Settings": "qvl.backends.settings",
    "Stream": "qvl.backends.base",
}


def __getattr__(name: str) -> Any:
    """Names of the public API, each imported when it is used first."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qvl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def load(source: str | Path | Backend = "mini", **options: Unpack[LoadOptions]) -> Model:
    """Opens a model: a folder, a hub id, `mini`, a hosted name or a server's address.

    source: a checkpoint folder, a hub id, `mini` (the embedded one), a hosted flagship such as `qwen3.7-plus`, the http
    address of a server, `fake:` with a text or a JSON file of answers, or a backend that is open already. options:
    those of `qvl.backends.native.load`, or of `qvl.backends.http.connect`.
    """
    from qvl.tasks.open import open_backend

    return open_backend(source, **options)


def connect(endpoint: str, model: str | None = None, **options: Unpack[ConnectOptions]) -> Model:
    """A model behind an OpenAI-compatible server, by its name there. See `qvl.backends.http.connect`."""
    from qvl.tasks.open import open_backend

    return open_backend(model, endpoint=endpoint, **options)
