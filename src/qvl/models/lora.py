"""LoRA adapters merged while weights are read: each piece of a weight gets its share of what the adapter adds.

The sum is made in fp32 and rounded once, so that a merged model differs from the unmerged one by that rounding alone.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from qvl.checkpoint.adapter import Adapter, Change
from qvl.checkpoint.compare import Expected
from qvl.checkpoint.stored import listed
from qvl.checkpoint.weight_files import StoredTensor
from qvl.errors import CheckpointError


class Merger:
    """Adds an adapter's changes to the tensors of a checkpoint, piece by piece."""

    def __init__(self, adapter: Adapter | None):
        self.adapter = adapter
        self.changes = dict(adapter.changes) if adapter else {}
        self.whole = dict(adapter.whole) if adapter else {}

    @property
    def names(self) -> set[str]:
        """Weights that don't stay as they are stored."""
        return {*self.changes, *self.whole}

    def check(self, expected: Expected, where: Path) -> None:
        """Raises: CheckpointError unless every change has a plain weight of its shape."""
        if self.adapter is None:
            return
        quantized = [name for name in self.names if name.removesuffix(".weight") in expected.layers]
        if quantized:
            raise CheckpointError(
                f"{self.adapter.folder}: changes layers that {where} holds quantised ({listed(sorted(quantized), 3)}), "
                "into which nothing can be merged; take the plain base (and --weights int4 to have it small)"
            )
        faults = [f"{name} isn't in it" for name in sorted(self.names - expected.shapes.keys())]
        for name, change in self.changes.items():
            outputs, inputs = change.up.shape[0], change.down.shape[1]
            shape = (inputs, outputs) if change.table else (outputs, inputs)
            if (wanted := expected.shapes.get(name, shape)) != shape:
                faults.append(f"{name} is {list(wanted)}, its change {list(shape)}")
        for name, tensor in self.whole.items():
            if expected.shapes.get(name, tensor.shape) != tensor.shape:
                faults.append(f"{name} is {list(expected.shapes[name])}, its copy {list(tensor.shape)}")
        if faults:
            raise CheckpointError(f"{self.adapter.folder}: doesn't fit {where}: {listed(faults, 5)}")

    def merged(self, name: str, stored: Tensor, first: int) -> Tensor:
        """A piece of a weight from row `first` on, with what is added to it; others as they are."""
        rows = slice(first, first + stored.shape[0]) if stored.ndim else slice(None)
        if name in self.whole:
            stored = _read(self.whole[name])[rows].to(stored.device, stored.dtype)
        change = self.changes.get(name)
        if change is None:
            return stored
        added = _added(change, rows).to(stored.device)
        weight = stored.float() + added
        if change.magnitude is not None:  # DoRA: rows keep their direction and get a learnt length
            magnitude = _read(change.magnitude).float().reshape(-1)[rows].to(stored.device)
            weight *= (magnitude / weight.norm(dim=1))[:, None]
        return weight.to(stored.dtype)


def _added(change: Change, rows: slice) -> Tensor:
    down, up = _read(change.down).float(), _read(change.up).float()
    product = (up @ down[:, rows]).T if change.table else up[rows] @ down
    return product * change.scale


def _read(tensor: StoredTensor) -> Tensor:
    with safe_open(tensor.file, framework="pt", device="cpu") as opened:
        out: Tensor = opened.get_tensor(tensor.name)
        return out
