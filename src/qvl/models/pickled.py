"""The tensors of torch's own files (pytorch_model.bin), as the first generation was published.

Such a file is a pickle, which could run code when it is read: checkpoint/pickled_files.py has looked at what it names,
and torch's restricted reader makes tensors and plain containers alone. Files are mapped, so a tensor is read when it is
used.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from qvl import moved
from qvl.errors import CheckpointError


class PickledTensors:
    """An opened file, used as an opened safetensors file is."""

    def __init__(self, tensors: dict[str, Tensor]):
        self._tensors = tensors

    def get_tensor(self, name: str) -> Tensor:
        return self._tensors[name]

    get_slice = get_tensor


@contextmanager
def open_pickled(file: Path) -> Iterator[PickledTensors]:
    """Raises: CheckpointError for a file that can't be read."""
    with file.open("rb") as opened:
        zipped = opened.read(4) == b"PK\x03\x04"
    try:
        # files from before torch 1.6 are no archives and can't be mapped
        tensors = torch.load(file, map_location="cpu", mmap=zipped, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as e:
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise CheckpointError(f"{file}: can't be read as pickled weights ({first}); fetch it again") from e
    yield PickledTensors(tensors)


__getattr__ = moved.names(__name__)
