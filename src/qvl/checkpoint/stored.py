"""The weight files of a folder and what their headers say, read once. No weight is read.

Whatever is wrong with them is collected: loading raises the first fault, checking reports all of them.
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
_TRAINERS = ("optimizer", "scheduler", "random_states", "rng_state", "ema", "training_")
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
    strays: list[Path] = field(default_factory=list)  # files that are no part of the model
    adapters: list[Path] = field(default_factory=list)
    stale_index: str | None = None  # its name, where a whole file lies beside it
    index: dict[str, str] | None = None
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    @property
    def passed_over(self) -> str:
        """What lies beside the model and isn't read, in words; "" where nothing does."""
        parts = [f"{self.stale_index}, as model.safetensors is whole"] if self.stale_index else []
        parts += [path.name for path in self.strays]
        return listed(parts, 5)

    def sound(self) -> StoredWeights:
        """Itself. Raises: CheckpointError with the first fault."""
        for fault in self.faults:
            raise fault.error
        return self


def read_stored(folder: Path) -> StoredWeights:
    """The files that an index names, or those that lie there; safetensors before pickled ones.

    Chosen as transformers does it: a whole model.safetensors before an index. What a trainer leaves beside a model,
    its optimizer's state or an adapter, is no part of it.
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
    whole = folder / index.removesuffix(".index.json")
    if whole in there:
        stored.files, stored.strays = [whole], [path for path in there if path != whole]
        stored.stale_index = index if (folder / index).is_file() else None
        return True
    try:
        stored.index = read_index(folder, index)
    except CheckpointError as e:
        stored.faults.append(Fault("index", e))
    if stored.index is None:
        stored.strays = [path for path in there if path.name.startswith(_TRAINERS)]
        stored.files = [path for path in there if path not in stored.strays]
        return bool(stored.files or stored.faults)
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
    found = read_weight_file(path)
    if found.metadata.get("format") == "mlx":
        raise CheckpointError(
            f"{path}: holds weights in the layout of MLX, which mlx-vlm runs on a Mac; take the model that they were "
            "made from"
        )
    return found.tensors


def listed(names: Iterable[str], most: int = _MOST) -> str:
    """The first names and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
