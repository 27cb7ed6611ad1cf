"""qvl convert: names change, bytes don't; and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qvl.checkpoint.convert import convert
from qvl.checkpoint.stored import read_stored
from qvl.checkpoint.weight_files import INDEX, read_weight_file
from qvl.checkpoint.write import whole_folder, write_checkpoint
from qvl.cli.main import main
from qvl.errors import CapacityError, CheckpointError, GenerationError
from qvl.models.checkpoint import load_model, save_model
from test_models_attention import tiny


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    save_model(tiny(), tmp_path / "shards", max_shard_bytes=20_000)
    return tmp_path / "shards"


def names(folder: Path) -> set[str]:
    return {name for file in folder.glob("*.safetensors") for name in read_weight_file(file).tensors}


def test_new_names_are_those_of_transformers_and_load_to_the_same_network(
    shards: Path, tmp_path: Path
) -> None:
    done = convert(shards, tmp_path / "new", "new")
    found = names(tmp_path / "new")
    assert done.num_tensors == len(found)
    assert "model.visual.merger.ln_q.weight" in found
    assert "model.language_model.layers.0.mlp.up_proj.weight" in found
    assert "lm_head.weight" in found
    assert done.num_renamed == len(found) - 1
    a, b = (dict(load_model(f).named_parameters()) for f in (shards, tmp_path / "new"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_round_trip_gives_every_file_back_byte_by_byte(shards: Path, tmp_path: Path) -> None:
    convert(shards, tmp_path / "new", "new")
    convert(tmp_path / "new", tmp_path / "old", "old")
    assert {p.name for p in (tmp_path / "old").iterdir()} == {p.name for p in shards.iterdir()}
    for path in shards.glob("*.safetensors"):
        again = tmp_path / "old" / path.name
        before, after = read_weight_file(path), read_weight_file(again)
        data = [p.read_bytes()[8 + f.header_bytes :] for p, f in ((path, before), (again, after))]
        assert data[0] == data[1]
        assert list(before.tensors) == list(after.tensors)
    for name in (INDEX, "config.json"):
        assert json.loads((tmp_path / "old" / name).read_text()) == json.loads((shards / name).read_text())


def test_converting_to_the_layout_it_has_is_a_plain_copy(shards: Path, tmp_path: Path) -> None:
    assert convert(shards, tmp_path / "same", "old").num_renamed == 0
    assert names(tmp_path / "same") == names(shards)


def test_the_index_follows_and_points_to_where_tensors_are(shards: Path, tmp_path: Path) -> None:
    convert(shards, tmp_path / "new", "new")
    index = json.loads((tmp_path / "new" / INDEX).read_text())
    assert index["metadata"] == json.loads((shards / INDEX).read_text())["metadata"]
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "new" / file, framework="pt") as opened:
            assert name in opened.keys()  # noqa: SIM118 (not a dict)


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.float8_e4m3fn, torch.bfloat16, torch.int8, torch.int64, torch.bool]
)
def test_tensors_of_any_dtype_pass_through(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.arange(60).view(3, 20).to(dtype)
    (tmp_path / "q").mkdir()
    save_file({"visual.x": tensor, "lm_head.weight": torch.ones(1)}, tmp_path / "q" / "model.safetensors")
    convert(tmp_path / "q", tmp_path / "new", "new")
    found = load_file(tmp_path / "new" / "model.safetensors")["model.visual.x"]
    assert found.dtype == dtype
    assert torch.equal(found.float(), tensor.float())


def test_other_files_come_along_and_metadata_stays(tiny_checkpoint: Path, tmp_path: Path) -> None:
    convert(tiny_checkpoint, tmp_path / "new", "new")
    for path in tiny_checkpoint.iterdir():
        if path.suffix != ".safetensors":
            assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes(), path.name
    assert read_weight_file(tmp_path / "new" / "model.safetensors").metadata == {"format": "pt"}


def test_module_names_in_the_quantisation_are_respelled(shards: Path, tmp_path: Path) -> None:
    raw = json.loads((shards / "config.json").read_text())
    raw["quantization_config"] = {
        "quant_method": "fp8",
        "modules_to_not_convert": [
            "lm_head",
            "visual",
            "visual.blocks.0.attn.qkv",
            "model.layers.0",
            "re:visual.*",
        ],
    }
    (shards / "config.json").write_text(json.dumps(raw))
    convert(shards, tmp_path / "new", "new")
    new = json.loads((tmp_path / "new" / "config.json").read_text())["quantization_config"]
    assert new["modules_to_not_convert"] == [
        "lm_head",
        "visual",
        "model.visual.blocks.0.attn.qkv",
        "model.language_model.layers.0",
        "re:visual.*",
    ]
    convert(tmp_path / "new", tmp_path / "old", "old")
    assert json.loads((tmp_path / "old" / "config.json").read_text()) == raw


def test_memory_stays_far_below_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvl.checkpoint.convert._PIECE", 1 << 20)
    (tmp_path / "big").mkdir()
    save_file({"visual.x": torch.zeros(64 << 20, dtype=torch.uint8)}, tmp_path / "big" / "model.safetensors")
    tracemalloc.start()
    convert(tmp_path / "big", tmp_path / "new", "new")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_two_names_that_would_meet_are_refused(shards: Path, tmp_path: Path) -> None:
    save_file({"model.visual.merger.ln_q.weight": torch.ones(16)}, shards / "zz.safetensors")
    with pytest.raises(
        CheckpointError, match=r"visual\.merger\.ln_q\.weight and model\.visual\..* would both"
    ):
        convert(shards, tmp_path / "new", "old")
    assert not (tmp_path / "new").exists()


def test_a_target_that_is_there_is_left_alone(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("x")
    for target in (tmp_path / "there", shards, shards / "config.json"):
        with pytest.raises(CheckpointError, match="exists already"):
            convert(shards, target, "new")
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["mine"]


@pytest.mark.parametrize("keep", [0, 7, 100, 3000])
def test_a_file_cut_short_is_refused_and_nothing_is_left(keep: int, shards: Path, tmp_path: Path) -> None:
    path = sorted(shards.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"{path.name}: can't be read as safetensors"):
        convert(shards, tmp_path / "new", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["shards"]


def test_a_failure_on_the_way_leaves_no_folder(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(CheckpointError, match=r"can't be written .*No space left"):
        convert(shards, tmp_path / "new", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["shards"]


def test_a_disk_without_room_is_refused_with_both_numbers(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 1000))
    with pytest.raises(CapacityError, match=r"the copy needs \d.* are free"):
        convert(shards, tmp_path / "new", "new")


def test_a_folder_without_safetensors_and_an_unknown_layout_are_refused(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no"):
        convert(tmp_path / "empty", tmp_path / "new", "new")
    with pytest.raises(CheckpointError, match="layout 'nested': known: old, new"):
        convert(shards, tmp_path / "new", "nested")


def test_the_verb_says_what_it_did(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(shards), str(tmp_path / "a"), "--layout", "new"]) == 0
    total = len(names(shards))
    assert f"a: {total - 1} of {total} tensors renamed in " in capsys.readouterr().out
    assert main(["convert", str(shards), str(tmp_path / "b"), "--layout", "old", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_renamed"], found["num_tensors"], found["layout"]) == (0, total, "old")


def test_the_verb_refuses_in_one_line_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(tmp_path / "none"), str(tmp_path / "a"), "--layout", "new"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "no such folder" in err


def test_converting_imports_no_torch(shards: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from qvl.checkpoint.convert import convert; "
        f"convert(Path({str(shards)!r}), Path({str(tmp_path / 'new')!r}), 'new'); "
        "sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


@pytest.mark.parametrize(
    "name", ["notes.txt", "sub/key", "model-00001-of-00002.safetensors", "tokenizer.json"]
)
def test_a_link_out_of_the_folder_is_refused_and_nothing_of_it_copied(
    shards: Path, tmp_path: Path, name: str
) -> None:
    secret = tmp_path / "secret"
    place = shards / name
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        secret.write_bytes(place.read_bytes())
        place.unlink()
    else:
        secret.write_text("key")
    place.symlink_to(secret)
    with pytest.raises(CheckpointError, match="outside the folder"):
        convert(shards, tmp_path / "new", "new")
    assert not (tmp_path / "new").exists()
    if name in ("notes.txt", "tokenizer.json"):
        with pytest.raises(CheckpointError, match="outside the folder"):
            write_checkpoint(tmp_path / "other", [], {}, files_from=shards)


def test_links_to_folders_to_nothing_to_themselves_and_pipes_are_refused(
    shards: Path, tmp_path: Path
) -> None:
    odd = shards / "odd"
    for make in (
        lambda: odd.symlink_to("/etc"),
        lambda: odd.symlink_to("nowhere"),
        lambda: odd.symlink_to("odd"),
        lambda: os.mkfifo(odd),
    ):
        make()
        with pytest.raises(CheckpointError, match="odd"):
            convert(shards, tmp_path / "new", "new")
        odd.unlink()


def test_a_snapshot_of_the_hubs_cache_is_converted_through_its_links(shards: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--Qwen--Tiny"
    snapshot = repository / "snapshots" / "abc"
    blobs = repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(p for p in shards.iterdir() if p.is_file())):
        (blobs / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    converted = convert(snapshot, tmp_path / "new", "new")
    assert converted.num_tensors
    other = tmp_path / "models--Qwen--Other" / "blobs"
    other.mkdir(parents=True)
    (other / "0").write_text("{}")
    (snapshot / "x.json").symlink_to(other / "0")
    with pytest.raises(CheckpointError, match="outside the folder"):
        convert(snapshot, tmp_path / "newer", "new")


@pytest.mark.parametrize(
    "file", ["../secret.safetensors", "/etc/passwd", "a/../../b.safetensors", "..\\b", ""]
)
def test_an_index_that_names_files_outside_its_folder_is_refused(
    shards: Path, tmp_path: Path, file: str
) -> None:
    index = shards / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    raw["weight_map"][next(iter(raw["weight_map"]))] = file
    index.write_text(json.dumps(raw))
    assert any("outside its folder" in str(fault.error) for fault in read_stored(shards).faults)
    with pytest.raises(CheckpointError, match="outside its folder"):
        convert(shards, tmp_path / "new", "new")


def test_what_a_killed_writer_left_is_swept_and_who_still_writes_is_left_alone(tmp_path: Path) -> None:
    stale = tmp_path / ".new.999999"
    stale.mkdir()
    (stale / "0").write_text("x")
    kept = [tmp_path / ".new.txt", tmp_path / ".newer.1"]
    for path in kept:
        path.mkdir()
    with whole_folder(tmp_path / "new") as working:
        assert not stale.exists()
        os.rename(working, mine := working.with_name(".new.1"))  # as of another process
        with whole_folder(tmp_path / "new"):
            assert mine.is_dir()
        os.rename(mine, working)
        (tmp_path / "new").rmdir()
    assert all(path.is_dir() for path in kept)


def test_an_unknown_generation_is_refused_as_everywhere(tiny_checkpoint, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_checkpoint, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "qwen9_vl"}))
    with pytest.raises(GenerationError, match="qwen9_vl"):
        convert(source, tmp_path / "target", "new")
    assert not (tmp_path / "target").exists()
