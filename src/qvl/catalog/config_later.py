"""config.json of the first generation and of the later ones (Qwen3-VL, Qwen3.5), any size.

Split from `config.py` because these have no shared keys with Qwen2-VL's flat layout; the rules are the
same: a key is read, listed as ignorable, or an error by name.
Sources: transformers 4.57.6 (Qwen3-VL) and 5.23.0 (Qwen3.5) configuration classes; generation 1's
remote-code config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qvl.catalog.config import (
    _COMMON_IGNORABLE,
    VISION_ROPE,
    Family,
    ModelConfig,
    TextConfig,
    VisionConfig,
    _assemble,
    _check_text,
    _check_vision,
    _Keys,
    _quantization,
    _rope,
    _tied,
)
from qvl.errors import ConfigError

# What the classes know and no forward pass here reads: the multi-token-prediction layer is not run,
# the state's dtype and dense fallbacks of mixture models are the engine's own choice.
_LATER_IGNORABLE = _COMMON_IGNORABLE | frozenset(
    """mtp_num_hidden_layers mtp_use_dedicated_embeddings mamba_ssm_dtype rope_theta rope_scaling
    rope_parameters base_model_tp_plan vision_token_id output_gate_type""".split()
)


def read(family: Family, raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Raises: ConfigError naming every unknown or missing key, or what contradicts what."""
    return _read_first(raw, where) if family == "qwen_vl" else _read_nested(family, raw, where)


def _read_nested(family: Family, raw: Mapping[str, Any], where: str) -> ModelConfig:
    for part in ("text_config", "vision_config"):
        if not isinstance(raw.get(part), Mapping):
            raise ConfigError(f"{where}: {part} is missing; {family} files nest text and vision")
    _Keys(raw, where, _COMMON_IGNORABLE | {"rope_scaling", "rope_theta"}).done()
    text_raw = raw["text_config"]
    text = _read_text(family, text_raw, f"{where} text_config", _tied(raw, text_raw))
    vision = _read_vision(family, raw["vision_config"], f"{where} vision_config", text.hidden_size)
    with_ids = {**_default_ids(family), **{k: v for k, v in raw.items() if v is not None}}
    return _assemble(family, with_ids, text_raw, text, vision, where)


def _default_ids(family: Family) -> dict[str, int]:
    """Token ids that the classes fill in when a file leaves them out."""
    if family not in ("qwen3_5", "qwen3_5_moe"):
        return {}  # _assemble knows the ids of Qwen2-VL to Qwen3-VL
    return {
        "image_token_id": 248056,
        "video_token_id": 248057,
        "vision_start_token_id": 248053,
        "vision_end_token_id": 248054,
    }


def _read_text(family: Family, raw: Mapping[str, Any], where: str, tied: bool) -> TextConfig:
    k = _Keys(raw, where, _LATER_IGNORABLE)
    moe, hybrid = family.endswith("_moe"), family.startswith("qwen3_5")
    k.only("hidden_act", "silu")
    k.only("attention_bias", False)
    k.only("decoder_sparse_step", 1)  # every layer has experts, in every published file
    k.only("mlp_only_layers", [])
    rope = _rope(k)
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
        fields["expert_inputs_first"] = not hybrid
    if hybrid:
        fields |= _hybrid_fields(k, layers)
        if moe:
            fields["shared_expert_intermediate_size"] = k.integer("shared_expert_intermediate_size", least=0)
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
        attn_output_gate=hybrid,
        zero_centered_norm=hybrid,
        tie_word_embeddings=tied,
        **fields,
    )
    _check_text(k, text)
    k.done()
    return text


def _hybrid_fields(k: _Keys, layers: int) -> dict[str, Any]:
    """Qwen3.5: which layers keep a KV cache, and the size of the others' state."""
    interval = k.integer("full_attention_interval", 4)
    linear, full = "linear_attention", "full_attention"
    kinds = k.get("layer_types", [full if (i + 1) % interval == 0 else linear for i in range(layers)])
    strange = sorted({str(kind) for kind in kinds} - {linear, full})
    k.require(not strange, f"layer_types holds {', '.join(strange)}; known: {linear}, {full}")
    k.require(len(kinds) == layers, f"{len(kinds)} layer_types for {layers} layers")
    k.only("attn_output_gate", True)
    names = """linear_num_key_heads linear_num_value_heads linear_key_head_dim linear_value_head_dim
    linear_conv_kernel_dim"""
    return {"layer_types": tuple(kinds), **{name: k.integer(name) for name in names.split()}}


def _read_vision(family: Family, raw: Mapping[str, Any], where: str, text_hidden: int) -> VisionConfig:
    k = _Keys(raw, where, _COMMON_IGNORABLE | {"rope_parameters"})
    k.only("hidden_act", "gelu_pytorch_tanh")
    k.only("rope_parameters", VISION_ROPE)
    deepstack = family.startswith("qwen3_vl")
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
    _check_vision(k, vision, text_hidden)
    k.done()
    return vision


_FIRST_IGNORABLE = _COMMON_IGNORABLE | frozenset(
    """attn_dropout_prob emb_dropout_prob bf16 fp16 fp32 onnx_safe rotary_pct scale_attn_weights
    softmax_in_fp32 tokenizer_type use_flash_attn use_cache_quantization use_cache_kernel padded_vocab_size
    n_head n_layer n_embd embd_pdrop attn_pdrop resid_pdrop n_positions visual""".split()
)


def _read_first(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Qwen-VL and Qwen-VL-Chat. `intermediate_size` there counts both up matrices; ours counts one."""
    if not isinstance(raw.get("visual"), Mapping):
        raise ConfigError(f"{where}: no visual part; this is a text-only Qwen, not a Qwen-VL")
    k, v = _Keys(raw, where, _FIRST_IGNORABLE), _Keys(raw["visual"], f"{where} visual", frozenset())
    k.only("no_bias", True)  # the bias on qkv stays
    heads = k.integer("num_attention_heads")
    text = TextConfig(
        hidden_size=k.integer("hidden_size"),
        intermediate_size=k.integer("intermediate_size") // 2,
        num_hidden_layers=k.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=k.integer("kv_channels"),
        vocab_size=k.integer("vocab_size"),
        max_position_embeddings=k.integer("max_position_embeddings"),
        rms_norm_eps=k.number("layer_norm_epsilon"),
        rope_theta=k.number("rotary_emb_base", 10000),
        mrope_section=(),
        attention_bias=True,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        seq_length=k.integer("seq_length"),
        use_logn_attn=k.flag("use_logn_attn", False),
        use_dynamic_ntk=k.flag("use_dynamic_ntk", False),
    )
    k.done()
    width, start = v.integer("width"), v.integer("image_start_id")
    vision = VisionConfig(
        depth=v.integer("layers"),
        hidden_size=width,
        intermediate_size=int(width * v.number("mlp_ratio")),
        num_heads=v.integer("heads"),
        out_hidden_size=v.integer("output_dim"),
        patch_size=v.integer("patch_size"),
        spatial_merge_size=1,
        temporal_patch_size=1,
        image_size=v.integer("image_size"),
        num_queries=v.integer("n_queries", 256),
        num_position_embeddings=256,  # a 16 x 16 table, stretched to the picture's grid
    )
    v.require(
        vision.out_hidden_size == text.hidden_size,
        f"the tower gives features of {vision.out_hidden_size}, the text model takes {text.hidden_size}",
    )
    v.done()
    # qwen.tiktoken has no room for special tokens: the code numbers them, and config.json says where <img> is.
    # A chat ends at <|im_end|>, <|im_start|> or <|endoftext|>, in this order.
    ends = (start - 212, start - 213, start - 214)
    eos = raw.get("eos_token_id")
    return ModelConfig(
        family="qwen_vl",
        text=text,
        vision=vision,
        image_token_id=start + 2,  # <img> </img> <imgpad> follow each other in the vocabulary
        video_token_id=-1,  # no clips
        vision_start_token_id=start,
        vision_end_token_id=start + 1,
        eos_token_ids=(eos,) if isinstance(eos, int) else ends,
        dtype=str(raw.get("torch_dtype") or "bfloat16"),
        quantization=_quantization(raw, where),
    )
