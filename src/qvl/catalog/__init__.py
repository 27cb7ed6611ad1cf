"""The family as dated data: models, licences, shapes, published scores, devices, prices.

Every figure carries its source, date and kind. No arithmetic happens here: the rooms to the right do it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvl.catalog.devices import Device, Hardware
    from qvl.catalog.models import Checkpoint, Model

__all__ = [
    "Checkpoint",
    "Device",
    "Hardware",
    "Model",
    "config_of",
    "find_device",
    "find_model",
    "parse_hardware",
]

_HOMES = {
    "Model": "models", "Checkpoint": "models", "find_model": "models", "config_of": "models",
    "Device": "devices", "Hardware": "devices", "find_device": "devices", "parse_hardware": "devices",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports the file that holds `name`, so that one table's user does not pay for the others."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
