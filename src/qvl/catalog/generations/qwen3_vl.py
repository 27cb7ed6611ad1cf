"""Qwen3-VL (2025), dense and mixture of experts: DeepStack, interleaved M-RoPE, videos as moments with their times.

Source: transformers 4.57.6 configuration_qwen3_vl and configuration_qwen3_vl_moe; the published config.json files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from qvl.catalog.generations.generation import (
    HALF,
    RELATIVE_999,
    RELATIVE_1000,
    Generation,
    ModelConfig,
    Prompts,
    Tower,
)
from qvl.catalog.generations.keys import (
    COMMON_IGNORABLE,
    VISION_ROPE,
    Keys,
    assemble,
    check_text,
    check_vision,
    read_rope,
    read_tied,
)
from qvl.catalog.generations.shape import TextConfig, VisionConfig
from qvl.catalog.generations.tensors import TableWriter, TensorKind, TensorTable, decoder, tower_blocks
from qvl.catalog.generations.writing import text_fields, vision_fields, whole
from qvl.errors import ConfigError
from qvl.geometry import PixelLimits, VideoLimits

QWEN3_IMAGE = PixelLimits(min_pixels=64 * 32**2, max_pixels=16384 * 32**2, patch_size=16)
# The video preprocessor file: limits of the whole volume.
QWEN3_VIDEO = VideoLimits(
    min_pixels=4096, max_pixels=25_165_824, total_pixels=25_165_824, patch_size=16, budget="volume"
)

# What the classes know and no forward pass here reads: the multi-token-prediction layer is not run,
# the state's dtype and dense fallbacks of mixture models are the engine's own choice.
_IGNORABLE = COMMON_IGNORABLE | frozenset(
    """mtp_num_hidden_layers mtp_use_dedicated_embeddings mamba_ssm_dtype rope_theta rope_scaling
    rope_parameters base_model_tp_plan vision_token_id output_gate_type""".split()
)


QWEN3_WORST_VIDEO = 153_600  # tokens, as vLLM's log says at start-up (vllm#29743)


def read_nested(
    generation: Generation,
    raw: Mapping[str, Any],
    where: str,
    *,
    moe: bool,
    hybrid: Callable[[Keys, int, bool], dict[str, Any]] | None = None,
    default_ids: Mapping[str, int] | None = None,
) -> ModelConfig:
    """Files with a text_config and a vision_config.

    hybrid: reads what Qwen3.5's text has beside. default_ids: token ids that its classes fill in.
    """
    for part in ("text_config", "vision_config"):
        if not isinstance(raw.get(part), Mapping):
            raise ConfigError(f"{where}: {part} is missing; {generation} files nest text and vision")
    Keys(raw, where, COMMON_IGNORABLE | {"rope_scaling", "rope_theta"}).done()
    text_raw = raw["text_config"]
    text = _read_text(text_raw, f"{where} text_config", read_tied(raw, text_raw), moe, hybrid)
    vision = _read_vision(
        raw["vision_config"], f"{where} vision_config", text.hidden_size, deepstack=hybrid is None
    )
    with_ids = {**(default_ids or {}), **{k: v for k, v in raw.items() if v is not None}}
    return assemble(generation, with_ids, text_raw, text, vision, where)


def _read_text(
    raw: Mapping[str, Any],
    where: str,
    tied: bool,
    moe: bool,
    hybrid: Callable[[Keys, int, bool], dict[str, Any]] | None,
) -> TextConfig:
    k = Keys(raw, where, _IGNORABLE, "text_config")
    k.only("hidden_act", "silu")
    k.only("attention_bias", False)
    k.only("decoder_sparse_step", 1)  # every layer has experts, in every published file
    k.only("mlp_only_layers", [])
    rope = read_rope(k)
    layers = k.integer("num_hidden_layers")
    fields: dict[str, Any] = {}
    if moe:
        experts = {
            name: k.integer(name) for name in ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
        }
        k.require(
            experts["num_experts_per_tok"] <= experts["num_experts"],
            f"num_experts_per_tok {experts['num_experts_per_tok']} of {experts['num_experts']} experts",
        )
        fields |= {**experts, "norm_topk_prob": k.flag("norm_topk_prob", True)}
    if hybrid:
        fields |= hybrid(k, layers, moe)
    # transformers 5 files keep the factor beside the sections, older ones beside rope_theta
    params = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rotated = k.number("partial_rotary_factor", 0.25 if hybrid else 1.0)
    rotated = params.get("partial_rotary_factor", rotated)
    text = TextConfig(
        hidden_size=k.integer("hidden_size"),
        # mixture files may carry a dense width that no layer uses
        intermediate_size=k.integer("intermediate_size", 0 if moe else None, least=0),
        num_hidden_layers=layers,
        num_attention_heads=k.integer("num_attention_heads"),
        num_key_value_heads=k.integer("num_key_value_heads"),
        head_dim=k.integer("head_dim"),  # from Qwen3 on it isn't hidden_size / heads
        vocab_size=k.integer("vocab_size"),
        max_position_embeddings=k.integer("max_position_embeddings"),
        rms_norm_eps=k.number("rms_norm_eps"),
        rope_theta=rope.theta,
        mrope_section=rope.section,
        # every published file says true; the classes interleave whatever the file says
        mrope_interleaved=True,
        partial_rotary_factor=float(rotated),
        qk_norm=True,
        tie_word_embeddings=tied,
        **fields,
    )
    check_text(k, text)
    k.done()
    return text


def _read_vision(raw: Mapping[str, Any], where: str, text_hidden: int, deepstack: bool) -> VisionConfig:
    k = Keys(raw, where, COMMON_IGNORABLE | {"rope_parameters"}, "vision_config")
    k.only("hidden_act", "gelu_pytorch_tanh")
    k.only("rope_parameters", VISION_ROPE)
    taps = k.integers("deepstack_visual_indexes", None if deepstack else ())
    k.require(deepstack or not taps, f"deepstack_visual_indexes {list(taps)}; Qwen3.5 has no DeepStack")
    vision = VisionConfig(
        depth=k.integer("depth"),
        hidden_size=k.integer("hidden_size"),
        intermediate_size=k.integer("intermediate_size"),
        num_heads=k.integer("num_heads"),
        out_hidden_size=k.integer("out_hidden_size"),
        patch_size=k.integer("patch_size"),
        spatial_merge_size=k.integer("spatial_merge_size", 2),
        temporal_patch_size=k.integer("temporal_patch_size", 2),
        in_channels=k.integer("in_channels", 3),
        deepstack_visual_indexes=taps,
        num_position_embeddings=k.integer("num_position_embeddings"),
    )
    k.require(
        max(taps, default=0) < vision.depth,
        f"deepstack_visual_indexes {list(taps)} go past depth {vision.depth}",
    )
    check_vision(k, vision, text_hidden)
    k.done()
    return vision


def written_text(config: ModelConfig) -> dict[str, Any]:
    text = config.text
    fields = text_fields(text) | dict(
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
    return fields


def write_nested(config: ModelConfig, text: dict[str, Any]) -> dict[str, Any]:
    vision = config.vision
    return whole(
        config,
        text,
        vision_fields(config)
        | dict(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            out_hidden_size=vision.out_hidden_size,
            num_position_embeddings=vision.num_position_embeddings,
            deepstack_visual_indexes=list(vision.deepstack_visual_indexes),
        ),
        nested=True,
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_nested(config, written_text(config))


def _tensors(config: ModelConfig) -> TensorTable:
    found: list[TensorKind] = []
    vision = config.vision
    width, wide = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
    mlp = tower_blocks(found, vision, norm_bias=True, patch_bias=True)
    mlp.linear("linear_fc1", width, vision.intermediate_size, True)
    mlp.linear("linear_fc2", vision.intermediate_size, width, True, "row")
    TableWriter(found, "tower", "visual.").tensor("pos_embed.weight", vision.num_position_embeddings, width)
    levels = range(len(vision.deepstack_visual_indexes))
    # DeepStack's mergers normalise whole blocks of patches
    for at, normed in (
        (TableWriter(found, "merger", "visual.merger."), width),
        (TableWriter(found, "deepstack", "visual.deepstack_merger_list.{}.", levels), wide),
    ):
        at.norm("norm", normed, True)
        at.linear("linear_fc1", wide, wide, True)
        at.linear("linear_fc2", wide, vision.out_hidden_size, True, "row")
    decoder(found, config.text)
    return TensorTable(tuple(found))


QWEN3_VL = Generation(
    name="qwen3_vl",
    title="Qwen3-VL",
    model_types=("qwen3_vl",),
    architecture="Qwen3VLForConditionalGeneration",
    name_parts=("qwen3-vl", "qwen3vl"),
    read=partial(read_nested, moe=False),
    write=_write,
    tensors=_tensors,
    published=(("model.visual.", "visual."), ("model.language_model.", "model.")),
    network="qvl.models.qwen3_vl:Qwen3VL",
    image=QWEN3_IMAGE,
    video=QWEN3_VIDEO,
    mean=HALF,
    std=HALF,
    time_as_text=True,
    tower=Tower("layer", "gelu_pytorch_tanh"),
    prompts=Prompts(
        boxes="Report the bbox coordinates in JSON format.",
        page="qwenvl html",
    ),
    coordinates=RELATIVE_1000,
    phone_coordinates=RELATIVE_999,
    vllm_worst_video=QWEN3_WORST_VIDEO,
    vllm_size=True,
    image_rule="qwen-32",
)

QWEN3_VL_MOE = replace(
    QWEN3_VL,
    name="qwen3_vl_moe",
    title="Qwen3-VL MoE",
    model_types=("qwen3_vl_moe",),
    architecture="Qwen3VLMoeForConditionalGeneration",
    size_parts=("-30b-a3b", "-235b-a22b"),
    read=partial(read_nested, moe=True),
)
