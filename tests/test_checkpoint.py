"""A checkpoint is opened once, read in parts, and handed on; no torch is needed for it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

import qvl
from qvl.checkpoint import checkpoint as rooms
from qvl.checkpoint import stored
from qvl.checkpoint.check import check
from qvl.checkpoint.checkpoint import Checkpoint, local_checkpoint, open_checkpoint
from qvl.checkpoint.weight_files import read_weight_file
from qvl.errors import CheckpointError, ConfigError
from qvl.inputs.tokenizer import Tokenizer
from qvl.models.checkpoint import load_model


def test_loading_looks_once_and_reads_config_tokenizer_and_headers_once(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def counted(place: Any, name: str) -> None:
        real = getattr(place, name)

        def count(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return real(*args, **options)

        monkeypatch.setattr(place, name, count)

    for place, name in (
        (rooms, "find_checkpoint"),
        (rooms, "read_config"),
        (stored, "read_weight_file"),
        (Tokenizer, "from_pretrained"),
    ):
        counted(place, name)
    qvl.load(tiny_checkpoint)
    assert calls == {"find_checkpoint": 1, "read_config": 1, "read_weight_file": 1, "from_pretrained": 1}


def test_an_opened_checkpoint_is_taken_without_looking_again(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    monkeypatch.setattr(rooms, "find_checkpoint", None)
    assert not check(checkpoint).failed
    assert load_model(checkpoint).config is checkpoint.config
    model = qvl.load(checkpoint)
    assert model.name == str(tiny_checkpoint)
    assert model.processor is checkpoint.processor


def test_every_part_of_mini_is_read_without_torch() -> None:
    program = """
import sys
from qvl.checkpoint.checkpoint import open_checkpoint
c = open_checkpoint("mini")
parts = c.config, c.quantization, c.stored, c.comparison, c.generation, c.tokenizer, c.template, c.processor
assert c.comparison.error(c.folder) is None
assert c.name == "mini"
sys.exit("torch" in sys.modules or "safetensors" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_a_config_alone_is_enough_for_planning(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_checkpoint / "config.json", tmp_path / "shape.json")
    checkpoint = local_checkpoint(tmp_path / "shape.json")
    assert checkpoint.config == Checkpoint(tiny_checkpoint).config
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors"):
        checkpoint.stored.sound()
    with pytest.raises(ConfigError):
        assert local_checkpoint(tmp_path).config


@pytest.mark.parametrize("seed", range(60))
def test_a_header_is_refused_when_safetensors_refuses_it_and_only_then(
    seed: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    whole = (tiny_checkpoint / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    for _ in range(draw.randint(0, 2)):
        name = draw.choice([n for n in header if n != "__metadata__"])
        entry = header[name]
        kind = draw.choice(["shape", "dtype", "offset", "both", "drop", "twin", "metadata", "key"])
        if kind == "shape":
            entry["shape"] = draw.choice([[], [0], [-1], entry["shape"][::-1], [*entry["shape"], 1], "x"])
        elif kind == "dtype":
            entry["dtype"] = draw.choice(["F16", "I32", "U32", "F64", "f32", "F4", "", None])
        elif kind in ("offset", "both"):
            step = draw.choice([-4, 4, 1 << 40])
            entry["data_offsets"] = [
                entry["data_offsets"][0] + step * (kind == "both"),
                entry["data_offsets"][1] + step,
            ]
        elif kind == "drop":
            del header[name]
        elif kind == "twin":
            header["twin"] = dict(entry)
        elif kind == "metadata":
            header["__metadata__"] = draw.choice([None, {}, {"a": 1}, [], "x"])
        else:
            entry[draw.choice(["more", "shape"])] = 1
    text = json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[end:])
    try:
        with safe_open(path, framework="pt") as opened:
            theirs = set(opened.keys())
    except SafetensorError:
        theirs = None
    try:
        ours = set(read_weight_file(path).tensors)
    except CheckpointError:
        ours = None
    assert ours == theirs
