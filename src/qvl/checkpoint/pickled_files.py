"""Names, dtypes and shapes of the tensors in torch's own files (pytorch_model.bin), without torch.

Such a file is a zip: a pickle that says how tensors are made of storages, and one member for each storage. The pickle
is read with stand-ins for the few things it may name, so nothing of the file is run, and no weight is read.
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


class _Reader(pickle.Unpickler):
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
        raise ValueError(f"it asks for {module}.{name}, which no weights need")

    def persistent_load(self, given: Any) -> _Storage:
        kind, dtype, key, _place, count = given
        if (
            kind != "storage"
            or dtype not in _STORAGES.values()
            or type(key) is not str
            or type(count) is not int
        ):
            raise ValueError("a storage of an unknown kind")
        return _Storage(key, dtype, count)


def read_pickled_file(path: Path) -> dict[str, StoredTensor]:
    """Raises: CheckpointError for a file that is cut short, or holds something other than a dict of tensors."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f, zipfile.ZipFile(f) as members:
            places = {info.filename.partition("/")[2]: info for info in members.infolist()}
            info = places["data.pkl"]
            if info.file_size > _LARGEST_PICKLE:
                raise ValueError(f"its list of tensors has {info.file_size} bytes")
            found = _Reader(BytesIO(members.read(info))).load()
            if not isinstance(found, Mapping):
                raise ValueError(f"it holds a {type(found).__name__}, not a dict of tensors")
            tensors = {}
            for name, tensor in found.items():
                if type(name) is not str or not isinstance(tensor, _Tensor):
                    raise ValueError(
                        f"it holds something of the kind {type(tensor).__name__} among its tensors"
                    )
                start = _start(f, places[f"data/{tensor.storage.key}"])
                bits = ITEM_BITS[tensor.storage.dtype]
                begin, end = (
                    start + n * bits // 8 for n in (tensor.offset, tensor.offset + math.prod(tensor.shape))
                )
                if end > size:
                    raise ValueError(f"{name} ends at byte {end}, the file at {size}")
                tensors[name] = StoredTensor(path, name, tensor.storage.dtype, tensor.shape, begin, end)
            return tensors
    except Exception as e:  # a strange pickle fails in any way it likes
        what = e.strerror if isinstance(e, OSError) else f"{type(e).__name__}: {e}"
        raise CheckpointError(
            f"{path}: can't be read as pickled weights, perhaps cut short ({what}); fetch it again"
        ) from e


def _start(file: Any, info: zipfile.ZipInfo) -> int:
    """Where a member's content begins: behind its local header, whose length the list of members doesn't tell."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    file.seek(info.header_offset)
    header = file.read(30)
    return info.header_offset + 30 + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
