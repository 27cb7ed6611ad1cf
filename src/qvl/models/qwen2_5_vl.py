"""Qwen2.5-VL: the vision tower with window attention, and the whole model.

Most blocks attend inside 112-pixel windows, so their cost is linear in patches; the blocks named by
`fullatt_block_indexes` attend over a whole frame. Frames never see each other.
Legend: P patches, V values in a patch, H head dim, W tower width, U merged units (blocks of merge² patches),
T visual tokens, D text width. One unit becomes one visual token.
Sources: Qwen2.5-VL report section 2.1; transformers 4.57.6 modeling_qwen2_5_vl.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qvl.catalog.config import ModelConfig, VisionConfig
from qvl.models.attention import Segments
from qvl.models.base import VisionLanguageModel
from qvl.models.layers import RMSNorm, SwiGLU
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


class Windows(NamedTuple):
    order_U: Tensor  # unit at each place when windows are laid end to end
    lengths: list[int]  # units in each window


def window_index(grids: Sequence[GridTHW], config: VisionConfig) -> Windows:
    """Windows row by row inside each frame; those at the right and bottom edge are smaller.

    Units of a 5 x 6 frame with window side 4:   0 0 0 0 1 1
                                                 0 0 0 0 1 1
                                                 0 0 0 0 1 1
                                                 0 0 0 0 1 1
                                                 2 2 2 2 3 3
    """
    merge = config.spatial_merge_size
    side = config.window_size // merge // config.patch_size
    numbers, num_windows = [], 0
    for t, h, w in grids:
        rows, columns = -(-h // merge // side), -(-w // merge // side)
        y = torch.arange(h // merge) // side
        x = torch.arange(w // merge) // side
        frame = y[:, None] * columns + x
        numbers.append((torch.arange(t)[:, None, None] * rows * columns + frame).flatten() + num_windows)
        num_windows += t * rows * columns
    number_U = torch.cat(numbers)
    return Windows(torch.argsort(number_U, stable=True), torch.bincount(number_U).tolist())


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size)
        self.norm2 = RMSNorm(config.hidden_size)
        self.attn = VisionAttention(config)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, bias=True)

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
        self.merger = PatchMerger(config, RMSNorm(config.hidden_size))

    def forward(self, patches_PV: Tensor, grids: Sequence[GridTHW]) -> Tensor:
        """All media packed → features_TD in the same order. Raises: MediaError when they don't match."""
        config, device = self.config, patches_PV.device
        check_patches(patches_PV, grids, config)
        unit = config.spatial_merge_size**2
        windows = window_index(grids, config)
        order_P = (windows.order_U[:, None] * unit + torch.arange(unit)).flatten()
        in_windows = Segments([n * unit for n in windows.lengths], device=device)
        # windows of a frame follow each other, so that frames stay whole in window order
        in_frames = Segments(frame_lengths(grids), device=device)
        coordinates_P2 = patch_coordinates(grids, config.spatial_merge_size)[order_P]
        cos_PH, sin_PH = vision_cos_sin(coordinates_P2.to(device), config.head_dim)

        hidden_PW = self.patch_embed(patches_PV[order_P.to(device)])
        for i, block in enumerate(self.blocks):
            segments = in_frames if i in config.fullatt_block_indexes else in_windows
            hidden_PW = block(hidden_PW, cos_PH, sin_PH, segments)
        out: Tensor = self.merger(hidden_PW)[torch.argsort(windows.order_U).to(device)]
        return out


class Qwen25VL(VisionLanguageModel):
    def __init__(self, config: ModelConfig):
        super().__init__(config, VisionTower(config.vision))
