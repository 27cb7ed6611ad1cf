"""config.json → `ModelConfig`: the exact shape of a checkpoint, for the planner and the networks alike.

Every key of a config file is read, listed as ignorable, or an error by name. A default of a transformers
class is used only where every published model agrees with it: an object built from those defaults alone is
not a real model (tokens_per_second, rms_norm_eps and the widths differ).
Sources: the published config.json files; transformers 4.57.6 and 5.23 configuration classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
    expert_inputs_first: bool = True  # fused tensors are [experts, in, out]; Qwen3.5's [experts, out, in]
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

    @cached_property  # the planner asks some thousands of times
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
    # quantization_config as published; a mapping has no hash, equality still minds it
    quantization: Mapping[str, Any] | None = field(default=None, hash=False)


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
    """Reads keys of one JSON object and remembers which were used, so that none passes unseen.

    Faults are collected and reported together by `done`; until then reading goes on with stand-ins.
    """

    def __init__(self, raw: Any, where: str, ignorable: frozenset[str]):
        self.where, self.ignorable = where, ignorable
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{where}: must be an object, is {raw!r}")
        self.raw = raw
        self.seen: set[str] = set()
        self.missing: list[str] = []
        self.wrong: list[str] = []

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is; null counts as absent."""
        self.seen.add(key)
        value = self.raw.get(key)
        return default if value is None else value

    def _number(self, key: str, default: float | None, kind: type, least: float) -> Any:
        value = self.get(key, default)
        if value is None:
            self.missing.append(key)
            return kind(1)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or kind(value) != value or value < least:
            named = "a whole number" if kind is int else "a number"
            self.wrong.append(f"{key} is {value!r}, must be {named} of at least {least:g}")
            return kind(1)
        return kind(value)

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        return int(self._number(key, default, int, least))

    def number(self, key: str, default: float | None = None) -> float:
        return float(self._number(key, default, float, 0.0))

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.wrong.append(f"{key} is {value!r}, must be true or false")
        return bool(value)

    def integers(self, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        value = self.get(key, default)
        if value is None:
            self.missing.append(key)
            return ()
        whole = isinstance(value, (list, tuple)) and all(type(v) is int and v >= 0 for v in value)
        if not whole:
            self.wrong.append(f"{key} is {value!r}, must be a list of whole numbers")
            return ()
        return tuple(value)

    def only(self, key: str, *allowed: Any) -> None:
        """For a key that may only have the values that are computed here; the first stands for an absent key."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            self.wrong.append(
                f"{key} is {value!r}, only {' or '.join(repr(a) for a in allowed)} is supported"
            )

    def require(self, holds: bool, message: str) -> None:
        if not holds and not self.missing and not self.wrong:  # stand-ins prove nothing
            self.wrong.append(message)

    def unknown(self) -> list[str]:
        return sorted(k for k in set(self.raw) - self.seen - self.ignorable if not str(k).startswith("_"))

    def done(self) -> None:
        faults = list(self.wrong)
        if self.missing:
            faults.insert(0, f"missing {', '.join(self.missing)}")
        if self.unknown():
            faults.append(f"unknown {', '.join(self.unknown())}")
        if faults:
            raise ConfigError(f"{self.where}: " + "; ".join(faults))


# What transformers 5.23 writes of the tower's rotary embedding; no release before it wrote any
VISION_ROPE = {"rope_type": "axial", "rope_theta": 10000.0}

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
# Text fields, which files with a text_config may repeat beside it; text_config's count.
_TEXT_KEYS = frozenset(
    """hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size
    max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters hidden_act layer_types""".split()
)
_VISION_IGNORABLE = _COMMON_IGNORABLE | frozenset(
    ["spatial_patch_size", "in_chans", "embed_dim", "mlp_ratio"]
)

_VISION_ACT = {"qwen2_vl": "quick_gelu", "qwen2_5_vl": "silu"}


class _Rope(NamedTuple):
    theta: float
    section: tuple[int, ...]
    interleaved: bool


def _rope(k: _Keys) -> _Rope:
    """Old files: rope_theta beside rope_scaling; TF 5 files: rope_parameters with both."""
    params = k.get("rope_parameters", k.get("rope_scaling", {}))
    k.seen |= {"rope_parameters", "rope_scaling"}
    inner = _Keys(
        params, f"{k.where} rope_parameters", frozenset(["type", "rope_type", "partial_rotary_factor"])
    )
    inner.missing, inner.wrong = k.missing, k.wrong  # reported together with k's
    kind = inner.get("rope_type", inner.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ConfigError(f"{k.where}: rope type {kind!r} is not supported; known: default, mrope")
    rope = _Rope(
        theta=inner.number("rope_theta", k.get("rope_theta")),
        section=inner.integers("mrope_section", ()),
        interleaved=inner.flag("mrope_interleaved", False),
    )
    k.wrong += [f"unknown {key} in rope_parameters" for key in inner.unknown()]
    return rope


def _tied(raw: Mapping[str, Any], text_raw: Mapping[str, Any]) -> bool:
    """Nested files may hold two flags that differ: the one that the writing transformers obeyed is right.

    Version 4 obeyed text_config's, and its class default of true could end up at the top of an untied
    model's file; version 5 obeys the top one.
    """
    top, nested = raw.get("tie_word_embeddings"), text_raw.get("tie_word_embeddings")
    if nested is not None and str(raw.get("transformers_version", "")).startswith("4."):
        return bool(nested)
    return bool(top if top is not None else nested)


def _quantization(raw: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
    q = raw.get("quantization_config")
    if q is not None and not isinstance(q, Mapping):
        raise ConfigError(f"{where}: quantization_config must be an object, is {q!r}")
    return dict(q) if q else None


def _eos(raw: Mapping[str, Any], text: Mapping[str, Any], where: str) -> tuple[int, ...]:
    eos = raw.get("eos_token_id", text.get("eos_token_id"))
    ids = eos if isinstance(eos, list) else [eos]
    if eos is not None and not all(type(i) is int for i in ids):
        raise ConfigError(f"{where}: eos_token_id is {eos!r}, must be a token id or a list of them")
    return () if eos is None else tuple(ids)


def _text_object(raw: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], str]:
    """Text fields lie at the top (hub files of Qwen2-VL and Qwen2.5-VL) or in text_config (TF >= 4.52)."""
    nested = raw.get("text_config")
    if not nested:
        return {k: v for k, v in raw.items() if k != "vision_config"}, where
    if not isinstance(nested, Mapping):
        raise ConfigError(f"{where}: text_config must be an object, is {nested!r}")
    _Keys(raw, where, _COMMON_IGNORABLE | _TEXT_KEYS).done()
    return nested, f"{where} text_config"


def _read_qwen2_or_2_5(family: Family, raw: Mapping[str, Any], where: str) -> ModelConfig:
    text_raw, text_where = _text_object(raw, where)
    k = _Keys(text_raw, text_where, _COMMON_IGNORABLE)
    kinds = k.get("layer_types", [])
    if k.get("use_sliding_window") or any(kind != "full_attention" for kind in kinds):
        k.wrong.append("sliding-window attention is in no published model and not supported")
    k.only("hidden_act", "silu")
    rope = _rope(k)
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
        tie_word_embeddings=_tied(raw, text_raw),
    )
    _check_text(k, text)
    k.done()
    vision = _read_vision_2(family, raw.get("vision_config") or {}, f"{where} vision_config", hidden)
    return _assemble(family, raw, text_raw, text, vision, where)


def _check_text(k: _Keys, text: TextConfig) -> None:
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    k.require(heads % kv_heads == 0, f"{heads} heads can't share {kv_heads} key/value heads evenly")
    # each section turns that many pairs of dimensions
    k.require(
        2 * sum(text.mrope_section) == text.rotary_dim,
        f"mrope_section {list(text.mrope_section)} must sum to {text.rotary_dim // 2}, half the rotated "
        f"{text.rotary_dim} of {text.head_dim} dimensions",
    )
    k.require(len(text.mrope_section) == 3, f"mrope_section {list(text.mrope_section)} must have 3 parts")


def _read_vision_2(family: Family, raw: Any, where: str, text_hidden: int) -> VisionConfig:
    """The tower of Qwen2-VL or Qwen2.5-VL.

    The defaults below are what every published model has, so that some files leave them out; a field in
    which models differ, or where a class default isn't what was trained, has none.
    """
    k = _Keys(raw, where, _VISION_IGNORABLE)
    k.only("hidden_act", _VISION_ACT[family])
    k.only("rope_parameters", VISION_ROPE)
    common: dict[str, Any] = dict(
        depth=k.integer("depth", 32),
        num_heads=k.integer("num_heads", 16),
        patch_size=k.integer("patch_size", 14),
        spatial_merge_size=k.integer("spatial_merge_size", 2),
        temporal_patch_size=k.integer("temporal_patch_size", 2),
        in_channels=k.integer("in_channels", k.integer("in_chans", 3)),
    )
    if family == "qwen2_vl":
        # here hidden_size is the language model's width and embed_dim the tower's
        width = k.integer("embed_dim", 1280)
        vision = VisionConfig(
            hidden_size=width,
            intermediate_size=int(width * k.number("mlp_ratio", 4)),
            out_hidden_size=k.integer("hidden_size", text_hidden),
            **common,
        )
    else:
        vision = VisionConfig(
            hidden_size=k.integer("hidden_size"),
            intermediate_size=k.integer("intermediate_size"),
            out_hidden_size=k.integer("out_hidden_size", text_hidden),
            window_size=k.integer("window_size", 112),
            fullatt_block_indexes=k.integers("fullatt_block_indexes", (7, 15, 23, 31)),
            tokens_per_second=k.number("tokens_per_second"),  # a class default is 4, every hub file says 2
            **common,
        )
        unit = vision.patch_size * vision.spatial_merge_size
        k.require(
            vision.window_size % unit == 0,
            f"window_size {vision.window_size} is not a whole number of {unit}-pixel units",
        )
        k.require(
            max(vision.fullatt_block_indexes, default=0) < vision.depth,
            f"fullatt_block_indexes {list(vision.fullatt_block_indexes)} go past depth {vision.depth}",
        )
    _check_vision(k, vision, text_hidden)
    k.done()
    return vision


def _check_vision(k: _Keys, vision: VisionConfig, text_hidden: int) -> None:
    k.require(
        vision.hidden_size % (4 * vision.num_heads) == 0,
        f"width {vision.hidden_size} must be {vision.num_heads} heads x a multiple of 4 (rows and columns, "
        "each rotated in pairs)",
    )
    k.require(
        vision.out_hidden_size == text_hidden,
        f"the tower gives features of {vision.out_hidden_size}, the text model takes {text_hidden}",
    )


def _assemble(
    family: Family,
    raw: Mapping[str, Any],
    text_raw: Mapping[str, Any],
    text: TextConfig,
    vision: VisionConfig,
    where: str,
) -> ModelConfig:
    ids = _Keys(raw, where, frozenset(raw))  # every other key was accounted for before
    config = ModelConfig(
        family=family,
        text=text,
        vision=vision,
        image_token_id=ids.integer("image_token_id", 151655, least=0),
        video_token_id=ids.integer("video_token_id", 151656, least=0),
        vision_start_token_id=ids.integer("vision_start_token_id", 151652, least=0),
        vision_end_token_id=ids.integer("vision_end_token_id", 151653, least=0),
        eos_token_ids=_eos(raw, text_raw, where),
        dtype=str(
            raw.get("torch_dtype")
            or raw.get("dtype")
            or text_raw.get("torch_dtype")
            or text_raw.get("dtype")
            or "bfloat16"
        ),
        quantization=_quantization(raw, where),
    )
    ids.done()
    return config


def _read_later(family: Family, raw: Mapping[str, Any], where: str) -> ModelConfig:
    """The other generations; their file imports this one, so it is found when it is needed."""
    from qvl.catalog.config_later import read

    return read(family, raw, where)


_READERS = {
    "qwen_vl": _read_later,
    "qwen2_vl": _read_qwen2_or_2_5,
    "qwen2_5_vl": _read_qwen2_or_2_5,
    "qwen3_vl": _read_later,
    "qwen3_vl_moe": _read_later,
    "qwen3_5": _read_later,
    "qwen3_5_moe": _read_later,
}
