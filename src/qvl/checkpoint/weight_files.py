"""Headers of *.safetensors files, read without any library: names, dtypes, shapes, and where the bytes lie.

A file is eight bytes (the header's length, little-endian), a JSON header, and the tensors' bytes; offsets in
the header count from the end of the header.
Source: the safetensors format description.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from qvl.errors import CheckpointError, lfs_pointer
from qvl.records import parse_json, read_json, shown
from qvl.units import MiB

INDEX = "model.safetensors.index.json"
# in the order of the format's library, by which it sorts what it writes
ITEM_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
    "U64": 64,
}  # fmt: skip
_PIECE = 16 * MiB
_LONGEST_HEADER = 100_000_000  # the format's own limit
LARGEST_INDEX = 64 * MiB
_MOST_DIMENSIONS = 16


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as its file's header describes it. `start` and `end` count from the file's beginning."""

    file: Path
    name: str
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start

    def first_bytes(self, count: int) -> bytes:
        """Up to `count` bytes from the beginning."""
        with self.file.open("rb") as f:
            f.seek(self.start)
            return f.read(min(count, self.num_bytes))

    def pieces(self) -> Iterator[bytes]:
        """All its bytes, a few MiB at a time."""
        with self.file.open("rb") as f:
            f.seek(self.start)
            for at in range(0, self.num_bytes, _PIECE):
                yield f.read(min(_PIECE, self.num_bytes - at))

    def first_words(self, count: int) -> list[int]:
        """Up to `count` 32-bit words from the beginning, unsigned."""
        content = self.first_bytes(4 * count)
        return [int.from_bytes(content[i : i + 4], "little") for i in range(0, len(content) - 3, 4)]


@dataclass(frozen=True)
class WeightFile:
    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    header_bytes: int  # of the JSON text; the tensors' bytes begin 8 after it


def read_weight_file(path: Path) -> WeightFile:
    """Raises: CheckpointError for a file that is cut short, damaged or no safetensors file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes can't be in a file of {size}")
            raw = parse_json(f.read(length))
        if not isinstance(raw, dict):
            raise ValueError("its header is not a JSON object")
        metadata = raw.pop("__metadata__", None) or {}
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata values are not strings")
        tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in raw.items()}
        end = 8 + length
        for tensor in sorted(tensors.values(), key=lambda t: (t.start, t.end)):
            if tensor.start != end:
                raise ValueError(
                    f"{tensor.name} begins at byte {tensor.start}, what is before it ends at {end}"
                )
            end = tensor.end
        if end != size:
            raise ValueError(f"its tensors end at byte {end}, the file at {size}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        if pointer := lfs_pointer(path):
            raise CheckpointError(f"{path}: {pointer}") from e
        what = e.strerror if isinstance(e, OSError) else f"{type(e).__name__}: {e}"
        raise CheckpointError(
            f"{path}: can't be read as safetensors, perhaps cut short ({what}); fetch it again"
        ) from e
    return WeightFile(path, tensors, metadata, length)


def _tensor(path: Path, name: str, entry: Any, base: int) -> StoredTensor:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, start, end)
    if len(shape) > _MOST_DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
        raise ValueError(f"{name} has an impossible shape or place")
    if dtype not in ITEM_BITS:
        raise ValueError(f"{name} has the unknown dtype {dtype}")
    if math.prod(shape) * ITEM_BITS[dtype] != 8 * (end - start):
        raise ValueError(f"{name} takes {end - start} bytes, which {list(shape)} {dtype} doesn't")
    return StoredTensor(path, name, dtype, shape, base + start, base + end)


def read_index(folder: Path, name: str = INDEX) -> dict[str, str] | None:
    """Tensor name → file name from the index of a checkpoint in shards; None without one.

    Raises: CheckpointError for an index that can't be read.
    """
    path = folder / name
    if not path.is_file():
        return None
    try:
        found = read_json(path, LARGEST_INDEX)["weight_map"]
        for file in set(map(str, found.values())):
            if not file or PurePath(file).is_absolute() or ".." in PurePath(file).parts or "\\" in file:
                raise ValueError(f"it names {shown(file)}, which is outside its folder")
        return {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as e:
        raise CheckpointError(f"{path}: is not a weight index ({type(e).__name__}: {e})") from e
