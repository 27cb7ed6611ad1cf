"""Values of the stored tensors, looked at in a few places: what is no number, and matrices that hold nothing.

A tensor of up to 64 KiB is read whole, of a larger one 16 pieces of 4 KiB spread over it: damage of a tensor or of a
shard is found, a single bad value among millions need not be.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qvl.checkpoint.check.finding import Finding
from qvl.checkpoint.checkpoint import Checkpoint
from qvl.checkpoint.stored import listed
from qvl.checkpoint.weight_files import ITEM_BITS, StoredTensor

_PIECES, _PIECE = 16, 4096
# dtype → the bits that are all set in what is no finite number; FP8 E4M3 has no infinity, and one NaN of each sign
_EXPONENTS = {
    "F64": 0x7FF0000000000000, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80, "F8_E5M2": 0x7C, "F8_E4M3": 0x7F,
}  # fmt: skip


def findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    tensors = [t for t in checkpoint.stored.tensors.values() if t.dtype in _EXPONENTS and t.num_bytes]
    broken, empty = [], []
    for tensor in tensors:
        sample = _sample(tensor)
        mask = sample.dtype.type(_EXPONENTS[tensor.dtype])
        if ((sample & mask) == mask).any():
            broken.append(tensor.name)
        elif len(tensor.shape) > 1 and not (sample << sample.dtype.type(1)).any():  # -0.0 is nothing too
            empty.append(tensor.name)
    if broken:
        yield Finding(
            "error", "not-finite", f"{len(broken)} tensors hold NaN or infinity: {listed(broken, 4)}",
            "fetch the checkpoint again; if you trained it, take a save from before the loss became NaN",
        )  # fmt: skip
    if empty:
        yield Finding(
            "warning", "all-zero", f"{len(empty)} matrices are zero wherever they were looked at: {listed(empty, 4)}",
            "fetch the checkpoint again, unless a trainer left them zero on purpose",
        )  # fmt: skip


def _sample(tensor: StoredTensor) -> np.ndarray:
    """Its bits as unsigned numbers, from evenly spread places."""
    item = ITEM_BITS[tensor.dtype] // 8
    last = tensor.num_bytes - _PIECE
    starts = (
        [0]
        if tensor.num_bytes <= _PIECES * _PIECE
        else [last * i // (_PIECES - 1) // item * item for i in range(_PIECES)]
    )
    with tensor.file.open("rb") as f:
        content = bytearray()
        for start in starts:
            f.seek(tensor.start + start)
            content += f.read(_PIECE if len(starts) > 1 else tensor.num_bytes)
    return np.frombuffer(content[: len(content) // item * item], dtype=f"<u{item}")
