"""Exact parameter counts from the table of a model's tensors: every linear by shape, everything else by number.

What is quantised, split over GPUs or read for a token is decided by shape, so the linears are gathered by kind
(`LinearShape`) and the rest (norms, tables, convolutions) counted. Nothing is estimated: the sums equal the element
counts of the published checkpoints. MTP weights, which transformers ignores, are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

from qvl.catalog.config import ModelConfig, TextConfig, tensor_table
from qvl.catalog.generations.tensors import Part, Split

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
    module: str = ""  # of the first layer, as the networks name it; experts have none

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
    text, totals = config.text, tensor_table(config).num_parameters
    linears = language_linears(config)
    counted = sum(s.num_parameters for s in linears)
    experts = sum(s.num_parameters for s in linears if s.expert)
    idle = experts // text.num_experts * (text.num_experts - text.num_experts_per_tok) if experts else 0
    weights = {part: sum(s.num_weights for s in vision_linears(config, part)) for part in VISION_PARTS}
    return ParameterCounts(
        tower=totals("tower"),
        merger=totals("merger"),
        deepstack=totals("deepstack"),
        embeddings=totals("embeddings"),
        head=totals("head"),
        linears=counted,
        norms=totals("language") - counted,
        idle_experts=idle,
        linear_weights=sum(s.num_weights for s in linears),
        tower_weights=weights["tower"],
        merger_weights=weights["merger"] + weights["deepstack"],
    )


def linear_attention_layers(text: TextConfig) -> int:
    """How many layers keep a constant state instead of a KV cache."""
    return text.num_hidden_layers - len(text.full_attention_layers)


def delta_net_dims(text: TextConfig) -> tuple[int, int]:
    """(key width, value width) of a Gated DeltaNet layer: heads x head dim."""
    return (
        text.linear_num_key_heads * text.linear_key_head_dim,
        text.linear_num_value_heads * text.linear_value_head_dim,
    )


def language_linears(config: ModelConfig) -> tuple[LinearShape, ...]:
    """Every linear of the decoder layers; the head is not among them."""
    return _linears(config)["language"]


def vision_linears(config: ModelConfig, part: Part = "tower") -> tuple[LinearShape, ...]:
    """Linears of the tower, its merger or its DeepStack mergers; never quantised by published checkpoints.

    The patch embedding is a convolution with kernel = stride, that is a linear over flattened patches.
    """
    return _linears(config).get(part, ())


@cache
def _linears(config: ModelConfig) -> Mapping[Part, tuple[LinearShape, ...]]:
    found: dict[Part, list[LinearShape]] = {"language": []}
    for tensor in tensor_table(config).kinds:
        if tensor.part == "head":
            continue
        outputs, inputs = tensor.shape[0], prod(tensor.shape[1:])
        if tensor.num_experts:
            sides = tensor.shape[1:]
            inputs, outputs = sides if tensor.inputs_first else sides[::-1]
        for name in tensor.kinds:
            shape = LinearShape(
                name,
                inputs,
                outputs // len(tensor.kinds),
                len(tensor.layers) * (tensor.num_experts or 1),
                bool(tensor.bias),
                tensor.split,
                tensor.part == "language" and not tensor.narrow,
                tensor.num_experts > 0,
                tensor.linear.replace("{}", "0"),
            )
            found.setdefault(tensor.part, []).append(shape)
    return {
        part: tuple(shapes if part != "language" else sorted(shapes, key=_order))
        for part, shapes in found.items()
    }


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def _order(shape: LinearShape) -> int:
    """Attention of all models, that of hybrids and routers, experts, what all tokens share, a dense MLP."""
    if shape.name in _ATTENTION:
        return 0
    if shape.expert or shape.name.startswith("shared_expert"):
        return 2 if shape.expert else 3
    return 4 + _MLP.index(shape.name) if shape.name in _MLP else 1
