"""The variants that quantisers write today: each is read for what it is, or refused by name.

Configs as llm-compressor 0.9 with compressed-tensors 0.17, GPTQModel 7 and ModelOpt 0.39 write them.
"""

from __future__ import annotations

from typing import Any

import pytest

from qvl.checkpoint.quantization import read_quantization
from qvl.errors import ConfigError

UP, MIXED, NARROW = (
    f"model.layers.0.{part}" for part in ("mlp.up_proj", "linear_attn.in_proj_qkv", "linear_attn.in_proj_b")
)
QKV, HEAD = "visual.blocks.0.attn.qkv", "lm_head"
TOKENS = {"num_bits": 8, "dynamic": True, "strategy": "token", "symmetric": True}


def weights(**changes: Any) -> dict[str, Any]:
    usual = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128, "symmetric": True}
    usual |= {
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": "mse",
        "observer_kwargs": {},
    }
    return usual | {"scale_dtype": None, "zp_dtype": "torch.int8"} | changes


def compressed(form: str, group: dict[str, Any], inputs: Any = None, **changes: Any) -> dict[str, Any]:
    named = {"targets": ["Linear"], "weights": group, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**named, "format": form}},
        "ignore": ["lm_head", "re:.*visual.*"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.17.1",
        "global_compression_ratio": None,
        **changes,
    }


FLOAT8 = {"type": "float", "num_bits": 8, "group_size": None}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
GPTQ |= {"pack_dtype": "int32", "meta": {"quantizer": ["gptqmodel:7.0.0"]}, "dynamic": {}, "method": "gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}

READ: dict[str, tuple[dict[str, Any], tuple[str, int, bool, int]]] = {
    "W4A16": (compressed("pack-quantized", weights()), ("pack-quantized", 4, True, 0)),
    "W4A16_ASYM": (compressed("pack-quantized", weights(symmetric=False)), ("pack-quantized", 4, False, 0)),
    "W8A16": (
        compressed("pack-quantized", weights(num_bits=8, strategy="channel", group_size=None)),
        ("pack-quantized", 8, True, 0),
    ),
    "W8A8": (
        compressed("int-quantized", weights(num_bits=8, strategy="channel", group_size=None), TOKENS | {"type": "int"}),
        ("int-quantized", 8, True, 0),
    ),
    "FP8_DYNAMIC": (
        compressed("float-quantized", weights(strategy="channel", **FLOAT8), TOKENS | {"type": "float"}),
        ("fp8", 8, False, 0),
    ),
    "FP8_BLOCK": (
        compressed("float-quantized", weights(strategy="block", **FLOAT8) | {"block_structure": [128, 128]}),
        ("fp8", 8, False, 0),
    ),
    "GPTQModel": (GPTQ | {"checkpoint_format": "gptq", "format": "gptq"}, ("gptq", 4, True, 1)),
    "GPTQModel v2 by checkpoint_format": (GPTQ | {"checkpoint_format": "gptq_v2"}, ("gptq", 4, True, 0)),
    "GPTQModel v2 by format": (GPTQ | {"format": "gptq_v2"}, ("gptq", 4, True, 0)),
    "AWQ by GPTQModel": (AWQ | {"format": "gemm", "checkpoint_format": "gemm"}, ("awq", 4, False, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_variant_is_read_for_what_it_is(name: str) -> None:
    config, expected = READ[name]
    read = read_quantization(config)
    assert read is not None
    scheme = read.scheme_of(UP)
    assert scheme is not None
    assert (scheme.format, scheme.bits, scheme.symmetric, scheme.zero_offset) == expected
    assert read.scheme_of(HEAD) is read.scheme_of(QKV) is None


FP4 = {"type": "float", "num_bits": 4}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "NVFP4": (
        compressed("nvfp4-pack-quantized", weights(strategy="tensor_group", group_size=16, **FP4)),
        "nvfp4-pack-quantized",
    ),
    "MXFP4": (compressed("mxfp4-pack-quantized", weights(group_size=32, **FP4)), "mxfp4-pack-quantized"),
    "MXFP8": (compressed("mxfp8-quantized", weights(type="float", num_bits=8, group_size=32)), "mxfp8-quantized"),
    "rotated": (
        compressed("pack-quantized", weights(), transform_config={"config_groups": {"R1": {"type": "hadamard"}}}),
        "transform_config .* changes what the weights mean",
    ),
    "sparse": (
        compressed("pack-quantized", weights(), sparsity_config={"format": "sparse-24-bitmask"}),
        "sparsity_config .*sparse-24-bitmask",
    ),
    "a quantised cache": (
        compressed("pack-quantized", weights(), kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"
    ),
    "Marlin": (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
    "Marlin by format": (GPTQ | {"format": "marlin"}, "format 'marlin'"),
    "two words": (GPTQ | {"checkpoint_format": "gptq", "format": "gptq_v2"}, "contradict each other"),
    "8-bit words": (GPTQ | {"pack_dtype": "int8"}, "pack_dtype 'int8'"),
    "GEMV": (AWQ | {"format": "gemv"}, "format 'gemv'"),
    "ModelOpt FP8": ({"quant_method": "modelopt", "quant_algo": "FP8"}, "quant_method modelopt: NVIDIA ModelOpt"),
    "ModelOpt NVFP4": ({"quant_method": "modelopt_fp4"}, "quant_method modelopt_fp4: NVIDIA ModelOpt"),
    "MXFP4 of transformers": ({"quant_method": "mxfp4"}, "quant_method mxfp4: the layout of MXFP4"),
    "AutoRound": ({"quant_method": "auto-round", "bits": 4}, "quant_method auto-round: AutoRound"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_variant_that_is_not_read_is_refused_by_name(name: str) -> None:
    config, reason = REFUSED[name]
    with pytest.raises(ConfigError, match=reason):
        read_quantization(config)


def test_a_module_that_llm_compressor_spares_does_not_spare_what_is_inside_it() -> None:
    """Its lists hold every module without weights of its own that it passed, as the linear attention of Qwen3.6-27B
    in 4 bits (fantasylord/Qwen36 @8a77d82, recipe.yaml beside it)."""
    spared = [
        "model.language_model.layers.0.linear_attn",
        "model.language_model.layers.0.linear_attn.in_proj_b",
    ]
    config = compressed(
        "pack-quantized", weights(symmetric=False), ignore=[*spared, "lm_head", "model.visual"]
    )
    read = read_quantization(config)
    assert read is not None
    assert read.scheme_of(MIXED) is not None
    assert read.scheme_of(NARROW) is read.scheme_of(QKV) is read.scheme_of(HEAD) is None
