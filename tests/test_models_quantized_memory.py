"""What quantised checkpoints take, on disk and loaded, beside what the plan says: to the byte where they agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import quantized_writers as writers
from models_reference import SPECIAL
from qvl.catalog import generations
from qvl.catalog.config import ModelConfig, config_dict, read_config, tensor_table
from qvl.checkpoint.quantization import read_quantization
from qvl.checkpoint.weight_files import read_weight_file
from qvl.models import build
from qvl.models.base import VisionLanguageModel, initialize
from qvl.models.checkpoint import load_model, save_model
from qvl.models.linear import QuantizedLinear
from qvl.plan.memory import stored_precision, weight_bytes
from test_models_attention import TEXT, VISION

CONFIG = ModelConfig(
    generation=generations.by_name("qwen2_5_vl"),
    text=replace(
        TEXT, hidden_size=128, intermediate_size=384, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        mrope_section=(4, 6, 6), vocab_size=210,
    ),
    vision=replace(VISION, out_hidden_size=128),
    **SPECIAL,
)  # fmt: skip
LAYOUTS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "awq": (writers.awq, writers.awq_config()),
    "gptq-int4": (writers.gptq, writers.gptq_config()),
    "gptq-int8": (lambda w: writers.gptq(w, 8), writers.gptq_config(8)),
    "fp8": (writers.fp8, writers.fp8_config()),
    "int4": (
        writers.packed,
        writers.compressed_config("pack-quantized", writers.int_weights(4, 128)),
    ),
    "int8": (
        writers.int8,
        writers.compressed_config("int-quantized", writers.int_weights(8, None), writers.INT8_TOKENS),
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build(CONFIG).eval().requires_grad_(False)
    initialize(model, 0.2, torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("plain")
    save_model(model, folder)
    return folder


def quantised(plain: Path, folder: Path, precision: str) -> Path:
    make, settings = LAYOUTS[precision]
    writers.write(plain, folder, make, settings)
    return folder


def held_bytes(model: VisionLanguageModel) -> int:
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("precision", LAYOUTS)
def test_the_file_holds_as_many_bytes_as_planned(precision: str, plain: Path, tmp_path: Path) -> None:
    folder = quantised(plain, tmp_path / "q", precision)
    stored = read_weight_file(folder / "model.safetensors").tensors.values()
    total = sum(t.end - t.start for t in stored)
    if precision == "int4":  # each layer's two numbers of weight_shape, which nobody keeps in memory
        total -= 16 * sum(t.name.endswith("weight_shape") for t in stored)
    config = read_config(folder)
    assert stored_precision(config) == precision
    assert total == weight_bytes(config, stored_precision(config)).total


# What our layout of codes adds to the published one or saves, for one layer of out x in with g groups a row:
# AWQ's zeros are a byte instead of a nibble; symmetric zeros and the group of each input aren't kept.
DIFFERENCE: dict[str, Callable[[int, int, int], int]] = {
    "awq": lambda out, inn, g: out * g - out * g // 2,
    "gptq-int4": lambda out, inn, g: -(out * g // 2) - 4 * inn,
    "gptq-int8": lambda out, inn, g: -(out * g) - 4 * inn,
    "fp8": lambda out, inn, g: 0,
    "int4": lambda out, inn, g: 0,
    "int8": lambda out, inn, g: 0,
}


@pytest.mark.parametrize("precision", LAYOUTS)
def test_a_loaded_network_takes_what_was_planned_and_the_known_difference(
    precision: str, plain: Path, tmp_path: Path
) -> None:
    model = load_model(quantised(plain, tmp_path / "q", precision))
    planned = weight_bytes(model.config, stored_precision(model.config)).total
    layers = [
        (m.out_features, m.in_features) for n, m in model.named_modules() if writers.DECODER_LINEAR.match(n)
    ]
    assert len(layers) == 14
    known = sum(DIFFERENCE[precision](out, inn, inn // 128) for out, inn in layers)
    assert held_bytes(model) == planned + known


def test_the_difference_is_small_at_a_published_width() -> None:
    # one 11008 x 2048 layer of the 3B: 0.8% more for AWQ's zeros
    groups = 11008 // 128
    extra = DIFFERENCE["awq"](2048, 11008, groups)
    planned = 2048 * 11008 // 2 + groups * 2048 * 2 + groups * 2048 // 2
    assert 0.005 < extra / planned < 0.01


def test_odd_sizes_are_padded_to_whole_tiles_and_never_by_more(plain: Path, tmp_path: Path) -> None:
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    parts, expected = writers.packed(weight, 4, 96)
    codes = torch.stack([parts["weight_packed"] >> 4 * i & 15 for i in range(8)], -1).flatten(1)
    layer = QuantizedLinear.from_codes(codes.to(torch.uint8), 4, parts["weight_scale"], group_size=96)
    assert torch.equal(layer.dequantize(), expected)
    assert layer.num_bytes == 48 * 96 // 2 + 48 * 2  # 40 rows are three tiles of 16


def wide_checkpoint(folder: Path, precision: str) -> int:
    """A file of 12 layers with arbitrary codes; returns the weights of its largest layer."""
    config = replace(
        CONFIG,
        text=replace(
            CONFIG.text, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, head_dim=128,
            mrope_section=(16, 24, 24),
        ),
        vision=replace(CONFIG.vision, out_hidden_size=512),
        quantization=LAYOUTS[precision][1],
        dtype="float16",
    )  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_dict(config)))
    table, quantization = tensor_table(config), read_quantization(config.quantization)
    assert quantization is not None
    tensors = {n: torch.ones(shape, dtype=torch.float16) for n, shape in table.shapes.items()}
    for name, (out, inn) in table.linears.items():
        scheme = quantization.scheme_of(name)
        if scheme is None:
            continue
        del tensors[f"{name}.weight"]
        for part, spec in scheme.parts(out, inn).items():
            kind = {"I32": torch.int32, "F16": torch.float16, "F8_E4M3": torch.uint8, "I8": torch.int8}[
                spec.dtypes[0]
            ]
            filled = torch.randint(0, 100, spec.shape).to(kind)
            tensors[f"{name}.{part}"] = filled.view(torch.float8_e4m3fn) if kind == torch.uint8 else filled
    save_file(tensors, folder / "model.safetensors")
    return 512 * 2048


@pytest.mark.parametrize("precision", ["awq", "fp8"])
def test_loading_takes_the_weights_and_a_few_bytes_for_each_weight_of_one_layer(
    precision: str, tmp_path: Path
) -> None:
    largest = wide_checkpoint(tmp_path / "q", precision)
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
        "from models_reference import peak_growth; from test_models_quantized_memory import held_bytes; "
        f"from qvl.models.checkpoint import load_model; where = {str(tmp_path / 'q')!r}; "
        "load_model(where, copy=True); growth = peak_growth(); peak = growth.__enter__(); "
        "model = load_model(where, copy=True); growth.__exit__(None, None, None); print(peak[0], held_bytes(model))"
    )
    # the allocator gives back at once what is freed, so that only what is alive counts
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    peak, held = map(int, done.stdout.split())
    assert held > 20 * 10**6
    assert peak < held * 1.02 + 8 * largest
