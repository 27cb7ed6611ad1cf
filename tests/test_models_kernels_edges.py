"""What the kernel's step must leave alone, or must not lose: each of these once read memory that wasn't its own."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from qvl.engine.kv import PagedAttention
from qvl.models.decoder import DecoderLayer
from qvl.models.fused_decode import FusedDecode
from qvl.models.layers import SwiGLU
from qvl.models.linear import QuantizedLinear
from qvl.models.quantized.fp8 import Fp8Linear
from test_models_attention import TEXT
from test_models_fused_decode import (
    NORMED,
    PROMPT,
    Slow,
    answer,
    decoder,
    inputs,
    needs_kernels,
    spans,
    store,
)

pytestmark = needs_kernels


def test_heads_that_are_rotated_in_part_are_left_to_the_layers():
    """Qwen3-VL's configuration may say so; the kernel's tables are as wide as a head."""
    assert answer(decoder(replace(NORMED, partial_rotary_factor=0.5, mrope_section=(2, 3, 3)))) is None


@pytest.mark.parametrize(
    "other",
    [dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16), dict(attn_output_gate=True),
     dict(zero_centered_norm=True)],
    ids=["experts", "gated attention", "centred norms"],
)  # fmt: skip
def test_other_kinds_of_layers_are_left_to_the_layers(other):
    assert answer(decoder(replace(TEXT, **other))) is None


def test_a_mixtures_experts_are_not_looked_at(monkeypatch):
    """There may be 18,000 layers, and that at every token: 120 ms."""
    seen = []
    monkeypatch.setattr("qvl.models.fused_decode._addresses", lambda decoder: seen.append(1) or [])
    answer(decoder(replace(TEXT, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)))
    assert not seen


def test_a_final_norm_that_is_hooked_or_in_fp32_is_left_to_the_layers():
    model = decoder()
    fused = FusedDecode(model)
    assert answer(fused) is not None
    hook = model.norm.register_forward_hook(lambda *_: None)
    answer(fused, steps=PROMPT)
    assert answer(fused) is None
    hook.remove()
    answer(fused, steps=PROMPT)
    assert answer(fused) is not None
    model.norm.float()
    answer(fused, steps=PROMPT)
    assert answer(fused) is None


@pytest.mark.parametrize("place", ["input_layernorm", "self_attn.q_norm", "self_attn.k_norm"])
def test_a_norm_that_is_taken_out_is_left_to_the_layers(place):
    model = decoder(NORMED)
    model.layers[1].set_submodule(place, nn.Identity())
    assert answer(model) is None


class Skipping(DecoderLayer):
    def forward(self, hidden_TD, *others):
        return hidden_TD


def test_a_layer_of_a_class_of_its_own_is_left_to_the_layers():
    model = decoder()
    model.layers[1].__class__ = Skipping
    assert answer(model) is None


def test_an_mlp_of_another_width_than_the_configurations_is_left_to_the_layers():
    model = decoder()
    model.layers[0].mlp = SwiGLU(TEXT.hidden_size, 16).bfloat16().requires_grad_(False)
    assert answer(model) is None


def test_an_input_order_of_short_integers_is_read_as_one():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (16, 64), generator=generator, dtype=torch.uint8)
    order, x = torch.randperm(64, generator=generator), torch.randn(2, 64, generator=generator).bfloat16()
    one, other = (
        QuantizedLinear.from_codes(codes, 4, torch.ones(16, 2), group_size=32, input_order=o)
        for o in (order, order.int())
    )
    assert torch.equal(one(x), other(x))


def test_fp8_scales_that_lie_across_memory_are_read_as_a_grid():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator).to(torch.float8_e4m3fn)
    scales, x = torch.rand(2, 2, generator=generator), torch.randn(2, 64, generator=generator).bfloat16()
    layer = Fp8Linear(weight, scales.T.contiguous().T, (16, 32))
    want = torch.nn.functional.linear(x.float(), layer.dequantize())
    # bf16 keeps 8 bits; where PyTorch does it the weights are rounded to them too
    torch.testing.assert_close(layer(x).float(), want, rtol=2**-7, atol=2**-5)
    assert torch.equal(layer._widened(slice(0, 32), x.float()), layer.dequantize())


@torch.inference_mode()
def test_a_decoder_without_its_first_layer_uses_the_others_keys():
    model = decoder()
    del model.layers[0]
    hidden_TD, positions_3T = inputs(TEXT, 2)
    one, other = store(TEXT), store(TEXT)
    FusedDecode(model)(hidden_TD, positions_3T, PagedAttention(one, spans(2)))
    model(hidden_TD, positions_3T, Slow(other, spans(2)))
    for layer in range(2):
        for held, expected in zip(one.held(layer), other.held(layer)):
            assert torch.equal(held, expected)


@torch.inference_mode()
def test_rows_that_lie_across_memory_are_read_as_rows():
    model = decoder()
    hidden_TD, positions_3T = inputs(TEXT, 2)
    across_TD = hidden_TD.T.contiguous().T
    want, got = (
        FusedDecode(model)(x, positions_3T, PagedAttention(store(TEXT), spans(2)))
        for x in (hidden_TD, across_TD)
    )
    assert torch.equal(got, want)


def test_weights_that_are_moved_in_place_stay_where_they_are_until_the_next_prompt():
    """`module.to` gives a parameter other memory without making another parameter."""
    model = decoder()
    down = model.layers[1].mlp.down_proj
    memory = np.empty(tuple(down.weight.shape), dtype=np.int16)
    is_there = weakref.ref(memory)
    held = torch.from_numpy(memory).view(torch.bfloat16)
    del memory
    down.weight = nn.Parameter(held.copy_(down.weight), requires_grad=False)
    del held
    fused = FusedDecode(model)
    want = answer(fused)
    down.weight.data = down.weight.data * 2
    assert is_there() is not None
    assert torch.equal(answer(fused), want)
    answer(fused, steps=PROMPT)
    assert not torch.equal(answer(fused), want)
    assert is_there() is None
