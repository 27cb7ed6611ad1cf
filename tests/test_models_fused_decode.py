"""A decoding step in one call gives what the layers give one by one, and only what it can carry out is given to it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import quantized_writers as writers
from qvl.engine.kv import KVStore, PagedAttention, Span
from qvl.models.base import initialize
from qvl.models.decoder import Decoder
from qvl.models.fused_decode import FusedDecode
from qvl.models.kernels import ops
from qvl.models.linear import Linear, linears, quantize_linear
from qvl.models.quantized.fp8 import Fp8Linear
from test_models_attention import TEXT

needs_kernels = pytest.mark.skipif(ops.functions() is None, reason="no compiler here, or QVL_KERNELS=off")

BLOCK = 4
WIDE = replace(
    TEXT, hidden_size=72, intermediate_size=1100, num_attention_heads=6, num_key_value_heads=1, head_dim=40,
    mrope_section=(6, 6, 8),
)  # fmt: skip
NORMED = replace(
    TEXT, hidden_size=64, num_attention_heads=4, num_key_value_heads=4, head_dim=32, mrope_section=(6, 5, 5),
    mrope_interleaved=True, attention_bias=False, qk_norm=True,
)  # fmt: skip
SHAPES = {"grouped": TEXT, "one head of keys, odd sizes": WIDE, "norms on q and k": NORMED}


def fp8(linear: Linear) -> nn.Module:
    parts, _ = writers.fp8(linear.weight.float(), (16, 32))
    return Fp8Linear(parts["weight"], parts["weight_scale_inv"], (16, 32), linear.bias)


KINDS = {
    "bf16": lambda linear: linear,
    "int8": lambda linear: quantize_linear(linear, 8, linear.in_features),
    "int4": lambda linear: quantize_linear(linear, 4, 32),
    "fp8": fp8,
}


def decoder(text=TEXT, kind: str = "bf16") -> Decoder:
    made = Decoder(text).eval().requires_grad_(False)
    initialize(made, 0.2, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for module in made.modules():  # norms that do nothing would hide a wrong one
        if type(module).__name__ == "RMSNorm":
            module.weight.uniform_(0.5, 1.5, generator=generator)
    made.bfloat16()
    for layer in made.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, module in list(part.named_children()):
                if isinstance(module, Linear):
                    setattr(part, name, KINDS[kind](module))
    return made


def store(text) -> KVStore:
    """Every slot holds something: what a sequence must not see would be seen."""
    layers = range(text.num_hidden_layers)
    kv = KVStore(layers, 60, BLOCK, text.num_key_value_heads, text.head_dim, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(2)
    for layer in layers:
        for held in kv.held(layer):
            held.copy_(torch.randn(held.shape, generator=generator))
    return kv


class Slow:
    """Attention over each sequence's own tokens in float64, rounded once: not the engine's code. No `in_place`."""

    def __init__(self, kv: KVStore, spans: list[Span]):
        self.kv, self.spans = kv, spans

    def __call__(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        keys, values = self.kv.held(layer)
        out = torch.empty_like(q_TNH)
        for span in self.spans:
            slots = [span.blocks[t // BLOCK] * BLOCK + t % BLOCK for t in range(span.end)]
            keys[slots[-1]], values[slots[-1]] = k_TKH[span.row], v_TKH[span.row]
            group = q_TNH.shape[1] // k_TKH.shape[1]
            k, v = (x[slots].double().repeat_interleave(group, 1) for x in (keys, values))
            scores = torch.einsum("nh,lnh->nl", q_TNH[span.row].double(), k) * q_TNH.shape[2] ** -0.5
            out[span.row] = torch.einsum("nl,lnh->nh", scores.softmax(-1), v)
        return out


LENGTHS = [23, 1, 4, 5, 37]


def spans(rows: int) -> list[Span]:
    free = torch.randperm(60, generator=torch.Generator().manual_seed(3)).tolist()
    return [
        Span(i, 1, n - 1, [free.pop() for _ in range(-(-n // BLOCK))]) for i, n in enumerate(LENGTHS[:rows])
    ]


def inputs(text, rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    hidden_TD = torch.randn(rows, text.hidden_size, generator=generator).bfloat16()
    return hidden_TD, torch.randint(0, 60, (3, rows), generator=generator)


@torch.inference_mode()
def both(model: Decoder, rows: int) -> tuple[Tensor, Tensor, KVStore, KVStore]:
    text, steps = model.config, spans(rows)
    hidden_TD, positions_3T = inputs(text, rows)
    one, other = store(text), store(text)
    got = FusedDecode(model)(hidden_TD, positions_3T, PagedAttention(one, steps))
    assert got is not None, "the kernel was not used"
    return got, model(hidden_TD, positions_3T, Slow(other, steps)), one, other


@needs_kernels
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_call_gives_what_the_layers_give_one_by_one(shape, kind, rows):
    """Roundings are the same, so but for attention's last bits everything is equal to the bit."""
    got, want, one, other = both(decoder(SHAPES[shape], kind), rows)
    assert (got != want).float().mean() < 0.05
    torch.testing.assert_close(got, want, rtol=2**-5, atol=2**-5)
    for held, expected in zip(one.held(0), other.held(0)):
        assert torch.equal(held, expected), "the new key and value lie where and as the layers put them"


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_batch(kind):
    """Two rows of bf16 and fewer are read one by one, more in panels, which sums in another order."""
    model, height = decoder(WIDE, kind), 3 if kind == "bf16" else 1
    hidden_TD, positions_3T = inputs(WIDE, 5)
    with torch.inference_mode():
        together = FusedDecode(model)(hidden_TD, positions_3T, PagedAttention(store(WIDE), spans(5)))
        for first in range(6 - height):
            some = slice(first, first + height)
            steps = [span._replace(row=row) for row, span in enumerate(spans(5)[some])]
            attend = PagedAttention(store(WIDE), steps)
            found = FusedDecode(model)(hidden_TD[some], positions_3T[:, some], attend)
            assert torch.equal(found, together[some])


@needs_kernels
def test_the_number_of_threads_changes_nothing():
    model, before, found = decoder(WIDE, "int4"), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(both(model, 3)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def answer(model: Decoder | FusedDecode, rows: int = 2, dtype=torch.bfloat16, steps=None, kv=None):
    fused = model if isinstance(model, FusedDecode) else FusedDecode(model)
    text = fused.decoder.config
    hidden_TD, positions_3T = inputs(text, rows)
    attend = PagedAttention(kv or store(text), steps or spans(rows))
    with torch.inference_mode():
        return fused(hidden_TD.to(dtype), positions_3T, attend)


PROMPT = [Span(0, 2, 3, [1, 2])]  # two tokens of one sequence: a step that the layers do one by one


@needs_kernels
def test_what_the_kernel_can_not_do_is_left_to_the_layers(monkeypatch):
    model = decoder()
    assert answer(model) is not None
    assert answer(model, steps=PROMPT) is None
    assert answer(model, dtype=torch.float32) is None
    eight = KVStore(range(2), 60, BLOCK, 2, 8, dtype=torch.float8_e4m3fn)
    assert answer(model, kv=eight) is None
    hidden_TD, positions_3T = inputs(TEXT, 2)
    attend = PagedAttention(store(TEXT), spans(2))
    assert FusedDecode(model)(hidden_TD, positions_3T, attend) is None  # gradients are on
    with torch.inference_mode():
        assert FusedDecode(model)(hidden_TD, positions_3T, Slow(store(TEXT), spans(2))) is None
        wider = torch.cat((hidden_TD, hidden_TD), dim=1)  # DeepStack's rows
        assert FusedDecode(model)(wider, positions_3T, attend) is None
    monkeypatch.setattr(ops, "functions", lambda: None)
    assert answer(model) is None


@needs_kernels
def test_more_rows_than_the_products_take_are_left_to_the_layers(monkeypatch):
    monkeypatch.setattr("qvl.models.linear.few_rows", lambda: 2)
    model = decoder()
    assert answer(model, rows=2) is not None
    assert answer(model, rows=3) is None
    assert answer(decoder(kind="int4"), rows=3) is not None


@needs_kernels
@pytest.mark.parametrize(
    "place", ["layers.1", "layers.0.self_attn", "layers.1.mlp.up_proj", "layers.0.input_layernorm"]
)
def test_a_hook_is_called_from_the_next_prompt_on(place):
    model = decoder()
    fused = FusedDecode(model)
    assert answer(fused) is not None
    hook = model.get_submodule(place).register_forward_hook(lambda *_: None)
    answer(fused, steps=PROMPT)
    assert answer(fused) is None
    hook.remove()
    answer(fused, steps=PROMPT)
    assert answer(fused) is not None


@needs_kernels
def test_weights_that_change_move_or_are_replaced_are_seen_from_the_next_prompt_on():
    model = decoder()
    fused = FusedDecode(model)
    first, mlp = answer(fused), model.layers[1].mlp
    mlp.down_proj.weight.mul_(2)  # in place: at once
    second = answer(fused)
    assert not torch.equal(first, second)
    mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight / 2, requires_grad=False)
    assert torch.equal(answer(fused), second), "what was there before is kept until then"
    answer(fused, steps=PROMPT)
    assert torch.equal(answer(fused), first)
    mlp.up_proj = quantize_linear(mlp.up_proj, 8, 32)  # gate is of another kind now: no pass for both
    answer(fused, steps=PROMPT)
    assert answer(fused) is None
    mlp.gate_proj = quantize_linear(mlp.gate_proj, 8, 32)
    answer(fused, steps=PROMPT)
    assert answer(fused) is not None
    assert torch.equal(answer(copy.deepcopy(model)), answer(fused))
    model.float()
    answer(fused, steps=PROMPT)
    assert answer(fused) is None, "norms in fp32"


class Adapted(Linear):
    """As adapters are: the weights of the class it is made of, and more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@needs_kernels
def test_a_class_made_of_a_known_one_is_not_taken_for_it():
    model = decoder()
    one = model.layers[0].self_attn.o_proj
    adapted = Adapted(one.in_features, one.out_features, bias=False).bfloat16().requires_grad_(False)
    adapted.weight.copy_(one.weight)
    model.layers[0].self_attn.o_proj = adapted
    assert answer(model) is None
    x = torch.randn(1, one.in_features).bfloat16()
    assert torch.equal(linears((adapted,), x)[0], one(x) + 1)
