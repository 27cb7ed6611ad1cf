"""What the plan counts for int8 and int4 beside what our linear layers hold, to the byte."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.catalog.models import config_of, models
from qvl.models.linear import GROUP, STEP, TILE, quantize_linear
from qvl.plan import memory
from qvl.plan.memory import matrix_bytes
from qvl.plan.parameters import language_linears

LAYERS = {"int4": (4, GROUP), "int8": (8, 1 << 30)}  # precision → bits, inputs that share a scale
SHAPES = sorted({m.shape for m in models() if m.shape})


def held_bytes(inputs: int, outputs: int, precision: str, bias: bool = False) -> int:
    bits, group = LAYERS[precision]
    return quantize_linear(
        torch.nn.Linear(inputs, outputs, bias, dtype=torch.bfloat16), bits, group
    ).num_bytes


def up(n: int, step: int) -> int:
    return -(-n // step) * step


def test_plan_and_layers_share_a_scale_among_as_many_inputs():
    assert memory.GROUP == GROUP


@pytest.mark.parametrize("precision", LAYERS)
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6))
def test_a_layer_of_whole_tiles_holds_what_was_planned(precision, steps, tiles):
    inputs, outputs = STEP * steps, TILE * tiles
    assert held_bytes(inputs, outputs, precision) == sum(matrix_bytes("up_proj", inputs, outputs, precision))


@pytest.mark.parametrize("precision", LAYERS)
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 50))
def test_an_odd_layer_holds_what_a_layer_of_whole_tiles_does(precision, inputs, outputs):
    # codes are padded to whole steps and tiles, scales to whole tiles of the groups there are
    _, group = LAYERS[precision]
    codes = up(inputs, STEP) * up(outputs, TILE) // (2 if precision == "int4" else 1)
    scales = 2 * -(-inputs // min(group, inputs)) * up(outputs, TILE)
    held = held_bytes(inputs, outputs, precision)
    assert held == codes + scales
    assert held >= sum(matrix_bytes("up_proj", inputs, outputs, precision))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_published_layer_is_whole_tiles_so_nothing_is_padded(shape):
    config = config_of(next(m for m in models() if m.shape == shape))
    for linear in language_linears(config):
        if linear.quantized:
            assert (linear.in_features % STEP, linear.out_features % TILE) == (0, 0), linear


@pytest.mark.parametrize("precision", LAYERS)
def test_a_bias_stays_in_16_bits(precision):
    assert held_bytes(64, 32, precision, bias=True) - held_bytes(64, 32, precision) == 2 * 32
