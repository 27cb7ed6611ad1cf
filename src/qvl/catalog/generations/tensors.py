"""The tensors of a plain checkpoint, without building the network: the parts that generations share.

Each record's own file puts its table together from these. Names are the networks' own (the flat layout);
tests/test_catalog_tensors.py holds them against the networks' parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

from qvl.catalog.generations.shape import TextConfig, VisionConfig

# How tensor parallelism cuts a linear: by its outputs, by its inputs, by neither.
Split = Literal["column", "row", "replicated"]
Part = Literal["tower", "merger", "deepstack", "embeddings", "language", "head"]


@dataclass(frozen=True)
class TensorKind:
    """One tensor, or one in each of `layers`, whose number stands for the {} in its name."""

    name: str
    shape: tuple[int, ...]
    part: Part
    layers: tuple[int, ...] = (-1,)
    linear: str = ""  # the layer's name, where this is its weight
    bias: str = ""  # name of the bias that goes with it, of `shape[0]`
    # of a matrix that tokens or patches are multiplied with, as the planner counts it
    kinds: tuple[str, ...] = ()  # its name there; several for matrices that lie in one
    split: Split = "replicated"
    narrow: bool = False  # stays in 16 bits where others are quantised
    num_experts: int = 0  # of so many matrices, all of one shape, of which a token visits some
    inputs_first: bool = False

    def _named(self, name: str) -> list[str]:
        return [name.replace("{}", str(layer)) for layer in self.layers]


@dataclass(frozen=True)
class TensorTable:
    """`shapes`: name → shape. `linears`: name of a linear layer → (outputs, inputs); its weight is in `shapes`."""

    kinds: tuple[TensorKind, ...]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for kind in self.kinds:
            for name in kind._named(kind.name):
                found[name] = kind.shape
            for name in kind._named(kind.bias) if kind.bias else ():
                found[name] = kind.shape[:1]
        return found

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        return {
            name: (kind.shape[0], kind.shape[1])
            for kind in self.kinds
            if kind.linear
            for name in kind._named(kind.linear)
        }

    def num_parameters(self, part: Part) -> int:
        return sum(
            len(kind.layers) * (prod(kind.shape) + (kind.shape[0] if kind.bias else 0))
            for kind in self.kinds
            if kind.part == part
        )


class TableWriter:
    """Collects the tensors of one part below one name."""

    def __init__(self, found: list[TensorKind], part: Part, at: str = "", layers: Iterable[int] = (-1,)):
        self.found, self.part, self.at, self.layers = found, part, at, tuple(layers)

    def under(self, name: str) -> TableWriter:
        return TableWriter(self.found, self.part, f"{self.at}{name}.", self.layers)

    def tensor(self, name: str, *shape: int, bias: str = "", **more: Any) -> None:
        if self.layers:
            bias = f"{self.at}{bias}" if bias else ""
            self.found.append(
                TensorKind(f"{self.at}{name}", shape, self.part, self.layers, bias=bias, **more)
            )

    def norm(self, name: str, size: int, bias: bool = False) -> None:
        self.tensor(f"{name}.weight", size, bias=f"{name}.bias" if bias else "")

    def linear(
        self,
        name: str,
        inputs: int,
        outputs: int,
        bias: bool = False,
        split: Split = "column",
        kind: str = "",
        narrow: bool = False,
    ) -> None:
        """kind: the planner's name, the last part of the name where it isn't given."""
        self.tensor(
            f"{name}.weight", outputs, inputs, bias=f"{name}.bias" if bias else "", linear=f"{self.at}{name}",
            kinds=tuple((kind or name.rpartition(".")[2]).split()), split=split, narrow=narrow,
        )  # fmt: skip

    def gated(self, name: str, size: int, inner: int, kind: str = "") -> None:
        self.linear(f"{name}.gate_proj", size, inner, kind=f"{kind}gate_proj")
        self.linear(f"{name}.up_proj", size, inner, kind=f"{kind}up_proj")
        self.linear(f"{name}.down_proj", inner, size, split="row", kind=f"{kind}down_proj")


def decoder(found: list[TensorKind], text: TextConfig) -> None:
    """The language model from Qwen2-VL on."""
    TableWriter(found, "embeddings").tensor("model.embed_tokens.weight", text.vocab_size, text.hidden_size)
    every = range(text.num_hidden_layers)
    full = text.full_attention_layers
    layer = TableWriter(found, "language", "model.layers.{}.", every)
    layer.norm("input_layernorm", text.hidden_size)
    layer.norm("post_attention_layernorm", text.hidden_size)
    _attention(TableWriter(found, "language", "model.layers.{}.self_attn.", full), text)
    linear = sorted(set(every) - set(full))
    _delta_net(TableWriter(found, "language", "model.layers.{}.linear_attn.", linear), text)
    if text.num_experts:
        _experts(layer.under("mlp"), text)
    else:
        layer.gated("mlp", text.hidden_size, text.intermediate_size)
    TableWriter(found, "language").norm("model.norm", text.hidden_size)
    if not text.tie_word_embeddings:
        TableWriter(found, "head").linear("lm_head", text.hidden_size, text.vocab_size)


def _attention(at: TableWriter, text: TextConfig) -> None:
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    # Qwen3.5's q_proj also emits the gate of the attention output
    at.linear("q_proj", text.hidden_size, queries * (1 + text.attn_output_gate), text.attention_bias)
    at.linear("k_proj", text.hidden_size, keys, text.attention_bias)
    at.linear("v_proj", text.hidden_size, keys, text.attention_bias)
    at.linear("o_proj", queries, text.hidden_size, split="row")
    if text.qk_norm:
        at.norm("q_norm", text.head_dim)
        at.norm("k_norm", text.head_dim)


def _delta_net(at: TableWriter, text: TextConfig) -> None:
    keys = text.linear_num_key_heads * text.linear_key_head_dim
    values = text.linear_num_value_heads * text.linear_value_head_dim
    at.linear("in_proj_qkv", text.hidden_size, 2 * keys + values)
    at.linear("in_proj_z", text.hidden_size, values)
    at.linear("in_proj_b", text.hidden_size, text.linear_num_value_heads, narrow=True)
    at.linear("in_proj_a", text.hidden_size, text.linear_num_value_heads, narrow=True)
    at.tensor("conv1d.weight", 2 * keys + values, 1, text.linear_conv_kernel_dim)
    at.tensor("A_log", text.linear_num_value_heads)
    at.tensor("dt_bias", text.linear_num_value_heads)
    at.norm("norm", text.linear_value_head_dim)
    at.linear("out_proj", values, text.hidden_size, split="row")


def _experts(at: TableWriter, text: TextConfig) -> None:
    inner = text.moe_intermediate_size
    at.linear("gate", text.hidden_size, text.num_experts, split="replicated", kind="router", narrow=True)
    gate_up, down = (text.hidden_size, 2 * inner), (inner, text.hidden_size)
    if not text.expert_inputs_first:
        gate_up, down = gate_up[::-1], down[::-1]
    stored: dict[str, Any] = dict(num_experts=text.num_experts, inputs_first=text.expert_inputs_first)
    at.tensor(
        "experts.gate_up_proj", text.num_experts, *gate_up,
        kinds=("experts.gate_proj", "experts.up_proj"), split="column", **stored,
    )  # fmt: skip
    at.tensor(
        "experts.down_proj", text.num_experts, *down, kinds=("experts.down_proj",), split="row", **stored
    )
    if text.shared_expert_intermediate_size:
        at.gated("shared_expert", text.hidden_size, text.shared_expert_intermediate_size, "shared_expert.")
        at.linear("shared_expert_gate", text.hidden_size, 1, split="replicated", narrow=True)


def tower_blocks(
    found: list[TensorKind], vision: VisionConfig, norm_bias: bool, patch_bias: bool
) -> TableWriter:
    """What every tower from Qwen2-VL on has; returns where each block's MLP lies."""
    width, patch = vision.hidden_size, vision.patch_size
    TableWriter(found, "tower", "visual.patch_embed.").tensor(
        "proj.weight", width, vision.in_channels, vision.temporal_patch_size, patch, patch,
        bias="proj.bias" if patch_bias else "", kinds=("patch_embed",),
    )  # fmt: skip
    block = TableWriter(found, "tower", "visual.blocks.{}.", range(vision.depth))
    block.norm("norm1", width, norm_bias)
    block.norm("norm2", width, norm_bias)
    block.linear("attn.qkv", width, 3 * width, True)
    block.linear("attn.proj", width, width, True, "row")
    return block.under("mlp")
