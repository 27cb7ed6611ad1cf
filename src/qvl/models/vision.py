"""What the vision towers share: patch embedding, 2-D rotary angles, packed attention, the 2x2 merger.

Rows of a tower are patches in merge-block order: spatial_merge_size² rows in a run form one visual token.
Legend: P patches, V values in a patch, N heads, H head dim, W tower width, T visual tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qvl.catalog.config import VisionConfig
from qvl.errors import MediaError
from qvl.models.attention import Segments
from qvl.models.layers import apply_rope, inverse_frequencies
from qvl.models.linear import Linear, multiplies_half, product

# (t, h, w) in patches; geometry.Grid is one
GridTHW = tuple[int, int, int]


def check_patches(patches_PV: Tensor, grids: Sequence[GridTHW], config: VisionConfig) -> None:
    """Raises: MediaError when patches and grids can't belong together."""
    merge = config.spatial_merge_size
    for t, h, w in grids:
        if min(t, h, w) < 1 or h % merge or w % merge:
            raise MediaError(
                f"grid {t}x{h}x{w}: height and width must be whole multiples of {merge} patches; resize the "
                "image with smart_resize first"
            )
    wanted = sum(t * h * w for t, h, w in grids)
    if patches_PV.ndim != 2 or tuple(patches_PV.shape) != (wanted, config.patch_dim):
        raise MediaError(
            f"patches are {tuple(patches_PV.shape)}, the grids {[tuple(g) for g in grids]} need "
            f"({wanted}, {config.patch_dim})"
        )


def frame_lengths(grids: Sequence[GridTHW]) -> list[int]:
    """Patches in every frame (temporal patch): no patch ever attends outside its frame."""
    return [h * w for t, h, w in grids for _ in range(t)]


def patch_coordinates(grids: Sequence[GridTHW], merge: int) -> Tensor:
    """Row and column of each patch, int64 (P, 2), in merge-block order. Time has no angle in the tower."""
    media = []
    for t, h, w in grids:
        yx_hw2 = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), dim=-1)
        blocks = yx_hw2.view(h // merge, merge, w // merge, merge, 2).transpose(1, 2)
        media.append(blocks.reshape(h * w, 2).repeat(t, 1))
    return torch.cat(media)


def vision_cos_sin(coordinates_P2: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """fp32 cos_PH and sin_PH: a quarter of the head turns with the row, a quarter with the column, twice over."""
    inverse = inverse_frequencies(head_dim // 2, 10000.0, coordinates_P2.device)
    angles = (coordinates_P2[:, :, None].float() * inverse).flatten(1)
    angles_PH = torch.cat((angles, angles), dim=-1)
    return angles_PH.cos(), angles_PH.sin()


class PatchEmbed(nn.Module):
    """A convolution whose kernel is its stride is one matrix product over flattened patches.

    In half precision on the CPU it is run as the convolution it is published as, 3.6 times as slow but 1% of the
    tower: the product rounds a few values differently, and nine blocks of the 3B's shape with random weights turn
    that into a cosine of 0.99993. Where bf16 is emulated the product is in fp32, a finer rounding than either.
    """

    def __init__(self, config: VisionConfig, bias: bool):
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel, stride=kernel, bias=bias)

    def forward(self, patches_PV: Tensor) -> Tensor:
        weight = self.proj.weight
        patches_PV = patches_PV.to(weight.dtype)
        if weight.device.type == "cpu" and weight.dtype != torch.float32 and multiplies_half():
            out: Tensor = self.proj(patches_PV.view(-1, *weight.shape[1:])).flatten(1)
            return out
        return product(patches_PV, weight.flatten(1), self.proj.bias)


class VisionAttention(nn.Module):
    """Bidirectional inside each segment; fused qkv lies as thirds [Q | K | V]."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_PW: Tensor, cos_PH: Tensor, sin_PH: Tensor, segments: Segments) -> Tensor:
        q_PNH, k_PNH, v_PNH = self.qkv(hidden_PW).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        # cos and sin are fp32, so the rotation is too
        q_PNH, k_PNH = apply_rope(q_PNH, cos_PH, sin_PH), apply_rope(k_PNH, cos_PH, sin_PH)
        out: Tensor = self.proj(segments.attend(q_PNH, k_PNH, v_PNH).flatten(1))
        return out


class PatchMerger(nn.Module):
    """Norm on each patch, then each block of merge² patches through one MLP to the text width.

    The activation is the exact GELU in every generation, whatever the tower's blocks use.
    """

    def __init__(self, config: VisionConfig, norm: nn.Module):
        super().__init__()
        self.block_width = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = norm
        self.mlp = nn.Sequential(
            Linear(self.block_width, self.block_width),
            nn.GELU(),
            Linear(self.block_width, config.out_hidden_size),
        )

    def forward(self, hidden_PW: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.ln_q(hidden_PW).view(-1, self.block_width))
        return out
