"""Our readers against what AutoAWQ, AutoGPTQ, GPTQModel, compressed-tensors and transformers wrote and read themselves.

The file was recorded by benchmarks/quantised_golden.py; its header holds the libraries' versions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import quantized_writers as writers
from qvl.checkpoint.quantization import read_quantization
from qvl.models.quantized import reader

GOLDEN = Path(__file__).parent / "data" / "quantised_golden.safetensors"
FP8_CHANNEL = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}

# case → the quantization_config under which the library would publish it
CONFIGS: dict[str, dict[str, Any]] = {
    "awq": writers.awq_config(32),
    **{f"gptq-{bits}": writers.gptq_config(bits, 32, sym=False) for bits in (2, 3, 4, 8)},
    "gptq-4-act-order": writers.gptq_config(4, 32, sym=False, desc_act=True),
    **{
        f"gptq-v2-{bits}": writers.gptq_config(bits, 32, sym=False, checkpoint_format="gptq_v2")
        for bits in (2, 3, 4, 8)
    },
    "gptq-v2-4-act-order": writers.gptq_config(4, 32, sym=False, desc_act=True, checkpoint_format="gptq_v2"),
    "packed": writers.compressed_config("pack-quantized", writers.int_weights(4, 32)),
    "packed-asymmetric": writers.compressed_config("pack-quantized", writers.int_weights(4, 32, False)),
    "packed-act-order": writers.compressed_config(
        "pack-quantized", writers.int_weights(4, 32, actorder="group")
    ),
    "packed-8-channel": writers.compressed_config("pack-quantized", writers.int_weights(8, None)),
    "int-quantized": writers.compressed_config(
        "int-quantized", writers.int_weights(8, None), writers.INT8_TOKENS
    ),
    "float-quantized": writers.compressed_config("float-quantized", FP8_CHANNEL),
    "fp8": writers.fp8_config((16, 32)),
}


def recorded() -> dict[str, dict[str, Tensor]]:
    cases: dict[str, dict[str, Tensor]] = {}
    with safe_open(GOLDEN, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            case, _, part = name.partition("/")
            cases.setdefault(case, {})[part] = file.get_tensor(name)
    return cases


def test_every_recorded_case_is_compared() -> None:
    assert recorded().keys() == CONFIGS.keys()


@pytest.mark.parametrize("case", CONFIGS)
def test_a_layer_written_by_its_own_library_stands_for_what_that_library_reads(case: str) -> None:
    parts = recorded()[case]
    read = parts.pop("read")
    quantization = read_quantization(CONFIGS[case])
    assert quantization is not None
    scheme = quantization.scheme_of("model.layers.0.mlp.up_proj")
    assert scheme is not None
    layer = reader(scheme)(scheme, parts, parts.pop("bias", None))
    assert torch.equal(layer.dequantize(), read)


@pytest.mark.parametrize("case", CONFIGS)
def test_the_parts_that_a_library_writes_have_the_shapes_that_we_expect(case: str) -> None:
    parts = recorded()[case]
    read = parts.pop("read")
    parts.pop("bias", None)
    quantization = read_quantization(CONFIGS[case])
    assert quantization is not None
    scheme = quantization.scheme_of("model.layers.0.mlp.up_proj")
    assert scheme is not None
    expected = scheme.parts(*read.shape)
    assert {part for part, spec in expected.items() if spec.required} <= parts.keys() <= expected.keys()
    for part, tensor in parts.items():
        assert tuple(tensor.shape) == expected[part].shape, part
