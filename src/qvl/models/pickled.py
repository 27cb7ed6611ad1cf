"""Weights in torch's own files (pytorch_model.bin), as the first generation was published.

Such a file is a pickle, which could run code when it is read. torch's restricted reader is used, which makes tensors
and plain containers and refuses everything else; what it gives must then be a dict of tensors. Files are mapped, so
a tensor is read when it is used.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvl.errors import CheckpointError
from qvl.units import format_bytes

INDEX = "pytorch_model.bin.index.json"
FILES = "pytorch_model*.bin"

# the names that safetensors has for dtypes; others keep torch's, and are refused by whoever reads them
_NAMES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int32: "I32",
    torch.int64: "I64",
}


class _Slice:
    """One tensor, as a safetensors slice is used."""

    def __init__(self, tensor: Tensor):
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return _NAMES.get(self._tensor.dtype, str(self._tensor.dtype).removeprefix("torch."))

    def __getitem__(self, rows: Any) -> Tensor:
        return self._tensor[rows]


class PickledTensors:
    """An opened file, used as an opened safetensors file is."""

    def __init__(self, tensors: dict[str, Tensor]):
        self._tensors = tensors

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_slice(self, name: str) -> _Slice:
        return _Slice(self._tensors[name])

    def get_tensor(self, name: str) -> Tensor:
        return self._tensors[name]


@contextmanager
def open_pickled(file: Path) -> Iterator[PickledTensors]:
    """Raises: CheckpointError for a file that can't be read, or holds anything but named tensors."""
    try:
        tensors = _load(file)
    except pickle.UnpicklingError as e:
        raise CheckpointError(
            f"{file}: holds more than tensors, or is cut short; what else a pickle holds could run code, so it isn't "
            "read: fetch it again, or convert it to safetensors"
        ) from e
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as e:
        size = format_bytes(file.stat().st_size) if file.exists() else "absent"
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise CheckpointError(
            f"{file}: can't be read as pickled weights, perhaps cut short ({size}; {first}); fetch it again"
        ) from e
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise CheckpointError(f"{file}: is no dict of named tensors, but a training state or a whole module")
    yield PickledTensors(tensors)


def _load(file: Path) -> Any:
    with file.open("rb") as opened:
        zipped = opened.read(4) == b"PK\x03\x04"
    # files from before torch 1.6 are no archives and can't be mapped
    return torch.load(file, map_location="cpu", mmap=zipped, weights_only=True)
