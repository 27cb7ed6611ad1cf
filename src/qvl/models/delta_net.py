"""Gated DeltaNet: a layer whose past is one matrix a head, of the same size whatever the length.

For each token and value head, in fp32, on a matrix S of keys x values (g <= 0 forgets, beta in (0, 1) writes):

    S ← exp(g) S        S ← S + k ⊗ beta (v - kᵀS)        o = qᵀS

The second step replaces what S answers to the key k by v, to the part beta: the delta rule. Before it, q, k and v
pass a causal convolution over a few tokens, whose last inputs are the other half of the layer's state.
Legend: T packed tokens, B sequences of L tokens each, R convolution inputs kept (kernel - 1), C channels [q | k | v],
N key heads, V value heads, K key dim, H value dim, M chunks of I tokens, D model width.
Sources: Yang et al., Gated Delta Networks (2412.06464), section 3; transformers 5.23 modeling_qwen3_5 for the order
of casts and for the layout of the weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.catalog.config import TextConfig
from qvl.models.attention import RecurrentAttend, State
from qvl.models.linear import Linear

CHUNK = (
    64  # tokens that are computed as matrix products; longer chunks cost more within, shorter ones between
)


def recurrent_delta_rule(
    q_BLVK: Tensor, k_BLVK: Tensor, v_BLVH: Tensor, g_BLV: Tensor, beta_BLV: Tensor, memory_BVKH: Tensor
) -> tuple[Tensor, Tensor]:
    """The rule token by token: for decoding, and as the oracle of the chunked form.

    Decoding is reading and writing these matrices, so k and q read the old one together: what q finds in the new
    one is what it finds in the old, and q·k times the change.
    All fp32. Returns: o_BLVH and the matrices after the last token.
    """
    outputs = []
    for t in range(q_BLVK.shape[1]):
        k_BV1K, q_BV1K = k_BLVK[:, t, :, None], q_BLVK[:, t, :, None]
        keep_BV11 = g_BLV[:, t, :, None, None].exp()
        found_BV2H = torch.cat((k_BV1K, q_BV1K), dim=2) @ memory_BVKH * keep_BV11
        by_k_BV1H, by_q_BV1H = found_BV2H.split(1, dim=2)
        change_BV1H = beta_BLV[:, t, :, None, None] * (v_BLVH[:, t, :, None] - by_k_BV1H)
        memory_BVKH = torch.addcmul(memory_BVKH * keep_BV11, k_BV1K.mT, change_BV1H)
        outputs.append((by_q_BV1H + (q_BV1K * k_BV1K).sum(-1, keepdim=True) * change_BV1H)[:, :, 0])
    return torch.stack(outputs, dim=1), memory_BVKH


def chunked_delta_rule(
    q_BLVK: Tensor,
    k_BLVK: Tensor,
    v_BLVH: Tensor,
    g_BLV: Tensor,
    beta_BLV: Tensor,
    memory_BVKH: Tensor,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """The same numbers by matrix products, `chunk` tokens at once. All fp32.

    Within a chunk that starts at S₀, with c the running sum of g, what token i writes is

        uᵢ = betaᵢ (vᵢ - exp(cᵢ) kᵢᵀS₀ - Σ_{j<i} exp(cᵢ - cⱼ) (kᵢ·kⱼ) uⱼ)

    which is a triangular system with S₀ on the right: it is solved once for all chunks, and only the products
    with S₀ go from chunk to chunk. Then oᵢ = exp(cᵢ) qᵢᵀS₀ + Σ_{j<=i} exp(cᵢ - cⱼ) (qᵢ·kⱼ) uⱼ.
    Padding has k = 0, beta = 0 and g = 0: it neither writes nor forgets.
    """
    length = q_BLVK.shape[1]
    chunk = min(chunk, length)
    missing = -length % chunk

    def chunks(x: Tensor) -> Tensor:
        """(B, L, V, …) → (B, V, M, I, …)"""
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing)) if missing else x
        out: Tensor = x.transpose(1, 2).unflatten(2, (-1, chunk))
        return out

    q, k, v = chunks(q_BLVK), chunks(k_BLVK), chunks(v_BLVH)
    beta, c = chunks(beta_BLV)[..., None], chunks(g_BLV).cumsum(-1)[..., None]
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).triu(1)
    # masked before exp, which could overflow there
    decay_II = (c - c.mT).masked_fill(later, float("-inf")).exp()
    system_II = (beta * k) @ k.mT * decay_II
    # the solver takes the diagonal as ones and what lies above it as zeros, whatever is there
    from_values, from_start = torch.linalg.solve_triangular(
        system_II, torch.cat((beta * v, beta * c.exp() * k), dim=-1), upper=False, unitriangular=True
    ).split((v.shape[-1], k.shape[-1]), dim=-1)
    within_II = q @ k.mT * decay_II
    q = q * c.exp()
    last = c[..., -1:, :]
    k_to_end = (k * (last - c).exp()).mT
    forget = last.exp()
    outputs = []
    for m in range(q.shape[2]):
        written_IH = from_values[:, :, m] - from_start[:, :, m] @ memory_BVKH
        outputs.append(q[:, :, m] @ memory_BVKH + within_II[:, :, m] @ written_IH)
        memory_BVKH = forget[:, :, m] * memory_BVKH + k_to_end[:, :, m] @ written_IH
    return torch.cat(outputs, dim=2)[:, :, :length].transpose(1, 2), memory_BVKH


def delta_rule(
    q_BLVK: Tensor, k_BLVK: Tensor, v_BLVH: Tensor, g_BLV: Tensor, beta_BLV: Tensor, memory_BVKH: Tensor
) -> tuple[Tensor, Tensor]:
    """The faster form for this length: the recurrence for one token, chunks for more.

    On a CPU few chunks at once: what lies between the products then stays in its cache (2,048 tokens of 16 heads on
    two cores: 143 ms in pieces of 64 or 128 tokens, 390 in pieces of 256 or more). A GPU takes all at once.
    """
    length = q_BLVK.shape[1]
    if length == 1:
        return recurrent_delta_rule(q_BLVK, k_BLVK, v_BLVH, g_BLV, beta_BLV, memory_BVKH)
    outputs, at_once = [], 2 * CHUNK if memory_BVKH.device.type == "cpu" else length
    for start in range(0, length, at_once):
        q, k, v, g, beta = (x[:, start : start + at_once] for x in (q_BLVK, k_BLVK, v_BLVH, g_BLV, beta_BLV))
        o_BLVH, memory_BVKH = chunked_delta_rule(q, k, v, g, beta, memory_BVKH)
        outputs.append(o_BLVH)
    return torch.cat(outputs, dim=1), memory_BVKH


def unit_length(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class GatedRMSNorm(nn.Module):
    """RMSNorm with a plain weight, then times silu(gate); normalised and gated in fp32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (self.weight * wide.to(x.dtype) * F.silu(gate.float())).to(x.dtype)


class GatedDeltaNet(nn.Module):
    """Stands in a decoder layer where attention does. Whoever owns the states runs `scan` on each sequence."""

    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.num_key_heads, self.num_heads = config.linear_num_key_heads, config.linear_num_value_heads
        self.key_dim, self.value_dim = config.linear_key_head_dim, config.linear_value_head_dim
        keys, values = self.num_key_heads * self.key_dim, self.num_heads * self.value_dim
        self.widths = (keys, keys, values)
        channels, kernel, width = sum(self.widths), config.linear_conv_kernel_dim, config.hidden_size
        self.in_proj_qkv = Linear(width, channels, bias=False)
        self.in_proj_z = Linear(width, values, bias=False)
        self.in_proj_b = Linear(width, self.num_heads, bias=False)
        self.in_proj_a = Linear(width, self.num_heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, kernel, groups=channels, bias=False)
        self.A_log = nn.Parameter(torch.zeros(self.num_heads))
        self.dt_bias = nn.Parameter(torch.ones(self.num_heads))
        self.norm = GatedRMSNorm(self.value_dim, config.rms_norm_eps)
        self.out_proj = Linear(values, width, bias=False)

    def forward(self, hidden_TD: Tensor, attend: RecurrentAttend) -> Tensor:
        beta_TV = self.in_proj_b(hidden_TD).sigmoid()
        g_TV = -self.A_log.float().exp() * F.softplus(self.in_proj_a(hidden_TD).float() + self.dt_bias)
        o_TVH = attend.recur(self.layer, self.scan, self.in_proj_qkv(hidden_TD), g_TV, beta_TV)
        z_TVH = self.in_proj_z(hidden_TD).unflatten(-1, (-1, self.value_dim))
        out: Tensor = self.out_proj(self.norm(o_TVH, z_TVH).flatten(1))
        return out

    def scan(
        self, state: State | None, qkv_BLC: Tensor, g_BLV: Tensor, beta_BLV: Tensor
    ) -> tuple[Tensor, State]:
        """Convolution and delta rule over the next L tokens of B sequences. `state` None: they begin here.

        Returns: o_BLVH in the dtype of qkv_BLC, and the state after these tokens.
        """
        batch, length, channels = qkv_BLC.shape
        kept = self.conv1d.kernel_size[0] - 1
        if state is None:
            memory_shape = (batch, self.num_heads, self.key_dim, self.value_dim)
            state = State(qkv_BLC.new_zeros(batch, kept, channels), qkv_BLC.new_zeros(memory_shape).float())
        window_BLC = torch.cat((state.conv, qkv_BLC), dim=1)
        convolved_BLC = F.silu(self.convolve(window_BLC)).float()
        q_BLVK, k_BLVK, v_BLVH = (
            x.unflatten(-1, (-1, size))
            for x, size in zip(
                convolved_BLC.split(self.widths, dim=-1), (self.key_dim, self.key_dim, self.value_dim)
            )
        )
        shared = self.num_heads // self.num_key_heads  # neighbouring value heads have one key head
        q_BLVK, k_BLVK = (unit_length(x).repeat_interleave(shared, dim=2) for x in (q_BLVK, k_BLVK))
        o_BLVH, memory_BVKH = delta_rule(
            q_BLVK * self.key_dim**-0.5, k_BLVK, v_BLVH, g_BLV, beta_BLV.float(), state.memory
        )
        # a copy, since a view would keep the whole window for as long as the state
        return o_BLVH.to(qkv_BLC.dtype), State(window_BLC[:, length:].clone(), memory_BVKH)

    def convolve(self, window_BLC: Tensor) -> Tensor:
        """Causal depthwise convolution; the first R rows of the window are only looked back at.

        Run as images one row high: these have a kernel for channels that lie together, and the result is the same
        to the bit. 512 tokens of 6,144 channels on two CPU cores, fp32: 0.7 ms, as conv1d 20 to 45.
        """
        picture_BC1L = window_BLC.transpose(1, 2)[:, :, None]
        weight = self.conv1d.weight[:, :, None]
        return F.conv2d(picture_BC1L, weight, groups=weight.shape[0])[:, :, 0].transpose(1, 2)
