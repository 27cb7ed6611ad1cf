"""Qwen3-VL, dense and mixture of experts: the vision tower with a position table and DeepStack, and the whole model.

Every block attends over a whole frame, as in Qwen2-VL. Features of some inner blocks go past the tower's end into
the first decoder layers (DeepStack); they follow the main features in the same rows.
Legend: P patches, V values in a patch, H head dim, W tower width, T visual tokens, D text width.
Sources: Qwen3-VL report; transformers 4.57.6 modeling_qwen3_vl.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qvl.catalog.config import ModelConfig, VisionConfig
from qvl.models.attention import Segments
from qvl.models.base import VisionLanguageModel
from qvl.models.layers import embedding
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


def table_taps(coordinates_P2: Tensor, sizes_P2: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Where each patch falls into a side x side table stretched over its image, corners on corners.

    Returns: int64 index_4P into the table's rows, fp32 weight_4P: the four neighbours and their bilinear shares.
    """
    # one patch in a row or column falls on the table's edge, as linspace of one point does
    at_P2 = coordinates_P2 * ((side - 1) / (sizes_P2 - 1).clamp(min=1).float())
    low_P2 = at_P2.floor().long()
    high_P2 = (low_P2 + 1).clamp(max=side - 1)
    share_P2 = at_P2 - low_P2
    indices, weights = [], []
    for row, row_share in ((low_P2[:, 0], 1 - share_P2[:, 0]), (high_P2[:, 0], share_P2[:, 0])):
        for column, column_share in ((low_P2[:, 1], 1 - share_P2[:, 1]), (high_P2[:, 1], share_P2[:, 1])):
            indices.append(row * side + column)
            weights.append(row_share * column_share)
    return torch.stack(indices), torch.stack(weights)


class VisionMLP(nn.Module):
    """Two layers around the tanh form of GELU."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.linear_fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_fc2(nn.functional.gelu(self.linear_fc1(x), approximate="tanh"))
        return out


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, hidden_PW: Tensor, cos_PH: Tensor, sin_PH: Tensor, segments: Segments) -> Tensor:
        hidden_PW = hidden_PW + self.attn(self.norm1(hidden_PW), cos_PH, sin_PH, segments)
        out: Tensor = hidden_PW + self.mlp(self.norm2(hidden_PW))
        return out


class PatchMerger(nn.Module):
    """Each block of merge² patches through one MLP with the exact GELU.

    The main merger normalises single patches, DeepStack's normalise whole blocks.
    """

    def __init__(self, config: VisionConfig, norm_blocks: bool):
        super().__init__()
        self.norm_blocks, self.block_width = norm_blocks, config.hidden_size * config.spatial_merge_size**2
        self.norm = nn.LayerNorm(self.block_width if norm_blocks else config.hidden_size, eps=1e-6)
        self.linear_fc1 = Linear(self.block_width, self.block_width)
        self.linear_fc2 = Linear(self.block_width, config.out_hidden_size)

    def forward(self, hidden_PW: Tensor) -> Tensor:
        if self.norm_blocks:
            blocks = self.norm(hidden_PW.view(-1, self.block_width))
        else:
            blocks = self.norm(hidden_PW).view(-1, self.block_width)
        out: Tensor = self.linear_fc2(nn.functional.gelu(self.linear_fc1(blocks)))
        return out


class VisionTower(nn.Module):
    """`mixes_in_fp32`: the position table is mixed in fp32 (Qwen3.5's reference) and not in its own dtype."""

    def __init__(self, config: VisionConfig, mixes_in_fp32: bool = False):
        super().__init__()
        self.config, self.mixes_in_fp32 = config, mixes_in_fp32
        self.patch_embed = PatchEmbed(config, bias=True)
        self.pos_embed = embedding(config.num_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config, norm_blocks=False)
        self.deepstack_merger_list = nn.ModuleList(
            PatchMerger(config, norm_blocks=True) for _ in config.deepstack_visual_indexes
        )

    def positions(self, coordinates_P2: Tensor, grids: Sequence[GridTHW]) -> Tensor:
        """The learned table resampled to every image's grid, (P, W).

        Shares are in the table's dtype as in transformers 4.57, or in fp32 as in its version 5.
        """
        sizes_P2 = torch.tensor([g[1:] for g in grids]).repeat_interleave(
            torch.tensor([math.prod(g) for g in grids]), dim=0
        )
        side = math.isqrt(self.config.num_position_embeddings)
        index_4P, weight_4P = table_taps(coordinates_P2, sizes_P2, side)
        table = self.pos_embed.weight
        weight_4P = weight_4P.to(table.device, torch.float32 if self.mixes_in_fp32 else table.dtype)
        taps_4PW = self.pos_embed(index_4P.to(table.device)) * weight_4P[..., None]
        out: Tensor = (taps_4PW[0] + taps_4PW[1] + taps_4PW[2] + taps_4PW[3]).to(table.dtype)
        return out

    def forward(self, patches_PV: Tensor, grids: Sequence[GridTHW]) -> Tensor:
        """All media packed → features in the same order, (T, D * (1 + DeepStack taps)).

        Raises: MediaError when they don't match.
        """
        config, device = self.config, patches_PV.device
        check_patches(patches_PV, grids, config)
        in_frames = Segments(frame_lengths(grids), device=device)
        coordinates_P2 = patch_coordinates(grids, config.spatial_merge_size)
        cos_PH, sin_PH = vision_cos_sin(coordinates_P2.to(device), config.head_dim)
        hidden_PW = self.patch_embed(patches_PV) + self.positions(coordinates_P2, grids)
        deep: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            hidden_PW = block(hidden_PW, cos_PH, sin_PH, in_frames)
            if i in config.deepstack_visual_indexes:
                tap = config.deepstack_visual_indexes.index(i)
                deep[tap] = self.deepstack_merger_list[tap](hidden_PW)
        return torch.cat([self.merger(hidden_PW), *(deep[tap] for tap in sorted(deep))], dim=-1)


class Qwen3VL(VisionLanguageModel):
    def __init__(self, config: ModelConfig):
        super().__init__(config, VisionTower(config.vision))
