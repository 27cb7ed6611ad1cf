"""The network of an invented generation: all that a new one brings beside its record."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qvl.catalog.config import ModelConfig, VisionConfig
from qvl.models.attention import Segments
from qvl.models.base import VisionLanguageModel
from qvl.models.linear import Linear
from qvl.models.vision import (
    GridTHW,
    PatchEmbed,
    VisionAttention,
    check_patches,
    frame_lengths,
    patch_coordinates,
    vision_cos_sin,
)


class Unit(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.scale = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.look = VisionAttention(config)
        self.wide = Linear(config.hidden_size, config.intermediate_size)
        self.slim = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_PW: Tensor, cos_PH: Tensor, sin_PH: Tensor, segments: Segments) -> Tensor:
        hidden_PW = hidden_PW + self.look(self.scale(hidden_PW), cos_PH, sin_PH, segments)
        return hidden_PW + self.slim(torch.relu(self.wide(hidden_PW)))


class Eyes(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.stem = PatchEmbed(config, bias=True)
        self.units = nn.ModuleList(Unit(config) for _ in range(config.depth))
        self.bridge = Linear(config.hidden_size * config.spatial_merge_size**2, config.out_hidden_size)

    def forward(self, patches_PV: Tensor, grids: Sequence[GridTHW]) -> Tensor:
        config, device = self.config, patches_PV.device
        check_patches(patches_PV, grids, config)
        coordinates_P2 = patch_coordinates(grids, config.spatial_merge_size)
        cos_PH, sin_PH = vision_cos_sin(coordinates_P2.to(device), config.head_dim)
        hidden_PW = self.stem(patches_PV)
        for unit in self.units:
            hidden_PW = unit(hidden_PW, cos_PH, sin_PH, Segments(frame_lengths(grids), device=device))
        out: Tensor = self.bridge(hidden_PW.reshape(-1, self.bridge.in_features))
        return out


class Nova(VisionLanguageModel):
    def __init__(self, config: ModelConfig):
        super().__init__(config, Eyes(config.vision))
