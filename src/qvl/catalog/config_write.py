"""`ModelConfig` → config.json: what `config.read_config` reads back to the same object, in the hub files' layout."""

from __future__ import annotations

from typing import Any

from qvl.catalog.config import ModelConfig, TextConfig
from qvl.errors import ConfigError

_ARCHITECTURES = {
    "qwen_vl": "QWenLMHeadModel",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
}


def config_dict(config: ModelConfig) -> dict[str, Any]:
    """The config.json that `read_config` reads back to `config`, in the layout of the hub's files.

    Raises: ConfigError for a family that isn't written here.
    """
    if config.family not in _ARCHITECTURES:
        raise ConfigError(f"{config.family} configs are not written; known: {', '.join(_ARCHITECTURES)}")
    if config.family == "qwen_vl":
        return _written_first(config)
    nested = config.family.startswith("qwen3")
    text, vision = _written_text(config), _written_vision(config)
    eos = list(config.eos_token_ids)
    return {
        "architectures": [_ARCHITECTURES[config.family]],
        "model_type": config.family,
        **({"text_config": {"model_type": f"{config.family}_text", **text}} if nested else text),
        "tie_word_embeddings": config.text.tie_word_embeddings,
        "vision_config": {"model_type": config.family, **vision},
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        **({"eos_token_id": eos[0] if len(eos) == 1 else eos} if eos else {}),
        "torch_dtype": config.dtype,
        **({"quantization_config": dict(config.quantization)} if config.quantization else {}),
    }


def _written_text(config: ModelConfig) -> dict[str, Any]:
    text, heads = config.text, config.text.num_attention_heads
    fields: dict[str, Any] = dict(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=text.num_key_value_heads,
        vocab_size=text.vocab_size,
        max_position_embeddings=text.max_position_embeddings,
        rms_norm_eps=text.rms_norm_eps,
        rope_theta=_plain(text.rope_theta),
        rope_scaling={"type": "mrope", "mrope_section": list(text.mrope_section)},
        hidden_act="silu",
        attention_dropout=0.0,
        use_cache=True,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    if config.family.startswith("qwen2"):
        # files of these two families leave head_dim out: it is derived
        derived = text.head_dim == text.hidden_size // heads
        return fields | dict(use_sliding_window=False) | ({} if derived else {"head_dim": text.head_dim})
    fields |= dict(
        head_dim=text.head_dim,
        attention_bias=text.attention_bias,
        rope_scaling=dict(
            rope_type="default", mrope_interleaved=True, mrope_section=list(text.mrope_section)
        ),
    )
    if text.num_experts:
        fields |= dict(
            num_experts=text.num_experts,
            num_experts_per_tok=text.num_experts_per_tok,
            moe_intermediate_size=text.moe_intermediate_size,
            norm_topk_prob=text.norm_topk_prob,
            decoder_sparse_step=1,
            mlp_only_layers=[],
        )
    if config.family.startswith("qwen3_5"):
        _make_hybrid(fields, text)
    return fields


def _make_hybrid(fields: dict[str, Any], text: TextConfig) -> None:
    """Qwen3.5's files know rope_parameters alone, and their mixtures a shared expert and no dense width."""
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


def _written_vision(config: ModelConfig) -> dict[str, Any]:
    vision = config.vision
    common: dict[str, Any] = dict(
        depth=vision.depth,
        num_heads=vision.num_heads,
        in_channels=vision.in_channels,
        patch_size=vision.patch_size,
        spatial_merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
    )
    if config.family == "qwen2_vl":
        return common | dict(
            hidden_act="quick_gelu",
            in_chans=vision.in_channels,
            spatial_patch_size=vision.patch_size,
            embed_dim=vision.hidden_size,
            mlp_ratio=_ratio(vision.intermediate_size, vision.hidden_size),
            hidden_size=vision.out_hidden_size,
        )
    common |= dict(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        out_hidden_size=vision.out_hidden_size,
    )
    if config.family == "qwen2_5_vl":
        return common | dict(
            hidden_act="silu",
            in_chans=vision.in_channels,
            spatial_patch_size=vision.patch_size,
            window_size=vision.window_size,
            fullatt_block_indexes=list(vision.fullatt_block_indexes),
            tokens_per_second=_plain(vision.tokens_per_second),
        )
    return common | dict(
        hidden_act="gelu_pytorch_tanh",
        num_position_embeddings=vision.num_position_embeddings,
        deepstack_visual_indexes=list(vision.deepstack_visual_indexes),
    )


def _written_first(config: ModelConfig) -> dict[str, Any]:
    text, vision = config.text, config.vision
    # the reader derives the ends of a chat from image_start_id, as no published file names them
    eos = config.eos_token_ids[0] if len(config.eos_token_ids) == 1 else None
    return {
        "architectures": [_ARCHITECTURES[config.family]],
        "model_type": "qwen",
        "hidden_size": text.hidden_size,
        "intermediate_size": 2 * text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "kv_channels": text.head_dim,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_position_embeddings,
        "layer_norm_epsilon": text.rms_norm_eps,
        "rotary_emb_base": _plain(text.rope_theta),
        "rotary_pct": 1.0,
        "seq_length": text.seq_length,
        "use_dynamic_ntk": text.use_dynamic_ntk,
        "use_logn_attn": text.use_logn_attn,
        "no_bias": True,
        "tie_word_embeddings": text.tie_word_embeddings,
        "visual": {
            "heads": vision.num_heads,
            "image_size": vision.image_size,
            "image_start_id": config.vision_start_token_id,
            "layers": vision.depth,
            "mlp_ratio": _ratio(vision.intermediate_size, vision.hidden_size),
            "n_queries": vision.num_queries,
            "output_dim": vision.out_hidden_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
        },
        **({"eos_token_id": eos} if eos is not None else {}),
        "torch_dtype": config.dtype,
        **({"quantization_config": dict(config.quantization)} if config.quantization else {}),
    }


def _plain(x: float) -> float | int:
    """2.0 → 2, as the published files write whole numbers."""
    return int(x) if x == int(x) else x


def _ratio(inner: int, width: int) -> float | int:
    """A ratio r with int(width * r) == inner, which a rounded quotient may miss by one."""
    ratio = inner / width
    return _plain(ratio if int(width * ratio) == inner else (inner + 0.5) / width)
