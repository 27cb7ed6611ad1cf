"""Names, dtypes and shapes of the tensors in torch's own files (pytorch_model.bin), without torch.

Such a file is a zip: a pickle that says how tensors are made of storages, and one member for each storage; before
torch 1.6 the same without a zip. The pickle is read with stand-ins for the few things it may name, so nothing of the
file is run, and no weight is read.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from qvl.checkpoint.weight_files import ITEM_BITS, StoredTensor
from qvl.errors import CheckpointError

FILES = "pytorch_model*.bin"
INDEX = "pytorch_model.bin.index.json"

_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_LARGEST_PICKLE = 100_000_000  # bytes; a published one has some hundred kB
# torch's names of storages → safetensors' names of dtypes
_STORAGES = {
    "BFloat16Storage": "BF16", "HalfStorage": "F16", "FloatStorage": "F32", "DoubleStorage": "F64",
    "BoolStorage": "BOOL", "ByteStorage": "U8", "CharStorage": "I8", "ShortStorage": "I16", "IntStorage": "I32",
    "LongStorage": "I64",
}  # fmt: skip


class _Storage(NamedTuple):
    key: str  # the name of its member in the zip
    dtype: str
    items: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # in items
    shape: tuple[int, ...]


def _tensor(storage: Any, offset: Any, shape: Any, *others: Any) -> _Tensor:
    """In place of torch._utils._rebuild_tensor_v2."""
    numbers = (offset, *shape)
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a tensor of an impossible shape or place")
    if offset + math.prod(shape) > storage.items:
        raise ValueError(f"a tensor of {list(shape)} in a storage of {storage.items}")
    return _Tensor(storage, offset, tuple(shape))


class _Forbidden(ValueError):
    """A pickle names something that weights don't need."""


class _Reader(pickle.Unpickler):
    def __init__(self, file: Any):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        # new functions each time: a pickle can set attributes of what it gets
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *given: _tensor(*given)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *others: tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise _Forbidden(f"it refers to {module}.{name}, which weights never need")

    def persistent_load(self, given: Any) -> _Storage:
        kind, dtype, key, _place, count = given[:5]  # old files add what part of a storage is meant
        if (
            kind != "storage"
            or dtype not in _STORAGES.values()
            or type(key) is not str
            or type(count) is not int
            or any(given[5:])
        ):
            raise ValueError("a storage of an unknown kind")
        self.storages[key] = _Storage(key, dtype, count)
        return self.storages[key]


def read_pickled_file(path: Path) -> dict[str, StoredTensor]:
    """Raises: CheckpointError for a file that is cut short, or holds something other than a dict of tensors."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            zipped = f.read(4) == b"PK\x03\x04"
            f.seek(0)
            found, starts = _read_archive(f) if zipped else _read_old(f)
        tensors = {}
        for name, tensor in _named(path, found).items():
            bits = ITEM_BITS[tensor.storage.dtype]
            first = starts[tensor.storage.key]
            begin, end = (
                first + n * bits // 8 for n in (tensor.offset, tensor.offset + math.prod(tensor.shape))
            )
            if end > size:
                raise ValueError(f"{name} ends at byte {end}, the file at {size}")
            tensors[name] = StoredTensor(path, name, tensor.storage.dtype, tensor.shape, begin, end)
        return tensors
    except CheckpointError:
        raise
    except _Forbidden as e:
        raise CheckpointError(
            f"{path}: holds more than tensors ({e}); what else a pickle holds could run code, so it isn't read: fetch "
            "it again, or convert it to safetensors"
        ) from e
    except Exception as e:  # a strange pickle fails in any way it likes
        what = e.strerror if isinstance(e, OSError) else f"{type(e).__name__}: {e}"
        raise CheckpointError(
            f"{path}: can't be read as pickled weights, perhaps cut short ({what}); fetch it again"
        ) from e


def _named(path: Path, found: Any) -> dict[str, _Tensor]:
    odd = None
    if not isinstance(found, Mapping):
        odd = f"a {type(found).__name__}, not a dict of tensors"
    elif others := [v for k, v in found.items() if type(k) is not str or not isinstance(v, _Tensor)]:
        odd = f"something of the kind {type(others[0]).__name__} among its tensors"
    if odd:
        raise CheckpointError(
            f"{path}: is not a dict of named tensors but a training state or a whole module (it holds {odd})"
        )
    return dict(found)


def _read_archive(file: Any) -> tuple[Any, dict[str, int]]:
    """What the pickle holds, and where each storage begins."""
    with zipfile.ZipFile(file) as members:
        places = {info.filename.partition("/")[2]: info for info in members.infolist()}
        info = places["data.pkl"]
        if info.file_size > _LARGEST_PICKLE:
            raise ValueError(f"its list of tensors has {info.file_size} bytes")
        reader = _Reader(BytesIO(members.read(info)))
        found = reader.load()
        return found, {key: _start(file, places[f"data/{key}"]) for key in reader.storages}


def _read_old(file: Any) -> tuple[Any, dict[str, int]]:
    """A file from before torch 1.6: five pickles (magic number, version, machine, the tensors, the order of their
    storages), then each storage behind its number of items.
    """
    if _Reader(file).load() != _OLD_MAGIC:
        raise ValueError("it doesn't begin like a torch file")
    for _ in ("version", "machine"):
        _Reader(file).load()
    reader = _Reader(file)
    found, order = reader.load(), _Reader(file).load()
    starts, at = {}, file.tell()
    for key in order:
        starts[key] = at + 8
        at += 8 + reader.storages[key].items * ITEM_BITS[reader.storages[key].dtype] // 8
    return found, starts


def _start(file: Any, info: zipfile.ZipInfo) -> int:
    """Where a member's content begins: behind its local header, whose length the list of members doesn't tell."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    file.seek(info.header_offset)
    header = file.read(30)
    return info.header_offset + 30 + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
