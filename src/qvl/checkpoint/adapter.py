"""LoRA adapters in PEFT's format: what one changes, read without torch. Merging it is models/lora.py's.

    adapter = read_adapter(Path("folder"))
    adapter.changes["model.layers.0.self_attn.q_proj.weight"]

Source: peft 0.21.2, tuners/lora/config.py and utils/save_and_load.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvl.checkpoint.names import to_canonical
from qvl.checkpoint.stored import listed
from qvl.checkpoint.weight_files import StoredTensor, read_weight_file
from qvl.errors import CheckpointError, lfs_pointer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_WRAPPER = "base_model.model."
_PART = re.compile(r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?$")


@dataclass(frozen=True)
class Change:
    """What is added to one weight: (up @ down) * scale; of a table, transposed. `magnitude`: DoRA's, of each row."""

    down: StoredTensor  # (rank, inputs)
    up: StoredTensor  # (outputs, rank)
    scale: float
    table: bool = False
    magnitude: StoredTensor | None = None


@dataclass(frozen=True)
class Adapter:
    """`changes` and `whole` by the canonical names of the weights; whole ones replace the base's."""

    folder: Path
    base: str  # as adapter_config.json names it
    changes: Mapping[str, Change] = field(default_factory=dict)
    whole: Mapping[str, StoredTensor] = field(default_factory=dict)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: Path) -> Adapter:
    """Raises: CheckpointError for what isn't LoRA, or changes what can't be changed so."""
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it is no object")
    except OSError as e:
        raise CheckpointError(f"{folder}: no adapter ({CONFIG}: {e.strerror})") from e
    except ValueError as e:
        raise CheckpointError(f"{path}: {lfs_pointer(path) or f'not a JSON object ({e})'}") from e
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type {raw.get('peft_type')!r}; only LORA is supported")
    refused = [key for key in _REFUSED if raw.get(key)]
    if refused:
        raise CheckpointError(
            f"{path}: {', '.join(f'{key} {raw[key]!r}' for key in refused)} is not supported; merge it into its base "
            "(peft's merge_and_unload, then save_pretrained) and load that"
        )
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{folder}: there is no {WEIGHTS}; save the adapter as safetensors")
    return _read(folder, raw, read_weight_file(weights).tensors)


# what makes another function of the parts; of `bias`, PEFT's own word for none
_REFUSED = (
    "fan_in_fan_out", "layer_replication", "target_parameters", "use_qalora", "alora_invocation_tokens",
    "trainable_token_indices", "arrow_config",
)  # fmt: skip


def _read(folder: Path, raw: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Adapter:
    parts: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for stored, tensor in tensors.items():
        name = stored.removeprefix(_WRAPPER)
        match = _PART.search(name)
        if match is None:
            whole[to_canonical(name.replace(".base_layer", "").replace(".modules_to_save", ""))] = tensor
        else:
            parts.setdefault(name[: match.start()], {})[match[1]] = tensor
    changes: dict[str, Change] = {}
    faults: list[str] = []
    for module, found in parts.items():
        table = "lora_embedding_A" in found
        kind = "lora_embedding" if table else "lora"
        down, up = found.get(f"{kind}_A"), found.get(f"{kind}_B")
        if down is None or up is None:
            faults.append(f"{module} has one of two parts")
            continue
        rank, alpha = _scale_of(raw, module)
        if (len(down.shape), len(up.shape)) != (2, 2) or down.shape[0] != rank or up.shape[1] != rank:
            faults.append(f"{module} has parts of {list(down.shape)} and {list(up.shape)} for rank {rank}")
            continue
        scale = alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank)
        magnitude = found.get("lora_magnitude_vector")
        changes[to_canonical(f"{module}.weight")] = Change(down, up, scale, table, magnitude)
    if faults:
        raise CheckpointError(f"{folder}: {listed(faults, 5)}; save the adapter again")
    return Adapter(folder, str(raw.get("base_model_name_or_path") or ""), changes, whole)


def _scale_of(raw: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Rank and alpha of a module, which patterns over its name may change."""
    values = []
    for key, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        value = raw.get(key, 8)
        for expression, other in (raw.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({expression})$", module):
                value = other
                break
        values.append(value)
    return int(values[0]), float(values[1])
