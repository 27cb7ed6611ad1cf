"""Exact parameter counts from the table of a model's tensors: every linear by shape, everything else by number.

What is quantised, split over GPUs or read for a token is decided by shape, so the linears are gathered by kind
(`LinearShape`) and the rest (norms, tables, convolutions) counted. Nothing is estimated: the sums equal the element
counts of the published checkpoints. MTP weights, which transformers ignores, are not counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Literal, NamedTuple

from qvl.catalog.config import ModelConfig, TextConfig, tensor_table
from qvl.catalog.generations.tensors import TensorTable

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
    totals: Counter[str] = Counter()
    for name, shape in tensor_table(config).shapes.items():
        totals[_TABLES.get(name) or _part(name)] += prod(shape)
    linears = language_linears(config)
    counted = sum(s.num_parameters for s in linears)
    experts = sum(s.num_parameters for s in linears if s.expert)
    idle = experts // text.num_experts * (text.num_experts - text.num_experts_per_tok) if experts else 0
    weights = {part: sum(s.num_weights for s in vision_linears(config, part)) for part in VISION_PARTS}
    return ParameterCounts(
        tower=totals["tower"],
        merger=totals["merger"],
        deepstack=totals["deepstack"],
        embeddings=totals["embeddings"],
        head=totals["head"],
        linears=counted,
        norms=totals["language"] - counted,
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


# --- names of tensors → kinds

_TABLES = {
    "model.embed_tokens.weight": "embeddings",
    "model.wte.weight": "embeddings",
    "lm_head.weight": "head",
}
# what joins the tower to the language model; the first generation's is a resampler and the projection after it
_MERGERS = ("visual.merger.", "visual.attn_pool.", "visual.ln_post.", "visual.proj")
# matrices that no linear layer holds → (kind, its bias)
_MATRICES = {
    "visual.patch_embed.proj.weight": ("patch_embed", "visual.patch_embed.proj.bias"),
    "visual.conv1.weight": ("conv1", ""),
    "visual.attn_pool.attn.in_proj_weight": ("in_proj", "visual.attn_pool.attn.in_proj_bias"),
    "visual.proj": ("proj", ""),
}
_LAYER = re.compile(r"^.*?\.\d+\.")
# modules, within their layer, of a kind that isn't the last part of their name
_KINDS = {
    "mlp.gate": "router",
    "visual.merger.mlp.0": "linear_fc1",
    "visual.merger.mlp.2": "linear_fc2",
    # the first generation's; w2 is its gate
    "attn.in_proj": "qkv",
    "attn.out_proj": "proj",
    "attn.c_attn": "q_proj k_proj v_proj",
    "attn.c_proj": "o_proj",
    "mlp.w2": "gate_proj",
    "mlp.w1": "up_proj",
    "mlp.c_proj": "down_proj",
}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_BY_INPUTS = ("o_proj", "out_proj", "down_proj", "proj", "fc2", "linear_fc2")
_WHOLE = ("router", "shared_expert_gate")
_NARROW = (*_WHOLE, "in_proj_b", "in_proj_a")  # stay in 16 bits


def _part(tensor: str) -> Part:
    if not tensor.startswith("visual."):
        return "language"
    if tensor.startswith("visual.deepstack"):
        return "deepstack"
    return "merger" if tensor.startswith(_MERGERS) else "tower"


class _Kind(NamedTuple):
    """What the matrices of one kind have in common."""

    part: Part
    name: str
    in_features: int
    out_features: int
    bias: bool = False
    whole: bool = False  # not cut over GPUs
    expert: bool = False


@cache
def _linears(config: ModelConfig) -> Mapping[Part, tuple[LinearShape, ...]]:
    counts = Counter[_Kind]()
    for kind, count in _matrices(config, tensor_table(config)):
        counts[kind] += count
    found: dict[Part, list[LinearShape]] = {"language": []}
    for kind in sorted(counts, key=_order):
        part, name, inputs, outputs, bias, whole, expert = kind
        whole = whole or name in _WHOLE
        split: Split = "replicated" if whole else "row" if name.rpartition(".")[2] in _BY_INPUTS else "column"
        quantized = part == "language" and name not in _NARROW
        shape = LinearShape(name, inputs, outputs, counts[kind], bias, split, quantized, expert)
        found.setdefault(part, []).append(shape)
    return {part: tuple(shapes) for part, shapes in found.items()}


def _order(kind: _Kind) -> int:
    """Attention of all models, that of hybrids and routers, experts, what all tokens share, a dense MLP."""
    if kind.name in _ATTENTION:
        return 0
    if kind.expert or kind.name.startswith("shared_expert"):
        return 2 if kind.expert else 3
    return 4 + _MLP.index(kind.name) if kind.name in _MLP else 1


def _matrices(config: ModelConfig, table: TensorTable) -> Iterator[tuple[_Kind, int]]:
    """(kind, how many) of every matrix of the table; the head is left out."""
    for module, (outputs, inputs) in table.linears.items():
        if module != "lm_head":
            part, kinds, whole = _named(module)
            bias = f"{module}.bias" in table.shapes
            for name in kinds:
                yield _Kind(part, name, inputs, outputs // len(kinds), bias, whole), 1
    for tensor, (name, bias_name) in _MATRICES.items():
        if tensor in table.shapes:
            outputs, *others = table.shapes[tensor]
            yield _Kind(_part(tensor), name, prod(others), outputs, bias_name in table.shapes, True), 1
    width, inner = config.text.hidden_size, config.text.moe_intermediate_size
    for tensor, shape in table.shapes.items():
        if tensor.endswith(".experts.down_proj"):
            yield _Kind("language", "experts.gate_proj", width, inner, expert=True), shape[0]
            yield _Kind("language", "experts.up_proj", width, inner, expert=True), shape[0]
            yield _Kind("language", "experts.down_proj", inner, width, expert=True), shape[0]


@cache  # models share their names
def _named(module: str) -> tuple[Part, tuple[str, ...], bool]:
    """(part, kinds, whether it stays whole) of a linear; three kinds where q, k and v are one matrix."""
    local = _LAYER.sub("", module)
    kinds = _KINDS.get(local, local.removeprefix("mlp."))
    if not kinds.startswith("shared_expert."):
        kinds = kinds.rpartition(".")[2]
    return _part(module), tuple(kinds.split()), module.startswith("visual.attn_pool.")
