"""Qwen2-VL: the vision tower that takes any resolution, and the whole model.

Every block attends over a whole frame (temporal patch); frames and images never see each other.
Legend: P patches, V values in a patch, H head dim, W tower width, T visual tokens, D text width.
Sources: Qwen2-VL report section 2.1; transformers 4.57.6 modeling_qwen2_vl.
"""

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
    PatchMerger,
    VisionAttention,
    check_patches,
    frame_lengths,
    patch_coordinates,
    vision_cos_sin,
)


class QuickGeluMLP(nn.Module):
    """Two layers around x * sigmoid(1.702 x), CLIP's cheap stand-in for GELU."""

    def __init__(self, size: int, inner: int):
        super().__init__()
        self.fc1 = Linear(size, inner)
        self.fc2 = Linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        out: Tensor = self.fc2(x * torch.sigmoid(1.702 * x))
        return out


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.attn = VisionAttention(config)
        self.mlp = QuickGeluMLP(config.hidden_size, config.intermediate_size)

    def forward(self, hidden_PW: Tensor, cos_PH: Tensor, sin_PH: Tensor, segments: Segments) -> Tensor:
        hidden_PW = hidden_PW + self.attn(self.norm1(hidden_PW), cos_PH, sin_PH, segments)
        out: Tensor = hidden_PW + self.mlp(self.norm2(hidden_PW))
        return out


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config, bias=False)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config, nn.LayerNorm(config.hidden_size, eps=1e-6))

    def forward(self, patches_PV: Tensor, grids: Sequence[GridTHW]) -> Tensor:
        """All media packed → features_TD in the same order. Raises: MediaError when they don't match."""
        config, device = self.config, patches_PV.device
        check_patches(patches_PV, grids, config)
        in_frames = Segments(frame_lengths(grids), device=device)
        coordinates_P2 = patch_coordinates(grids, config.spatial_merge_size)
        cos_PH, sin_PH = vision_cos_sin(coordinates_P2.to(device), config.head_dim)
        hidden_PW = self.patch_embed(patches_PV)
        for block in self.blocks:
            hidden_PW = block(hidden_PW, cos_PH, sin_PH, in_frames)
        out: Tensor = self.merger(hidden_PW)
        return out


class Qwen2VL(VisionLanguageModel):
    def __init__(self, config: ModelConfig):
        super().__init__(config, VisionTower(config.vision))
