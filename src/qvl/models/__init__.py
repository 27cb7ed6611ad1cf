"""The networks: one file per generation, one shared decoder. Owns neither caches nor devices.

`build(config)` gives a network with uninitialised weights, `load_model(source)` one with a checkpoint's.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qvl import moved

if TYPE_CHECKING:
    from collections.abc import Callable

    from qvl.catalog.config import ModelConfig
    from qvl.models.base import VisionLanguageModel


def build(config: ModelConfig) -> VisionLanguageModel:
    """The network of `config.generation` on torch's current default device and dtype; see `base.initialize`."""
    module, name = config.generation.network.split(":")
    network: Callable[[ModelConfig], VisionLanguageModel] = getattr(import_module(module), name)
    return network(config)


__getattr__ = moved.names(__name__)
