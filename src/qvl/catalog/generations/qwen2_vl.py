"""Qwen2-VL (2024): images of any size, M-RoPE, videos.

Source: transformers 4.57.6 configuration_qwen2_vl; the published config.json files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from qvl.catalog.generations.generation import (
    CLIP_MEAN,
    CLIP_STD,
    RELATIVE_1000,
    Generation,
    ModelConfig,
    Prompts,
    Tower,
)
from qvl.catalog.generations.keys import (
    COMMON_IGNORABLE,
    VISION_IGNORABLE,
    VISION_ROPE,
    Keys,
    assemble,
    check_text,
    check_vision,
    read_rope,
    read_tied,
    text_object,
)
from qvl.catalog.generations.shape import TextConfig, VisionConfig
from qvl.catalog.generations.tensors import TableWriter, TensorKind, TensorTable, decoder, tower_blocks
from qvl.catalog.generations.writing import ratio, text_fields, vision_fields, whole
from qvl.geometry import PixelLimits, default_video_limits

# What the hub's preprocessor files set, not the smaller defaults of the transformers classes.
QWEN2_IMAGE = PixelLimits(min_pixels=4 * 28**2, max_pixels=16384 * 28**2)


def read_flat(
    generation: Generation,
    raw: Mapping[str, Any],
    where: str,
    read_vision: Callable[[Keys, int, dict[str, Any]], VisionConfig],
) -> ModelConfig:
    """Qwen2-VL and Qwen2.5-VL, whose towers have keys of their own."""
    text_raw, text_where = text_object(raw, where)
    k = Keys(
        text_raw, text_where, COMMON_IGNORABLE, "text_config" if text_raw is raw.get("text_config") else ""
    )
    kinds = k.get("layer_types", [])
    if k.get("use_sliding_window") or any(kind != "full_attention" for kind in kinds):
        k.wrong.append("sliding-window attention is in no published model and not supported")
    k.only("hidden_act", "silu")
    rope = read_rope(k)
    hidden, heads = k.integer("hidden_size"), k.integer("num_attention_heads")
    text = TextConfig(
        hidden_size=hidden,
        intermediate_size=k.integer("intermediate_size"),
        num_hidden_layers=k.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=k.integer("num_key_value_heads"),
        head_dim=k.integer("head_dim", max(1, hidden // heads)),
        vocab_size=k.integer("vocab_size"),
        max_position_embeddings=k.integer("max_position_embeddings"),
        rms_norm_eps=k.number("rms_norm_eps"),
        rope_theta=rope.theta,
        mrope_section=rope.section,
        mrope_interleaved=rope.interleaved,
        attention_bias=True,
        tie_word_embeddings=read_tied(raw, text_raw),
    )
    check_text(k, text)
    k.done()
    v = Keys(raw.get("vision_config") or {}, f"{where} vision_config", VISION_IGNORABLE, "vision_config")
    v.only("hidden_act", generation.tower.activation)
    v.only("rope_parameters", VISION_ROPE)
    # what every published model has, so that some files leave it out; a field in which models differ, or where a
    # class default isn't what was trained, has no default
    common: dict[str, Any] = dict(
        depth=v.integer("depth", 32),
        num_heads=v.integer("num_heads", 16),
        patch_size=v.integer("patch_size", 14),
        spatial_merge_size=v.integer("spatial_merge_size", 2),
        temporal_patch_size=v.integer("temporal_patch_size", 2),
        in_channels=v.integer("in_channels", v.integer("in_chans", 3)),
    )
    vision = read_vision(v, hidden, common)
    check_vision(v, vision, hidden)
    v.done()
    return assemble(generation, raw, text_raw, text, vision, where)


def _read_vision(k: Keys, text_hidden: int, common: dict[str, Any]) -> VisionConfig:
    # here hidden_size is the language model's width and embed_dim the tower's
    width = k.integer("embed_dim", 1280)
    return VisionConfig(
        hidden_size=width,
        intermediate_size=int(width * k.number("mlp_ratio", 4)),
        out_hidden_size=k.integer("hidden_size", text_hidden),
        **common,
    )


def write_flat(config: ModelConfig, vision: dict[str, Any]) -> dict[str, Any]:
    text = config.text
    fields = text_fields(text) | dict(use_sliding_window=False)
    # files of these generations leave head_dim out: it is derived
    if text.head_dim != text.hidden_size // text.num_attention_heads:
        fields["head_dim"] = text.head_dim
    v = config.vision
    common = vision_fields(config) | dict(in_chans=v.in_channels, spatial_patch_size=v.patch_size)
    return whole(config, fields, common | vision, nested=False)


def _write(config: ModelConfig) -> dict[str, Any]:
    vision = config.vision
    return write_flat(
        config,
        dict(
            embed_dim=vision.hidden_size,
            mlp_ratio=ratio(vision.intermediate_size, vision.hidden_size),
            hidden_size=vision.out_hidden_size,
        ),
    )


def _tensors(config: ModelConfig) -> TensorTable:
    found: list[TensorKind] = []
    vision = config.vision
    mlp = tower_blocks(found, vision, norm_bias=True, patch_bias=False)
    mlp.linear("fc1", vision.hidden_size, vision.intermediate_size, True)
    mlp.linear("fc2", vision.intermediate_size, vision.hidden_size, True, "row")
    merger(found, vision, norm_bias=True)
    decoder(found, config.text)
    return TensorTable(tuple(found))


def merger(found: list[TensorKind], vision: VisionConfig, norm_bias: bool) -> None:
    at, wide = (
        TableWriter(found, "merger", "visual.merger."),
        vision.hidden_size * vision.spatial_merge_size**2,
    )
    at.norm("ln_q", vision.hidden_size, norm_bias)
    at.linear("mlp.0", wide, wide, True, kind="linear_fc1")
    at.linear("mlp.2", wide, vision.out_hidden_size, True, "row", "linear_fc2")


QWEN2_VL = Generation(
    name="qwen2_vl",
    title="Qwen2-VL",
    model_types=("qwen2_vl",),
    architecture="Qwen2VLForConditionalGeneration",
    name_parts=("qwen2-vl", "qwen2vl"),
    read=partial(read_flat, read_vision=_read_vision),
    write=_write,
    tensors=_tensors,
    network="qvl.models.qwen2_vl:Qwen2VL",
    image=QWEN2_IMAGE,
    video=default_video_limits(),
    mean=CLIP_MEAN,
    std=CLIP_STD,
    knows_seconds=False,
    tower=Tower("layer", "quick_gelu"),
    system="You are a helpful assistant.",
    prompts=Prompts(
        boxes="Detect the bounding box of each.",
    ),
    coordinates=RELATIVE_1000,
    phone_actions=("key", "open"),
    place_style="special tokens",
    transformers_trims=(5, 0),
    image_rule="qwen-28",
)
