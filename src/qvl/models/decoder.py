"""The text decoder that all generations from Qwen2-VL on share. What mixes tokens is chosen for each layer.

Tokens of every sequence are packed in one axis; who attends to whom is the business of `attend`.
Legend: T packed tokens, N query heads, K key/value heads, H head dim, S rotary slots (H / 2), D width.
Sources: Qwen2-VL report (M-RoPE); transformers 4.57.6 modeling_qwen2_5_vl for the order of casts.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from qvl.catalog.config import TextConfig
from qvl.models.attention import Attend, RecurrentAttend
from qvl.models.delta_net import GatedDeltaNet
from qvl.models.layers import (
    CenteredRMSNorm,
    RMSNorm,
    SwiGLU,
    apply_rope,
    embedding,
    inverse_frequencies,
)
from qvl.models.linear import Linear, linears
from qvl.models.moe import MixtureOfExperts


def mrope_axes(config: TextConfig) -> list[int]:
    """Which position axis (0 time, 1 height, 2 width) turns each of the S rotary slots.

    Sections [2, 3, 3] in runs:  0 0 1 1 1 2 2 2   (Qwen2-VL, Qwen2.5-VL)
    interleaved [4, 2, 2]:       0 1 2 0 1 2 0 0   (from Qwen3-VL on; the low frequencies are all time)
    """
    if not config.mrope_interleaved:
        return [axis for axis, size in enumerate(config.mrope_section) for _ in range(size)]
    axes = [0] * sum(config.mrope_section)
    for axis in (1, 2):
        size = config.mrope_section[axis]
        axes[axis : 3 * size : 3] = [axis] * size
    return axes


@cache
@torch.inference_mode(False)
def _axes_on(config: TextConfig, device: torch.device) -> Tensor:
    """int64 (S,): kept, because a list can't be copied to a GPU while a graph is captured."""
    return torch.tensor(mrope_axes(config), device=device)


def mrope_cos_sin(positions_3T: Tensor, config: TextConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos_TH and sin_TH for three-axis positions, as wide as the rotated part of a head.

    Angles are fp32 whatever the activations are: bf16 is exact only up to position 256.
    """
    device = positions_3T.device
    angles_TS = positions_3T[_axes_on(config, device)].T.float() * inverse_frequencies(
        config.rotary_dim, config.rope_theta, device
    )
    angles_TH = torch.cat((angles_TS, angles_TS), dim=-1)
    return angles_TH.cos().to(dtype), angles_TH.sin().to(dtype)


def norm(config: TextConfig, size: int) -> nn.Module:
    return (CenteredRMSNorm if config.zero_centered_norm else RMSNorm)(size, config.rms_norm_eps)


class Attention(nn.Module):
    """Grouped-query attention; the bias is on q, k, v and never on o.

    With an output gate each head of q_proj is twice as wide: the query, then the gate of that head's output.
    """

    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim, self.gated = layer, config.head_dim, config.attn_output_gate
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, queries * (1 + self.gated), bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = Linear(queries, config.hidden_size, bias=False)
        self.q_norm = norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = norm(config, config.head_dim) if config.qk_norm else nn.Identity()

    def forward(self, hidden_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor, attend: Attend) -> Tensor:
        q, k, v = linears((self.q_proj, self.k_proj, self.v_proj), hidden_TD)
        q_TNH, *gate = q.unflatten(-1, (-1, self.head_dim * (1 + self.gated))).split(self.head_dim, dim=-1)
        q_TNH = self.q_norm(q_TNH)
        k_TKH = self.k_norm(k.unflatten(-1, (-1, self.head_dim)))
        v_TKH = v.unflatten(-1, (-1, self.head_dim))
        q_TNH, k_TKH = apply_rope(q_TNH, cos_TH, sin_TH), apply_rope(k_TKH, cos_TH, sin_TH)
        o_TNH = attend(self.layer, q_TNH, k_TKH, v_TKH)
        if gate:
            o_TNH = o_TNH * gate[0].sigmoid()
        return linears((self.o_proj,), o_TNH.flatten(1))[0]


class DecoderLayer(nn.Module):
    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        self.input_layernorm = norm(config, config.hidden_size)
        self.is_linear = layer not in config.full_attention_layers
        if self.is_linear:
            self.linear_attn = GatedDeltaNet(config, layer)
        else:
            self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = norm(config, config.hidden_size)
        self.mlp = (
            MixtureOfExperts(config)
            if config.num_experts
            else SwiGLU(config.hidden_size, config.intermediate_size)
        )

    def forward(
        self,
        hidden_TD: Tensor,
        cos_TH: Tensor,
        sin_TH: Tensor,
        attend: Attend,
        rows_S: Tensor | None = None,
    ) -> Tensor:
        """rows_S: which rows go on after attention; None: all."""
        normed_TD = self.input_layernorm(hidden_TD)
        if self.is_linear:
            assert isinstance(attend, RecurrentAttend), "linear-attention layers need an owner of states"
            hidden_TD = hidden_TD + self.linear_attn(normed_TD, attend)
        else:
            hidden_TD = hidden_TD + self.self_attn(normed_TD, cos_TH, sin_TH, attend)
        if rows_S is not None:
            hidden_TD = hidden_TD[rows_S]
        out: Tensor = hidden_TD + self.mlp(self.post_attention_layernorm(hidden_TD))
        return out


class Decoder(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = norm(config, config.hidden_size)

    def forward(
        self, hidden_TD: Tensor, positions_3T: Tensor, attend: Attend, rows_S: Tensor | None = None
    ) -> Tensor:
        """Embedded tokens → hidden states after the final norm, (T, D); of rows_S alone, (S, D), where given: the
        others stop at the last layer's keys and values.

        DeepStack: a row may be wider than D. What follows the embedding, in steps of D, is added to the outputs
        of the first layers. It lies in the row so that any cut of a prompt takes its share along.
        """
        cos_TH, sin_TH = mrope_cos_sin(positions_3T, self.config, hidden_TD.dtype)
        hidden_TD, *after_layer = hidden_TD.split(self.config.hidden_size, dim=-1)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            rows = rows_S if i == last else None
            hidden_TD = layer(hidden_TD, cos_TH, sin_TH, attend, rows)
            if i < len(after_layer):
                hidden_TD = hidden_TD + (after_layer[i] if rows is None else after_layer[i][rows])
        out: Tensor = self.norm(hidden_TD)
        return out
