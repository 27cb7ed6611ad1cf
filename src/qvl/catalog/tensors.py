"""`ModelConfig` → the name and shape of every tensor of its plain checkpoint, without building the network.

What the linter compares files with. Names are the networks' own (the flat layout); tests/test_catalog_tensors.py
holds them against the networks' parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qvl.catalog.config import ModelConfig, TextConfig, VisionConfig
from qvl.errors import ConfigError


@dataclass(frozen=True)
class TensorTable:
    """`shapes`: name → shape. `linears`: name of a linear layer → (outputs, inputs); its weight is in `shapes`."""

    shapes: dict[str, tuple[int, ...]]
    linears: dict[str, tuple[int, int]]


class _Table:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.linears: dict[str, tuple[int, int]] = {}

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = False) -> None:
        self.linears[name] = (outputs, inputs)
        self.shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            self.shapes[f"{name}.bias"] = (outputs,)

    def norm(self, name: str, size: int, bias: bool = False) -> None:
        self.shapes[f"{name}.weight"] = (size,)
        if bias:
            self.shapes[f"{name}.bias"] = (size,)


KNOWN = ("qwen_vl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")


def tensor_table(config: ModelConfig) -> TensorTable:
    """Raises: ConfigError for a family whose tensors aren't listed here."""
    if config.family not in KNOWN:
        raise ConfigError(f"the tensors of {config.family} aren't listed; known: {', '.join(KNOWN)}")
    table, text = _Table(), config.text
    if config.family == "qwen_vl":
        _first_generation(table, config)
        return TensorTable(table.shapes, table.linears)
    if config.family.startswith("qwen2"):
        _tower_2(table, config)
    else:
        _tower_3(table, config.vision)
    table.shapes["model.embed_tokens.weight"] = (text.vocab_size, text.hidden_size)
    full = set(text.full_attention_layers)
    for i in range(text.num_hidden_layers):
        at = f"model.layers.{i}"
        table.norm(f"{at}.input_layernorm", text.hidden_size)
        table.norm(f"{at}.post_attention_layernorm", text.hidden_size)
        if i in full:
            _attention(table, f"{at}.self_attn", text)
        else:
            _delta_net(table, f"{at}.linear_attn", text)
        if text.num_experts:
            _experts(table, f"{at}.mlp", config)
        else:
            _gated(table, f"{at}.mlp", text.hidden_size, text.intermediate_size)
    table.norm("model.norm", text.hidden_size)
    if not text.tie_word_embeddings:
        table.linear("lm_head", text.hidden_size, text.vocab_size)
    return TensorTable(table.shapes, table.linears)


def _first_generation(table: _Table, config: ModelConfig) -> None:
    text, vision = config.text, config.vision
    width, out, queries = vision.hidden_size, vision.out_hidden_size, vision.num_queries
    at = "visual"
    table.shapes[f"{at}.positional_embedding"] = (vision.num_position_embeddings, width)
    table.shapes[f"{at}.proj"] = (out, out)
    table.shapes[f"{at}.conv1.weight"] = (width, vision.in_channels, vision.patch_size, vision.patch_size)
    table.norm(f"{at}.ln_pre", width, True)
    table.norm(f"{at}.ln_post", out, True)
    for i in range(vision.depth):
        block = f"{at}.transformer.resblocks.{i}"
        table.norm(f"{block}.ln_1", width, True)
        table.norm(f"{block}.ln_2", width, True)
        table.linear(f"{block}.attn.in_proj", width, 3 * width, True)
        table.linear(f"{block}.attn.out_proj", width, width, True)
        table.linear(f"{block}.mlp.c_fc", width, vision.intermediate_size, True)
        table.linear(f"{block}.mlp.c_proj", vision.intermediate_size, width, True)
    pool = f"{at}.attn_pool"
    table.shapes[f"{pool}.query"] = table.shapes[f"{pool}.pos_embed"] = (queries, out)
    if width != out:
        table.linear(f"{pool}.kv_proj", width, out)
    table.shapes[f"{pool}.attn.in_proj_weight"] = (3 * out, out)
    table.shapes[f"{pool}.attn.in_proj_bias"] = (3 * out,)
    table.linear(f"{pool}.attn.out_proj", out, out, True)
    table.norm(f"{pool}.ln_q", out, True)
    table.norm(f"{pool}.ln_kv", out, True)
    heads = text.num_attention_heads * text.head_dim
    table.shapes["model.wte.weight"] = (text.vocab_size, text.hidden_size)
    for i in range(text.num_hidden_layers):
        at = f"model.h.{i}"
        table.norm(f"{at}.ln_1", text.hidden_size)
        table.norm(f"{at}.ln_2", text.hidden_size)
        table.linear(f"{at}.attn.c_attn", text.hidden_size, 3 * heads, text.attention_bias)
        table.linear(f"{at}.attn.c_proj", heads, text.hidden_size)
        table.linear(f"{at}.mlp.w1", text.hidden_size, text.intermediate_size)
        table.linear(f"{at}.mlp.w2", text.hidden_size, text.intermediate_size)
        table.linear(f"{at}.mlp.c_proj", text.intermediate_size, text.hidden_size)
    table.norm("model.ln_f", text.hidden_size)
    table.linear("lm_head", text.hidden_size, text.vocab_size)


def _attention(table: _Table, at: str, text: TextConfig) -> None:
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    # Qwen3.5's q_proj also emits the gate of the attention output
    table.linear(f"{at}.q_proj", text.hidden_size, queries * (1 + text.attn_output_gate), text.attention_bias)
    table.linear(f"{at}.k_proj", text.hidden_size, keys, text.attention_bias)
    table.linear(f"{at}.v_proj", text.hidden_size, keys, text.attention_bias)
    table.linear(f"{at}.o_proj", queries, text.hidden_size)
    if text.qk_norm:
        table.norm(f"{at}.q_norm", text.head_dim)
        table.norm(f"{at}.k_norm", text.head_dim)


def _delta_net(table: _Table, at: str, text: TextConfig) -> None:
    keys = text.linear_num_key_heads * text.linear_key_head_dim
    values = text.linear_num_value_heads * text.linear_value_head_dim
    table.linear(f"{at}.in_proj_qkv", text.hidden_size, 2 * keys + values)
    table.linear(f"{at}.in_proj_z", text.hidden_size, values)
    table.linear(f"{at}.in_proj_b", text.hidden_size, text.linear_num_value_heads)
    table.linear(f"{at}.in_proj_a", text.hidden_size, text.linear_num_value_heads)
    table.shapes[f"{at}.conv1d.weight"] = (2 * keys + values, 1, text.linear_conv_kernel_dim)
    table.shapes[f"{at}.A_log"] = table.shapes[f"{at}.dt_bias"] = (text.linear_num_value_heads,)
    table.norm(f"{at}.norm", text.linear_value_head_dim)
    table.linear(f"{at}.out_proj", values, text.hidden_size)


def _gated(table: _Table, at: str, size: int, inner: int, bias: bool = False) -> None:
    table.linear(f"{at}.gate_proj", size, inner, bias)
    table.linear(f"{at}.up_proj", size, inner, bias)
    table.linear(f"{at}.down_proj", inner, size, bias)


def _experts(table: _Table, at: str, config: ModelConfig) -> None:
    text, inner = config.text, config.text.moe_intermediate_size
    table.linear(f"{at}.gate", text.hidden_size, text.num_experts)
    gate_up, down = (text.hidden_size, 2 * inner), (inner, text.hidden_size)
    if config.family == "qwen3_5_moe":  # outputs first from there on
        gate_up, down = gate_up[::-1], down[::-1]
    table.shapes[f"{at}.experts.gate_up_proj"] = (text.num_experts, *gate_up)
    table.shapes[f"{at}.experts.down_proj"] = (text.num_experts, *down)
    if text.shared_expert_intermediate_size:
        _gated(table, f"{at}.shared_expert", text.hidden_size, text.shared_expert_intermediate_size)
        table.linear(f"{at}.shared_expert_gate", text.hidden_size, 1)


def _blocks(table: _Table, vision: VisionConfig, norm_bias: bool, patch_bias: bool) -> Iterator[str]:
    """What every tower has; yields where each block's MLP lies."""
    width, patch = vision.hidden_size, vision.patch_size
    table.shapes["visual.patch_embed.proj.weight"] = (
        width, vision.in_channels, vision.temporal_patch_size, patch, patch
    )  # fmt: skip
    if patch_bias:
        table.shapes["visual.patch_embed.proj.bias"] = (width,)
    for i in range(vision.depth):
        at = f"visual.blocks.{i}"
        table.norm(f"{at}.norm1", width, norm_bias)
        table.norm(f"{at}.norm2", width, norm_bias)
        table.linear(f"{at}.attn.qkv", width, 3 * width, True)
        table.linear(f"{at}.attn.proj", width, width, True)
        yield f"{at}.mlp"


def _tower_2(table: _Table, config: ModelConfig) -> None:
    vision, later = config.vision, config.family == "qwen2_5_vl"
    wide = vision.hidden_size * vision.spatial_merge_size**2
    for at in _blocks(table, vision, norm_bias=not later, patch_bias=False):
        if later:
            _gated(table, at, vision.hidden_size, vision.intermediate_size, True)
        else:
            table.linear(f"{at}.fc1", vision.hidden_size, vision.intermediate_size, True)
            table.linear(f"{at}.fc2", vision.intermediate_size, vision.hidden_size, True)
    table.norm("visual.merger.ln_q", vision.hidden_size, not later)
    table.linear("visual.merger.mlp.0", wide, wide, True)
    table.linear("visual.merger.mlp.2", wide, vision.out_hidden_size, True)


def _tower_3(table: _Table, vision: VisionConfig) -> None:
    width = vision.hidden_size
    wide = width * vision.spatial_merge_size**2
    for at in _blocks(table, vision, norm_bias=True, patch_bias=True):
        table.linear(f"{at}.linear_fc1", width, vision.intermediate_size, True)
        table.linear(f"{at}.linear_fc2", vision.intermediate_size, width, True)
    table.shapes["visual.pos_embed.weight"] = (vision.num_position_embeddings, width)
    mergers = [("visual.merger", width)]
    # DeepStack's mergers normalise whole blocks of patches
    mergers += [
        (f"visual.deepstack_merger_list.{i}", wide) for i in range(len(vision.deepstack_visual_indexes))
    ]
    for at, normed in mergers:
        table.norm(f"{at}.norm", normed, True)
        table.linear(f"{at}.linear_fc1", wide, wide, True)
        table.linear(f"{at}.linear_fc2", wide, vision.out_hidden_size, True)
