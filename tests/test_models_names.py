"""Names of either layout, and networks of true size on the meta device: which tensors, how many parameters."""

from __future__ import annotations

import pytest
import torch

from hub_configs import PARAMETERS, SIZES, hub_config
from qvl.catalog.config import read_config
from qvl.catalog.generations import by_name
from qvl.checkpoint.names import published_names, to_canonical, to_nested
from qvl.models import build
from qvl.models.base import VisionLanguageModel

PAIRS = [
    ("visual.patch_embed.proj.weight", "model.visual.patch_embed.proj.weight"),
    ("visual.blocks.31.attn.qkv.bias", "model.visual.blocks.31.attn.qkv.bias"),
    ("visual.merger.mlp.2.weight", "model.visual.merger.mlp.2.weight"),
    ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
    ("model.layers.0.self_attn.q_proj.bias", "model.language_model.layers.0.self_attn.q_proj.bias"),
    ("model.norm.weight", "model.language_model.norm.weight"),
    ("lm_head.weight", "lm_head.weight"),
]


@pytest.mark.parametrize(("flat", "nested"), PAIRS)
def test_both_layouts_lead_to_one_name_and_back(flat: str, nested: str) -> None:
    assert to_canonical(flat) == to_canonical(nested) == flat
    assert to_nested(flat) == to_nested(nested) == nested


def on_meta(name: str) -> VisionLanguageModel:
    with torch.device("meta"):
        return build(read_config(hub_config(name)))


@pytest.mark.parametrize("name", SIZES)
def test_names_are_idempotent_and_inverse_for_every_tensor(name: str) -> None:
    names = [n for n, _ in on_meta(name).named_parameters()]
    for n in names:
        assert to_canonical(to_canonical(n)) == to_canonical(n) == n
        assert to_nested(to_nested(n)) == to_nested(n)
        assert to_canonical(to_nested(n)) == n
    assert len({to_nested(n) for n in names}) == len(names)


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    model = on_meta(name)

    def count(module: torch.nn.Module | None) -> int:
        return sum(p.numel() for p in module.parameters()) if module is not None else 0

    merger = count(model.visual.merger)
    parts = (count(model), count(model.visual) - merger, merger, count(model.model), count(model.lm_head))
    assert parts == PARAMETERS[name]


@pytest.mark.parametrize("name", ["Qwen2-VL-2B", "Qwen2.5-VL-7B"])
def test_tensor_names_and_shapes_are_the_references(name: str) -> None:
    """transformers' own network of the same config on the meta device, with the names it would save."""
    import transformers as hf

    raw = hub_config(name)
    kinds = {
        "qwen2_vl": (hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration),
        "qwen2_5_vl": (hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration),
    }
    config, network = kinds[raw["model_type"]]
    with torch.device("meta"):
        theirs = network(config(**raw))
    expected = {to_canonical(n): tuple(p.shape) for n, p in theirs.named_parameters()}
    assert {n: tuple(p.shape) for n, p in on_meta(name).named_parameters()} == expected


def test_published_names_of_qwen2_and_qwen2_5_are_flat() -> None:
    flat, nested = ([pair[i] for pair in PAIRS] for i in (0, 1))
    assert published_names(flat, by_name("qwen2_vl")) == dict(zip(flat, flat))
    assert published_names(nested, by_name("qwen2_5_vl")) == dict(zip(nested, flat))
