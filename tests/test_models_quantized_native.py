"""A quantised folder asked like any other: qvl.load plans its memory as stored, and answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import quantized_writers as writers
import qvl
from qvl.cli.main import main
from qvl.plan.memory import weight_bytes

LAYOUTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "awq": (lambda w: writers.awq(w, 16), writers.awq_config(16), "awq"),
    "gptq": (lambda w: writers.gptq(w, 4, 16), writers.gptq_config(4, 16), "gptq-int4"),
    "gptq 2": (lambda w: writers.gptq(w, 2, 16), writers.gptq_config(2, 16), "gptq-int4"),
    "w8a8": (
        writers.int8,
        writers.compressed_config("int-quantized", writers.int_weights(8, None), writers.INT8_TOKENS),
        "int8",
    ),
    "fp8": (lambda w: writers.fp8(w, (16, 16)), writers.fp8_config((16, 16)), "fp8"),
}


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (84, 56), (200, 40, 10))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_quantised_folder_is_planned_as_stored_and_answers(
    layout: str, tiny_checkpoint: Path, tmp_path: Path, picture: Image.Image
) -> None:
    make, settings, precision = LAYOUTS[layout]
    writers.write(tiny_checkpoint, tmp_path / "q", make, settings)
    model = qvl.load(tmp_path / "q", max_model_len=256)
    assert model.model.dtype == torch.bfloat16  # fp16 in the file
    assert model.memory.weights_bytes == weight_bytes(model.model.config, precision).total
    answer = model.ask(picture, "What is this?", max_new_tokens=8)
    assert answer.completion_tokens >= 1


def test_answers_are_those_of_the_weights_that_fp8_stands_for(
    tiny_checkpoint: Path, tmp_path: Path, picture: Image.Image
) -> None:
    make, settings, _ = LAYOUTS["fp8"]
    weights = writers.write(tiny_checkpoint, tmp_path / "q", make, settings, dtype=None)
    plain = shutil.copytree(tiny_checkpoint, tmp_path / "plain")
    tensors = load_file(plain / "model.safetensors")
    changed = {f"{name}.weight": weight for name, weight in weights.items()}
    assert any(not torch.equal(tensors[name], weight) for name, weight in changed.items())
    save_file(tensors | changed, plain / "model.safetensors")
    answers = [
        qvl.load(folder, dtype="fp32", max_model_len=256)
        .ask(picture, "What is this?", max_new_tokens=16)
        .text
        for folder in (tmp_path / "q", plain)
    ]
    assert answers[0] == answers[1]
    assert answers[0]


def test_bitsandbytes_is_one_line_with_the_reason(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "bnb")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    Image.new("RGB", (56, 56)).save(tmp_path / "x.png")
    assert main(["ask", "--model", str(folder), str(tmp_path / "x.png"), "What?"]) == 2
    err = capsys.readouterr().err
    assert "bitsandbytes" in err
    assert "Traceback" not in err
