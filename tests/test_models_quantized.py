"""Quantised checkpoints: every published layout gives exactly the weights it stands for, and faults are named.

Files come from tests/quantized_writers.py, which shares no code with the readers; what other libraries wrote and
read is in test_models_quantized_golden.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import quantized_writers as writers
from models_reference import SPECIAL, Prompt, our_logits
from qvl.catalog import generations
from qvl.catalog.config import ModelConfig
from qvl.checkpoint.names import to_nested
from qvl.errors import CheckpointError, ConfigError
from qvl.models import build
from qvl.models.base import VisionLanguageModel, initialize
from qvl.models.checkpoint import load_model, save_model
from qvl.models.linear import Linear, QuantizedLinear
from qvl.models.quantized.compressed_tensors import Int8Linear, quantize_rows
from qvl.models.quantized.fp8 import Fp8Linear
from test_models_attention import TEXT, VISION

SIZES = dict(
    hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    mrope_section=(2, 3, 3), vocab_size=210,
)  # fmt: skip
PROMPT = Prompt([2, ("image", (1, 6, 4)), 3, 4, 5])
Maker = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]


def config(**text: Any) -> ModelConfig:
    return ModelConfig(
        generation=generations.by_name("qwen2_5_vl"),
        text=replace(TEXT, **{**SIZES, **text}),
        vision=replace(VISION, out_hidden_size=64),
        **SPECIAL,
    )


def network(**text: Any) -> VisionLanguageModel:
    model = build(config(**text)).eval().requires_grad_(False)
    initialize(model, 0.2, torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    save_model(network(), folder)
    return folder


COMPRESSED_INT4 = writers.compressed_config("pack-quantized", writers.int_weights(4, 32))
LAYOUTS: dict[str, tuple[Maker, dict[str, Any]]] = {
    "awq": (lambda w: writers.awq(w, 32), writers.awq_config(32)),
    "awq whole rows": (lambda w: writers.awq(w, -1), writers.awq_config(-1)),
    "gptq 4": (lambda w: writers.gptq(w, 4, 32), writers.gptq_config(4, 32)),
    "gptq 8": (lambda w: writers.gptq(w, 8, 32), writers.gptq_config(8, 32)),
    "gptq 3": (lambda w: writers.gptq(w, 3, 32), writers.gptq_config(3, 32)),
    "gptq 2": (lambda w: writers.gptq(w, 2, 32), writers.gptq_config(2, 32)),
    "gptq asymmetric": (
        lambda w: writers.gptq(w, 4, 32, symmetric=False),
        writers.gptq_config(4, 32, sym=False),
    ),
    "gptq second format": (
        lambda w: writers.gptq(w, 4, 32, version=2, symmetric=False),
        writers.gptq_config(4, 32, sym=False, checkpoint_format="gptq_v2"),
    ),
    "gptq act order": (
        lambda w: writers.gptq(w, 4, 32, act_order=True),
        writers.gptq_config(4, 32, desc_act=True),
    ),
    "gptq act order 3": (
        lambda w: writers.gptq(w, 3, 16, act_order=True, symmetric=False),
        writers.gptq_config(3, 16, desc_act=True, sym=False),
    ),
    "gptq short last group": (lambda w: writers.gptq(w, 4, 48), writers.gptq_config(4, 48)),
    "gptq whole rows": (lambda w: writers.gptq(w, 8, -1), writers.gptq_config(8, -1)),
    "packed int4": (lambda w: writers.packed(w, 4, 32), COMPRESSED_INT4),
    "packed int4 asymmetric": (
        lambda w: writers.packed(w, 4, 32, symmetric=False),
        writers.compressed_config("pack-quantized", writers.int_weights(4, 32, False)),
    ),
    "packed int4 act order": (
        lambda w: writers.packed(w, 4, 32, act_order=True),
        writers.compressed_config("pack-quantized", writers.int_weights(4, 32, actorder="group")),
    ),
    "packed int8 by channel": (
        lambda w: writers.packed(w, 8, 0),
        writers.compressed_config("pack-quantized", writers.int_weights(8, None)),
    ),
    "w8a8": (
        writers.int8,
        writers.compressed_config("int-quantized", writers.int_weights(8, None), writers.INT8_TOKENS),
    ),
    "fp8 blocks": (lambda w: writers.fp8(w, (32, 48)), writers.fp8_config((32, 48))),
    "fp8 published block": (writers.fp8, writers.fp8_config()),
    "fp8 by channel": (
        lambda w: writers.fp8(w, (1, 0), "weight_scale"),
        writers.compressed_config(
            "float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
        ),
    ),
    "fp8 by tensor": (
        lambda w: writers.fp8(w, (0, 0), "weight_scale"),
        writers.compressed_config(
            "float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}
        ),
    ),
}


def quantised(plain: Path, folder: Path, layout: str, **options: Any) -> dict[str, Tensor]:
    make, settings = LAYOUTS[layout]
    return writers.write(plain, folder, make, settings, **options)


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["quantization_config"] |= changes
    path.write_text(json.dumps(content))


# --- exact weights


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layer_stands_for_exactly_the_published_weights(
    layout: str, plain: Path, tmp_path: Path
) -> None:
    weights = quantised(plain, tmp_path / "q", layout)
    model = load_model(tmp_path / "q")
    assert len(weights) == 2 * 7
    for name, expected in weights.items():
        layer = model.get_submodule(name)
        assert torch.equal(layer.dequantize(), expected), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_quantised_network_answers_as_the_plain_one_with_its_weights(
    layout: str, plain: Path, tmp_path: Path
) -> None:
    weights = quantised(plain, tmp_path / "q", layout, dtype=None)
    with torch.no_grad():
        reference = load_model(plain, copy=True)
        for name, weight in weights.items():
            reference.get_submodule(name).weight.copy_(weight)
    expected = our_logits(reference, [PROMPT])
    got = our_logits(load_model(tmp_path / "q", dtype="float32"), [PROMPT])
    # W8A8 also rounds activations to 8 bits, our 4-bit kernel may; logits are of size 3
    tolerance = 0.5 if layout == "w8a8" else 0.05
    assert float((got - expected).abs().max()) < tolerance
    assert float((got - expected).abs().mean()) < tolerance / 5


@pytest.mark.parametrize("layout", ["awq", "gptq 4", "packed int4", "w8a8", "fp8 blocks"])
def test_either_name_layout_is_read(layout: str, plain: Path, tmp_path: Path) -> None:
    quantised(plain, tmp_path / "flat", layout)
    weights = quantised(plain, tmp_path / "nested", layout, rename=to_nested)
    model = load_model(tmp_path / "nested")
    for name, expected in weights.items():
        assert torch.equal(model.get_submodule(name).dequantize(), expected), name
    assert torch.equal(
        our_logits(load_model(tmp_path / "flat", dtype="float32"), [PROMPT]),
        our_logits(load_model(tmp_path / "nested", dtype="float32"), [PROMPT]),
    )


@pytest.mark.parametrize("layout", ["awq", "gptq 8", "w8a8", "fp8 blocks"])
def test_biases_stay_and_are_added(layout: str, plain: Path, tmp_path: Path) -> None:
    edited = tmp_path / "plain"
    model = network()
    for layer in model.model.layers:
        layer.self_attn.q_proj.bias.fill_(3.0)
    save_model(model, edited)
    quantised(edited, tmp_path / "q", layout)
    q_proj = load_model(tmp_path / "q").get_submodule("model.layers.1.self_attn.q_proj")
    assert q_proj.bias.tolist() == [3.0] * 64
    assert q_proj(torch.zeros(2, 64)).tolist() == [[3.0] * 64] * 2


def test_the_zero_biases_that_autogptq_writes_are_dropped_and_others_kept(
    plain: Path, tmp_path: Path
) -> None:
    quantised(plain, tmp_path / "q", "gptq 4")

    def add(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.bias"] = torch.zeros(128, dtype=torch.float16)
        tensors["model.layers.0.mlp.down_proj.bias"] = torch.arange(64).half()

    edit(tmp_path / "q", add)
    model = load_model(tmp_path / "q")
    assert model.get_submodule("model.layers.0.mlp.up_proj").bias is None
    assert model.get_submodule("model.layers.0.mlp.down_proj").bias.tolist() == list(range(64))


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("layout", ["w8a8", "fp8 blocks", "awq"])
def test_weights_outlive_their_file(layout: str, copy: bool, plain: Path, tmp_path: Path) -> None:
    weights = quantised(plain, tmp_path / "q", layout)
    model = load_model(tmp_path / "q", copy=copy)
    (tmp_path / "q" / "model.safetensors").unlink()
    name = "model.layers.1.mlp.down_proj"
    assert torch.equal(model.get_submodule(name).dequantize(), weights[name])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_plain_tensors_come_in_the_dtype_asked_for_and_layers_answer_in_it(
    dtype: str, plain: Path, tmp_path: Path
) -> None:
    quantised(plain, tmp_path / "q", "fp8 blocks")
    model = load_model(tmp_path / "q", dtype=dtype)
    assert model.dtype == model.visual.patch_embed.proj.weight.dtype == getattr(torch, dtype)
    for layout in ("fp8 blocks", "awq", "w8a8"):
        quantised(plain, tmp_path / layout, layout)
        layer = load_model(tmp_path / layout, dtype=dtype).get_submodule("model.layers.0.mlp.up_proj")
        assert layer(torch.ones(3, 64, dtype=model.dtype)).dtype == model.dtype


# --- which modules


def kinds(model: VisionLanguageModel) -> dict[str, type]:
    return {name: type(m) for name, m in model.named_modules() if hasattr(m, "in_features")}


@pytest.mark.parametrize("layout", ["awq", "gptq 4", "packed int4", "w8a8", "fp8 blocks"])
def test_tower_and_head_stay_plain_and_only_the_decoder_is_quantised(
    layout: str, plain: Path, tmp_path: Path
) -> None:
    quantised(plain, tmp_path / "q", layout)
    for name, kind in kinds(load_model(tmp_path / "q")).items():
        in_decoder = name.startswith("model.layers.")
        assert (kind in (QuantizedLinear, Int8Linear, Fp8Linear)) == in_decoder, name


@pytest.mark.parametrize("spelling", ["model.layers.1.mlp.down_proj", "layers.1.mlp.down_proj", "down_proj"])
def test_a_module_that_awq_leaves_alone_stays_plain(spelling: str, plain: Path, tmp_path: Path) -> None:
    left = "model.layers.1.mlp.down_proj" if "." in spelling else r"down_proj"
    weights = writers.write(
        plain, tmp_path / "q", LAYOUTS["awq"][0],
        writers.awq_config(32, modules_to_not_convert=["visual", spelling]),
        covers=lambda m: bool(writers.DECODER_LINEAR.match(m)) and not m.endswith(left),
    )  # fmt: skip
    found = kinds(load_model(tmp_path / "q"))
    assert found["model.layers.1.mlp.down_proj"] is Linear
    assert {n for n, kind in found.items() if kind is QuantizedLinear} == set(weights)


@pytest.mark.parametrize(
    "pattern", [r"re:.*layers\.0\..*", r"re:model\.language_model\.layers\.0\.", r"re:model\.layers\.0\."]
)
def test_an_ignore_expression_matches_either_spelling(pattern: str, plain: Path, tmp_path: Path) -> None:
    make, settings = LAYOUTS["packed int4"]
    writers.write(
        plain, tmp_path / "q", make, settings | {"ignore": ["lm_head", "re:.*visual.*", pattern]},
        covers=lambda m: bool(writers.DECODER_LINEAR.match(m)) and ".layers.1." in m,
    )  # fmt: skip
    found = kinds(load_model(tmp_path / "q"))
    assert found["model.layers.0.mlp.up_proj"] is Linear
    assert found["model.layers.1.mlp.up_proj"] is QuantizedLinear


def test_a_tower_that_the_config_does_not_except_is_read_quantised(plain: Path, tmp_path: Path) -> None:
    weights = writers.write(
        plain, tmp_path / "q", lambda w: writers.fp8(w, (16, 16)),
        writers.fp8_config((16, 16), modules_to_not_convert=["lm_head", "merger"]),
        covers=lambda m: m.endswith(("qkv", "attn.proj", "_proj")),
    )  # fmt: skip
    model = load_model(tmp_path / "q")
    assert isinstance(model.visual.blocks[0].attn.qkv, Fp8Linear)
    assert isinstance(model.visual.merger.mlp[0], torch.nn.Linear)
    for name, expected in weights.items():
        assert torch.equal(model.get_submodule(name).dequantize(), expected), name


def test_a_quantised_head_is_read(plain: Path, tmp_path: Path) -> None:
    head = build(config(vocab_size=224)).eval().requires_grad_(False)
    initialize(head, 0.2, torch.Generator().manual_seed(1))
    save_model(head, tmp_path / "plain")
    weights = writers.write(
        tmp_path / "plain", tmp_path / "q", LAYOUTS["gptq 4"][0], writers.gptq_config(4, 32, lm_head=True),
        covers=lambda m: bool(writers.DECODER_LINEAR.match(m)) or m == "lm_head",
    )  # fmt: skip
    model = load_model(tmp_path / "q", dtype="float32")
    assert torch.equal(model.lm_head.dequantize(), weights["lm_head"])
    assert our_logits(model, [PROMPT]).shape[-1] == 224


def test_gptqs_dynamic_rules_change_and_spare_layers(plain: Path, tmp_path: Path) -> None:
    down = lambda m: m.endswith("down_proj")  # noqa: E731
    make = lambda w: writers.gptq(w, 8 if w.shape[1] == 128 else 4, 32)  # noqa: E731
    writers.write(
        plain, tmp_path / "q", make,
        writers.gptq_config(4, 32, dynamic={r"+:.*down_proj": {"bits": 8}, r"-:.*\.layers\.0\.self_attn\..*": {}}),
        covers=lambda m: bool(writers.DECODER_LINEAR.match(m)) and "layers.0.self_attn" not in m,
    )  # fmt: skip
    model = load_model(tmp_path / "q")
    assert isinstance(model.model.layers[0].self_attn.q_proj, torch.nn.Linear)
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            assert module.bits == (8 if down(name) else 4), name


def test_gptqs_list_of_modules_is_obeyed(plain: Path, tmp_path: Path) -> None:
    writers.write(
        plain, tmp_path / "q", LAYOUTS["gptq 4"][0],
        writers.gptq_config(4, 32, modules_in_block_to_quantize=[["mlp.up_proj", "mlp.gate_proj"]]),
        covers=lambda m: m.endswith(("layers.0.mlp.up_proj", "layers.0.mlp.gate_proj", "layers.1.mlp.up_proj",
                                     "layers.1.mlp.gate_proj")),
    )  # fmt: skip
    found = kinds(load_model(tmp_path / "q"))
    assert {n.rpartition(".")[2] for n, kind in found.items() if kind is QuantizedLinear} == {
        "up_proj",
        "gate_proj",
    }


# --- refusals, by name


def test_every_missing_extra_misshaped_and_misstored_part_is_named_at_once(
    plain: Path, tmp_path: Path
) -> None:
    quantised(plain, tmp_path / "q", "awq")
    at = "model.layers.0.mlp"

    def damage(tensors: dict[str, Tensor]) -> None:
        del tensors[f"{at}.up_proj.qzeros"], tensors["model.norm.weight"]
        tensors[f"{at}.up_proj.g_idx"] = torch.zeros(64, dtype=torch.int32)
        tensors[f"{at}.gate_proj.scales"] = torch.zeros(1, 128, dtype=torch.float16)
        tensors[f"{at}.down_proj.qweight"] = tensors[f"{at}.down_proj.qweight"].long()

    edit(tmp_path / "q", damage)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "q")
    text = str(caught.value)
    assert f"2 missing: model.norm.weight, {at}.up_proj.qzeros" in text
    assert f"1 extra: {at}.up_proj.g_idx" in text
    assert f"1 misshaped: {at}.gate_proj.scales [1, 128], should be [2, 128]" in text
    assert f"1 of another dtype: {at}.down_proj.qweight I64, should be I32" in text


def test_a_plain_checkpoint_with_a_leftover_quantization_config_is_refused_by_both_names(
    plain: Path, tmp_path: Path
) -> None:
    writers.write(
        plain, tmp_path / "q", LAYOUTS["awq"][0], writers.awq_config(32), covers=lambda module: False
    )
    with pytest.raises(CheckpointError, match=r"42 missing: .*q_proj\.qweight.* 14 extra: .*q_proj\.weight"):
        load_model(tmp_path / "q")


def test_sizes_that_a_config_can_not_cover_are_named_before_reading(plain: Path, tmp_path: Path) -> None:
    quantised(plain, tmp_path / "q", "awq")
    edit_config(tmp_path / "q", group_size=48)
    with pytest.raises(CheckpointError, match=r"q_proj: 64 inputs are no whole groups of 48; .* and 11 more"):
        load_model(tmp_path / "q")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "bitsandbytes: its packed tensors follow .*take the AWQ, GPTQ"),
        ({"quant_method": "hqq"}, "'hqq' can't be read; known: awq, gptq, compressed-tensors, fp8"),
        ({"quant_method": "gguf"}, "run it with llama.cpp"),
        ({"version": "gemv"}, "version 'gemv' can't be read; known: gemm"),
        ({"bits": 3}, "bits 3 can't be read; known: 4"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": None}, "group_size must be a whole number, is None"),
        ({"modules_to_not_convert": "visual"}, "must be a list of names, is 'visual'"),
        ({"modules_to_not_convert": ["re:("]}, "no regular expression"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "'marlin' can't be read; known: gptq, gptq_v2"),
        ({"quant_method": "gptq", "bits": 5}, "bits 5 can't be read; known: 2, 3, 4, 8"),
        ({"quant_method": "fp8"}, "weight_block_size None can't be read"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "activation_scheme 'static'"),
        ({"quant_method": "compressed-tensors"}, "needs config_groups"),
        (
            {"quant_method": "compressed-tensors", "quantization_status": "frozen"},
            "never compressed; save the model with save_compressed",
        ),
        (
            COMPRESSED_INT4 | {"format": "nvfp4-pack-quantized"},
            "nvfp4-pack-quantized with 4-bit int weights by group can't be read; known: pack-quantized int4",
        ),
        (COMPRESSED_INT4 | {"kv_cache_scheme": {"num_bits": 8}}, "quantised KV cache"),
    ],
)  # fmt: skip
def test_a_config_that_can_not_be_read_says_why_and_what_to_do(
    changes: dict[str, Any], words: str, plain: Path, tmp_path: Path
) -> None:
    quantised(plain, tmp_path / "q", "awq")
    edit_config(tmp_path / "q", **changes)
    with pytest.raises(ConfigError, match=words):
        load_model(tmp_path / "q")


@pytest.mark.parametrize("damage", ["one group too large", "negative"])
def test_a_group_index_that_can_not_be_is_refused_with_its_layer(
    damage: str, plain: Path, tmp_path: Path
) -> None:
    quantised(plain, tmp_path / "q", "gptq act order")

    def change(tensors: dict[str, Tensor]) -> None:
        index = tensors["model.layers.1.mlp.up_proj.g_idx"]
        index[0] = -1 if damage == "negative" else 1 - index[0]

    edit(tmp_path / "q", change)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj: g_idx: groups must have 32 inputs"):
        load_model(tmp_path / "q")


def test_a_packed_shape_that_contradicts_its_tensor_is_refused(plain: Path, tmp_path: Path) -> None:
    quantised(plain, tmp_path / "q", "packed int4")
    edit(
        tmp_path / "q",
        lambda t: t.update({"model.layers.0.mlp.up_proj.weight_shape": torch.tensor([128, 128])}),
    )
    with pytest.raises(CheckpointError, match=r"up_proj: weight_shape says 128 x 128"):
        load_model(tmp_path / "q")


def test_a_quantised_network_is_not_written_back(plain: Path, tmp_path: Path) -> None:
    quantised(plain, tmp_path / "q", "awq")
    model = load_model(tmp_path / "q")
    with pytest.raises(CheckpointError, match="copy the checkpoint's own files"):
        save_model(model, tmp_path / "again")
    assert not (tmp_path / "again").exists()


# --- arithmetic of the layers that aren't QuantizedLinear


def test_w8a8_is_the_integer_sum_times_two_scales() -> None:
    weight = torch.tensor([[127, -128, 3], [1, 0, -1]], dtype=torch.int8)
    scales = torch.tensor([[0.5], [2.0]])
    x = torch.tensor([[1.27, -0.64, 0.005], [0.0, 0.0, 0.0]])
    # row scale 1.27 / 127 = 0.01: codes 127, -64, 0 (0.5 rounds to even)
    expected = torch.tensor([[(127 * 127 + 128 * 64) * 0.5, 127 * 2.0], [0.0, 0.0]]) * 0.01
    torch.testing.assert_close(Int8Linear(weight, scales)(x), expected)


def test_rows_of_activations_are_rounded_by_themselves() -> None:
    codes, scales = quantize_rows(torch.tensor([[254.0, -127.0], [0.01, 0.04]]))
    assert codes.tolist() == [[127, -64], [32, 127]]
    torch.testing.assert_close(scales, torch.tensor([[2.0], [0.04 / 127]]))


@pytest.mark.parametrize("chunk", [1, 2000, 10**9])
def test_fp8_rows_widened_a_few_at_a_time_give_the_whole_product(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvl.models.quantized.fp8._CHUNK", chunk)
    weight = torch.randn(70, 50, generator=torch.Generator().manual_seed(0))
    parts, dequantised = writers.fp8(weight, (16, 32))
    layer = Fp8Linear(parts["weight"], parts["weight_scale_inv"], (16, 32), torch.ones(70))
    x = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), x @ dequantised.T + 1)
