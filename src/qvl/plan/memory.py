"""Bytes of weights, KV cache and recurrent state: exact, from shapes. The engine allocates with these functions.

Everything is per GPU: `Shards` says how a model is cut. What an engine adds around them (activations,
reserves, graphs) is in `engines/`; whether all of it fits is in `evaluate.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any, Literal, get_args

from qvl import moved
from qvl.catalog import precisions
from qvl.catalog.config import ModelConfig
from qvl.catalog.precisions import PRECISIONS, find_precision
from qvl.errors import PlanError
from qvl.plan.parameters import (
    LinearShape,
    delta_net_dims,
    language_linears,
    linear_attention_layers,
    parameter_counts,
    vision_linears,
)

Precision = str  # a name of catalog.precisions
KvDtype = Literal["fp32", "fp16", "bf16", "fp8", "int8", "q8_0"]
KV_DTYPES: tuple[str, ...] = get_args(KvDtype)


@dataclass(frozen=True)
class Shards:
    """How a model is cut: tensor parallel ranks, and whether experts are dealt whole (expert parallel).

    `vision`: "split" cuts the tower like the language model, "replicate" gives each GPU a whole copy
    (vLLM's --mm-encoder-tp-mode data).
    """

    tensor: int = 1
    expert_parallel: bool = False
    vision: Literal["split", "replicate"] = "split"


ONE = Shards()


@dataclass(frozen=True)
class WeightBytes:
    """Bytes on one GPU by part. `linears` are the language model's, `scales` what quantising adds to them."""

    linears: int
    scales: int
    embeddings: int
    head: int
    norms: int
    tower: int
    merger: int  # DeepStack mergers included

    @property
    def language(self) -> int:
        return self.linears + self.scales + self.embeddings + self.head + self.norms

    @property
    def vision(self) -> int:
        return self.tower + self.merger

    @property
    def total(self) -> int:
        return self.language + self.vision


def check_precision(name: str) -> Precision:
    return find_precision(name).name


def check_kv_dtype(name: str) -> KvDtype:
    if name not in KV_DTYPES:
        raise PlanError(f"no KV dtype {name!r}; known: {', '.join(KV_DTYPES)}")
    return name  # type: ignore[return-value]


def stored_precision(config: ModelConfig) -> Precision:
    """The precision a checkpoint is published in, from its quantization_config and dtype."""
    return precisions.stored_precision(config.dtype, config.quantization)


def bytes_per_value(precision: str) -> int:
    """Of what stays unquantised: 4 in fp32, else 2."""
    return PRECISIONS[precision].value_bytes


# Weights


def least_bytes(num_parameters: int, precision: str) -> float:
    """Fewer than any engine needs for so many parameters in what people call a precision: no need to plan the rest."""
    return num_parameters * PRECISIONS[precision].bits / 8 * 0.9


def rest_in_8_bits(config: ModelConfig, precision: Precision, on_cpu: bool) -> bool:
    """Whether our engine also holds the token table, the head and the tower's linears in 8 bits, one scale a row: on a
    CPU, of weights that it rounds itself (`--weights int8` or `int4`). There the head is up to a third of what a token
    reads and the tower half of the work before the first one. (The first generation's tower stays as it is.)"""
    return on_cpu and PRECISIONS[precision].rounded_on_load and config.quantization is None


@cache  # choose asks for the same few hundreds of times
def weight_bytes(
    config: ModelConfig, precision: Precision, shards: Shards = ONE, *, small_rest: bool = False
) -> WeightBytes:
    """Exact bytes on the busiest GPU. Tower, merger, embeddings, head and norms stay in 16 bits (fp32: 32),
    except in llama.cpp's formats, which also quantise the table and the head. `small_rest`: see `rest_in_8_bits`."""
    value = bytes_per_value(precision)
    counts = parameter_counts(config)
    text, tp = config.text, shards.tensor
    plain = scales = 0
    for shape in language_linears(config):
        out, inn, count = local_shape(config, shape, shards)
        payload, extra = matrix_bytes(shape.name if shape.quantized else "", inn, out, precision)
        if not shape.quantized:
            payload, extra = inn * out * value, 0
        plain += count * (payload + shape.bias * out * value)
        scales += count * extra
    # engines pad the table so that each GPU gets as many rows; 64 rows a GPU at most
    table = ceil(counts.embeddings / tp)
    head = ceil(counts.head / tp)
    embeddings_bytes, head_bytes = table * value, head * value
    record = PRECISIONS[precision]
    if record.table and record.head:
        embeddings_bytes, head_bytes = record.table(table, not counts.head), record.head(head)
    elif small_rest:
        rows = ceil(text.vocab_size / tp)
        embeddings_bytes = _rounded_bytes(text.hidden_size, rows)
        head_bytes = embeddings_bytes if counts.head else 0
    tower, merger, deepstack = (
        _vision_bytes(config, part, getattr(counts, part), shards, value, small_rest)
        for part in ("tower", "merger", "deepstack")
    )
    return WeightBytes(
        linears=plain,
        scales=scales,
        embeddings=embeddings_bytes,
        head=head_bytes,
        norms=counts.norms * value,
        tower=tower,
        merger=merger + deepstack,
    )


def local_shape(config: ModelConfig, shape: LinearShape, shards: Shards) -> tuple[int, int, int]:
    """(out, in, count) of a language linear on one GPU."""
    out, inn, count, tp = shape.out_features, shape.in_features, shape.count, shards.tensor
    if shape.expert and shards.expert_parallel:
        return out, inn, ceil(count / tp)
    if shape.split == "column":
        if shape.name in ("k_proj", "v_proj"):  # with more GPUs than KV heads each keeps one whole head
            return ceil(config.text.num_key_value_heads / tp) * config.text.head_dim, inn, count
        return ceil(out / tp), inn, count
    if shape.split == "row":
        return out, ceil(inn / tp), count
    return out, inn, count


def matrix_bytes(name: str, in_features: int, out_features: int, precision: Precision) -> tuple[int, int]:
    """(weights, scales and zero points) of one quantised matrix of out x in."""
    return PRECISIONS[precision].layout(name, in_features, out_features)


def _rounded_bytes(in_features: int, out_features: int) -> int:
    """8-bit codes and a 16-bit scale a row, as models/linear.py lays them out: tiles of 16 rows, steps of 32 inputs."""
    return ceil(out_features / 16) * 16 * (ceil(in_features / 32) * 32 + 2)


def _vision_bytes(
    config: ModelConfig, part: Any, count: int, shards: Shards, value: int, small: bool = False
) -> int:
    if small and config.generation.rounds_tower:
        linears = [s for s in vision_linears(config, part) if s.module]  # the patches' is a convolution
        codes = sum(s.count * _rounded_bytes(s.in_features, s.out_features) for s in linears)
        return codes + (count - sum(s.num_weights for s in linears)) * value
    if shards.vision == "replicate" or shards.tensor == 1:
        return count * value
    whole = saved = 0
    for s in vision_linears(config, part):
        if s.split != "replicated":
            whole += s.num_weights + (s.num_biases if s.split == "column" else 0)
    saved = whole - ceil(whole / shards.tensor)
    return (count - saved) * value


# KV cache and state


def kv_bytes_per_token(config: ModelConfig, kv_dtype: KvDtype = "bf16", shards: Shards = ONE) -> int:
    """Bytes one cached token takes on one GPU: 2 x full-attention layers x KV heads x head_dim x bytes.

    With more GPUs than KV heads every GPU keeps one whole head (it is replicated).
    """
    text = config.text
    heads = ceil(text.num_key_value_heads / shards.tensor)
    vectors = 2 * len(text.full_attention_layers) * heads
    return vectors * kv_vector_bytes(text.head_dim, kv_dtype)


def kv_vector_bytes(head_dim: int, kv_dtype: KvDtype) -> int:
    """One head's key or value of one token. `int8` keeps a 16-bit scale beside it, `q8_0` one every 32 values."""
    if kv_dtype == "fp32":
        return 4 * head_dim
    if kv_dtype in ("bf16", "fp16"):
        return 2 * head_dim
    if kv_dtype == "fp8":
        return head_dim
    if kv_dtype == "int8":
        return head_dim + 2
    return ceil(head_dim / 32) * 34


def state_bytes(config: ModelConfig, precision: Precision = "bf16", shards: Shards = ONE) -> int:
    """Bytes one sequence takes for its linear-attention layers, whatever its length; 0 without such layers.

    Per layer: the fp32 recurrent state (value heads x key dim x value dim) and the last kernel - 1 inputs of
    the convolution in the activations' dtype.
    """
    text = config.text
    layers = linear_attention_layers(text)
    if not layers:
        return 0
    key, value = delta_net_dims(text)
    heads = ceil(text.linear_num_value_heads / shards.tensor)
    recurrent = heads * text.linear_key_head_dim * text.linear_value_head_dim * 4
    channels = ceil((2 * key + value) / shards.tensor)
    conv = channels * (text.linear_conv_kernel_dim - 1) * bytes_per_value(precision)
    return layers * (recurrent + conv)


def num_kv_blocks(free_bytes: int, block_size: int, kv_token_bytes: int) -> int:
    """How many blocks of `block_size` tokens fit into `free_bytes`."""
    if block_size < 1:
        raise PlanError(f"block_size {block_size}: must be at least 1")
    return max(0, free_bytes) // (block_size * kv_token_bytes)


__getattr__ = moved.names(__name__)
