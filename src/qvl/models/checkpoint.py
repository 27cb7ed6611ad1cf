"""Checkpoints: a folder or hub id → a network with its weights, and back.

A network is laid out on the meta device, which costs nothing; each tensor is then put straight into its place.
On the CPU a tensor whose stored dtype is the wanted one isn't copied at all: it stays a view of the
memory-mapped file. Loading is then immediate, the first pass reads the disk, processes share the pages, and
the system may drop and re-read them. `copy=True` reads the weights into memory of our own instead.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qvl import moved
from qvl.catalog.config import config_dict
from qvl.checkpoint.checkpoint import Checkpoint, open_adapted
from qvl.checkpoint.compare import Comparison, Expected, QuantizedLayer, is_fused
from qvl.checkpoint.names import published_names
from qvl.checkpoint.stored import listed
from qvl.checkpoint.weight_files import StoredTensor
from qvl.checkpoint.write import SHARD_BYTES, write_checkpoint
from qvl.errors import CapacityError, CheckpointError, nearest, warn_once
from qvl.models import build
from qvl.models.base import VisionLanguageModel
from qvl.models.expert_layout import FusedExperts
from qvl.models.linear import TILE, QuantizedLinear
from qvl.models.lora import Merger
from qvl.models.on_load import coded_layers, load_targets, place_coded
from qvl.models.pickled import open_pickled
from qvl.models.quantized.int4_matmul import on_device
from qvl.models.quantized.layers import make_layer
from qvl.units import MiB, format_bytes

log = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# what safetensors calls the dtypes that a plain network may be stored in
_STORED_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
SAFETENSORS_NAMES = {
    **{dtype: name for name, dtype in _STORED_DTYPES.items()},
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
}
_COPY_BATCH = 64 * MiB  # how much of a file is mapped at once while its tensors are copied


def load_model(
    source: str | Path | Checkpoint,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    copy: bool = False,
    weights: str | None = None,
    adapter: str | Path | None = None,
) -> VisionLanguageModel:
    """A network in evaluation mode with frozen weights (`requires_grad_(True)` makes them trainable).

    `dtype` None keeps what the config says. `weights`: `int8` or `int4` makes the decoder's layers so while they are
    read (models/on_load.py). `adapter`: a folder or hub id of a LoRA adapter, merged as they are read; a `source` that
    is one itself is loaded with its base. Peak host memory: the weights and 64 MiB at most; of a quantised
    checkpoint the weights and a few bytes for each weight of its largest layer. Its quantised layers become those
    of models/linear.py and models/quantized/, and are not trainable.
    Raises: ConfigError; CheckpointError naming every missing, extra, misshaped or oddly stored tensor at once;
    CapacityError when the device can't hold the weights.
    """
    wanted, place = _dtype(dtype), _device(device)
    checkpoint = open_adapted(source, revision, adapter)
    wanted = wanted or _dtype(checkpoint.config.dtype)
    assert wanted is not None
    with torch.device("meta"):
        model = build(checkpoint.config)
    comparison = _compared(checkpoint)
    merger = Merger(checkpoint.adapter)
    merger.check(comparison.expected, checkpoint.folder)
    coded = {} if weights is None else coded_layers(model, weights, place.type == "cpu")
    try:
        _fill(model, comparison.expected, checkpoint.stored.tensors, coded, wanted, place, copy, merger)
    except RuntimeError as e:  # torch's word for a full device, and for a full host
        if not isinstance(e, torch.OutOfMemoryError) and "allocate memory" not in str(e):
            raise
        needed = comparison.num_bytes(checkpoint.stored.tensors, wanted.itemsize)
        free = f", {format_bytes(torch.cuda.mem_get_info(place)[0])} are free" if place.type == "cuda" else ""
        raise CapacityError(
            f"{checkpoint.folder}: the weights need {format_bytes(needed)} on {place}{free}: take a smaller or "
            "quantised model, or another device"
        ) from e
    return model.eval()


def _compared(checkpoint: Checkpoint) -> Comparison:
    """Raises: CheckpointError unless the files hold what the config asks for."""
    checkpoint.stored.sound()
    comparison = checkpoint.comparison
    if error := comparison.error(checkpoint.folder):
        raise error
    if comparison.skipped:
        log.info(
            "%s: skipped %s (computed here, or tied to the embedding)",
            checkpoint.folder,
            listed(comparison.skipped),
        )
    if passed_over := checkpoint.stored.passed_over:
        warn_once(log, f"{checkpoint.folder}: next to the model and not read: {passed_over}")
    if checkpoint.stored.adapters and checkpoint.adapter is None:
        log.warning(
            "%s: the adapter next to the model isn't applied; give --adapter to apply it", checkpoint.folder
        )
    return comparison


def _fill(
    model: VisionLanguageModel,
    expected: Expected,
    stored: Mapping[str, StoredTensor],
    coded: Mapping[str, QuantizedLinear],
    dtype: torch.dtype,
    device: torch.device,
    copy: bool,
    merger: Merger,
) -> None:
    """Puts every stored tensor where the network on the meta device has its place for it."""
    in_parts = load_targets(model, coded)
    fused_shapes = dict(expected.fused)
    if copy:
        fused_shapes |= {name: shape for name, shape in expected.shapes.items() if is_fused(name)}
    fused = {
        name: FusedExperts(model.config.text, shape, dtype, device)
        for name, shape in fused_shapes.items()
        if name not in in_parts
    }
    in_parts |= fused
    plain = {name: stored[name] for name in expected.shapes}
    for name, stored_piece, first in read_tensors(plain, dtype, device, copy, in_parts):
        tensor = merger.merged(name, stored_piece, first)
        if name in in_parts:
            in_parts[name].put(first, tensor)
        elif name in expected.experts:
            at = expected.experts[name]
            fused[at.fused].put_one(at, tensor)
        else:
            _set_parameter(model, name, tensor)
    for name, whole in fused.items():
        _set_parameter(model, name, whole.tensor)
    place_coded(model, coded, dtype, device)
    for name, layer in expected.layers.items():
        model.set_submodule(name, on_device(_read_quantized(model, name, layer, stored, copy), device))


def _set_parameter(model: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Parameter(tensor, requires_grad=False))


def _device(name: torch.device | str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as e:
        known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        first = str(e).strip().splitlines()[0]
        raise CheckpointError(f"device {name} can't be used here ({first}); known: {', '.join(known)}") from e
    return device


def _dtype(name: torch.dtype | str | None) -> torch.dtype | None:
    if name is None or isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise CheckpointError(f"dtype {name!r} can't hold weights; {nearest(name, list(DTYPES))}")
    return DTYPES[name]


# --- reading


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A weight file whose every complaint becomes ours."""
    if file.suffix == ".bin":
        with open_pickled(file) as tensors:
            yield tensors
        return
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            yield opened
    except (SafetensorError, OSError) as e:
        size = format_bytes(file.stat().st_size) if file.exists() else "absent"
        raise CheckpointError(
            f"{file}: can't be read as safetensors, perhaps cut short ({size}; {e}); fetch it again"
        ) from e


def _read_quantized(
    model: nn.Module, name: str, layer: QuantizedLayer, entries: Mapping[str, StoredTensor], copy: bool
) -> nn.Module:
    """One quantised layer; files are closed again after it, so that only what it keeps stays mapped."""
    tensors: dict[str, Tensor] = {}
    found = {part: entries[f"{name}.{part}"] for part in layer.parts if f"{name}.{part}" in entries}
    for file in {entry.file for entry in found.values()}:
        with _opened(file) as opened:
            for part, entry in found.items():
                if entry.file == file:
                    tensor = opened.get_tensor(entry.name)
                    tensors[part] = tensor.clone() if copy else tensor
    return make_layer(name, model.get_submodule(name), layer, tensors)


def read_tensors(
    names: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    device: torch.device,
    copy: bool,
    in_parts: Container[str] = (),
) -> Iterator[tuple[str, Tensor, int]]:
    """Name, tensor and its first row (0), file by file, in the wanted dtype; on the wanted device, but for those in
    `in_parts`.

    Pages of a mapped file count as this process's memory until it is closed, so what is copied anyway is read
    in pieces, with a mapping for each batch of them. A large tensor named in `in_parts` comes as these pieces, in
    order; a matrix in multiples of TILE rows, but for the last.
    """
    by_file: dict[Path, list[str]] = {}
    for name, entry in names.items():
        by_file.setdefault(entry.file, []).append(name)
    for file, members in by_file.items():
        mapped = [
            name
            for name in members
            if not copy
            and device.type == "cpu"
            and _STORED_DTYPES[names[name].dtype] == dtype
            and name not in in_parts
        ]
        with _opened(file) as opened:
            for name in mapped:
                yield name, opened.get_tensor(names[name].name), 0
        copied = {name: names[name] for name in members if name not in set(mapped)}
        unfinished: dict[str, Tensor] = {}
        for batch in _batches(copied):
            with _opened(file) as opened:
                for piece in batch:
                    entry = names[piece.name]
                    if piece.rows is None:
                        whole = opened.get_tensor(entry.name)
                        # what goes into parts is read from the mapping: copies made and freed between what
                        # stays would leave holes in the heap, 400 MB of them for the 3B in 8 bits
                        passing = piece.name in in_parts
                        yield (
                            piece.name,
                            whole.to(dtype) if passing else whole.to(device, dtype, copy=True),
                            0,
                        )
                        continue
                    part = opened.get_slice(entry.name)[piece.rows]
                    if piece.name in in_parts:
                        yield piece.name, part.to(dtype), piece.rows.start
                        continue
                    if piece.rows.start == 0:
                        unfinished[piece.name] = torch.empty(entry.shape, dtype=dtype, device=device)
                    unfinished[piece.name][piece.rows] = part
                    if piece.rows.stop == entry.shape[0]:
                        yield piece.name, unfinished.pop(piece.name), 0


class _Piece(NamedTuple):
    name: str
    rows: slice | None  # None: the whole tensor


def _batches(entries: Mapping[str, StoredTensor]) -> Iterator[list[_Piece]]:
    """Pieces in order, together at most _COPY_BATCH bytes; larger tensors are cut along their rows."""
    batch: list[_Piece] = []
    size = 0
    for name, entry in entries.items():
        if size + entry.num_bytes <= _COPY_BATCH:
            batch.append(_Piece(name, None))
            size += entry.num_bytes
            continue
        if batch:
            yield batch
        batch, size = [], 0
        if entry.num_bytes <= _COPY_BATCH:
            batch, size = [_Piece(name, None)], entry.num_bytes
            continue
        num_rows = entry.shape[0]
        step = max(1, _COPY_BATCH * num_rows // entry.num_bytes)
        step -= step % TILE if step > TILE and len(entry.shape) == 2 else 0
        for start in range(0, num_rows, step):
            yield [_Piece(name, slice(start, min(start + step, num_rows)))]
    if batch:
        yield batch


# --- writing


@dataclass(frozen=True)
class TorchTensor:
    """A tensor as the checkpoint room writes it. It is copied to the host when it is written, and not before."""

    tensor: Tensor

    @property
    def dtype(self) -> str:
        return SAFETENSORS_NAMES[self.tensor.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def pieces(self) -> Iterator[memoryview]:
        whole = self.tensor.detach().cpu().contiguous()
        yield whole.reshape(-1).view(torch.uint8).numpy().data


def save_model(model: VisionLanguageModel, folder: str | Path, *, max_shard_bytes: int = SHARD_BYTES) -> None:
    """Writes config.json and the weights with their published names, sharded as the hub's are.

    Each file appears whole or not at all, so a checkpoint may be saved over the one it was loaded from.
    """
    folder = Path(folder)
    if model.config.quantization is not None:
        raise CheckpointError(
            f"{folder}: quantised layers are held in another layout than published ones and aren't written back; "
            "copy the checkpoint's own files instead"
        )
    state = dict(model.named_parameters())
    published = published_names(state, model.config.generation)
    tensors = ((published[name], TorchTensor(parameter)) for name, parameter in state.items())
    stored = str(model.dtype).removeprefix("torch.")
    config = {**config_dict(model.config), "torch_dtype": stored}
    write_checkpoint(folder, tensors, config, over=True, shard_bytes=max_shard_bytes)


__getattr__ = moved.names(__name__)
