"""What the generations' writers of config.json share; the layout is that of the hub's files."""

from __future__ import annotations

from typing import Any

from qvl.catalog.generations.generation import ModelConfig
from qvl.catalog.generations.shape import TextConfig


def whole(config: ModelConfig, text: dict[str, Any], vision: dict[str, Any], nested: bool) -> dict[str, Any]:
    """The file around its two parts; nested files have a text_config."""
    name, eos = config.generation.model_types[0], list(config.eos_token_ids)
    return {
        "architectures": [config.generation.architecture],
        "model_type": name,
        **({"text_config": {"model_type": f"{name}_text", **text}} if nested else text),
        "tie_word_embeddings": config.text.tie_word_embeddings,
        "vision_config": {"model_type": name, **vision},
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        **({"eos_token_id": eos[0] if len(eos) == 1 else eos} if eos else {}),
        "torch_dtype": config.dtype,
        **({"quantization_config": dict(config.quantization)} if config.quantization else {}),
    }


def text_fields(text: TextConfig) -> dict[str, Any]:
    return dict(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        vocab_size=text.vocab_size,
        max_position_embeddings=text.max_position_embeddings,
        rms_norm_eps=text.rms_norm_eps,
        rope_theta=plain(text.rope_theta),
        rope_scaling={"type": "mrope", "mrope_section": list(text.mrope_section)},
        hidden_act="silu",
        attention_dropout=0.0,
        use_cache=True,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def vision_fields(config: ModelConfig) -> dict[str, Any]:
    vision = config.vision
    return dict(
        depth=vision.depth,
        num_heads=vision.num_heads,
        in_channels=vision.in_channels,
        patch_size=vision.patch_size,
        spatial_merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        hidden_act=config.generation.tower.activation,
    )


def plain(x: float) -> float | int:
    """2.0 → 2, as the published files write whole numbers."""
    return int(x) if x == int(x) else x


def ratio(inner: int, width: int) -> float | int:
    """A ratio r with int(width * r) == inner, which a rounded quotient may miss by one."""
    quotient = inner / width
    return plain(quotient if int(width * quotient) == inner else (inner + 0.5) / width)
