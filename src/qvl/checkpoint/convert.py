"""A checkpoint's tensors under the names of the other layout. Copies bytes; imports no torch.

"old" is what the hub's Qwen2-VL and Qwen2.5-VL files have and every engine reads (visual.…, model.layers.…), "new"
what transformers has written since 4.52 (model.visual.…, model.language_model.…). Only headers, the index and lists
of module names in config.json change: the tensors' bytes are copied as they are, so converting back gives the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl.catalog.generations import of_model_type
from qvl.checkpoint.checkpoint import Checkpoint
from qvl.checkpoint.links import check_links
from qvl.checkpoint.names import to_canonical, to_nested
from qvl.checkpoint.weight_files import INDEX, LARGEST_INDEX, WeightFile, read_index, read_weight_file
from qvl.checkpoint.write import header_bytes, whole_folder, write_json
from qvl.errors import CapacityError, CheckpointError, nearest
from qvl.records import read_json
from qvl.units import MiB, format_bytes

LAYOUTS: dict[str, Callable[[str], str]] = {"old": to_canonical, "new": to_nested}
_PIECE = 16 * MiB  # how much is in memory at once
_NAME_LISTS = ("modules_to_not_convert", "ignore", "ignored_layers")


@dataclass(frozen=True)
class Converted:
    folder: Path
    num_files: int
    num_tensors: int
    num_renamed: int
    num_bytes: int


def convert(checkpoint: Path | Checkpoint, target: Path, layout: str) -> Converted:
    """Writes `target`, a whole checkpoint folder, which appears when it is complete. Memory: 16 MiB.

    Raises: CheckpointError for files that can't be read, links out of the folder, names that collide, a target that
    exists or an unknown layout; GenerationError for an unknown model_type; CapacityError when the disk has no room.
    """
    if layout not in LAYOUTS:
        raise CheckpointError(f"layout {layout!r}: {nearest(layout, list(LAYOUTS))}")
    rename = LAYOUTS[layout]
    source = checkpoint.folder if isinstance(checkpoint, Checkpoint) else checkpoint
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such folder")
    check_links(source)
    _check_generation(source / "config.json")
    files = [read_weight_file(path) for path in sorted(source.glob("*.safetensors"))]
    if not files:
        raise CheckpointError(f"{source}: holds no *.safetensors; only those can be renamed")
    if any(name.startswith("transformer.") for file in files for name in file.tensors):
        raise CheckpointError(f"{source}: the first generation has one layout only; nothing to convert")
    _check_collisions(files, rename)
    index = read_index(source)
    needed = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    with whole_folder(target) as working:
        free = shutil.disk_usage(working).free
        if needed > free:
            raise CapacityError(
                f"{target.absolute().parent}: the copy needs {format_bytes(needed)}, {format_bytes(free)} are free"
            )
        others = shutil.ignore_patterns("*.safetensors", INDEX)
        shutil.copytree(source, working, ignore=others, dirs_exist_ok=True)
        for file in files:
            _write_renamed(file, working / file.path.name, rename)
        if index is not None:
            raw = read_json(source / INDEX, LARGEST_INDEX)
            raw["weight_map"] = {rename(name): file for name, file in index.items()}
            write_json(working / INDEX, raw)
        _respell_config(working / "config.json", rename)
    names = [name for file in files for name in file.tensors]
    renamed = sum(rename(name) != name for name in names)
    return Converted(target, len(files), len(names), renamed, needed)


def _check_collisions(files: list[WeightFile], rename: Callable[[str], str]) -> None:
    seen: dict[str, str] = {}
    for file in files:
        for name in file.tensors:
            twin = seen.setdefault(rename(name), name)
            if twin != name:
                raise CheckpointError(
                    f"{file.path.parent}: {twin} and {name} would both become {rename(name)}: the folder holds two "
                    "checkpoints; delete the files that don't belong"
                )


def _write_renamed(file: WeightFile, path: Path, rename: Callable[[str], str]) -> None:
    """Entries keep their order and offsets, so the bytes after the header stay as they are."""
    with file.path.open("rb") as read, path.open("wb") as write:
        read.seek(8)
        raw = json.loads(read.read(file.header_bytes))
        renamed = {name if name == "__metadata__" else rename(name): entry for name, entry in raw.items()}
        write.write(header_bytes(renamed))
        shutil.copyfileobj(read, write, _PIECE)
    shutil.copystat(file.path, path)


def _check_generation(path: Path) -> None:
    """Raises: GenerationError for an unknown model_type. A config that can't be read is left to `qvl check`."""
    try:
        model_type = read_json(path).get("model_type")
    except (OSError, ValueError, AttributeError):
        return
    of_model_type(model_type, str(path))


def _respell_config(path: Path, rename: Callable[[str], str]) -> None:
    """Module names that the quantisation leaves out, so that engines which compare whole names still find them."""
    try:
        raw = read_json(path)
        quantization = raw.get("quantization_config")
    except (
        OSError,
        ValueError,
        AttributeError,
    ):  # no config.json, or none that we understand: stays as it is
        return
    if not isinstance(quantization, Mapping):
        return
    changed = dict(quantization)
    for key in _NAME_LISTS:
        names = quantization.get(key)
        if isinstance(names, list):
            changed[key] = [_respell(name, rename) for name in names]
    if changed != quantization:
        write_json(path, raw | {"quantization_config": changed})


def _respell(name: Any, rename: Callable[[str], str]) -> Any:
    """A whole module's or layer's name; expressions and bare parts ("visual") mean the same in both layouts."""
    if not isinstance(name, str) or name.startswith("re:") or "." not in name:
        return name
    return rename(f"{name}.").removesuffix(".")
