"""The networks: one file per generation, one shared decoder. Owns neither caches nor devices.

`build(config)` gives a network with weights from nowhere, `load_model(source)` one with a checkpoint's.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qvl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qvl.catalog.config import ModelConfig
    from qvl.models.base import VisionLanguageModel

# family → where its network is; imported when used
FAMILIES = {
    "qwen_vl": "qvl.models.qwen_vl:QwenVL",
    "qwen2_vl": "qvl.models.qwen2_vl:Qwen2VL",
    "qwen2_5_vl": "qvl.models.qwen2_5_vl:Qwen25VL",
    "qwen3_vl": "qvl.models.qwen3_vl:Qwen3VL",
    "qwen3_vl_moe": "qvl.models.qwen3_vl:Qwen3VL",
    "qwen3_5": "qvl.models.qwen3_5:Qwen35",
    "qwen3_5_moe": "qvl.models.qwen3_5:Qwen35",
}


def build(config: ModelConfig) -> VisionLanguageModel:
    """The network of `config.family` on torch's current default device and dtype; see `base.initialize`.

    Raises: ConfigError for a family that has no network here.
    """
    place = FAMILIES.get(config.family)
    if place is None:
        raise ConfigError(f"{config.family} has no network here; known: {', '.join(FAMILIES)}")
    module, name = place.split(":")
    network: Callable[[ModelConfig], VisionLanguageModel] = getattr(import_module(module), name)
    return network(config)
