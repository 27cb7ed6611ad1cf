"""Reading a config.json key by key, so that none passes unseen; and what the generations' readers share.

A key that is not known is passed over and named, as trainers write their own into every file. Only what is known to
change the computation (`REFUSED`) is an error.

A default of a transformers class is used only where every published model agrees with it: an object built from
those defaults alone is not a real model (tokens_per_second, rms_norm_eps and the widths differ).
Sources: the published config.json files; transformers 4.57.6 and 5.23 configuration classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from qvl.catalog.generations.generation import Generation, ModelConfig
from qvl.catalog.generations.shape import TextConfig, VisionConfig
from qvl.errors import ConfigError
from qvl.records import shown

# No model has a tenth of these. Tensors are listed by layer and expert, so a config could ask for any amount of time.
_MOST = 1 << 31
MOST = dict.fromkeys(("num_hidden_layers", "depth", "layers"), 2048) | {"num_experts": 4096}
_MOST_EXPERTS = 1 << 18  # of all layers together

_unread: ContextVar[list[str]] = ContextVar("unread")


@contextmanager
def collect_unread() -> Iterator[list[str]]:
    """The keys that readers pass over inside the block, each with the object that holds it."""
    found: list[str] = []
    token = _unread.set(found)
    try:
        yield found
    finally:
        _unread.reset(token)


class Keys:
    """Reads keys of one JSON object and remembers which were used, so that none passes unseen.

    Faults are collected and reported together by `done`; until then reading goes on with stand-ins.
    """

    def __init__(self, raw: Any, where: str, ignorable: frozenset[str], inside: str = ""):
        """inside: the object of the file that these keys are of, as `text_config`; empty at the top."""
        self.where, self.ignorable, self.inside = where, ignorable, inside
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{where}: must be an object, is {shown(raw)}")
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
        most = MOST.get(key, _MOST)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not least <= value <= most or kind(value) != value:  # NaN fails the comparison
            named = "a whole number" if kind is int else "a number"
            bound = f"at most {most:,}" if number and value > most else f"at least {least:g}"
            self.wrong.append(f"{key} is {shown(value)}, must be {named} of {bound}")
            return kind(1)
        return kind(value)

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        return int(self._number(key, default, int, least))

    def number(self, key: str, default: float | None = None) -> float:
        return float(self._number(key, default, float, 0.0))

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.wrong.append(f"{key} is {shown(value)}, must be true or false")
        return bool(value)

    def integers(self, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        value = self.get(key, default)
        if value is None:
            self.missing.append(key)
            return ()
        whole = isinstance(value, (list, tuple)) and len(value) <= MOST["depth"]
        if not whole or not all(type(v) is int and 0 <= v <= _MOST for v in value):
            self.wrong.append(f"{key} is {shown(value)}, must be a list of whole numbers")
            return ()
        return tuple(value)

    def only(self, key: str, *allowed: Any) -> None:
        """For a key that may only have the values that are computed here; the first stands for an absent key."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            self.wrong.append(
                f"{key} is {shown(value)}, only {' or '.join(repr(a) for a in allowed)} is supported"
            )

    def require(self, holds: bool, message: str) -> None:
        if not holds and not self.missing and not self.wrong:  # stand-ins prove nothing
            self.wrong.append(message)

    def unknown(self) -> list[str]:
        return sorted(k for k in set(self.raw) - self.seen - self.ignorable if not str(k).startswith("_"))

    def pass_over(self) -> None:
        """Refuses unknown keys that change the computation, and notes the others."""
        unknown = self.unknown()
        if changing := [key for key in unknown if key in REFUSED and _is_on(self.raw[key])]:
            named = ", ".join(f"{key} {shown(self.raw[key])}" for key in changing)
            self.wrong.append(f"{named} changes what is computed, and is not supported")
        prefix = f"{self.inside}." if self.inside else ""
        _unread.get([]).extend(prefix + key for key in unknown if key not in changing)

    def done(self) -> None:
        self.pass_over()
        faults = list(self.wrong)
        if self.missing:
            faults.insert(0, f"missing {', '.join(self.missing)}")
        if faults:
            raise ConfigError(f"{self.where}: " + "; ".join(faults))


def _is_on(value: Any) -> bool:
    """A factor of one and whatever is empty or false change nothing."""
    return bool(value) and (isinstance(value, bool) or value != 1)


# Keys by which decoders and towers of other models, or other generations of this family, compute something else
# without having other tensors. What shows in the tensors is found when these are compared.
# Source: the configuration classes of transformers 5.24.
REFUSED = frozenset(
    """attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar logit_scale logits_scaling
    embedding_multiplier residual_multiplier attention_multiplier lm_head_multiplier scale_depth scale_emb
    dim_model_base sliding_window_pattern attention_chunk_size no_rope_layers no_rope_layer_interval
    rope_local_base_freq global_rope_theta local_rope_theta use_parallel_residual parallel_attn alibi
    position_embedding_type clip_qkv use_logn_attn use_dynamic_ntk swiglu_limit scoring_func
    routed_scaling_factor n_group topk_group topk_method window_size fullatt_block_indexes tokens_per_second
    partial_rotary_factor norm_topk_prob mrope_interleaved full_attention_interval attn_output_gate
    use_bidirectional_attention vision_feature_layer vision_feature_select_strategy
    downsample_ratio""".split()
)


# What transformers 5.23 writes of the tower's rotary embedding; no release before it wrote any
VISION_ROPE = {"rope_type": "axial", "rope_theta": 10000.0}

# Keys that every transformers config may carry and that don't change what is computed here: training
# settings, generation settings (read from generation_config.json instead), and the file's own history.
COMMON_IGNORABLE = frozenset(
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
VISION_IGNORABLE = COMMON_IGNORABLE | frozenset(["spatial_patch_size", "in_chans", "embed_dim", "mlp_ratio"])


class Rope(NamedTuple):
    theta: float
    section: tuple[int, ...]
    interleaved: bool


def read_rope(k: Keys) -> Rope:
    """Old files: rope_theta beside rope_scaling; TF 5 files: rope_parameters with both."""
    params = k.get("rope_parameters", k.get("rope_scaling", {}))
    k.seen |= {"rope_parameters", "rope_scaling"}
    inner = Keys(
        params,
        f"{k.where} rope_parameters",
        frozenset(["type", "rope_type", "partial_rotary_factor"]),
        f"{k.inside}.rope_parameters".removeprefix("."),
    )
    inner.missing, inner.wrong = k.missing, k.wrong  # reported together with k's
    kind = inner.get("rope_type", inner.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ConfigError(f"{k.where}: rope type {shown(kind)} is not supported; known: default, mrope")
    rope = Rope(
        theta=inner.number("rope_theta", k.get("rope_theta")),
        section=inner.integers("mrope_section", ()),
        interleaved=inner.flag("mrope_interleaved", False),
    )
    inner.pass_over()
    return rope


def read_tied(raw: Mapping[str, Any], text_raw: Mapping[str, Any]) -> bool:
    """Nested files may hold two flags that differ: the one that the writing transformers obeyed is right.

    Version 4 obeyed text_config's, and its class default of true could end up at the top of an untied
    model's file; version 5 obeys the top one.
    """
    top, nested = raw.get("tie_word_embeddings"), text_raw.get("tie_word_embeddings")
    if nested is not None and str(raw.get("transformers_version", "")).startswith("4."):
        return bool(nested)
    return bool(top if top is not None else nested)


def read_quantization(raw: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
    q = raw.get("quantization_config")
    if q is not None and not isinstance(q, Mapping):
        raise ConfigError(f"{where}: quantization_config must be an object, is {shown(q)}")
    return dict(q) if q else None


def _eos(raw: Mapping[str, Any], text: Mapping[str, Any], where: str) -> tuple[int, ...]:
    eos = raw.get("eos_token_id", text.get("eos_token_id"))
    ids = eos if isinstance(eos, list) else [eos]
    if eos is not None and not all(type(i) is int for i in ids):
        raise ConfigError(f"{where}: eos_token_id is {shown(eos)}, must be a token id or a list of them")
    return () if eos is None else tuple(ids)


def text_object(raw: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], str]:
    """Text fields lie at the top (hub files of Qwen2-VL and Qwen2.5-VL) or in text_config (TF >= 4.52)."""
    nested = raw.get("text_config")
    if not nested:
        return {k: v for k, v in raw.items() if k != "vision_config"}, where
    if not isinstance(nested, Mapping):
        raise ConfigError(f"{where}: text_config must be an object, is {shown(nested)}")
    Keys(raw, where, COMMON_IGNORABLE | _TEXT_KEYS).done()
    return nested, f"{where} text_config"


def check_text(k: Keys, text: TextConfig) -> None:
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    k.require(heads % kv_heads == 0, f"{heads} heads can't share {kv_heads} key/value heads evenly")
    # each section turns that many pairs of dimensions
    k.require(
        2 * sum(text.mrope_section) == text.rotary_dim,
        f"mrope_section {list(text.mrope_section)} must sum to {text.rotary_dim // 2}, half the rotated "
        f"{text.rotary_dim} of {text.head_dim} dimensions",
    )
    k.require(
        text.num_hidden_layers * text.num_experts <= _MOST_EXPERTS,
        f"{text.num_hidden_layers} layers of {text.num_experts} experts are more than {_MOST_EXPERTS:,}",
    )
    k.require(text.rope_theta >= 1, f"rope_theta is {text.rope_theta:g}, must be at least 1")
    k.require(len(text.mrope_section) == 3, f"mrope_section {list(text.mrope_section)} must have 3 parts")


def check_vision(k: Keys, vision: VisionConfig, text_hidden: int) -> None:
    k.require(
        vision.hidden_size % (4 * vision.num_heads) == 0,
        f"width {vision.hidden_size} must be {vision.num_heads} heads x a multiple of 4 (rows and columns, "
        "each rotated in pairs)",
    )
    k.require(
        vision.out_hidden_size == text_hidden,
        f"the tower gives features of {vision.out_hidden_size}, the text model takes {text_hidden}",
    )


def assemble(
    generation: Generation,
    raw: Mapping[str, Any],
    text_raw: Mapping[str, Any],
    text: TextConfig,
    vision: VisionConfig,
    where: str,
) -> ModelConfig:
    ids = Keys(raw, where, frozenset(raw))  # every other key was accounted for before
    config = ModelConfig(
        generation=generation,
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
        quantization=read_quantization(raw, where),
    )
    ids.done()
    return config
