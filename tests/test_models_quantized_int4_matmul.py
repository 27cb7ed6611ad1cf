"""PyTorch's int4 product as a layer: its CPU twin has the same meaning of scales and shifts, and runs here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from qvl.models.linear import QuantizedLinear
from qvl.models.quantized import int4_matmul
from qvl.models.quantized.experts import QuantizedExperts
from qvl.models.quantized.int4_matmul import Int4Linear, fits, on_device

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu" / "int4_matmul.py"


def layer(
    outputs: int = 64, inputs: int = 128, group: int = 32, *, zeros: bool = False, order: bool = False,
    bias: bool = False, bits: int = 4,
) -> QuantizedLinear:  # fmt: skip
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1 << bits, (outputs, inputs), generator=random, dtype=torch.uint8)
    scales = torch.rand(outputs, inputs // group, generator=random) + 0.5
    return QuantizedLinear.from_codes(
        codes,
        bits,
        scales,
        torch.randint(0, 16, scales.shape, generator=random) if zeros else None,
        group_size=group,
        bias=torch.arange(outputs).float() if bias else None,
        input_order=torch.randperm(inputs, generator=random) if order else None,
    )


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("order", [False, True])
def test_the_product_is_the_references_up_to_bf16(group: int, zeros: bool, order: bool) -> None:
    slow = layer(group=group, zeros=zeros, order=order, bias=True)
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = x.float() @ slow.dequantize().T + slow.bias
    got = Int4Linear(slow, torch.device("cpu"))(x).float()
    # bf16 keeps 8 bits of scales, shifts and the result
    assert float((got - expected).abs().max()) < 0.01 * float(expected.abs().max())


def test_a_wrong_order_of_inputs_would_show() -> None:
    slow = layer(order=True)
    fast = Int4Linear(slow, torch.device("cpu"))
    fast.input_order = None
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = x.float() @ slow.dequantize().T
    assert float((fast(x).float() - expected).abs().max()) > 0.1 * float(expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_shape_and_dtype_of_rows_comes_back_as_it_went_in(dtype: torch.dtype) -> None:
    y = Int4Linear(layer(bias=True), torch.device("cpu"))(torch.ones(2, 3, 128, dtype=dtype))
    assert (y.shape, y.dtype) == ((2, 3, 64), dtype)


@pytest.mark.parametrize(
    ("options", "fitting"),
    [
        ({}, True),
        ({"group": 16}, False),
        ({"bits": 8}, False),
        ({"outputs": 60}, False),
        ({"inputs": 48, "group": 48}, False),
    ],
)
def test_only_layers_that_the_operator_takes_are_given_to_it(options: dict, fitting: bool) -> None:
    assert fits(layer(**options)) is fitting


def test_on_the_cpu_a_layer_stays_what_it_is() -> None:
    one = layer()
    assert on_device(one, torch.device("cpu")) is one


def test_on_a_gpu_layers_and_experts_become_int4_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Made(nn.Module):
        def __init__(self, layer: QuantizedLinear, device: torch.device):
            super().__init__()
            made.append(device.type)

    monkeypatch.setattr(int4_matmul, "Int4Linear", Made)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(nn.Module, "to", lambda self, device: self)
    gpu = torch.device("cuda")
    assert isinstance(on_device(layer(), gpu), Made)
    assert isinstance(on_device(layer(bits=8), gpu), QuantizedLinear)
    experts = on_device(QuantizedExperts([[layer(), layer()]], [layer()]), gpu)
    assert isinstance(experts, QuantizedExperts)
    assert made == ["cuda"] * 4
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert isinstance(on_device(layer(), gpu), QuantizedLinear)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the script measures")
def test_the_benchmark_says_that_it_had_no_gpu() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "no GPU" in json.loads(done.stdout)["skipped"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("zeros", [False, True])
def test_the_gpus_product_is_the_references_up_to_bf16(zeros: bool) -> None:
    slow, gpu = layer(256, 512, 128, zeros=zeros), torch.device("cuda")
    x = torch.randn(5, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = x.float() @ slow.dequantize().T
    got = Int4Linear(slow, gpu)(x.to(gpu)).float().cpu()
    assert float((got - expected).abs().max()) < 0.02 * float(expected.abs().max())
