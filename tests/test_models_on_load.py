"""Weights made 8- or 4-bit while they are read: the right layers, the planned bytes, close answers, clear refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import qvl
import qwen3_5_tiny
import qwen_vl_small
from qvl.catalog.config import read_config
from qvl.catalog.models import config_of, models
from qvl.errors import BackendError, CheckpointError, ConfigError
from qvl.models import build, checkpoint
from qvl.models.base import initialize
from qvl.models.checkpoint import load_model, save_model
from qvl.models.linear import Linear, QuantizedLinear, quantize_codes
from qvl.models.moe import Experts
from qvl.models.on_load import coded_layers
from qvl.plan.memory import weight_bytes
from qvl.tasks.open import open_backend
from test_models_quantized_experts import CONFIG as QWEN3_MOE
from test_models_quantized_memory import CONFIG

TIED = replace(CONFIG, text=replace(CONFIG.text, tie_word_embeddings=True))
ROOT = Path(__file__).parent.parent


def saved(folder: Path, config=CONFIG) -> Path:
    model = build(config).eval().requires_grad_(False)
    initialize(model, 0.2, torch.Generator().manual_seed(0))
    save_model(model.bfloat16(), folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("tied"), TIED)


def rounded(weight, bits: int, group: int) -> torch.Tensor:
    """What the codes of a weight stand for, made all at once, not in pieces."""
    codes, scales = quantize_codes(weight, bits, group)
    return QuantizedLinear.from_codes(codes, bits, scales, group_size=group).dequantize()


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_linears_table_and_head_become_codes_and_nothing_else_does(head, weights, request):
    folder = request.getfixturevalue("tied" if head == "tied" else "plain")
    before, after = load_model(folder), load_model(folder, weights=weights)
    coded = {name for name, m in after.named_modules() if isinstance(m, QuantizedLinear)}
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    in_layers = {name for name in coded if name.startswith("model.layers.")}
    assert {name.rpartition(".")[2] for name in in_layers} == set(kinds)
    assert len(in_layers) == len(kinds) * CONFIG.text.num_hidden_layers
    tower = {n for n, m in before.named_modules() if n.startswith("visual.") and isinstance(m, Linear)}
    assert len(tower) == 5 * CONFIG.vision.depth + 2
    rest = tower | {"model.embed_tokens.table"} | ({"lm_head"} if head == "untied" else set())
    assert coded - in_layers == rest
    for name in coded:
        layer, whole = after.get_submodule(name), before.get_submodule(name.removesuffix(".table"))
        bits = 4 if weights == "int4" and name in in_layers else 8
        group = 128 if bits == 4 else layer.in_features
        assert torch.equal(layer.dequantize(), rounded(whole.weight, bits, group)), name
        bias = getattr(whole, "bias", None)
        assert (layer.bias is None) == (bias is None)
        assert bias is None or torch.equal(layer.bias, bias)
    for name, tensor in before.state_dict().items():
        if not {name.rpartition(".")[0], name.rpartition(".")[0] + ".table"} & coded:
            assert torch.equal(after.state_dict()[name], tensor), name


def test_tokens_are_looked_up_and_scored_by_the_rounded_table(tied):
    before, after = load_model(tied), load_model(tied, weights="int4")
    table = rounded(before.model.embed_tokens.weight, 8, CONFIG.text.hidden_size)
    ids = torch.tensor([5, 0, CONFIG.text.vocab_size - 1, 17, 16, 5])
    assert torch.equal(after.embed(ids), table[ids].bfloat16())
    hidden = torch.randn(3, CONFIG.text.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    want = hidden.float() @ table.T
    assert torch.allclose(after.logits(hidden).float(), want, atol=0.02 * want.abs().max())


def test_a_large_table_comes_in_pieces_that_give_the_same(plain, monkeypatch):
    whole = load_model(plain, weights="int8", copy=True)
    monkeypatch.setattr(checkpoint, "_COPY_BATCH", 40 * 2 * CONFIG.text.intermediate_size)
    pieces = load_model(plain, weights="int8", copy=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(pieces.state_dict()[name], tensor), name


def test_on_a_gpu_table_head_and_tower_stay_as_stored():
    for config in (CONFIG, TIED):
        names = coded_layers(build(config), "int4", on_cpu=False)
        assert names
        assert all(name.startswith("model.layers.") for name in names)


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_they_take_the_bytes_that_the_plan_says(head, weights, tmp_path):
    config = replace(CONFIG, text=replace(CONFIG.text, tie_word_embeddings=head == "tied"))
    model = load_model(saved(tmp_path, config), weights=weights)
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    # the networks keep no buffers of their own; widths here are whole tiles and steps in the decoder
    assert held == weight_bytes(model.config, weights, small_rest=True).total


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
        names = coded_layers(build(read_config(settings)), "int8", on_cpu=True)
        leaves = {name.rpartition(".")[2] for name in names}
        assert names
        assert not leaves & {"in_proj_a", "in_proj_b", "gate", "kv_proj", "in_proj", "c_fc"}


MIXTURES = {
    "inputs first": QWEN3_MOE,  # as stored
    "outputs first": read_config(qwen3_5_tiny.config_json("moe")),
}


def one_by_one(folder: Path, target: Path) -> Path:
    """The same mixture with each expert's matrices as tensors of their own."""
    config = read_config(folder)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        at, _, leaf = name.rpartition(".")
        if not at.endswith("experts"):
            tensors[name] = tensor
            continue
        parts = ("gate_proj", "up_proj") if leaf == "gate_up_proj" else ("down_proj",)
        for e, matrix in enumerate(tensor):
            matrix_OI = matrix.T if config.text.expert_inputs_first else matrix
            for part, rows in zip(parts, matrix_OI.chunk(len(parts))):
                tensors[f"{at}.{e}.{part}.weight"] = rows.contiguous()
    target.mkdir()
    save_file(tensors, target / "model.safetensors")
    shutil.copy(folder / "config.json", target)
    return target


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_become_codes_however_they_are_stored(kind, weights, tmp_path, monkeypatch):
    """Each expert's matrices are rounded alone: codes of neighbours would share scales otherwise."""
    folder = saved(tmp_path / "fused", MIXTURES[kind])
    plain, small = load_model(folder), load_model(folder, weights=weights)
    apart = load_model(one_by_one(folder, tmp_path / "single"), weights=weights)
    monkeypatch.setattr(checkpoint, "_COPY_BATCH", 2 * 3 * 32 * 64)  # few experts at a time
    pieces = load_model(folder, weights=weights, copy=True)
    for other in (apart, pieces):
        assert small.state_dict().keys() == other.state_dict().keys()
        for name, tensor in small.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), name
    bits, group = (8, 1 << 20) if weights == "int8" else (4, 128)
    mixtures = [(n, m) for n, m in plain.named_modules() if isinstance(m, Experts)]
    assert mixtures
    hidden = torch.randn(
        5, plain.config.text.hidden_size, generator=torch.Generator().manual_seed(1)
    ).bfloat16()
    for name, experts in mixtures:
        coded = small.get_submodule(name)
        for e in range(experts.num_experts):
            gate_up, down = experts.gate_up_proj[e], experts.down_proj[e]
            if experts.inputs_first:
                gate_up, down = gate_up.T, down.T
            wanted = (*gate_up.chunk(2), down)
            for layer, matrix in zip((*coded.inner[e], coded.down[e]), wanted, strict=True):
                assert torch.equal(layer.dequantize(), rounded(matrix, bits, min(group, matrix.shape[1])))
            near, far = coded(hidden, e).float(), experts(hidden, e).float()
            assert (near - far).norm() < (0.05 if weights == "int8" else 0.4) * far.norm()


@pytest.mark.parametrize("stored", ["fused", "one by one"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_plain_experts_lie_outputs_first_in_memory_under_their_published_shape(kind, stored, tmp_path):
    """A product with one row reads them several times as fast so."""
    fused = saved(tmp_path / "fused", MIXTURES[kind])
    folder = fused if stored == "fused" else one_by_one(fused, tmp_path / "single")
    mapped, copied = load_model(fused), load_model(folder, copy=True)
    for name, tensor in mapped.state_dict().items():
        assert torch.equal(copied.state_dict()[name], tensor), name
    experts = [m for m in copied.modules() if isinstance(m, Experts)]
    assert experts
    for module in experts:
        for stack in (module.gate_up_proj, module.down_proj):
            assert (stack.mT if module.inputs_first else stack).is_contiguous()
    save_model(copied, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        fused / "model.safetensors"
    ).read_bytes()


SHAPES = sorted({m.shape for m in models() if m.shape})


@pytest.mark.parametrize("shape", SHAPES)
def test_every_published_shape_takes_the_bytes_that_the_plan_says(shape):
    """Built without memory, four layers and a few experts of it. The plan's list of narrow linears and the loader's are
    two: this holds them together.
    """
    config = config_of(next(m for m in models() if m.shape == shape))
    text = config.text
    few = replace(
        text,
        num_hidden_layers=4,
        layer_types=text.layer_types[:4],
        num_experts=min(text.num_experts, 12),
    )
    config = replace(config, text=few)
    with torch.device("meta"):
        model = build(config)
        for weights in ("int8", "int4"):
            coded = coded_layers(model, weights, on_cpu=True)
            replaced = {f"{name}.weight" for name in coded}
            plain = sum(
                2 * p.numel()
                for name, p in model.named_parameters()
                if name not in replaced and ".experts." not in name
            )
            held = plain + sum(layer.num_bytes for layer in coded.values())
            assert held == weight_bytes(config, weights, small_rest=True).total, weights


def test_what_cannot_be_made_small_is_refused_with_the_reason(plain, tmp_path):
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
