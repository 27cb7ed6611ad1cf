"""The table of tensors against the networks themselves, built without weights."""

from __future__ import annotations

import pytest
import torch

from hub_configs import hub_config
from qvl.catalog.config import read_config, tensor_table
from qvl.catalog.models import config_of, models
from qvl.models import build

OPEN = [m for m in models() if m.shape]


@pytest.mark.parametrize("model", OPEN, ids=lambda m: m.name)
def test_names_and_shapes_are_the_networks_own(model) -> None:
    config = config_of(model)
    with torch.device("meta"):
        network = build(config)
    table = tensor_table(config)
    assert table.shapes == {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert table.linears == {
        name: (m.out_features, m.in_features)
        for name, m in network.named_modules()
        if isinstance(m, torch.nn.Linear)
    }


def test_a_known_answer_from_the_published_3b() -> None:
    table = tensor_table(read_config(hub_config("Qwen2.5-VL-3B")))
    assert table.shapes["visual.blocks.31.mlp.gate_proj.weight"] == (3420, 1280)
    assert table.shapes["model.layers.35.mlp.down_proj.weight"] == (2048, 11008)
    assert table.linears["model.layers.0.self_attn.k_proj"] == (256, 2048)
    assert "lm_head.weight" not in table.shapes
