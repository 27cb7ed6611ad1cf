"""The weight files of a folder and what their headers say, read once. No weight is read.

Whatever is wrong with them is collected: loading raises the first fault, checking tells them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from qvl.checkpoint import pickled_files, weight_files
from qvl.checkpoint.names import to_canonical
from qvl.checkpoint.weight_files import StoredTensor, read_index, read_weight_file
from qvl.errors import CheckpointError

_AGAIN = "fetch the checkpoint again"  # a hub download resumes
# safetensors before torch's own files, in which the first generation was published
_FORMS = ((weight_files.INDEX, "*.safetensors"), (pickled_files.INDEX, pickled_files.FILES))
_MOST = 20  # names in one error


class Fault(NamedTuple):
    """`rule`: the name it has among the findings of a check."""

    rule: str
    error: CheckpointError
    fix: str = _AGAIN


@dataclass
class StoredWeights:
    """`tensors`: canonical name → header entry. `index` is None for a checkpoint in one file."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    strays: list[Path] = field(default_factory=list)  # weight files that the index doesn't name
    adapters: list[Path] = field(default_factory=list)
    index: dict[str, str] | None = None
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def sound(self) -> StoredWeights:
        """Itself. Raises: CheckpointError with the first fault."""
        for fault in self.faults:
            raise fault.error
        return self


def read_stored(folder: Path) -> StoredWeights:
    """The files that an index names, or those that lie there; safetensors before pickled ones.

    An adapter's files beside a model are no part of it.
    """
    stored = StoredWeights(folder, adapters=sorted(folder.glob("adapter_*.safetensors")))
    for index, pattern in _FORMS:
        there = sorted(path for path in folder.glob(pattern) if path not in stored.adapters)
        if _find(stored, index, there):
            break
    else:
        stored.faults.append(_no_weights(folder))
    twice: list[str] = []
    for path in stored.files:
        try:
            found = read_tensors(path)
        except CheckpointError as e:
            stored.faults.append(Fault("file-damaged", e))
            continue
        for name, tensor in found.items():
            twin = stored.tensors.setdefault(to_canonical(name), tensor)
            if twin is not tensor:
                twice.append(
                    f"{to_canonical(name)} is stored twice, as {twin.name} in {twin.file.name} and as {name} in "
                    f"{path.name}"
                )
    if twice:
        more = f", and {len(twice) - 1} more are" if len(twice) > 1 else ""
        fix = "delete the files that don't belong to this checkpoint"
        stored.faults.append(
            Fault("stored-twice", CheckpointError(f"{folder}: {twice[0]}{more}; {fix}"), fix)
        )
    return stored


def _find(stored: StoredWeights, index: str, there: list[Path]) -> bool:
    """Whether the checkpoint is of the form that has this index; then its files are known."""
    folder = stored.folder
    try:
        stored.index = read_index(folder, index)
    except CheckpointError as e:
        stored.faults.append(Fault("index", e))
    if stored.index is None:
        stored.files = there
        return bool(there or stored.faults)
    names = sorted(set(stored.index.values()))
    stored.files = [folder / name for name in names if (folder / name).is_file()]
    stored.strays = [path for path in there if path.name not in names]
    if absent := [name for name in names if not (folder / name).is_file()]:
        which = "which isn't there, though the index names it"
        if len(absent) > 1:
            which = "which aren't there, though the index names them"
        error = CheckpointError(
            f"{folder}: {len(absent)} of {len(names)} weight files are missing: {listed(absent)}, {which}; {_AGAIN}"
        )
        stored.faults.append(Fault("shard-missing", error))
    return True


def _no_weights(folder: Path) -> Fault:
    fix = _AGAIN
    if list(folder.glob("*.pt")) or list(folder.glob("*.pth")):
        fix = "it has a training state, which can run code when read: save the weights alone as safetensors"
    elif list(folder.glob("*.gguf")):
        fix = "it has GGUF weights, which llama.cpp reads; take the safetensors checkpoint"
    what = f"{folder}: holds no *.safetensors and no {pickled_files.FILES}; {fix}"
    return Fault("no-weights", CheckpointError(what), fix)


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Stored name → header entry. Raises: CheckpointError for a file that can't be read."""
    if path.suffix == ".bin":
        return pickled_files.read_pickled_file(path)
    return read_weight_file(path).tensors


def listed(names: Iterable[str], most: int = _MOST) -> str:
    """The first names and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
