"""Writing checkpoints: the files that safetensors would write, whole or not at all, a shard at a time."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import quantized_writers as writers
from qvl.checkpoint.check import check
from qvl.checkpoint.checkpoint import Checkpoint
from qvl.checkpoint.weight_files import INDEX, StoredTensor
from qvl.checkpoint.write import write_checkpoint, write_shard
from qvl.errors import CheckpointError
from qvl.models.checkpoint import SAFETENSORS_NAMES, TorchTensor, load_model


@dataclass
class Raw:
    dtype: str
    shape: tuple[int, ...]
    content: bytes

    def pieces(self) -> Iterator[bytes]:
        yield self.content


def stored(folder: Path) -> list[tuple[str, StoredTensor]]:
    return [(tensor.name, tensor) for tensor in Checkpoint(folder).stored.tensors.values()]


def config(folder: Path) -> dict[str, object]:
    return json.loads((folder / "config.json").read_text())


def test_a_shard_is_the_file_that_safetensors_writes_byte_by_byte(tmp_path: Path) -> None:
    tensors = {
        f"x.{name}": torch.arange(24).view(2, 3, 4).to(dtype) for dtype, name in SAFETENSORS_NAMES.items()
    }
    tensors |= {"empty": torch.zeros(0, 3), "one": torch.tensor(1.5), "ä": torch.ones(3).bfloat16()}
    tensors["turned"] = torch.arange(6.0).view(2, 3).T
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, tmp_path / "theirs", metadata={"format": "pt"}
    )
    write_shard(tmp_path / "ours", {name: TorchTensor(t) for name, t in tensors.items()})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("kind", ["plain", "awq", "fp8"])
def test_a_checkpoint_written_anew_in_shards_is_whole_and_loads_to_the_same(
    kind: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source = tiny_checkpoint
    if kind == "awq":
        source = tmp_path / "awq"
        writers.write(tiny_checkpoint, source, lambda w: writers.awq(w, 16), writers.awq_config(16))
    if kind == "fp8":
        source = tmp_path / "fp8"
        settings = writers.fp8_config((8, 16), modules_to_not_convert=["lm_head", "visual"])
        writers.write(tiny_checkpoint, source, lambda w: writers.fp8(w, (8, 16)), settings)
    target = tmp_path / "new" / "checkpoint"
    done = write_checkpoint(target, stored(source), config(source), files_from=source, shard_bytes=30_000)
    assert len(done.files) > 2
    report = check(target)
    assert [f for f in report.findings if f.level == "error"] == []
    assert done.num_tensors == len(load_file(source / "model.safetensors"))
    index = json.loads((target / INDEX).read_text())
    assert index["metadata"]["total_size"] == done.num_bytes
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(target / file)[name], load_file(source / "model.safetensors")[name])
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            assert (target / path.name).exists(), path.name
    a, b = (load_model(folder).state_dict() for folder in (source, target))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_memory_is_that_of_one_shard(tmp_path: Path) -> None:
    megabyte = 1 << 20

    def made() -> Iterator[tuple[str, Raw]]:
        for i in range(40):
            yield f"x.{i:02}", Raw("I8", (megabyte,), bytes([i]) * megabyte)

    tracemalloc.start()
    done = write_checkpoint(tmp_path / "new", made(), {}, shard_bytes=4 * megabyte)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(done.files) == 10
    assert peak < 6 * megabyte
    assert load_file(tmp_path / "new" / done.files[9])["x.39"][-1] == 39


def test_stored_tensors_are_copied_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvl.checkpoint.weight_files._PIECE", 1 << 20)
    (tmp_path / "big").mkdir()
    save_file({"x": torch.zeros(64 << 20, dtype=torch.uint8)}, tmp_path / "big" / "model.safetensors")
    tracemalloc.start()
    write_checkpoint(tmp_path / "new", stored(tmp_path / "big"), {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert (tmp_path / "new/model.safetensors").stat().st_size > 64 << 20


def failing() -> Iterator[tuple[str, Raw]]:
    yield "a", Raw("I8", (4,), b"abcd")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("over", [False, True])
def test_a_failure_on_the_way_leaves_what_was_there(
    over: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "checkpoint"
    if over:
        shutil.copytree(tiny_checkpoint, target)
    with pytest.raises(CheckpointError, match=r"can't be written \(No space left"):
        write_checkpoint(target, failing(), {}, over=over, shard_bytes=2)
    assert [p.name for p in tmp_path.iterdir()] == (["checkpoint"] if over else [])
    if over:
        assert {p.name: p.read_bytes() for p in target.iterdir()} == {
            p.name: p.read_bytes() for p in tiny_checkpoint.iterdir()
        }


def test_writing_over_the_folder_that_is_read_keeps_its_other_files(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    target = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    (target / "notes.md").write_text("mine")
    write_checkpoint(target, stored(target), config(target), over=True, shard_bytes=30_000)
    assert not (target / "model.safetensors").exists()
    assert (target / "notes.md").read_text() == "mine"
    assert not check(target).failed
    write_checkpoint(target, stored(target), config(target), over=True)
    assert sorted(p.name for p in target.glob("model*")) == ["model.safetensors"]
    assert not check(target).failed


def test_a_target_with_something_in_it_is_left_alone_unless_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    for target in (tmp_path, tmp_path / "mine"):
        with pytest.raises(CheckpointError, match="exists already"):
            write_checkpoint(target, [], {})
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    raw = Raw("I8", (1,), b"a")
    with pytest.raises(CheckpointError, match="x appears twice"):
        write_checkpoint(tmp_path / "new", [("x", raw), ("x", raw)], {})
    assert list(tmp_path.iterdir()) == []


def test_what_an_ended_process_left_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getpid", lambda: 7)
    (tmp_path / ".new.7").mkdir()
    (tmp_path / ".new.7" / "left").write_text("x")
    write_checkpoint(tmp_path / "new", [("x", Raw("I8", (1,), b"a"))], {})
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
