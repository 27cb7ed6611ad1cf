"""Exact parameter counts from a `ModelConfig`: every linear by shape, everything else by number.

What is quantised, split over GPUs or read for a token is decided by shape, so the linears are listed
one kind a line (`LinearShape`) and the rest (norms, tables, convolutions) as plain counts. Nothing is
estimated: the sums equal the element counts of the published checkpoints. MTP weights, which
transformers ignores, are not counted.
Source: reference modules of transformers 4.57.6 / 5.23; generation 1 from its remote code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from qvl.catalog.config import ModelConfig, TextConfig, VisionConfig

# How tensor parallelism cuts a linear: by its outputs, by its inputs, by neither.
Split = Literal["column", "row", "replicated"]
Part = Literal["tower", "merger", "deepstack", "language"]
VISION_PARTS: tuple[Part, ...] = ("tower", "merger", "deepstack")


@dataclass(frozen=True)
class LinearShape:
    """One kind of linear layer: `count` matrices of out x in, in all layers and experts together."""

    name: str
    in_features: int
    out_features: int
    count: int
    bias: bool = False
    split: Split = "column"
    quantized: bool = True  # by the usual recipes; routers and other narrow linears stay in 16 bits
    expert: bool = (
        False  # one of a mixture's experts: only num_experts_per_tok / num_experts of them work on a token
    )

    @property
    def num_weights(self) -> int:
        return self.count * self.in_features * self.out_features

    @property
    def num_biases(self) -> int:
        return self.count * self.out_features * self.bias

    @property
    def num_parameters(self) -> int:
        return self.num_weights + self.num_biases


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters by part. `tower` has no mergers; `language` holds neither embeddings nor head."""

    tower: int
    merger: int
    deepstack: int
    embeddings: int  # the token table
    head: int  # 0 when tied to the table
    linears: int  # weights and biases of the language model's linears, experts included
    norms: int  # the language model's norms and other small tensors (convolutions, decay rates)
    idle_experts: int  # weights of the experts that a token doesn't visit
    linear_weights: int  # as `linears`, without biases: what tokens are multiplied with
    tower_weights: int  # likewise of the tower's linears
    merger_weights: int  # and of the merger's and DeepStack's

    @property
    def vision(self) -> int:
        return self.tower + self.merger + self.deepstack

    @property
    def language(self) -> int:
        """Decoder layers, final norm and token table, without the head."""
        return self.embeddings + self.linears + self.norms

    @property
    def total(self) -> int:
        return self.vision + self.language + self.head

    @property
    def active(self) -> int:
        """All but the experts that a token doesn't visit (the way "A3B" counts)."""
        return self.total - self.idle_experts


@cache
def parameter_counts(config: ModelConfig) -> ParameterCounts:
    """By part. Remembered: a plan asks some dozens of times for one model."""
    text = config.text
    table = text.vocab_size * text.hidden_size
    linears = language_linears(text)
    experts = sum(s.num_parameters for s in linears if s.expert)
    idle = experts // text.num_experts * (text.num_experts - text.num_experts_per_tok) if experts else 0
    shapes: dict[Part, tuple[LinearShape, ...]] = {p: vision_linears(config, p) for p in VISION_PARTS}
    vision = {part: _total(found) for part, found in shapes.items()}
    weights = {part: sum(s.num_weights for s in found) for part, found in shapes.items()}
    extras = _vision_extras(config)
    return ParameterCounts(
        tower=vision["tower"] + extras["tower"],
        merger=vision["merger"] + extras["merger"],
        deepstack=vision["deepstack"] + extras["deepstack"],
        embeddings=table,
        head=0 if text.tie_word_embeddings else table,
        linears=_total(linears),
        norms=_language_extras(text),
        idle_experts=idle,
        linear_weights=sum(s.num_weights for s in linears),
        tower_weights=weights["tower"],
        merger_weights=weights["merger"] + weights["deepstack"],
    )


def _total(linears: Iterable[LinearShape]) -> int:
    return sum(s.num_parameters for s in linears)


# Language model


def linear_attention_layers(text: TextConfig) -> int:
    """How many layers keep a constant state instead of a KV cache."""
    return text.num_hidden_layers - len(text.full_attention_layers)


def delta_net_dims(text: TextConfig) -> tuple[int, int]:
    """(key width, value width) of a Gated DeltaNet layer: heads x head dim."""
    return (
        text.linear_num_key_heads * text.linear_key_head_dim,
        text.linear_num_value_heads * text.linear_value_head_dim,
    )


@cache
def language_linears(text: TextConfig) -> tuple[LinearShape, ...]:
    """Every linear of the decoder layers; the head is not among them."""
    d, layers = text.hidden_size, text.num_hidden_layers
    full, linear = len(text.full_attention_layers), linear_attention_layers(text)
    q_width = text.num_attention_heads * text.head_dim
    kv_width = text.num_key_value_heads * text.head_dim
    # Qwen3.5's q_proj also emits the gate of the attention output
    q_out = q_width * (2 if text.attn_output_gate else 1)
    bias = text.attention_bias
    shapes = [
        LinearShape("q_proj", d, q_out, full, bias),
        LinearShape("k_proj", d, kv_width, full, bias),
        LinearShape("v_proj", d, kv_width, full, bias),
        LinearShape("o_proj", q_width, d, full, split="row"),
    ]
    if linear:
        key, value = delta_net_dims(text)
        heads = text.linear_num_value_heads
        shapes += [
            LinearShape("in_proj_qkv", d, 2 * key + value, linear),
            LinearShape("in_proj_z", d, value, linear),
            LinearShape("in_proj_b", d, heads, linear, quantized=False),
            LinearShape("in_proj_a", d, heads, linear, quantized=False),
            LinearShape("out_proj", value, d, linear, split="row"),
        ]
    if text.num_experts:
        shapes.append(LinearShape("router", d, text.num_experts, layers, split="replicated", quantized=False))
        shapes += _mlp(d, text.moe_intermediate_size, layers * text.num_experts, "experts.", expert=True)
        if text.shared_expert_intermediate_size:
            shapes += _mlp(d, text.shared_expert_intermediate_size, layers, "shared_expert.")
            shapes.append(
                LinearShape("shared_expert_gate", d, 1, layers, split="replicated", quantized=False)
            )
    else:
        shapes += _mlp(d, text.intermediate_size, layers, "")
    return tuple(s for s in shapes if s.count)


def _mlp(hidden: int, inner: int, count: int, prefix: str, expert: bool = False) -> list[LinearShape]:
    return [
        LinearShape(f"{prefix}gate_proj", hidden, inner, count, expert=expert),
        LinearShape(f"{prefix}up_proj", hidden, inner, count, expert=expert),
        LinearShape(f"{prefix}down_proj", inner, hidden, count, split="row", expert=expert),
    ]


def _language_extras(text: TextConfig) -> int:
    full, linear = len(text.full_attention_layers), linear_attention_layers(text)
    count = (2 * text.num_hidden_layers + 1) * text.hidden_size
    if text.qk_norm:
        count += full * 2 * text.head_dim
    if linear:
        key, value = delta_net_dims(text)
        conv = (2 * key + value) * text.linear_conv_kernel_dim
        # A_log and dt_bias are one number a value head; the gated norm is shared by the heads
        count += linear * (conv + 2 * text.linear_num_value_heads + text.linear_value_head_dim)
    return count


# Vision


@cache
def vision_linears(config: ModelConfig, part: Part = "tower") -> tuple[LinearShape, ...]:
    """Linears of the tower, its merger or its DeepStack mergers; never quantised by published checkpoints.

    The patch embedding is a convolution with kernel = stride, that is a linear over flattened patches.
    """
    v = config.vision
    if config.family == "qwen_vl":
        return _vision_linears_first_generation(v, part)
    w, out, wide = v.hidden_size, v.out_hidden_size, v.hidden_size * v.spatial_merge_size**2
    merger = (
        LinearShape("linear_fc1", wide, wide, 1, True, quantized=False),
        LinearShape("linear_fc2", wide, out, 1, True, "row", quantized=False),
    )
    if part == "merger":
        return merger
    if part == "deepstack":
        levels = len(v.deepstack_visual_indexes)
        return tuple(
            LinearShape(s.name, s.in_features, s.out_features, levels, s.bias, s.split, s.quantized)
            for s in merger
            if levels
        )
    if part != "tower":
        return ()
    patch_bias = config.family not in ("qwen2_vl", "qwen2_5_vl")
    shapes = [LinearShape("patch_embed", v.patch_dim, w, 1, patch_bias, "replicated", quantized=False)]
    shapes += _vision_attention(w, v.depth)
    inner = v.intermediate_size
    if config.family == "qwen2_5_vl":
        shapes.append(LinearShape("gate_proj", w, inner, v.depth, True, quantized=False))
        shapes.append(LinearShape("up_proj", w, inner, v.depth, True, quantized=False))
        shapes.append(LinearShape("down_proj", inner, w, v.depth, True, "row", quantized=False))
    else:
        shapes.append(LinearShape("fc1", w, inner, v.depth, True, quantized=False))
        shapes.append(LinearShape("fc2", inner, w, v.depth, True, "row", quantized=False))
    return tuple(shapes)


def _vision_attention(width: int, depth: int) -> list[LinearShape]:
    return [
        LinearShape("qkv", width, 3 * width, depth, True, quantized=False),
        LinearShape("proj", width, width, depth, True, "row", quantized=False),
    ]


def _vision_linears_first_generation(v: VisionConfig, part: Part) -> tuple[LinearShape, ...]:
    w, out, inner = v.hidden_size, v.out_hidden_size, v.intermediate_size
    if part == "tower":
        return (
            LinearShape("conv1", v.in_channels * v.patch_size**2, w, 1, split="replicated", quantized=False),
            *_vision_attention(w, v.depth),
            LinearShape("c_fc", w, inner, v.depth, True, quantized=False),
            LinearShape("c_proj", inner, w, v.depth, True, "row", quantized=False),
        )
    if part == "merger":  # the resampler with the projection that follows it
        return (
            LinearShape("kv_proj", w, out, 1, split="replicated", quantized=False),
            LinearShape("in_proj", out, 3 * out, 1, True, "replicated", quantized=False),
            LinearShape("out_proj", out, out, 1, True, "replicated", quantized=False),
            LinearShape("proj", out, out, 1, split="replicated", quantized=False),
        )
    return ()


def _vision_extras(config: ModelConfig) -> dict[str, int]:
    """Norms and position tables by part."""
    v = config.vision
    w, out = v.hidden_size, v.out_hidden_size
    if config.family == "qwen_vl":
        # The position table is stored for a 16 x 16 grid, as many rows as there are queries; the
        # resampler keeps learned queries, a fixed table of the same size and three norms.
        return {
            "tower": v.num_queries * w + 2 * w + v.depth * 4 * w,
            "merger": 2 * v.num_queries * out + 3 * 2 * out,
            "deepstack": 0,
        }
    norm = 1 if config.family == "qwen2_5_vl" else 2  # RMSNorm has no bias
    wide = w * v.spatial_merge_size**2
    return {
        "tower": v.depth * 2 * norm * w + v.num_position_embeddings * w,
        "merger": norm * w,
        "deepstack": len(v.deepstack_visual_indexes) * norm * wide,
    }
