"""Qwen3.5 (2026), dense and mixture of experts: three layers of four keep a constant state instead of a KV cache.

Its convention for coordinates is taken over from Qwen3-VL; its papers and cookbooks don't state it.
Source: transformers 5.23 configuration_qwen3_5 and configuration_qwen3_5_moe; the published config.json files.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from qvl.catalog.generations.generation import ModelConfig
from qvl.catalog.generations.keys import Keys
from qvl.catalog.generations.qwen3_vl import QWEN3_VL, read_nested, write_nested, written_text

# what the classes fill in when a file leaves them out
_IDS = {
    "image_token_id": 248056,
    "video_token_id": 248057,
    "vision_start_token_id": 248053,
    "vision_end_token_id": 248054,
}


def _hybrid_fields(k: Keys, layers: int, moe: bool) -> dict[str, Any]:
    """Which layers keep a KV cache, and the size of the others' state."""
    interval = k.integer("full_attention_interval", 4)
    linear, full = "linear_attention", "full_attention"
    kinds = k.get("layer_types", [full if (i + 1) % interval == 0 else linear for i in range(layers)])
    strange = sorted({str(kind) for kind in kinds} - {linear, full})
    k.require(not strange, f"layer_types holds {', '.join(strange)}; known: {linear}, {full}")
    k.require(len(kinds) == layers, f"{len(kinds)} layer_types for {layers} layers")
    k.only("attn_output_gate", True)
    names = """linear_num_key_heads linear_num_value_heads linear_key_head_dim linear_value_head_dim
    linear_conv_kernel_dim"""
    fields = {"layer_types": tuple(kinds), **{name: k.integer(name) for name in names.split()}}
    if moe:
        fields["shared_expert_intermediate_size"] = k.integer("shared_expert_intermediate_size", least=0)
        fields["expert_inputs_first"] = False
    return fields | {"attn_output_gate": True, "zero_centered_norm": True}


def _write(config: ModelConfig) -> dict[str, Any]:
    """These files know rope_parameters alone, and their mixtures a shared expert and no dense width."""
    text, fields = config.text, written_text(config)
    rope = fields.pop("rope_scaling")
    fields["rope_parameters"] = rope | dict(
        rope_theta=fields.pop("rope_theta"), partial_rotary_factor=text.partial_rotary_factor
    )
    fields |= dict(
        layer_types=list(text.layer_types),
        attn_output_gate=text.attn_output_gate,
        linear_num_key_heads=text.linear_num_key_heads,
        linear_num_value_heads=text.linear_num_value_heads,
        linear_key_head_dim=text.linear_key_head_dim,
        linear_value_head_dim=text.linear_value_head_dim,
        linear_conv_kernel_dim=text.linear_conv_kernel_dim,
    )
    if text.num_experts:
        fields["shared_expert_intermediate_size"] = text.shared_expert_intermediate_size
        for name in ("intermediate_size", "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"):
            fields.pop(name)
    return write_nested(config, fields)


QWEN3_5 = replace(
    QWEN3_VL,
    name="qwen3_5",
    title="Qwen3.5",
    model_types=("qwen3_5",),
    architecture="Qwen3_5ForConditionalGeneration",
    name_parts=("qwen3.5",),
    read=partial(read_nested, moe=False, hybrid=_hybrid_fields, default_ids=_IDS),
    write=_write,
    network="qvl.models.qwen3_5:Qwen35",
    reasoning_parser="qwen3",
)

QWEN3_5_MOE = replace(
    QWEN3_5,
    name="qwen3_5_moe",
    title="Qwen3.5 MoE",
    model_types=("qwen3_5_moe",),
    architecture="Qwen3_5MoeForConditionalGeneration",
    name_parts=(),  # served names don't tell it from its dense siblings
    read=partial(read_nested, moe=True, hybrid=_hybrid_fields, default_ids=_IDS),
)
