"""Layers of 4- and 8-bit codes: what they stand for, how it is stored, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qvl.errors import CheckpointError
from qvl.models import linear
from qvl.models.linear import (
    Linear,
    QuantizedLinear,
    pack_codes,
    quantize_codes,
    quantize_linear,
    unpack_codes,
    wide_product,
)


def random_codes(outputs: int, inputs: int, bits: int, group_size: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    groups = -(-inputs // min(group_size, inputs))
    codes = torch.randint(0, 1 << bits, (outputs, inputs), generator=g, dtype=torch.uint8)
    scales = torch.rand(outputs, groups, generator=g) * 0.02 + 0.001
    zeros = torch.randint(0, 1 << bits, (outputs, groups), generator=g)
    return codes, scales, zeros


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 150), st.sampled_from([4, 8]))
def test_unpack_is_the_inverse_of_pack_for_any_shape(outputs, inputs, bits):
    codes, _, _ = random_codes(outputs, inputs, bits, 32)
    assert torch.equal(unpack_codes(pack_codes(codes, bits), bits, outputs, inputs), codes)


def test_a_4_bit_line_holds_eight_inputs_of_sixteen_rows_low_nibbles_first():
    codes = (torch.arange(16)[:, None] + torch.arange(32)[None]).remainder(16).to(torch.uint8)
    packed = pack_codes(codes, 4)
    assert packed.shape == (1, 4, 16, 4)
    # row 3, block 1, j 2: inputs 10 and 14
    assert int(packed[0, 1, 3, 2]) == int(codes[3, 10]) | int(codes[3, 14]) << 4


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("outputs", "inputs", "group_size"), [(16, 64, 32), (33, 100, 32), (5, 256, 128), (17, 70, 999)]
)
def test_dequantize_is_code_minus_zero_times_scale(outputs, inputs, group_size, bits):
    codes, scales, zeros = random_codes(outputs, inputs, bits, group_size)
    layer = QuantizedLinear.from_codes(codes, bits, scales, zeros, group_size=group_size)
    got = layer.dequantize()
    for o, i in [(0, 0), (outputs - 1, inputs - 1), (outputs // 2, inputs // 2)]:
        g = i // min(group_size, inputs)
        want = (int(codes[o, i]) - int(zeros[o, g])) * float(scales[o, g])
        assert float(got[o, i]) == pytest.approx(want, rel=1e-6)
    assert got.shape == (outputs, inputs)
    assert got.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scales_keep_the_dtype_they_came_in(dtype):
    codes, scales, _ = random_codes(16, 64, 4, 32)
    layer = QuantizedLinear.from_codes(codes, 4, scales.to(dtype), group_size=32)
    assert layer.scales.dtype == dtype
    assert torch.equal(
        layer.dequantize(), (codes.float() - 8) * scales.to(dtype).float().repeat_interleave(32, 1)
    )


def test_zeros_that_are_all_the_middle_are_not_stored():
    codes, scales, _ = random_codes(16, 64, 8, 32)
    with_zeros = QuantizedLinear.from_codes(codes, 8, scales, torch.full((16, 2), 128), group_size=32)
    without = QuantizedLinear.from_codes(codes, 8, scales, group_size=32)
    assert with_zeros.zeros is None
    assert torch.equal(with_zeros.dequantize(), without.dequantize())


def test_a_zero_of_sixteen_is_kept_as_gptq_files_have_it():
    codes, scales, _ = random_codes(4, 32, 4, 32)
    layer = QuantizedLinear.from_codes(codes, 4, scales, torch.full((4, 1), 16), group_size=32)
    assert torch.equal(layer.dequantize(), (codes.float() - 16) * scales)


def test_input_order_says_which_input_each_column_multiplies():
    codes, scales, zeros = random_codes(8, 64, 4, 32)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    plain = QuantizedLinear.from_codes(codes, 4, scales, zeros, group_size=32)
    ordered = QuantizedLinear.from_codes(codes, 4, scales, zeros, group_size=32, input_order=order)
    assert torch.equal(ordered.dequantize()[:, order], plain.dequantize())


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64), (0, 64)])
def test_forward_takes_any_leading_dimensions(shape):
    codes, scales, zeros = random_codes(24, 64, 4, 32)
    bias = torch.randn(24, generator=torch.Generator().manual_seed(2))
    layer = QuantizedLinear.from_codes(codes, 4, scales, zeros, group_size=32, bias=bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    want = F.linear(x, layer.dequantize(), bias)
    got = layer(x)
    assert got.shape == (*shape[:-1], 24)
    # activations may be rounded to 8 bits inside: 1% of the largest output
    assert torch.allclose(got, want, atol=0.01 * float(want.abs().max()) if want.numel() else 0)


@pytest.mark.parametrize(("bits", "worst"), [(4, 1 / 16), (8, 1 / 256)])
def test_quantising_moves_no_weight_further_than_a_step(bits, worst):
    weight = torch.randn(40, 300, generator=torch.Generator().manual_seed(4))
    codes, scales = quantize_codes(weight, bits, 64)
    layer = QuantizedLinear.from_codes(codes, bits, scales, group_size=64)
    largest = F.pad(weight, (0, 20)).view(40, 5, 64).abs().amax(2).repeat_interleave(64, 1)[:, :300]
    # half a step; a whole one at the end that the lowest code doesn't serve; 2**-9 from the bf16 scale
    assert ((layer.dequantize() - weight).abs() <= largest * (2 * worst + 2**-8)).all()
    assert (layer.dequantize() - weight).abs().mean() < 0.6 * worst * largest.mean()


def test_a_group_of_zeros_stays_zero():
    linear = nn.Linear(64, 16)
    with torch.no_grad():
        linear.weight.zero_()
    assert torch.equal(quantize_linear(linear, 4, 32).dequantize(), torch.zeros(16, 64))


def test_weights_that_are_codes_already_come_back_exactly():
    """The lowest code is in each group, so the scale is found again; scales are powers of two, exact in bf16."""
    g = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 16, (16, 128), generator=g)
    codes[:, ::32] = 0
    weight = (codes - 8).float() * 0.25
    layer = QuantizedLinear.from_codes(*_with_bits(quantize_codes(weight, 4, 32), 4), group_size=32)
    assert torch.equal(layer.dequantize(), weight)


def _with_bits(pair, bits):
    return pair[0], bits, pair[1]


def test_quantize_linear_keeps_the_bias_and_the_sizes():
    linear = nn.Linear(96, 33)
    layer = quantize_linear(linear, 8, 1000)
    assert (layer.in_features, layer.out_features, layer.group_size) == (96, 33, 96)
    assert torch.equal(layer.bias, linear.bias)


@pytest.mark.parametrize(("bits", "scale_bytes"), [(4, 2 * 4), (8, 2)])
def test_bytes_are_codes_and_scales(bits, scale_bytes):
    linear = nn.Linear(512, 64, bias=False)
    layer = quantize_linear(linear, bits, 128 if bits == 4 else 512)
    assert layer.num_bytes == 64 * (512 * bits // 8 + scale_bytes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 3}, "3-bit codes have no layer here; known: 4, 8"),
        ({"codes_OI": torch.zeros(4, 64)}, "one uint8 a weight"),
        ({"codes_OI": torch.full((4, 64), 16, dtype=torch.uint8)}, "a 4-bit code is 16; the largest is 15"),
        ({"scales_OG": torch.ones(4, 3)}, r"scales are \(4, 3\); 4 x 64 codes in groups of 32 need \(4, 2\)"),
        ({"zeros_OG": torch.ones(3, 2)}, r"zeros are \(3, 2\)"),
        ({"zeros_OG": torch.full((4, 2), 1.5)}, "zeros must be whole numbers from 0 to 255"),
        ({"zeros_OG": torch.full((4, 2), 256)}, "zeros must be whole numbers from 0 to 255"),
        ({"scales_OG": torch.ones(4, 2, dtype=torch.float64)}, "scales are torch.float64"),
        ({"input_order": torch.zeros(64, dtype=torch.int64)}, "each of the 64 inputs once"),
        ({"group_size": 0}, "group_size 0 for 64 inputs"),
    ],
)
def test_pieces_that_do_not_belong_together_are_refused(change, said):
    given = {
        "codes_OI": torch.zeros(4, 64, dtype=torch.uint8),
        "bits": 4,
        "scales_OG": torch.ones(4, 2),
        "zeros_OG": None,
        "group_size": 32,
    }
    with pytest.raises(CheckpointError, match=said):
        QuantizedLinear.from_codes(**(given | change))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_wide_product_is_fp32s_rounded_once(dtype, bias, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(linear, "WIDE_WEIGHTS", 3 * 40)  # slices of three outputs, the last one short
    layer = nn.Linear(40, 11, bias=bias).to(dtype).requires_grad_(False)
    x = torch.randn(2, 9, 40).to(dtype)
    want = F.linear(x.float(), layer.weight.float(), layer.bias.float() if bias else None)
    got = wide_product(x, layer.weight, layer.bias)
    assert got.dtype == dtype
    # an fp32 sum in another order may round to the neighbour
    torch.testing.assert_close(
        got, want.to(dtype), rtol=2**-7 if dtype is torch.bfloat16 else 2**-10, atol=1e-6
    )


def test_emulated_bf16_is_multiplied_wide_unless_a_gradient_is_wanted(monkeypatch):
    torch.manual_seed(0)
    layer, taken = Linear(16, 8).bfloat16(), []
    monkeypatch.setattr(linear, "multiplies_half", lambda: False)
    monkeypatch.setattr(linear, "wide_product", lambda *a: taken.append(1) or wide_product(*a))
    rows = torch.randn(linear.few_rows() + 1, 16).bfloat16()
    layer(rows).sum().backward()
    assert layer.weight.grad is not None
    assert not taken
    with torch.inference_mode():
        layer(rows[:-1])  # few rows read the weights as they are
        layer.float()(rows.float())
        assert not taken
        layer.bfloat16()(rows)
    assert taken == [1]
    with torch.inference_mode():  # an expert's matrix as Qwen3-VL stores it
        linear.product(rows[:1], torch.randn(16, 8).bfloat16().T)
    assert taken == [1, 1]
    taken.pop()
    monkeypatch.setattr(linear, "multiplies_half", lambda: True)
    with torch.inference_mode():
        layer(rows)
    assert taken == [1]
