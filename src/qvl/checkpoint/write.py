"""Writing a checkpoint folder: weights in shards with an index, config.json, and the files that belong to it.

    write_checkpoint(target, tensors, config, files_from=checkpoint.folder)

`tensors` is an iterable of (published name, tensor) and may make each as it is asked for: a shard's tensors are held
until the shard is full. The folder appears when it is complete. Whatever has a dtype, a shape and bytes can be written,
16-bit weights and the parts of quantised layers alike; files are those that safetensors writes, byte by byte.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

from qvl.checkpoint.links import check_links
from qvl.checkpoint.weight_files import INDEX, ITEM_BITS
from qvl.errors import CheckpointError

SHARD_BYTES = 5 * 10**9  # as the hub's files
# What goes with the weights: tokenizer, processor, template, generation settings, licence.
_SETTINGS = ("*.json", "*.jinja", "*.txt", "*.tiktoken", "LICENSE*", "NOTICE*")


class TensorData(Protocol):
    """A tensor as it is written. `pieces`: its bytes in order, rows first, little-endian."""

    @property
    def dtype(self) -> str:
        """As safetensors spells it: BF16, F8_E4M3, I32, …"""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def pieces(self) -> Iterable[bytes | memoryview]: ...


@dataclass(frozen=True)
class Written:
    folder: Path
    files: tuple[str, ...]
    num_tensors: int
    num_bytes: int  # of the tensors


def write_checkpoint(
    target: Path,
    tensors: Iterable[tuple[str, TensorData]],
    config: Mapping[str, Any],
    *,
    files_from: Path | None = None,
    over: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Written:
    """`config`: the content of config.json. `files_from`: a checkpoint folder whose other files are copied.

    `over`: `target` may hold a checkpoint already, be it the one that is read from; its weights and config are
    replaced, other files stay. Memory: one shard, or one piece of tensors that bring their bytes piece by piece.
    Raises: CheckpointError for a target that exists, a name that comes twice, or a disk that can't take it.
    """
    shard: dict[str, TensorData] = {}
    shards: list[list[str]] = []
    seen: set[str] = set()
    size = total = 0
    with whole_folder(target, over) as working:
        if files_from:
            settings = list(_settings(files_from))
            check_links(files_from, settings)
            for path in settings:
                shutil.copyfile(path, working / path.name)
        for name, tensor in tensors:
            if name in seen:
                raise CheckpointError(f"{target}: {name} appears twice")
            seen.add(name)
            num_bytes = _num_bytes(tensor)
            if shard and size + num_bytes > shard_bytes:
                _flush(working, shard, shards)
                size = 0
            shard[name] = tensor
            size += num_bytes
            total += num_bytes
        _flush(working, shard, shards)
        files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        if len(shards) == 1:
            files = ["model.safetensors"]
        for i, file in enumerate(files):
            os.replace(working / str(i), working / file)
        if len(shards) > 1:
            weight_map = {name: file for file, names in zip(files, shards) for name in names}
            write_json(working / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        write_json(working / "config.json", config)
    return Written(target, tuple(files), len(seen), total)


def _flush(working: Path, shard: dict[str, TensorData], shards: list[list[str]]) -> None:
    """How many shards there will be is known at the end, so this one has only its number for a name."""
    write_shard(working / str(len(shards)), shard)
    shards.append(list(shard))
    shard.clear()


def _settings(folder: Path) -> Iterator[Path]:
    for path in sorted({path for pattern in _SETTINGS for path in folder.glob(pattern)}):
        if path.is_file() and path.name != "config.json" and not path.name.endswith(".index.json"):
            yield path


def write_shard(path: Path, tensors: Mapping[str, TensorData]) -> None:
    """One safetensors file. Wide items come first, as the format's library does it, so that all lie aligned."""
    rank = {dtype: -i for i, dtype in enumerate(ITEM_BITS)}
    order = sorted(tensors, key=lambda name: (rank[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + _num_bytes(tensors[name])
        header[name] = {
            "dtype": tensors[name].dtype,
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    with path.open("wb") as file:
        file.write(header_bytes(header))
        for name in order:
            count = sum(file.write(piece) for piece in tensors[name].pieces())
            assert count == _num_bytes(tensors[name]), f"{name} has {count} bytes"


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """The length and the JSON text of a safetensors header; tensors begin at a multiple of 8."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _num_bytes(tensor: TensorData) -> int:
    return prod(tensor.shape) * ITEM_BITS[tensor.dtype] // 8


@contextmanager
def whole_folder(target: Path, over: bool = False) -> Iterator[Path]:
    """A folder to write into, whose files are `target`'s when the block has ended; after an error nothing is left.

    Raises: CheckpointError when `target` is there already (unless `over`), or can't be written.
    """
    target = target.absolute()
    there = target.is_dir() and any(target.iterdir())
    if (there and not over) or (target.exists() and not target.is_dir()):
        raise CheckpointError(f"{target}: exists already; give a new or an empty folder")
    beside = target if there else target.parent
    _sweep(beside, target.name)
    working = beside / f".{target.name}.{os.getpid()}"
    lock = -1
    try:
        working.mkdir(parents=True)
        lock = os.open(working, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield working
        if there:
            _replace_files(working, target)
        else:
            if target.is_dir():
                target.rmdir()
            os.replace(working, target)
    except OSError as e:
        raise CheckpointError(f"{target}: can't be written ({e.strerror or e})") from e
    finally:
        shutil.rmtree(working, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def _sweep(beside: Path, name: str) -> None:
    """Deletes what earlier writers of this name left when they were killed; who still writes holds a lock."""
    for path in beside.glob(f".{glob.escape(name)}.*"):
        if not path.name.rpartition(".")[2].isdecimal() or path.is_symlink() or not path.is_dir():
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(handle)


def _replace_files(working: Path, target: Path) -> None:
    """Weights first, then what names them: each file is whole at any time."""
    new = list(working.iterdir())
    names = {path.name for path in new}
    stale = [path for path in (*target.glob("*.safetensors"), target / INDEX) if path.name not in names]
    for path in new:
        if path.suffix != ".json":
            os.replace(path, target / path.name)
    for path in stale:
        path.unlink(missing_ok=True)
    for path in working.iterdir():
        os.replace(path, target / path.name)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
