"""Weights made 8- or 4-bit while they are read: the right layers, the planned bytes, close answers, clear refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import qvl
import qwen3_5_tiny
import qwen_vl_small
from models_reference import SPECIAL
from qvl.backends.base import open_backend
from qvl.catalog.config import read_config
from qvl.errors import BackendError, CheckpointError, ConfigError
from qvl.models import build
from qvl.models.base import initialize
from qvl.models.checkpoint import load_model, save_model
from qvl.models.linear import QuantizedLinear, quantize_codes
from qvl.models.on_load import layers_to_shrink
from qvl.plan.memory import weight_bytes
from test_models_attention import TEXT, VISION
from test_models_quantized_memory import CONFIG

ROOT = Path(__file__).parent.parent


def saved(folder: Path, config=CONFIG) -> Path:
    model = build(config).eval().requires_grad_(False)
    initialize(model, 0.2, torch.Generator().manual_seed(0))
    save_model(model.bfloat16(), folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_decoders_linears_become_codes_and_nothing_else_does(plain, weights):
    before, after = load_model(plain), load_model(plain, weights=weights)
    coded = {name for name, m in after.named_modules() if isinstance(m, QuantizedLinear)}
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layers = range(CONFIG.text.num_hidden_layers)
    assert {name.rpartition(".")[2] for name in coded} == set(kinds)
    assert len(coded) == len(kinds) * len(layers)
    assert all(name.startswith("model.layers.") for name in coded)
    for name in coded:
        layer, whole = after.get_submodule(name), before.get_submodule(name)
        group = 128 if weights == "int4" else whole.in_features
        bits = 8 if weights == "int8" else 4
        codes, scales = quantize_codes(whole.weight, bits, group)  # all at once, not in pieces
        want = QuantizedLinear.from_codes(codes, bits, scales, group_size=group)
        assert torch.equal(layer.dequantize(), want.dequantize())
        assert (layer.bias is None) == (whole.bias is None)
        assert layer.bias is None or torch.equal(layer.bias, whole.bias)
    for name, tensor in before.state_dict().items():
        if name.rpartition(".")[0] not in coded:
            assert torch.equal(after.state_dict()[name], tensor), name


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_they_take_the_bytes_that_the_plan_says(plain, weights):
    model = load_model(plain, weights=weights)
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    # the networks keep no buffers of their own; sizes here are whole tiles and steps
    assert held == weight_bytes(CONFIG, weights).total


def test_eight_bits_answer_nearly_as_sixteen_and_four_less_so():
    """On the embedded model: relative error of its logits at the last token of a prompt of words."""
    from qvl.models.attention import CausalAttention

    folder = Path(qvl.__file__).parent / "mini"
    ids = torch.arange(40, 80)
    positions = torch.arange(len(ids)).expand(3, -1)
    logits = {}
    for weights in (None, "int8", "int4"):
        model = load_model(folder, weights=weights)
        with torch.inference_mode():
            hidden = model.decode(model.embed(ids), positions, CausalAttention([len(ids)]))
            logits[weights] = model.logits(hidden).float()
    error = {w: float((logits[w] - logits[None]).norm() / logits[None].norm()) for w in ("int8", "int4")}
    assert 0 < error["int8"] < 0.05, error
    assert error["int8"] < error["int4"] < 0.5, error


def test_a_clean_receipt_is_read_with_eight_bits_and_the_plan_is_printed_with_them():
    model = qvl.load("mini", weights="int8")
    assert model.memory.weights_bytes < qvl.load("mini").memory.weights_bytes
    assert model.ask([ROOT / "examples" / "receipt.png"], "What is the total?").text.strip() == "14.27"


def test_the_first_generation_and_hybrids_have_their_layers_made_small():
    for settings in (qwen_vl_small.CONFIG, qwen3_5_tiny.config_json("dense")):
        names = layers_to_shrink(build(read_config(settings)), "int8")
        leaves = {name.rpartition(".")[2] for name in names}
        assert names
        assert not leaves & {"in_proj_a", "in_proj_b", "gate", "kv_proj", "in_proj", "c_fc", "lm_head"}


def test_what_cannot_be_made_small_is_refused_with_the_reason(plain, tmp_path):
    moe = replace(
        CONFIG,
        family="qwen3_vl_moe",
        text=replace(
            TEXT, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, attention_bias=False
        ),
        vision=replace(VISION, out_hidden_size=TEXT.hidden_size),
        **SPECIAL,
    )
    with torch.device("meta"), pytest.raises(CheckpointError, match="fused experts aren't made smaller"):
        layers_to_shrink(build(moe), "int4")
    with pytest.raises(CheckpointError, match=r"weights 'int5'.*int[48]"):
        load_model(plain, weights="int5")
    with pytest.raises(ConfigError, match="known: auto, int8, int4"):
        qvl.load("mini", weights="fp8")
    with pytest.raises(ConfigError, match="dtype 'fp32' with weights 'int8': these run in bf16"):
        qvl.load("mini", weights="int8", dtype="fp32")
    with pytest.raises(BackendError, match="a server has loaded its weights already"):
        open_backend("x", endpoint="http://127.0.0.1:9", weights="int8")


def test_the_verb_takes_it():
    command = [sys.executable, "-m", "qvl.cli.main", "ask", "--weights", "int4", "--json"]
    asked = [*command, str(ROOT / "examples" / "receipt.png"), "What is the total?"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["answer"]
    wrong = subprocess.run(
        [*command[:-2], "int3", *asked[-2:]], capture_output=True, text=True, timeout=120, check=False
    )
    assert wrong.returncode == 2
    assert "int3" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1
