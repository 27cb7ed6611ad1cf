"""The shape of a language model and of a vision tower, in the words of the config files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The language model. `head_dim` is explicit: from Qwen3 on it isn't hidden_size / heads."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, ...]  # halves of the rotated dims: temporal, height, width; () for 1-D rope
    mrope_interleaved: bool = False
    partial_rotary_factor: float = 1.0
    attention_bias: bool = False  # bias on q, k, v (never on o)
    qk_norm: bool = False
    attn_output_gate: bool = False  # Qwen3.5: sigmoid gate on the attention output
    zero_centered_norm: bool = False  # Qwen3.5: RMSNorm multiplies by 1 + weight
    tie_word_embeddings: bool = False
    # mixture of experts; 0 experts means a dense MLP
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    norm_topk_prob: bool = True
    expert_inputs_first: bool = True  # fused tensors are [experts, in, out]; Qwen3.5's [experts, out, in]
    # hybrid attention (Qwen3.5): one entry a layer, "full_attention" or "linear_attention"
    layer_types: tuple[str, ...] = ()
    linear_num_key_heads: int = 0
    linear_num_value_heads: int = 0
    linear_key_head_dim: int = 0
    linear_value_head_dim: int = 0
    linear_conv_kernel_dim: int = 0
    # first generation only
    seq_length: int = 0  # the length logn and dynamic NTK start at
    use_logn_attn: bool = False
    use_dynamic_ntk: bool = False

    @cached_property  # the planner asks some thousands of times
    def full_attention_layers(self) -> tuple[int, ...]:
        """Indices of the layers that keep a KV cache."""
        if not self.layer_types:
            return tuple(range(self.num_hidden_layers))
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "full_attention")

    @property
    def rotary_dim(self) -> int:
        """How many of head_dim's dimensions are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower. `hidden_size` is always the ViT's own width (Qwen2-VL's file calls it embed_dim)."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    patch_size: int
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    in_channels: int = 3
    window_size: int = 0  # pixels; 0 = no windows
    fullatt_block_indexes: tuple[int, ...] = ()
    tokens_per_second: float = 0.0  # 0 = positions don't follow absolute time
    deepstack_visual_indexes: tuple[int, ...] = ()
    num_position_embeddings: int = 0  # 0 = no learned position table
    image_size: int = 0  # first generation only: the fixed side in pixels
    num_queries: int = 0  # first generation only: the resampler's outputs

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Width of one flattened patch: channels x time x rows x columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2
