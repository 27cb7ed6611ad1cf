"""config.json → `ModelConfig`: the exact shape of a checkpoint, for the planner and the networks alike; and back.

Every key of a config file is read, listed as ignorable, or named as unread; one that is known to change what is
computed is an error. What the keys are differs by generation: each record (catalog/generations/) reads and writes
its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from qvl import moved
from qvl.catalog import generations
from qvl.catalog.generations.generation import ModelConfig
from qvl.catalog.generations.keys import collect_unread
from qvl.catalog.generations.shape import TextConfig, VisionConfig
from qvl.catalog.generations.tensors import TensorTable
from qvl.errors import ConfigError, lfs_pointer, warn_once
from qvl.records import read_json

log = logging.getLogger(__name__)

__all__ = ["ModelConfig", "TextConfig", "VisionConfig", "config_dict", "read_config", "tensor_table"]


def read_config(source: str | Path | Mapping[str, Any]) -> ModelConfig:
    """Reads a checkpoint folder, a config.json, or its already parsed content.

    Keys that aren't known are named in one warning, and in `unread`.
    Raises: ConfigError naming every missing key and every key that changes the computation and isn't supported, or
    an unknown model_type.
    """
    if isinstance(source, Mapping):
        raw, where = dict(source), "config"
    else:
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        where = str(path)
        try:
            raw = read_json(path)
        except OSError as e:
            raise ConfigError(f"{where}: can't be read ({e.strerror})") from e
        except ValueError as e:
            raise ConfigError(f"{where}: {lfs_pointer(path) or f'not JSON ({e})'}") from e
        if not isinstance(raw, dict):
            raise ConfigError(f"{where}: holds a {type(raw).__name__}, not an object")
    if isinstance(raw.get("quantization"), Mapping) and "group_size" in raw["quantization"]:
        raise ConfigError(
            f"{where}: of a model quantised by MLX, which mlx-vlm runs on a Mac; take the model that it was made from, "
            "or a version of it for vLLM (AWQ, GPTQ, FP8)"
        )
    generation = generations.of_model_type(raw.get("model_type"), where)
    with collect_unread() as unread:
        config = generation.read(generation, raw, where)
    if unread:
        warn_once(log, f"{where}: not read: {', '.join(unread)}")
        config = replace(config, unread=tuple(unread))
    return config


def config_dict(config: ModelConfig) -> dict[str, Any]:
    """The config.json that `read_config` reads back to `config`, in the layout of the hub's files."""
    return config.generation.write(config)


@cache
def tensor_table(config: ModelConfig) -> TensorTable:
    """The name and shape of every tensor of the plain checkpoint."""
    return config.generation.tensors(config)


__getattr__ = moved.names(__name__)
