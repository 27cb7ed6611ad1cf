"""Qwen-VL and Qwen-VL-Chat, the first generation: ViT-bigG at 448 pixels, an adapter of 256 queries, Qwen-7B.

Attribute names are the published tensor names behind `transformer.`, so the blocks here are this generation's own.

Two things of the decoder depend on the length of a prompt, and go with a KV cache as follows.
logn: the query of token n (from 1) is multiplied by log n / log seq_length where n is past seq_length. It depends on
the token's own place alone, and keys don't have it, so cached keys stay true however long the sequence grows.
Dynamic NTK: a prompt longer than seq_length turns slower, by an alpha that its length picks (inputs.positions), and
its answer keeps that alpha, as in the original, since its keys are stored turned. So alpha belongs to the request: it
arrives with the positions, as the lead of the height axis over time, and names its KV apart in the prefix cache.

Legend: T packed tokens, N heads, H head dim, S rotary slots (H / 2), D text width; B images, P patches, V values in
a patch, W tower width, Q queries of the adapter.
Sources: Qwen-VL report (arXiv 2308.12966); modeling_qwen.py and visual.py published with Qwen-VL-Chat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.catalog.config import ModelConfig, TextConfig, VisionConfig
from qvl.catalog.generations.qwen_vl import ADAPTER_HEAD_DIM
from qvl.errors import MediaError
from qvl.models.attention import Attend, Segments
from qvl.models.base import VisionLanguageModel
from qvl.models.layers import RMSNorm, apply_rope, embedding
from qvl.models.linear import Linear, product
from qvl.models.vision import GridTHW, check_patches

NORM_EPS = 1e-6


def sincos_table(width: int, side: int) -> Tensor:
    """The adapter's fixed position table, fp32 (side², width), row by row.

    The first half of a row tells the column, the second half the row; each half is sines, then cosines, of
    position * 10000 ** (-4j / width), j from 0.
    """
    omega_J = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles_LJ = torch.arange(side, dtype=torch.float64)[:, None] * omega_J
    codes_LK = torch.cat((angles_LJ.sin(), angles_LJ.cos()), dim=-1).float()
    columns, rows = codes_LK.repeat(side, 1), codes_LK.repeat_interleave(side, dim=0)
    return torch.cat((columns, rows), dim=-1)


def stretched(table_LC: Tensor, num_rows: int) -> Tensor:
    """A square position table resampled to another square of `num_rows` places, bicubic in fp32."""
    side, wanted = math.isqrt(table_LC.shape[0]), math.isqrt(num_rows)
    if side == wanted:
        return table_LC
    grid = table_LC.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return grid[0].flatten(1).T.to(table_LC.dtype)


class TowerAttention(nn.Module):
    """Bidirectional inside each image. A head's q, k and v lie side by side in `in_proj`, not as three thirds."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.in_proj = Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_PW: Tensor, pictures: Segments) -> Tensor:
        q_PNH, k_PNH, v_PNH = self.in_proj(hidden_PW).unflatten(-1, (self.num_heads, 3, -1)).unbind(2)
        out: Tensor = self.out_proj(pictures.attend(q_PNH, k_PNH, v_PNH).flatten(1))
        return out


class TowerMLP(nn.Module):
    """Two layers around the exact GELU."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.c_fc = Linear(config.hidden_size, config.intermediate_size)
        self.c_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x)))
        return out


class TowerBlock(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=NORM_EPS)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=NORM_EPS)
        self.attn = TowerAttention(config)
        self.mlp = TowerMLP(config)

    def forward(self, hidden_PW: Tensor, pictures: Segments) -> Tensor:
        hidden_PW = hidden_PW + self.attn(self.ln_1(hidden_PW), pictures)
        out: Tensor = hidden_PW + self.mlp(self.ln_2(hidden_PW))
        return out


class TowerBlocks(nn.Module):
    """Only here because the published names have it: `visual.transformer.resblocks`."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.resblocks = nn.ModuleList(TowerBlock(config) for _ in range(config.depth))


class CrossAttention(nn.Module):
    """From queries to patches, with the tensors of nn.MultiheadAttention: q, k and v projections as three thirds."""

    def __init__(self, width: int):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, q_QD: Tensor, k_BPD: Tensor, v_BPD: Tensor) -> Tensor:
        """Every image is asked the same queries. Returns (B, Q, D)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q_BQD = product(q_QD, weights[0], biases[0]).expand(len(k_BPD), -1, -1)
        k_BPD = product(k_BPD, weights[1], biases[1])
        v_BPD = product(v_BPD, weights[2], biases[2])
        split = (x.unflatten(-1, (-1, ADAPTER_HEAD_DIM)).transpose(1, 2) for x in (q_BQD, k_BPD, v_BPD))
        o_BNQH = F.scaled_dot_product_attention(*split)
        out: Tensor = self.out_proj(o_BNQH.transpose(1, 2).flatten(2))
        return out


class Adapter(nn.Module):
    """One cross attention from learned queries to the patches. Queries and keys have positions, values none."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        width = config.out_hidden_size
        self.query = nn.Parameter(torch.zeros(config.num_queries, width))
        # published with the weights, and never trained
        table = sincos_table(width, math.isqrt(config.num_queries)).to(self.query)
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        # where both widths are one, the original has no projection
        same = config.hidden_size == width
        self.kv_proj = nn.Identity() if same else Linear(config.hidden_size, width, bias=False)
        self.attn = CrossAttention(width)
        self.ln_q = nn.LayerNorm(width, eps=NORM_EPS)
        self.ln_kv = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, hidden_BPW: Tensor) -> Tensor:
        v_BPD = self.ln_kv(self.kv_proj(hidden_BPW))
        k_BPD = v_BPD + stretched(self.pos_embed, v_BPD.shape[1])
        out: Tensor = self.attn(self.ln_q(self.query) + self.pos_embed, k_BPD, v_BPD)
        return out


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.side = config.image_size // config.patch_size
        width, out = config.hidden_size, config.out_hidden_size
        self.conv1 = nn.Conv2d(config.in_channels, width, config.patch_size, config.patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.zeros(config.num_position_embeddings, width))
        self.ln_pre = nn.LayerNorm(width, eps=NORM_EPS)
        self.transformer = TowerBlocks(config)
        self.attn_pool = Adapter(config)
        self.ln_post = nn.LayerNorm(out, eps=NORM_EPS)
        self.proj = nn.Parameter(torch.zeros(out, out))

    def forward(self, patches_PV: Tensor, grids: Sequence[GridTHW]) -> Tensor:
        """All images packed → features_TD in the same order, num_queries rows each.

        Raises: MediaError when they don't match, or an image isn't image_size pixels square.
        """
        side = self.side
        for grid in grids:
            if tuple(grid) != (1, side, side):
                raise MediaError(
                    f"grid {'x'.join(map(str, grid))}: this model takes images of 1x{side}x{side} patches "
                    f"({self.config.image_size} pixels square) and no videos"
                )
        check_patches(patches_PV, grids, self.config)
        pictures = Segments([side * side] * len(grids), device=patches_PV.device)
        # a convolution whose kernel is its stride is a matrix product over flattened patches
        hidden_PW = product(patches_PV.to(self.conv1.weight.dtype), self.conv1.weight.flatten(1))
        hidden_PW = hidden_PW + stretched(self.positional_embedding, side * side).repeat(len(grids), 1)
        hidden_PW = self.ln_pre(hidden_PW)
        for block in self.transformer.resblocks:
            hidden_PW = block(hidden_PW, pictures)
        pooled_BQD = self.attn_pool(hidden_PW.unflatten(0, (len(grids), -1)))
        return product(self.ln_post(pooled_BQD), self.proj.T).flatten(0, 1)


def rope_cos_sin(positions_3T: Tensor, config: TextConfig) -> tuple[Tensor, Tensor]:
    """cos_TH and sin_TH, fp32: one position a token, and the alpha that stretches the base.

    base' = base * alpha ** (d / (d - 2)), d rotated dimensions.
    """
    dim = config.head_dim
    alpha_T = (positions_3T[1] - positions_3T[0] + 1).double()
    # a step's tokens may belong to prompts of different lengths, so the base is a token's own
    base_T = (config.rope_theta * alpha_T ** (dim / (dim - 2))).float()
    exponents_S = torch.arange(0, dim, 2, device=positions_3T.device).float() / dim
    inverse_TS = 1.0 / base_T[:, None] ** exponents_S
    angles_TS = positions_3T[0, :, None].float() * inverse_TS
    angles_TH = torch.cat((angles_TS, angles_TS), dim=-1)
    return angles_TH.cos(), angles_TH.sin()


def logn_scale(positions_T: Tensor, seq_length: int) -> Tensor:
    """fp32 (T,): what each query is multiplied by, 1 up to seq_length tokens and then slowly more."""
    count_T = (positions_T + 1).double()
    return (count_T.log() / math.log(seq_length)).clamp(min=1.0).float()


class Attention(nn.Module):
    """As many key as query heads. The fused projection lies as thirds [q | k | v] and has the only bias."""

    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width = config.num_attention_heads * config.head_dim
        self.c_attn = Linear(config.hidden_size, 3 * width, bias=config.attention_bias)
        self.c_proj = Linear(width, config.hidden_size, bias=False)

    def forward(
        self, hidden_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor, logn_T11: Tensor | None, attend: Attend
    ) -> Tensor:
        q_TNH, k_TNH, v_TNH = self.c_attn(hidden_TD).unflatten(-1, (3, -1, self.head_dim)).unbind(1)
        # cos and sin are fp32, so the rotation is too
        q_TNH = apply_rope(q_TNH, cos_TH, sin_TH).to(v_TNH.dtype)
        k_TNH = apply_rope(k_TNH, cos_TH, sin_TH).to(v_TNH.dtype)
        if logn_T11 is not None:
            q_TNH = q_TNH * logn_T11
        out: Tensor = self.c_proj(attend(self.layer, q_TNH, k_TNH, v_TNH).flatten(1))
        return out


class MLP(nn.Module):
    """c_proj(w1(x) * silu(w2(x))): the gate is w2."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.w1 = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.c_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.w1(x) * F.silu(self.w2(x)))
        return out


class Block(nn.Module):
    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = Attention(config, layer)
        self.ln_2 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, hidden_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor, logn_T11: Tensor | None, attend: Attend
    ) -> Tensor:
        hidden_TD = hidden_TD + self.attn(self.ln_1(hidden_TD), cos_TH, sin_TH, logn_T11, attend)
        out: Tensor = hidden_TD + self.mlp(self.ln_2(hidden_TD))
        return out


class Qwen7B(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.wte = embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.rms_norm_eps)

    # what later generations call these three
    @property
    def embed_tokens(self) -> nn.Embedding:
        return self.wte

    @property
    def layers(self) -> nn.ModuleList:
        return self.h

    @property
    def norm(self) -> RMSNorm:
        return self.ln_f

    def forward(
        self, hidden_TD: Tensor, positions_3T: Tensor, attend: Attend, rows_S: Tensor | None = None
    ) -> Tensor:
        """Embedded tokens → hidden states after the final norm, (T, D), or of rows_S alone, (S, D)."""
        config = self.config
        cos_TH, sin_TH = rope_cos_sin(positions_3T, config)
        logn_T11 = None
        if config.use_logn_attn:
            logn_T11 = logn_scale(positions_3T[0], config.seq_length).to(hidden_TD.dtype)[:, None, None]
        for block in self.h:
            hidden_TD = block(hidden_TD, cos_TH, sin_TH, logn_T11, attend)
        out: Tensor = self.ln_f(hidden_TD if rows_S is None else hidden_TD[rows_S])
        return out


class QwenVL(VisionLanguageModel):
    def __init__(self, config: ModelConfig):
        super().__init__(config, VisionTower(config.vision), Qwen7B(config.text))
