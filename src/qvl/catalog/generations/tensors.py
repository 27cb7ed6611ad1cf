"""The tensors of a plain checkpoint, without building the network: the parts that generations share.

Each record's own file puts its table together from these. Names are the networks' own (the flat layout);
tests/test_catalog_tensors.py holds them against the networks' parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from qvl.catalog.generations.shape import TextConfig, VisionConfig

# How tensor parallelism cuts a linear: by its outputs, by its inputs, by neither.
Split = Literal["column", "row", "replicated"]
Part = Literal["tower", "merger", "deepstack", "language"]


@dataclass(frozen=True)
class TensorKind:
    """One tensor, or one in each of `layers`, whose number stands for the {} in its name.

    matmul: its rows are multiplied with every token or patch, as a linear layer's weight is; `outputs` counts them.
    """

    name: str
    shape: tuple[int, ...]
    part: Part
    layers: tuple[int, ...] = (-1,)
    linear: str = ""  # the layer's name, where this is its weight
    bias: bool = False  # a bias of `shape[0]` goes with it
    matmul: bool = False
    split: Split = "replicated"

    @property
    def num_parameters(self) -> int:
        size = 1
        for side in self.shape:
            size *= side
        return len(self.layers) * (size + self.shape[0] * self.bias)


@dataclass(frozen=True)
class TensorTable:
    """`shapes`: name → shape. `linears`: name of a linear layer → (outputs, inputs); its weight is in `shapes`."""

    kinds: tuple[TensorKind, ...]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for kind in self.kinds:
            for layer in kind.layers:
                name = kind.name.replace("{}", str(layer))
                found[name] = kind.shape
                if kind.bias:
                    found[name.removesuffix("weight") + "bias"] = kind.shape[:1]
        return found

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        return {
            kind.linear.replace("{}", str(layer)): (kind.shape[0], kind.shape[1])
            for kind in self.kinds
            if kind.linear
            for layer in kind.layers
        }

    def num_parameters(self, part: Part) -> int:
        return sum(kind.num_parameters for kind in self.kinds if kind.part == part)


class TableWriter:
    """Collects the tensors of one part below one name."""

    def __init__(
        self,
        kinds: list[TensorKind],
        part: Part,
        at: str = "",
        layers: Iterable[int] = (-1,),
    ):
        self.kinds, self.part, self.at, self.layers = kinds, part, at, tuple(layers)

    def under(self, name: str) -> TableWriter:
        return TableWriter(self.kinds, self.part, f"{self.at}{name}.", self.layers)

    def tensor(self, name: str, *shape: int, matmul: bool = False, bias: bool = False) -> None:
        if self.layers:
            self.kinds.append(
                TensorKind(f"{self.at}{name}", shape, self.part, self.layers, matmul=matmul, bias=bias)
            )

    def norm(self, name: str, size: int, bias: bool = False) -> None:
        self.tensor(f"{name}.weight", size, bias=bias)

    def linear(
        self, name: str, inputs: int, outputs: int, bias: bool = False, split: Split = "column"
    ) -> None:
        if self.layers:
            at = f"{self.at}{name}"
            self.kinds.append(
                TensorKind(
                    f"{at}.weight",
                    (outputs, inputs),
                    self.part,
                    self.layers,
                    at,
                    bias,
                    matmul=True,
                    split=split,
                )
            )

    def gated(self, name: str, size: int, inner: int, bias: bool = False) -> None:
        self.linear(f"{name}.gate_proj", size, inner, bias)
        self.linear(f"{name}.up_proj", size, inner, bias)
        self.linear(f"{name}.down_proj", inner, size, bias, "row")


def decoder(kinds: list[TensorKind], text: TextConfig) -> None:
    """The language model from Qwen2-VL on."""
    whole = TableWriter(kinds, "language")
    whole.tensor("model.embed_tokens.weight", text.vocab_size, text.hidden_size)
    every = range(text.num_hidden_layers)
    full = text.full_attention_layers
    layer = TableWriter(kinds, "language", "model.layers.{}.", every)
    layer.norm("input_layernorm", text.hidden_size)
    layer.norm("post_attention_layernorm", text.hidden_size)
    _attention(TableWriter(kinds, "language", "model.layers.{}.self_attn.", full), text)
    linear = sorted(set(every) - set(full))
    _delta_net(TableWriter(kinds, "language", "model.layers.{}.linear_attn.", linear), text)
    if text.num_experts:
        _experts(layer.under("mlp"), text)
    else:
        layer.gated("mlp", text.hidden_size, text.intermediate_size)
    whole.norm("model.norm", text.hidden_size)
    if not text.tie_word_embeddings:
        whole.linear("lm_head", text.hidden_size, text.vocab_size)


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
    at.linear("in_proj_b", text.hidden_size, text.linear_num_value_heads)
    at.linear("in_proj_a", text.hidden_size, text.linear_num_value_heads)
    at.tensor("conv1d.weight", 2 * keys + values, 1, text.linear_conv_kernel_dim)
    at.tensor("A_log", text.linear_num_value_heads)
    at.tensor("dt_bias", text.linear_num_value_heads)
    at.norm("norm", text.linear_value_head_dim)
    at.linear("out_proj", values, text.hidden_size, split="row")


def _experts(at: TableWriter, text: TextConfig) -> None:
    inner = text.moe_intermediate_size
    at.linear("gate", text.hidden_size, text.num_experts, split="replicated")
    gate_up, down = (text.hidden_size, 2 * inner), (inner, text.hidden_size)
    if not text.expert_inputs_first:
        gate_up, down = gate_up[::-1], down[::-1]
    at.tensor("experts.gate_up_proj", text.num_experts, *gate_up)
    at.tensor("experts.down_proj", text.num_experts, *down)
    if text.shared_expert_intermediate_size:
        at.gated("shared_expert", text.hidden_size, text.shared_expert_intermediate_size)
        at.linear("shared_expert_gate", text.hidden_size, 1, split="replicated")


def tower_blocks(
    kinds: list[TensorKind], vision: VisionConfig, norm_bias: bool, patch_bias: bool
) -> TableWriter:
    """What every tower from Qwen2-VL on has; returns where each block's MLP lies."""
    width, patch = vision.hidden_size, vision.patch_size
    TableWriter(kinds, "tower", "visual.patch_embed.").tensor(
        "proj.weight", width, vision.in_channels, vision.temporal_patch_size, patch, patch,
        matmul=True, bias=patch_bias,
    )  # fmt: skip
    block = TableWriter(kinds, "tower", "visual.blocks.{}.", range(vision.depth))
    block.norm("norm1", width, norm_bias)
    block.norm("norm2", width, norm_bias)
    block.linear("attn.qkv", width, 3 * width, True)
    block.linear("attn.proj", width, width, True, "row")
    return block.under("mlp")
