"""Quantised mixtures of experts: experts one by one in every format, and fused FP8 both ways round."""

from __future__ import annotations

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
from qvl.catalog.config import ModelConfig, VisionConfig
from qvl.checkpoint.check import check
from qvl.errors import CheckpointError
from qvl.models import build
from qvl.models.base import VisionLanguageModel, initialize
from qvl.models.checkpoint import load_model, save_model
from qvl.models.moe import Experts
from qvl.models.quantized.experts import QuantizedExperts
from test_models_attention import TEXT

INNER, WIDTH, COUNT = 32, 64, 4
CONFIG = ModelConfig(
    generation=generations.by_name("qwen3_vl_moe"),
    text=replace(
        TEXT, hidden_size=WIDTH, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        mrope_section=(4, 2, 2), mrope_interleaved=True, vocab_size=210, attention_bias=False, qk_norm=True,
        num_experts=COUNT, num_experts_per_tok=2, moe_intermediate_size=INNER,
    ),
    vision=VisionConfig(
        depth=2, hidden_size=16, intermediate_size=20, num_heads=1, out_hidden_size=WIDTH, patch_size=16,
        num_position_embeddings=16, deepstack_visual_indexes=(0,),
    ),
    **SPECIAL,
)  # fmt: skip
PROMPT = Prompt([2, 3, 4, 5, 6, 7])
Maker = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]
SINGLE: dict[str, tuple[Maker, dict[str, Any]]] = {
    "awq": (lambda w: writers.awq(w, 32), writers.awq_config(32)),
    "gptq": (lambda w: writers.gptq(w, 4, 32), writers.gptq_config(4, 32)),
    "packed": (
        lambda w: writers.packed(w, 4, 32),
        writers.compressed_config(
            "pack-quantized", writers.int_weights(4, 32), ignore=["lm_head", "re:.*visual.*", "re:.*mlp.gate$"]
        ),
    ),
    "fp8": (
        lambda w: writers.fp8(w, (16, 32)),
        writers.fp8_config((16, 32), modules_to_not_convert=["lm_head", "visual", "mlp.gate"]),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build(CONFIG).eval().requires_grad_(False)
    initialize(model, 0.2, torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("plain")
    save_model(model, folder)
    return folder


def experts_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes the fused tensors out of a file: name of each single matrix → (out, in)."""
    single = {}
    for name in [n for n in tensors if ".experts." in n]:
        fused, at = tensors.pop(name).float(), name.rpartition(".")[0]
        for expert in range(COUNT):
            if name.endswith("down_proj"):
                single[f"{at}.{expert}.down_proj"] = fused[expert].T
            else:
                single[f"{at}.{expert}.gate_proj"] = fused[expert].T[:INNER]
                single[f"{at}.{expert}.up_proj"] = fused[expert].T[INNER:]
    return single


def one_by_one(plain: Path, folder: Path, layout: str) -> VisionLanguageModel:
    """Writes a quantised copy; returns the plain network with the weights that it stands for."""
    make, settings = SINGLE[layout]
    weights = writers.write(
        plain, folder, make, settings, dtype=None,
        covers=lambda m: bool(writers.DECODER_LINEAR.match(m)),
    )  # fmt: skip
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, matrix in experts_of(tensors).items():
        parts, weights[name] = make(matrix)
        tensors |= {f"{name}.{part}": t.contiguous() for part, t in parts.items()}
    save_file(tensors, path)
    return with_weights(plain, weights)


def with_weights(plain: Path, weights: dict[str, Tensor]) -> VisionLanguageModel:
    model = load_model(plain, copy=True)
    for name, weight in weights.items():
        name = name.replace("model.language_model.", "model.")
        at, _, rest = name.partition(".experts.")
        if not rest:
            model.get_submodule(name).weight.copy_(weight)
            continue
        expert, kind = rest.split(".")
        experts = model.get_submodule(f"{at}.experts")
        assert isinstance(experts, Experts)
        if kind == "down_proj":
            experts.down_proj[int(expert)].copy_(weight.T)
        else:
            start = INNER * (kind == "up_proj")
            experts.gate_up_proj[int(expert)][:, start : start + INNER].copy_(weight.T)
    return model


def largest_difference(folder: Path, reference: VisionLanguageModel) -> float:
    got = our_logits(load_model(folder, dtype="float32"), [PROMPT])
    return float((got - our_logits(reference, [PROMPT])).abs().max())


@pytest.mark.parametrize("layout", SINGLE)
def test_experts_one_by_one_answer_as_the_plain_network_with_their_weights(
    layout: str, plain: Path, tmp_path: Path
) -> None:
    reference = one_by_one(plain, tmp_path / "q", layout)
    # our 4-bit kernel may round activations; logits are of size 1
    assert largest_difference(tmp_path / "q", reference) < 0.05
    model = load_model(tmp_path / "q")
    assert isinstance(model.model.layers[0].mlp.experts, QuantizedExperts)
    assert isinstance(model.model.layers[0].mlp.gate, torch.nn.Linear)


@pytest.mark.parametrize("layout", SINGLE)
def test_each_expert_stands_for_exactly_its_published_weights(
    layout: str, plain: Path, tmp_path: Path
) -> None:
    reference = one_by_one(plain, tmp_path / "q", layout)
    experts = load_model(tmp_path / "q").model.layers[1].mlp.experts
    wanted = reference.model.layers[1].mlp.experts
    for i in range(COUNT):
        gate, up = experts.inner[i]
        assert torch.equal(torch.cat((gate.dequantize(), up.dequantize())), wanted.gate_up_proj[i].T)
        assert torch.equal(experts.down[i].dequantize(), wanted.down_proj[i].T)


def fuse_fp8(plain: Path, folder: Path, block: tuple[int, int]) -> VisionLanguageModel:
    settings = writers.fp8_config(block, modules_to_not_convert=["lm_head", "visual", "mlp.gate"])
    weights = writers.write(plain, folder, lambda w: writers.fp8(w, block), settings, dtype=None)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in [n for n in tensors if ".experts." in n]:
        made = [writers.fp8(matrix, block) for matrix in tensors[name].float()]
        tensors[name] = torch.stack([parts["weight"] for parts, _ in made])
        tensors[f"{name}_scale_inv"] = torch.stack([parts["weight_scale_inv"] for parts, _ in made])
        at, _, kind = name.rpartition(".")
        for expert, (_, dequantised) in enumerate(made):
            if kind == "down_proj":
                weights[f"{at}.{expert}.down_proj"] = dequantised.T
            else:
                weights[f"{at}.{expert}.gate_proj"] = dequantised.T[:INNER]
                weights[f"{at}.{expert}.up_proj"] = dequantised.T[INNER:]
    save_file(tensors, path)
    return with_weights(plain, weights)


@pytest.mark.parametrize("block", [(128, 128), (16, 32), (24, 40)])
def test_fused_fp8_experts_with_inputs_first_answer_as_their_weights(
    block: tuple[int, int], plain: Path, tmp_path: Path
) -> None:
    reference = fuse_fp8(plain, tmp_path / "q", block)
    assert largest_difference(tmp_path / "q", reference) < 1e-4
    experts = load_model(tmp_path / "q").model.layers[0].mlp.experts
    wanted = reference.model.layers[0].mlp.experts
    assert torch.equal(experts.inner[3][0].dequantize(), wanted.gate_up_proj[3].T)


def test_a_missing_part_of_one_expert_is_named(plain: Path, tmp_path: Path) -> None:
    one_by_one(plain, tmp_path / "q", "gptq")
    path = tmp_path / "q" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.language_model.layers.1.mlp.experts.2.up_proj.scales"]
    save_file(tensors, path)
    with pytest.raises(
        CheckpointError, match=r"1 missing: model\.layers\.1\.mlp\.experts\.2\.up_proj\.scales"
    ):
        load_model(tmp_path / "q")


def test_sizes_that_no_group_divides_are_named(plain: Path, tmp_path: Path) -> None:
    one_by_one(plain, tmp_path / "q", "awq")
    config = tmp_path / "q" / "config.json"
    config.write_text(config.read_text().replace('"group_size": 32', '"group_size": 64'))
    with pytest.raises(CheckpointError, match=r"mlp\.experts: 32 inputs are no whole groups of 64"):
        load_model(tmp_path / "q")


@pytest.mark.parametrize("layout", [*SINGLE, "fused"])
def test_the_linter_finds_nothing_wrong_with_the_tensors(layout: str, plain: Path, tmp_path: Path) -> None:
    if layout == "fused":
        fuse_fp8(plain, tmp_path / "q", (16, 32))
    else:
        one_by_one(plain, tmp_path / "q", layout)
    wrong = [f for f in check(tmp_path / "q").findings if f.level == "error" and f.rule != "tokenizer"]
    assert wrong == []
