"""config.json → `ModelConfig`: the exact shape of a checkpoint, for the planner and the networks alike.

Every key of a config file is read, listed as ignorable, or an error by name; no default of a
transformers class is ever trusted (facts: a config object built from class defaults is not a real model).
Sources: the published config.json files; transformers 4.57.6 and 5.23 configuration classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qvl.errors import ConfigError

Family = Literal["qwen_vl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"]

# config.json's model_type → family
MODEL_TYPES: dict[str, Family] = {
    "qwen": "qwen_vl",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "qwen3_vl_moe": "qwen3_vl_moe",
    "qwen3_5": "qwen3_5",
    "qwen3_5_moe": "qwen3_5_moe",
}


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The language model. `head_dim` is explicit: from Qwen3 on it isn't hidden_size / heads."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, ...]  # halves of the rotated dims: temporal, height, width; () for 1-D rope
    mrope_interleaved: bool = False
    partial_rotary_factor: float = 1.0
    attention_bias: bool = False  # bias on q, k, v (never on o)
    qk_norm: bool = False
    attn_output_gate: bool = False  # Qwen3.5: sigmoid gate on the attention output
    zero_centered_norm: bool = False  # Qwen3.5: RMSNorm multiplies by 1 + weight
    tie_word_embeddings: bool = False
    # mixture of experts; 0 experts means a dense MLP
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    norm_topk_prob: bool = True
    # hybrid attention (Qwen3.5): one entry a layer, "full_attention" or "linear_attention"
    layer_types: tuple[str, ...] = ()
    linear_num_key_heads: int = 0
    linear_num_value_heads: int = 0
    linear_key_head_dim: int = 0
    linear_value_head_dim: int = 0
    linear_conv_kernel_dim: int = 0
    # first generation only
    seq_length: int = 0  # the length logn and dynamic NTK start at
    use_logn_attn: bool = False
    use_dynamic_ntk: bool = False

    @property
    def full_attention_layers(self) -> tuple[int, ...]:
        """Indices of the layers that keep a KV cache."""
        if not self.layer_types:
            return tuple(range(self.num_hidden_layers))
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "full_attention")

    @property
    def rotary_dim(self) -> int:
        """How many of head_dim's dimensions are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower. `hidden_size` is always the ViT's own width (Qwen2-VL's file calls it embed_dim)."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    patch_size: int
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    in_channels: int = 3
    window_size: int = 0  # pixels; 0 = no windows
    fullatt_block_indexes: tuple[int, ...] = ()
    tokens_per_second: float = 0.0  # 0 = positions don't follow absolute time
    deepstack_visual_indexes: tuple[int, ...] = ()
    num_position_embeddings: int = 0  # 0 = no learned position table
    image_size: int = 0  # first generation only: the fixed side in pixels
    num_queries: int = 0  # first generation only: the resampler's outputs

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Width of one flattened patch: channels x time x rows x columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    family: Family
    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "bfloat16"  # how the file says it is stored
    quantization: Mapping[str, Any] | None = None  # quantization_config as published


def read_config(source: str | Path | Mapping[str, Any]) -> ModelConfig:
    """Reads a checkpoint folder, a config.json, or its already parsed content.

    Raises: ConfigError naming every unknown or missing key, or an unknown model_type.
    """
    if isinstance(source, Mapping):
        raw, where = dict(source), "config"
    else:
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        where = str(path)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as e:
            raise ConfigError(f"{where}: can't be read ({e.strerror})") from e
        except ValueError as e:
            raise ConfigError(f"{where}: not JSON ({e})") from e
        if not isinstance(raw, dict):
            raise ConfigError(f"{where}: holds a {type(raw).__name__}, not an object")
    model_type = raw.get("model_type")
    family = MODEL_TYPES.get(str(model_type))
    if family is None:
        raise ConfigError(f"{where}: model_type {model_type!r} is not known; known: {', '.join(MODEL_TYPES)}")
    return _READERS[family](family, raw, where)


class _Keys:
    """Reads keys of one JSON object and remembers which were used, so that none passes unseen."""

    def __init__(self, raw: Mapping[str, Any], where: str, ignorable: frozenset[str]):
        self.raw, self.where, self.ignorable = raw, where, ignorable
        self.seen: set[str] = set()
        self.missing: list[str] = []

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        value = self.raw.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            self.missing.append(key)
            return 1  # keeps on reading, so that all missing keys are reported at once
        return value

    def done(self) -> None:
        unknown = sorted(k for k in set(self.raw) - self.seen - self.ignorable if not k.startswith("_"))
        if self.missing:
            raise ConfigError(f"{self.where}: missing {', '.join(self.missing)}")
        if unknown:
            raise ConfigError(f"{self.where}: unknown {', '.join(unknown)}")


# Keys that every transformers config may carry and that don't change what is computed here: training
# settings, generation settings (read from generation_config.json instead), and the file's own history.
_COMMON_IGNORABLE = frozenset(
    """architectures model_type transformers_version auto_map attention_dropout initializer_range use_cache
    bos_token_id pad_token_id eos_token_id torch_dtype dtype return_dict output_hidden_states output_attentions
    output_router_logits router_aux_loss_coef torchscript use_bfloat16 pruned_heads tie_encoder_decoder
    is_encoder_decoder
    is_decoder cross_attention_hidden_size add_cross_attention chunk_size_feed_forward max_length min_length
    do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens finetuning_task
    id2label label2id tokenizer_class prefix sep_token_id decoder_start_token_id task_specific_params problem_type
    tf_legacy_loss name_or_path max_window_layers sliding_window use_sliding_window max_window_size
    image_token_id video_token_id vision_start_token_id vision_end_token_id vision_token_id quantization_config
    text_config vision_config tie_word_embeddings initializer_std""".split()
)
_VISION_IGNORABLE = _COMMON_IGNORABLE | frozenset(
    ["spatial_patch_size", "in_chans", "embed_dim", "mlp_ratio"]
)

# class values of TF 4.45-5.23 that the hub's files leave out because the class fills them in
_DEFAULT_VISION_ACT = {"qwen2_vl": "quick_gelu", "qwen2_5_vl": "silu"}


def _rope(k: _Keys) -> tuple[dict[str, Any], float]:
    """Old files: rope_theta + rope_scaling; TF 5 files: rope_parameters with both."""
    params = dict(k.get("rope_parameters", {}) or k.get("rope_scaling", {}))
    k.seen |= {"rope_parameters", "rope_scaling"}
    theta = k.get("rope_theta", params.get("rope_theta"))
    kind = params.get("rope_type", params.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ConfigError(f"{k.where}: rope type {kind!r} is not supported; known: default, mrope")
    if theta is None:
        k.missing.append("rope_theta")
        theta = 1.0
    return params, float(theta)


def _quantization(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    q = raw.get("quantization_config")
    return dict(q) if q else None


def _eos(raw: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[int, ...]:
    eos = raw.get("eos_token_id", text.get("eos_token_id"))
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (int(eos),)


def _read_qwen2_or_2_5(family: Family, raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Qwen2-VL and Qwen2.5-VL: text fields lie at the top (hub files) or in text_config (TF >= 4.52)."""
    nested = raw.get("text_config")
    text_raw: dict[str, Any] = (
        dict(nested) if nested else {k: v for k, v in raw.items() if k != "vision_config"}
    )
    k = _Keys(text_raw, f"{where} text_config" if nested else where, _COMMON_IGNORABLE | {"layer_types"})
    if nested:  # files of TF >= 4.52 repeat text fields at the top for old readers
        k_top = _Keys(raw, where, _COMMON_IGNORABLE | set(nested) | {"rope_scaling", "rope_theta"})
        k_top.done()
    kinds = set(text_raw.get("layer_types") or ["full_attention"])
    if text_raw.get("use_sliding_window") or kinds != {"full_attention"}:
        raise ConfigError(
            f"{where}: sliding-window attention is not used by any published model and not supported"
        )
    if k.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{where}: hidden_act {text_raw['hidden_act']!r}; only silu is known")
    rope, theta = _rope(k)
    heads = k.need("num_attention_heads")
    hidden = k.need("hidden_size")
    tied = raw.get("tie_word_embeddings", text_raw.get("tie_word_embeddings", False))
    text = TextConfig(
        hidden_size=hidden,
        intermediate_size=k.need("intermediate_size"),
        num_hidden_layers=k.need("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=k.need("num_key_value_heads"),
        head_dim=k.get("head_dim", hidden // heads),
        vocab_size=k.need("vocab_size"),
        max_position_embeddings=k.need("max_position_embeddings"),
        rms_norm_eps=float(k.need("rms_norm_eps")),
        rope_theta=theta,
        mrope_section=tuple(rope.get("mrope_section", ())),
        attention_bias=True,
        tie_word_embeddings=bool(tied),
    )
    k.done()
    vision = _read_vision_2(family, raw.get("vision_config") or {}, f"{where} vision_config", hidden)
    if sum(text.mrope_section) * 2 != text.rotary_dim:
        raise ConfigError(
            f"{where}: mrope_section {list(text.mrope_section)} must sum to head_dim / 2 = {text.head_dim // 2}"
        )
    return _assemble(family, raw, text_raw, text, vision)


def _read_vision_2(family: Family, raw: Mapping[str, Any], where: str, text_hidden: int) -> VisionConfig:
    k = _Keys(raw, where, _VISION_IGNORABLE)
    act = k.get("hidden_act", _DEFAULT_VISION_ACT[family])
    if act != _DEFAULT_VISION_ACT[family]:
        raise ConfigError(f"{where}: hidden_act {act!r}; {family} has {_DEFAULT_VISION_ACT[family]}")
    common: dict[str, Any] = dict(
        depth=k.get("depth", 32),
        num_heads=k.get("num_heads", 16),
        patch_size=k.get("patch_size", 14),
        spatial_merge_size=k.get("spatial_merge_size", 2),
        temporal_patch_size=k.get("temporal_patch_size", 2),
        in_channels=k.get("in_channels", k.get("in_chans", 3)),
    )
    if family == "qwen2_vl":
        # here hidden_size is the language model's width and embed_dim the tower's
        width = k.get("embed_dim", 1280)
        vision = VisionConfig(
            hidden_size=width,
            intermediate_size=int(width * k.get("mlp_ratio", 4)),
            out_hidden_size=k.get("hidden_size", text_hidden),
            **common,
        )
    else:
        vision = VisionConfig(
            hidden_size=k.need("hidden_size"),
            intermediate_size=k.need("intermediate_size"),
            out_hidden_size=k.get("out_hidden_size", text_hidden),
            window_size=k.get("window_size", 112),
            fullatt_block_indexes=tuple(k.get("fullatt_block_indexes", (7, 15, 23, 31))),
            tokens_per_second=float(
                k.get("tokens_per_second", 2)
            ),  # TF's class default 4 is in no published file
            **common,
        )
    k.done()
    if vision.out_hidden_size != text_hidden:
        raise ConfigError(
            f"{where}: tower gives {vision.out_hidden_size} features, the text model takes {text_hidden}"
        )
    return vision


def _assemble(
    family: Family,
    raw: Mapping[str, Any],
    text_raw: Mapping[str, Any],
    text: TextConfig,
    vision: VisionConfig,
) -> ModelConfig:
    return ModelConfig(
        family=family,
        text=text,
        vision=vision,
        image_token_id=raw.get("image_token_id", 151655),
        video_token_id=raw.get("video_token_id", 151656),
        vision_start_token_id=raw.get("vision_start_token_id", 151652),
        vision_end_token_id=raw.get("vision_end_token_id", 151653),
        eos_token_ids=_eos(raw, text_raw),
        dtype=str(raw.get("torch_dtype") or raw.get("dtype") or text_raw.get("torch_dtype") or "bfloat16"),
        quantization=_quantization(raw),
    )


def _not_yet(family: Family, raw: Mapping[str, Any], where: str) -> ModelConfig:
    raise ConfigError(f"{where}: {family} configs are not read yet")


_READERS = {
    "qwen_vl": _not_yet,
    "qwen2_vl": _read_qwen2_or_2_5,
    "qwen2_5_vl": _read_qwen2_or_2_5,
    "qwen3_vl": _not_yet,
    "qwen3_vl_moe": _not_yet,
    "qwen3_5": _not_yet,
    "qwen3_5_moe": _not_yet,
}
