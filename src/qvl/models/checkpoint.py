"""Checkpoints: a folder or hub id → a network with its weights, and back.

A network is laid out on the meta device, which costs nothing; each tensor is then put straight into its place.
On the CPU a tensor whose stored dtype is the wanted one isn't copied at all: it stays a view of the
memory-mapped file. Loading is then immediate, the first pass reads the disk, processes share the pages, and
the system may drop and re-read them. `copy=True` reads the weights into memory of our own instead.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qvl.catalog.config import read_config
from qvl.catalog.config_write import config_dict
from qvl.checkpoint.names import published_names, to_canonical
from qvl.checkpoint.quantization import Part
from qvl.errors import CapacityError, CheckpointError, nearest
from qvl.models import build, pickled
from qvl.models.base import VisionLanguageModel
from qvl.models.expert_layout import FusedExperts, expert_places, is_fused, single_shape
from qvl.models.linear import TILE
from qvl.models.on_load import coded_layers, place_coded, receivers
from qvl.models.quantized.int4_matmul import on_device
from qvl.models.quantized.layers import QuantizedLayer, make_layer, quantized_layers
from qvl.units import MiB, format_bytes

log = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# what safetensors calls the dtypes that a plain network may be stored in
_STORED_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I32": 4, "I64": 8}
# Tensors that old files carry and that are computed here, and those of multi-token prediction, which isn't run.
_IGNORABLE = re.compile(r"(^|\.)rotary_(pos_)?emb\.inv_freq$|^mtp\.")
_INDEX = "model.safetensors.index.json"
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.tiktoken"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COPY_BATCH = 64 * MiB  # how much of a file is mapped at once while its tensors are copied
_LISTED = 20  # names in one error


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    copy: bool = False,
    weights: str | None = None,
) -> VisionLanguageModel:
    """A network in evaluation mode with frozen weights (`requires_grad_(True)` makes them trainable).

    `dtype` None keeps what the config says. `weights`: `int8` or `int4` makes the decoder's layers so while they are
    read (models/on_load.py). Peak host memory: the weights and 64 MiB at most; of a quantised
    checkpoint the weights and a few bytes for each weight of its largest layer. Its quantised layers become those
    of models/linear.py and models/quantized/, and are not trainable.
    Raises: ConfigError; CheckpointError naming every missing, extra, misshaped or oddly stored tensor at once;
    CapacityError when the device can't hold the weights.
    """
    wanted, place = _dtype(dtype), _device(device)
    folder = find_checkpoint(source, revision)
    config = read_config(folder)
    wanted = wanted or _dtype(config.dtype)
    assert wanted is not None
    with torch.device("meta"):
        model = build(config)
    entries = read_headers(folder)
    layers = quantized_layers(model, folder, entries)
    coded = {} if weights is None else coded_layers(model, weights, place.type == "cpu")
    replaced = {f"{name}.{part}" for name, layer in layers.items() for part in layer.replaces}
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if n not in replaced}
    parts = {f"{name}.{part}": spec for name, layer in layers.items() for part, spec in layer.parts.items()}
    experts = expert_places(config.text, shapes, entries)  # those stored one by one
    fused_shapes = {at.fused: shapes.pop(at.fused) for at in experts.values() if at.fused in shapes}
    shapes |= {name: single_shape(config.text, at) for name, at in experts.items()}
    names = match_names(shapes, entries, folder, parts)
    try:
        in_parts = receivers(model, coded)
        if copy:
            fused_shapes |= {name: shapes[name] for name in shapes if is_fused(name)}
        fused = {
            name: FusedExperts(config.text, shape, wanted, place)
            for name, shape in fused_shapes.items()
            if name not in in_parts
        }
        in_parts |= fused
        for name, tensor, first in read_tensors(names, wanted, place, copy, in_parts):
            if name in in_parts:
                in_parts[name].put(first, tensor)
            elif name in experts:
                fused[experts[name].fused].put_one(experts[name], tensor)
            else:
                _set_parameter(model, name, tensor)
        for name, whole in fused.items():
            _set_parameter(model, name, whole.tensor)
        place_coded(model, coded, wanted, place)
        for name, layer in layers.items():
            model.set_submodule(name, on_device(_read_quantized(model, name, layer, entries, copy), place))
    except RuntimeError as e:  # torch's word for a full device, and for a full host
        if not isinstance(e, torch.OutOfMemoryError) and "allocate memory" not in str(e):
            raise
        needed = sum(math.prod(entry.shape) for entry in names.values()) * wanted.itemsize
        needed += sum(entries[name].num_bytes for name in parts if name in entries)
        free = f", {format_bytes(torch.cuda.mem_get_info(place)[0])} are free" if place.type == "cuda" else ""
        raise CapacityError(
            f"{folder}: the weights need {format_bytes(needed)} on {place}{free}: take a smaller or quantised "
            "model, or another device"
        ) from e
    return model.eval()


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


# --- finding a checkpoint


def find_checkpoint(source: str | Path, revision: str | None = None) -> Path:
    """The folder itself, or where the hub's snapshot lies after fetching what is missing.

    Obeys HF_HUB_OFFLINE, HF_HOME and HF_TOKEN; an interrupted download resumes; progress goes to stderr.
    Raises: CheckpointError with advice.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{source}: is a file; give the folder that holds config.json and the weights")
    if not _HUB_ID.fullmatch(str(source)):
        raise CheckpointError(
            f"{source}: no such folder; a hub id looks like Qwen/Qwen2.5-VL-3B-Instruct (owner/name)"
        )
    return _fetch(str(source), revision)


def _fetch(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub import errors as hub

    what = f"{repo_id}@{revision}" if revision else repo_id
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=_HUB_FILES))
        if not any(folder.glob("*.safetensors")):  # the first generation has no others
            snapshot_download(repo_id, revision=revision, allow_patterns=[pickled.FILES])
        return folder
    except hub.GatedRepoError as e:
        raise CheckpointError(f"{what}: gated; accept its terms on the hub, then set HF_TOKEN") from e
    except hub.RepositoryNotFoundError as e:
        raise CheckpointError(
            f"{what}: the hub has no such model, or it is private: check the spelling, or set HF_TOKEN"
        ) from e
    except hub.RevisionNotFoundError as e:
        raise CheckpointError(
            f"{what}: the model has no such revision; give a branch, tag or commit of it"
        ) from e
    except hub.LocalEntryNotFoundError as e:
        if constants.HF_HUB_OFFLINE:
            advice = "HF_HUB_OFFLINE is set and the cache doesn't hold it; unset it once, or give a folder"
        else:
            advice = "the hub can't be reached and the cache doesn't hold it; check the connection, or give a folder"
        raise CheckpointError(f"{what}: {advice}") from e
    except (hub.HfHubHTTPError, hub.HFValidationError, OSError) as e:
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise CheckpointError(
            f"{what}: can't be fetched ({first}); run again to resume, or give a folder"
        ) from e


# --- reading


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as a file's header describes it."""

    file: Path
    stored_name: str
    shape: tuple[int, ...]
    stored_dtype: str  # as safetensors spells it

    @property
    def stored_as(self) -> torch.dtype:
        return _STORED_DTYPES[self.stored_dtype]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES.get(self.stored_dtype, 1)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder: those an index names, or what lies there; safetensors before pickled ones.

    Raises: CheckpointError when there are none, or shards are missing.
    """
    for index, pattern in ((folder / _INDEX, "*.safetensors"), (folder / pickled.INDEX, pickled.FILES)):
        if index.is_file():
            return _indexed(index)
        files = sorted(folder.glob(pattern))
        if files:
            return files
    advice = "fetch the checkpoint again"
    if list(folder.glob("*.pt")) or list(folder.glob("*.pth")):
        advice = (
            "it has a training state, which can run code when read: save the weights alone as safetensors"
        )
    elif list(folder.glob("*.gguf")):
        advice = "it has GGUF weights, which llama.cpp reads; take the safetensors checkpoint"
    raise CheckpointError(f"{folder}: holds no *.safetensors and no {pickled.FILES}; {advice}")


def _indexed(index: Path) -> list[Path]:
    """The files that an index names. Raises: CheckpointError when it is none, or some are missing."""
    folder = index.parent
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as e:
        raise CheckpointError(f"{index}: is no weight index ({type(e).__name__}: {e})") from e
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{folder}: {len(absent)} of {len(names)} weight files are missing: {_listed(absent)}; "
            "fetch the checkpoint again"
        )
    return [folder / name for name in names]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A weight file whose every complaint becomes ours."""
    if file.suffix == ".bin":
        with pickled.open_pickled(file) as tensors:
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


def read_headers(folder: Path) -> dict[str, TensorEntry]:
    """Canonical name → entry, for all files of a checkpoint. Reads headers only.

    Raises: CheckpointError for unreadable files and for one tensor stored twice.
    """
    entries: dict[str, TensorEntry] = {}
    for file in weight_files(folder):
        with _opened(file) as opened:
            for stored in opened.keys():  # noqa: SIM118 (not a dict)
                part = opened.get_slice(stored)
                entry = TensorEntry(file, stored, tuple(part.get_shape()), part.get_dtype())
                name = to_canonical(stored)
                if name in entries:
                    twin = entries[name]
                    raise CheckpointError(
                        f"{folder}: {name} is stored twice, as {twin.stored_name} in {twin.file.name} and as "
                        f"{stored} in {file.name}; delete the files that don't belong to this checkpoint"
                    )
                entries[name] = entry
    return entries


def match_names(
    shapes: Mapping[str, tuple[int, ...]],
    entries: Mapping[str, TensorEntry],
    folder: Path,
    parts: Mapping[str, Part] | None = None,
) -> dict[str, TensorEntry]:
    """The entry of each of the network's plain tensors; those of its quantised layers are checked with them.

    Raises: CheckpointError that names all missing, extra, misshaped and oddly stored tensors together.
    """
    parts = parts or {}
    missing = [name for name in shapes if name not in entries]
    missing += [name for name, part in parts.items() if part.required and name not in entries]
    extra: list[str] = []
    skipped: list[str] = []
    for name in entries:
        if name in shapes or name in parts:
            continue
        tied_head = name == "lm_head.weight"  # only a tied network has no place for it
        (skipped if tied_head or _IGNORABLE.search(name) else extra).append(name)
    wanted = {**shapes, **{name: part.shape for name, part in parts.items()}}
    misshaped = [
        f"{name} {list(entries[name].shape)}, should be {list(shape)}"
        for name, shape in wanted.items()
        if name in entries and entries[name].shape != shape
    ]
    odd = [
        f"{name} {entries[name].stored_dtype}"
        for name in shapes
        if name in entries and entries[name].stored_dtype not in _STORED_DTYPES
    ]
    misstored = [
        f"{name} {entries[name].stored_dtype}, should be {' or '.join(part.dtypes)}"
        for name, part in parts.items()
        if name in entries and entries[name].stored_dtype not in part.dtypes
    ]
    problems = [
        f"{len(names)} {kind}: {_listed(names)}"
        for kind, names in (
            ("missing", missing),
            ("extra", extra),
            ("misshaped", misshaped),
            (f"not stored as {', '.join(_STORED_DTYPES)}", odd),
            ("of another dtype", misstored),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{folder}: the weights don't fit config.json. " + "; ".join(problems) + ". Check that both "
            "come from the same checkpoint"
        )
    if skipped:
        log.info("%s: skipped %s (computed here, or tied to the embedding)", folder, _listed(skipped))
    return {name: entries[name] for name in shapes}


def _read_quantized(
    model: nn.Module, name: str, layer: QuantizedLayer, entries: Mapping[str, TensorEntry], copy: bool
) -> nn.Module:
    """One quantised layer; files are closed again after it, so that only what it keeps stays mapped."""
    tensors: dict[str, Tensor] = {}
    found = {part: entries[f"{name}.{part}"] for part in layer.parts if f"{name}.{part}" in entries}
    for file in {entry.file for entry in found.values()}:
        with _opened(file) as opened:
            for part, entry in found.items():
                if entry.file == file:
                    tensor = opened.get_tensor(entry.stored_name)
                    tensors[part] = tensor.clone() if copy else tensor
    return make_layer(name, model.get_submodule(name), layer, tensors)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + rest


def read_tensors(
    names: Mapping[str, TensorEntry],
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
            if not copy and device.type == "cpu" and names[name].stored_as == dtype and name not in in_parts
        ]
        with _opened(file) as opened:
            for name in mapped:
                yield name, opened.get_tensor(names[name].stored_name), 0
        copied = {name: names[name] for name in members if name not in set(mapped)}
        unfinished: dict[str, Tensor] = {}
        for batch in _batches(copied):
            with _opened(file) as opened:
                for piece in batch:
                    entry = names[piece.name]
                    if piece.rows is None:
                        whole = opened.get_tensor(entry.stored_name)
                        # what goes into parts is read from the mapping: copies made and freed between what
                        # stays would leave holes in the heap, 400 MB of them for the 3B in 8 bits
                        passing = piece.name in in_parts
                        yield (
                            piece.name,
                            whole.to(dtype) if passing else whole.to(device, dtype, copy=True),
                            0,
                        )
                        continue
                    part = opened.get_slice(entry.stored_name)[piece.rows]
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


def _batches(entries: Mapping[str, TensorEntry]) -> Iterator[list[_Piece]]:
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


def save_model(model: VisionLanguageModel, folder: str | Path, *, max_shard_bytes: int = 5 * 10**9) -> None:
    """Writes config.json and the weights with their published names, sharded as the hub's are.

    Each file appears whole or not at all, so a checkpoint may be saved over the one it was loaded from.
    """
    folder = Path(folder)
    if model.config.quantization is not None:
        raise CheckpointError(
            f"{folder}: quantised layers are held in another layout than published ones and aren't written back; "
            "copy the checkpoint's own files instead"
        )
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(model.named_parameters())
    published = published_names(state, model.config.family)
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for name, parameter in state.items():
        num_bytes = parameter.numel() * parameter.element_size()
        if shards[-1] and size + num_bytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][published[name]] = parameter.detach()
        size += num_bytes
        total += num_bytes
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = ["model.safetensors"]
    for file, shard in zip(files, shards):
        whole = {name: t.cpu().contiguous() for name, t in shard.items()}
        _write_whole(
            folder / file, lambda path, whole=whole: save_file(whole, path, metadata={"format": "pt"})
        )
    stale = (set(folder.glob("*.safetensors")) | {folder / _INDEX}) - {folder / file for file in files}
    for path in stale:
        path.unlink(missing_ok=True)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards) for name in shard}
        _write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    stored = str(model.dtype).removeprefix("torch.")
    _write_json(folder / "config.json", {**config_dict(model.config), "torch_dtype": stored})


def _write_whole(path: Path, write: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    _write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
