"""quantization_config → which linear layers are stored quantised, and as which tensors.

The planner's linter and the loader read the same `Quantization`. Names are the networks' own
(`model.layers.0.mlp.up_proj`, `visual.…`, `lm_head`); lists in a config may be written in either layout.
Sources: the published configs and files; compressed-tensors 0.17, AutoAWQ 0.2.9, AutoGPTQ and GPTQModel for
what their keys mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, NamedTuple

from qvl.errors import ConfigError
from qvl.records import shown

# how the tensors of one linear are laid out; each has a reader in models/quantized/
Format = Literal["awq", "gptq", "pack-quantized", "int-quantized", "fp8"]

_SIXTEEN = ("F16", "BF16", "F32")
# routers, and the narrow projections of linear attention, which the usual recipes spare too
_SPARED = ("mlp.gate", "mlp.shared_expert_gate", "linear_attn.in_proj_a", "linear_attn.in_proj_b")


class Part(NamedTuple):
    """One tensor of a quantised linear, as a file's header describes it."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True)
class Scheme:
    """How one linear is stored. `group_size` inputs share a scale; 0 means all inputs of a row do.

    `block`: rows x columns that share a scale (FP8); a 0 in it means the whole side.
    `zero_offset`: what is added to a stored zero point (GPTQ's first format stores zero - 1).
    """

    format: Format
    bits: int
    group_size: int = 0
    symmetric: bool = False
    act_order: bool = False
    zero_offset: int = 0
    block: tuple[int, int] = (0, 0)
    scale_name: str = "weight_scale"
    quantized_inputs: bool = False  # activations become int8 for each token as they come

    def num_groups(self, in_features: int) -> int:
        return ceil(in_features / self.group_size) if self.group_size else 1

    def parts(self, out_features: int, in_features: int) -> dict[str, Part]:
        """The tensors of an out x in linear, by the last part of their names; a bias comes beside them."""
        out, inn, bits, groups = out_features, in_features, self.bits, self.num_groups(in_features)
        if self.format == "awq":
            return {
                "qweight": Part((inn, out * bits // 32), ("I32",)),
                "qzeros": Part((groups, out * bits // 32), ("I32",)),
                "scales": Part((groups, out), _SIXTEEN),
            }
        if self.format == "gptq":
            return {
                "qweight": Part((inn * bits // 32, out), ("I32",)),
                "qzeros": Part((groups, out * bits // 32), ("I32",)),
                "scales": Part((groups, out), _SIXTEEN),
                "g_idx": Part((inn,), ("I32",), required=self.act_order),
            }
        if self.format == "pack-quantized":
            per_word = 32 // bits
            parts = {
                "weight_packed": Part((out, ceil(inn / per_word)), ("I32",)),
                "weight_scale": Part((out, groups), _SIXTEEN),
                "weight_shape": Part((2,), ("I64", "I32"), required=False),
                "weight_g_idx": Part((inn,), ("I32",), required=self.act_order),
            }
            if not self.symmetric:
                parts["weight_zero_point"] = Part((ceil(out / per_word), groups), ("I32",))
            return parts
        if self.format == "int-quantized":
            return {"weight": Part((out, inn), ("I8",)), "weight_scale": Part((out, 1), _SIXTEEN)}
        rows, columns = (ceil(side / step) if step else 1 for side, step in zip((out, inn), self.block))
        return {
            "weight": Part((out, inn), ("F8_E4M3",)),
            self.scale_name: Part((rows, columns) if any(self.block) else (1,), _SIXTEEN),
        }

    def fused_parts(self, name: str, shape: tuple[int, ...]) -> dict[str, Part]:
        """All experts' matrices in one FP8 tensor (E, rows, columns) with a grid of scales for each."""
        grid = tuple(ceil(side / step) if step else 1 for side, step in zip(shape[1:], self.block))
        return {name: Part(shape, ("F8_E4M3",)), f"{name}_scale_inv": Part((shape[0], *grid), _SIXTEEN)}

    def misfit(self, out_features: int, in_features: int) -> str | None:
        """Why an out x in linear can't be stored this way, or None."""
        if self.format in ("awq", "gptq") and out_features * self.bits % 32:
            return f"{out_features} outputs of {self.bits} bits don't fill 32-bit words"
        if self.format == "gptq" and in_features * self.bits % 32:
            return f"{in_features} inputs of {self.bits} bits don't fill 32-bit words"
        # only GPTQ lets the last group be short
        if self.format != "gptq" and self.group_size and in_features % self.group_size:
            return f"{in_features} inputs are no whole groups of {self.group_size}"
        return None


@dataclass(frozen=True)
class Quantization:
    """What a quantization_config says. `scheme_of(name)` is None for a linear that stays as it is."""

    method: str
    patterns: tuple[str, ...]  # modules left unquantised, as the config writes them
    _scheme_of: Callable[[str], Scheme | None]
    by_name: bool = (
        False  # a pattern that names one module of a layer leaves out that module, not those inside it
    )

    def scheme_of(self, module: str) -> Scheme | None:
        """For the linear of this canonical name. Ask only for linear layers: norms and tables never are."""
        return None if self.ignores(module) else self._scheme_of(module)

    def ignores(self, module: str) -> bool:
        """Whether the config's list of exceptions names this module."""
        return any(
            pattern in spellings(module)
            if self.by_name and _OF_LAYER.search(pattern) and not pattern.startswith("re:")
            else matches(pattern, module)
            for pattern in self.patterns
        )


_OF_LAYER = re.compile(r"\.\d+\.")


def spellings(module: str) -> tuple[str, ...]:
    """The names one module has in published files and configs, the network's own first.

    The flat layout, the nested one (transformers' own module tree since 4.52), and the first generation's.
    """
    if module.startswith("visual."):
        return module, f"model.{module}", f"transformer.{module}"
    if module.startswith("model.h."):
        return module, f"transformer.{module.removeprefix('model.')}"
    if module.startswith("model."):
        return module, f"model.language_model.{module.removeprefix('model.')}"
    return (module,)


def matches(pattern: str, module: str) -> bool:
    """Whether a pattern of a config covers a module in either spelling.

    "re:…" is a regular expression matched from the start; anything else is a run of whole name parts, so that
    "visual" covers the tower and "mlp.gate" the router but not mlp.gate_proj.
    """
    if pattern.startswith("re:"):
        return any(re.match(pattern[3:], name) for name in spellings(module))
    inside = f".{pattern.strip('.')}."
    return any(inside in f".{name}." for name in spellings(module))


def read_quantization(config: Mapping[str, Any] | None) -> Quantization | None:
    """A config's quantization_config, or None where there is none.

    Raises: ConfigError for a method or a variant that can't be read, saying what can be done.
    """
    if not config:
        return None
    method = str(config.get("quant_method", ""))
    method = "modelopt" if method.startswith("modelopt_") else method
    if method in _REFUSED:
        raise ConfigError(f"quant_method {config['quant_method']}: {_REFUSED[method]}")
    reader = _READERS.get(method)
    if reader is None:
        raise ConfigError(
            f"quant_method {shown(method)} can't be read; known: {', '.join(_READERS)}. Take the original checkpoint, "
            "or one quantised by a known method"
        )
    return reader(config)


_OTHERWISE = "take the AWQ, GPTQ, FP8 or compressed-tensors version of the model, or the original weights"
_REFUSED = {
    "bitsandbytes": "its packed tensors follow the kernels of the bitsandbytes library and its version, and no "
    f"layout of them is published; {_OTHERWISE}",
    "modelopt": f"NVIDIA ModelOpt's FP8 and NVFP4 layouts aren't read, vLLM and SGLang run them; {_OTHERWISE}",
    "mxfp4": f"the layout of MXFP4 isn't read, vLLM and SGLang run it; {_OTHERWISE}",
    "auto-round": f"AutoRound's own layout isn't read; its auto_gptq and auto_awq exports are; {_OTHERWISE}",
    "gguf": "llama.cpp's format; run it with llama.cpp, or take the safetensors checkpoint",
}


def _integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if type(value) is not int:
        raise ConfigError(f"quantization_config: {key} must be a whole number, is {shown(value)}")
    return value


def _choice(config: Mapping[str, Any], key: str, known: Iterable[Any], default: Any) -> Any:
    value = config.get(key)
    value = default if value is None else value
    value = value.lower() if isinstance(value, str) else value
    if value not in known:
        raise ConfigError(
            f"quantization_config: {key} {shown(value)} can't be read; known: "
            f"{', '.join(map(str, known))}; {_OTHERWISE}"
        )
    return value


def _names(config: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    found: list[str] = []
    for key in keys:
        value = config.get(key) or []
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"quantization_config: {key} must be a list of names, is {shown(value)}")
        found += value
    for pattern in found:
        check_pattern(pattern)
    return tuple(found)


# Quantisers write names with up to three of `.*`; a regular expression has no other bound on its time.
_MOST_REPEATS = 5
_LITERAL = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]")  # an escaped character or a class
_REPEATS = re.compile(r"[*+]|\{\d*,\d*\}")
_NESTED = re.compile(r"(?:[*+]|\{\d*,?\d*\})[?+]?[^(]*\)+(?:[*+]|\{)")


def check_pattern(pattern: str) -> None:
    """Of `re:` patterns. Raises: ConfigError for one that can't be read or could take for ever."""
    if not pattern.startswith("re:"):
        return
    try:
        re.compile(pattern[3:])
    except (re.error, RecursionError, OverflowError) as e:
        raise ConfigError(f"quantization_config: {shown(pattern)} is no regular expression ({e})") from e
    plain = _LITERAL.sub("a", pattern[3:])
    if len(pattern) > 2000 or _NESTED.search(plain) or len(_REPEATS.findall(plain)) > _MOST_REPEATS:
        raise ConfigError(
            f"quantization_config: {shown(pattern)} repeats what repeats, or more than {_MOST_REPEATS} parts: it could "
            "take for ever on a tensor's name"
        )


def _group_size(value: int, where: str = "group_size") -> int:
    if value == -1:
        return 0
    if value < 1:
        raise ConfigError(
            f"quantization_config: {where} is {value}, must be at least 1, or -1 for whole rows"
        )
    return value


def in_decoder(module: str) -> bool:
    """AWQ and GPTQ quantise the decoder's linears: neither the tower, nor the head, nor routers and other narrow ones.

    plan.parameters counts the same ones as `quantized`.
    """
    return not (matches("visual", module) or module == "lm_head" or any(matches(n, module) for n in _SPARED))


def _read_awq(config: Mapping[str, Any]) -> Quantization:
    for key in ("version", "checkpoint_format", "format"):  # GPTQModel writes the later ones
        _choice(config, key, ("gemm",), "gemm")
    scheme = Scheme(
        "awq",
        bits=_choice(config, "bits", (4,), config.get("w_bit", 4)),
        group_size=_group_size(_integer(config, "group_size", config.get("q_group_size"))),
        symmetric=not _choice(config, "zero_point", (True,), True),
    )
    patterns = _names(config, "modules_to_not_convert")
    return Quantization("awq", patterns, lambda module: scheme if in_decoder(module) else None)


def _read_gptq(config: Mapping[str, Any]) -> Quantization:
    """`dynamic`: pattern → changed settings; a pattern that starts with "-:" leaves its modules unquantised."""
    # GPTQModel writes one of two keys or both; its other formats and words are of kernels that this isn't
    keys = [key for key in ("checkpoint_format", "format") if config.get(key) is not None]
    formats = {_choice(config, key, ("gptq", "gptq_v2"), "gptq") for key in keys}
    if len(formats) > 1:
        raise ConfigError("quantization_config: checkpoint_format and format contradict each other")
    version = formats.pop() if formats else "gptq"
    _choice(config, "pack_dtype", ("int32",), "int32")
    head = bool(config.get("lm_head"))
    inside = _block_names(config.get("modules_in_block_to_quantize"))

    def scheme(settings: Mapping[str, Any]) -> Scheme:
        return Scheme(
            "gptq",
            bits=_choice(settings, "bits", (2, 3, 4, 8), None),
            group_size=_group_size(_integer(settings, "group_size")),
            symmetric=bool(settings.get("sym", True)),
            act_order=bool(settings.get("desc_act", False)),
            zero_offset=int(version == "gptq"),
        )

    usual = scheme(config)
    dynamic: list[tuple[str, Scheme | None]] = []
    rules = config.get("dynamic") or {}
    if not isinstance(rules, Mapping) or not all(isinstance(r, Mapping) for r in rules.values() if r):
        raise ConfigError(f"quantization_config: dynamic must map patterns to settings, is {shown(rules)}")
    for key, changed in rules.items():
        pattern = "re:" + key.removeprefix("-:").removeprefix("+:")
        check_pattern(pattern)
        dynamic.append((pattern, None if key.startswith("-:") else scheme({**config, **(changed or {})})))

    def scheme_of(module: str) -> Scheme | None:
        if not in_decoder(module) and not (head and module == "lm_head"):
            return None
        if inside and module != "lm_head" and not any(matches(name, module) for name in inside):
            return None
        return next((found for pattern, found in dynamic if matches(pattern, module)), usual)

    return Quantization("gptq", _names(config, "modules_to_not_convert"), scheme_of)


def _block_names(listed: Any) -> list[str]:
    """modules_in_block_to_quantize: a list of names or of lists of names; quantisers wrote both."""
    names = []
    for part in listed if isinstance(listed, list) else [] if listed is None else [listed]:
        names += part if isinstance(part, list) else [part]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"quantization_config: modules_in_block_to_quantize must be lists of names, is {shown(listed)}"
        )
    return names


def _read_fp8(config: Mapping[str, Any]) -> Quantization:
    _choice(config, "activation_scheme", ("dynamic",), "dynamic")
    _choice(config, "fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
    block = config.get("weight_block_size")
    if not (isinstance(block, list) and len(block) == 2 and all(type(b) is int and b > 0 for b in block)):
        raise ConfigError(
            f"quantization_config: weight_block_size {shown(block)} can't be read; published FP8 checkpoints of this "
            f"family have [128, 128]; {_OTHERWISE}"
        )
    scheme = Scheme("fp8", bits=8, block=(block[0], block[1]), scale_name="weight_scale_inv")
    patterns = _names(config, "modules_to_not_convert", "ignored_layers")
    return Quantization("fp8", patterns, lambda module: scheme)


def _read_compressed(config: Mapping[str, Any]) -> Quantization:
    if config.get("quantization_status", "compressed") != "compressed":
        raise ConfigError(
            f"quantization_config: quantization_status {config['quantization_status']!r}: the weights were never "
            "compressed; save the model with save_compressed=True"
        )
    if config.get("kv_cache_scheme"):
        raise ConfigError(
            f"quantization_config: a kv_cache_scheme (quantised KV cache) can't be read; {_OTHERWISE}"
        )
    for key in ("transform_config", "sparsity_config"):
        if (value := config.get(key)) and not (isinstance(value, Mapping) and value.get("format") == "dense"):
            raise ConfigError(
                f"quantization_config: {key} {shown(value)} changes what the weights mean, and can't be read; "
                f"{_OTHERWISE}"
            )
    groups: list[tuple[tuple[str, ...], Scheme]] = []
    named = config.get("config_groups")
    if not isinstance(named, Mapping) or not named:
        raise ConfigError("quantization_config: compressed-tensors needs config_groups")
    for name, group in named.items():
        if not isinstance(group, Mapping):
            raise ConfigError(
                f"quantization_config: config_groups {name} must be an object, is {shown(group)}"
            )
        groups.append((_names(group, "targets"), _compressed_scheme(name, group, config)))

    def scheme_of(module: str) -> Scheme | None:
        # a target that names modules goes before one that names the class
        for exact in (True, False):
            for targets, scheme in groups:
                if any(matches(t, module) if exact else t == "Linear" for t in targets):
                    return scheme
        return None

    return Quantization("compressed-tensors", _names(config, "ignore"), scheme_of, by_name=True)


def _compressed_scheme(name: str, group: Mapping[str, Any], config: Mapping[str, Any]) -> Scheme:
    weights, inputs = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, Mapping):
        raise ConfigError(f"quantization_config: config_groups {name} has no weights")
    kind, bits = weights.get("type", "int"), weights.get("num_bits")
    strategy, symmetric = weights.get("strategy"), bool(weights.get("symmetric", True))
    layout = group.get("format") or config.get("format")
    what = f"{layout} with {bits}-bit {kind} weights by {strategy}"
    refusal = ConfigError(
        f"quantization_config: config_groups {name}: {what} can't be read; known: pack-quantized int4 and int8 by "
        "group or channel (W4A16, W8A16), int-quantized int8 by channel with inputs by token (W8A8), "
        f"float-quantized e4m3 by channel, tensor or block; {_OTHERWISE}"
    )
    if inputs is not None and not isinstance(inputs, Mapping):
        raise refusal
    if layout == "pack-quantized" and kind == "int" and bits in (4, 8) and strategy in ("group", "channel"):
        if inputs:
            raise refusal
        return Scheme(
            "pack-quantized",
            bits=bits,
            group_size=_group_size(_integer(weights, "group_size")) if strategy == "group" else 0,
            symmetric=symmetric,
            act_order=weights.get("actorder") in ("group", "dynamic"),
        )
    if layout == "int-quantized" and (kind, bits, strategy, symmetric) == ("int", 8, "channel", True):
        if inputs and not (
            inputs.get("num_bits") == 8
            and inputs.get("dynamic")
            and inputs.get("strategy") == "token"
            and inputs.get("symmetric", True)
        ):
            raise refusal
        return Scheme("int-quantized", bits=8, symmetric=True, quantized_inputs=bool(inputs))
    if layout == "float-quantized" and (kind, bits) == ("float", 8):
        if strategy == "block":
            block = weights.get("block_structure")
            if not (
                isinstance(block, list) and len(block) == 2 and all(type(b) is int and b > 0 for b in block)
            ):
                raise refusal
            return Scheme("fp8", bits=8, block=(block[0], block[1]))
        if strategy in ("channel", "tensor"):
            return Scheme("fp8", bits=8, block=(1, 0) if strategy == "channel" else (0, 0))
    raise refusal


_READERS: dict[str, Callable[[Mapping[str, Any]], Quantization]] = {
    "awq": _read_awq,
    "gptq": _read_gptq,
    "compressed-tensors": _read_compressed,
    "fp8": _read_fp8,
}
