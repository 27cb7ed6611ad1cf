"""Writes quantised checkpoints in the published layouts, from a plain folder: the other side of the readers' tests.

Slow and literal on purpose, bit by bit, and without a line of the package's own unpacking. Every writer returns
what each quantised layer stands for as fp32, from its own numbers, before anything is packed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds this one of its eight outputs
DECODER_LINEAR = re.compile(
    r"^model\.(language_model\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)$"
)


@dataclass
class Grouped:
    """Codes (O, I), scales and zeros (O, G), and the group of each input."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    group_of: Tensor

    def dequantize(self) -> Tensor:
        scale, zero = (t[:, self.group_of] for t in (self.scales.float(), self.zeros.float()))
        return (self.codes.float() - zero) * scale


def quantise(
    weight_OI: Tensor,
    bits: int,
    group_size: int,
    *,
    symmetric: bool = False,
    group_of: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
    clip_steps: int = 0,
) -> Grouped:
    """Round to nearest. `clip_steps`: how many narrower ranges are tried for a smaller squared error."""
    weight_OI = weight_OI.double()
    outputs, inputs = weight_OI.shape
    group_size = inputs if group_size <= 0 else group_size
    group_of = torch.arange(inputs) // group_size if group_of is None else group_of
    top, middle = (1 << bits) - 1, 1 << (bits - 1)
    groups = int(group_of.max()) + 1
    codes = torch.zeros(outputs, inputs, dtype=torch.int64)
    scales = torch.zeros(outputs, groups, dtype=dtype)
    zeros = torch.full((outputs, groups), middle)
    for g in range(groups):
        columns = (group_of == g).nonzero()[:, 0]
        w = weight_OI[:, columns]
        best = torch.full((outputs,), torch.inf, dtype=torch.float64)
        for step in range(clip_steps + 1):
            share = 1 - 0.5 * step / max(1, clip_steps)
            if symmetric:
                scale = share * w.abs().amax(1) / (middle - 1)
                zero = torch.full_like(scale, middle)
            else:
                low, high = w.amin(1).clamp(max=0) * share, w.amax(1).clamp(min=0) * share
                scale = (high - low) / top
                zero = (-low / scale.clamp(min=1e-12)).round().clamp(0, top)
            scale = scale.clamp(min=1e-6).to(dtype).double()
            found = ((w / scale[:, None]).round() + zero[:, None]).clamp(0, top)
            error = ((found - zero[:, None]) * scale[:, None] - w).square().sum(1)
            better = error < best
            best = torch.where(better, error, best)
            codes[:, columns] = torch.where(better[:, None], found.long(), codes[:, columns])
            scales[:, g] = torch.where(better, scale.to(dtype), scales[:, g])
            zeros[:, g] = torch.where(better, zero.long(), zeros[:, g])
    return Grouped(codes, scales, zeros, group_of)


def signed(words: Tensor) -> Tensor:
    """uint32 values in int64 → int32 with the same bits."""
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def stream(codes: Tensor, bits: int) -> Tensor:
    """(R, V) small codes → int32 (R, words), a stream of bits from the lowest on; the last word padded with zeros."""
    bit = torch.stack([codes >> i & 1 for i in range(bits)], dim=-1).flatten(1)
    bit = torch.nn.functional.pad(bit, (0, -bit.shape[1] % 32))
    words = sum(bit[:, i::32] << i for i in range(32))
    return signed(words)


def awq_words(codes: Tensor) -> Tensor:
    """(R, outputs) → int32 (R, outputs / 8)."""
    return signed(sum(codes[:, AWQ_ORDER[i] :: 8] << 4 * i for i in range(8)))


def awq(weight: Tensor, group_size: int = 128, **options: Any) -> tuple[dict[str, Tensor], Tensor]:
    q = quantise(weight, 4, group_size, **options)
    return {
        "qweight": awq_words(q.codes.T),
        "qzeros": awq_words(q.zeros.T),
        "scales": q.scales.T.contiguous(),
    }, q.dequantize()


def gptq(
    weight: Tensor,
    bits: int = 4,
    group_size: int = 128,
    *,
    version: int = 1,
    act_order: bool = False,
    symmetric: bool = True,
    seed: int = 0,
    **options: Any,
) -> tuple[dict[str, Tensor], Tensor]:
    inputs = weight.shape[1]
    step = inputs if group_size <= 0 else group_size
    group_of = torch.arange(inputs) // step
    if act_order:
        group_of = group_of[torch.randperm(inputs, generator=torch.Generator().manual_seed(seed))]
    q = quantise(weight, bits, group_size, symmetric=symmetric, group_of=group_of, **options)
    if version == 1:  # its zeros are stored less one: zero itself can't be
        q.zeros.clamp_(min=1)
    return {
        "qweight": stream(q.codes, bits).T.contiguous(),
        "qzeros": stream((q.zeros - int(version == 1)).T, bits),
        "scales": q.scales.T.contiguous(),
        "g_idx": group_of.to(torch.int32),
    }, q.dequantize()


def packed(
    weight: Tensor,
    bits: int = 4,
    group_size: int = 128,
    *,
    symmetric: bool = True,
    act_order: bool = False,
    **options: Any,
) -> tuple[dict[str, Tensor], Tensor]:
    """compressed-tensors' pack-quantized."""
    outputs, inputs = weight.shape
    group_of = None
    if act_order:
        order = torch.randperm(inputs, generator=torch.Generator().manual_seed(1))
        group_of = (torch.arange(inputs) // group_size)[order]
    q = quantise(
        weight, bits, group_size, symmetric=symmetric, group_of=group_of, dtype=torch.bfloat16, **options
    )
    parts = {
        "weight_packed": stream(q.codes, bits),
        "weight_scale": q.scales,
        "weight_shape": torch.tensor([outputs, inputs]),
    }
    if not symmetric:
        parts["weight_zero_point"] = stream(q.zeros.T, bits).T.contiguous()
    if act_order:
        parts["weight_g_idx"] = q.group_of.to(torch.int32)
    return parts, q.dequantize()


def int8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """compressed-tensors' int-quantized weights, one scale a row."""
    scales = (weight.float().abs().amax(1, keepdim=True) / 127).clamp(min=1e-6).to(torch.bfloat16)
    codes = (weight.float() / scales.float()).round().clamp(-128, 127).to(torch.int8)
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales.float()


def fp8(
    weight: Tensor, block: tuple[int, int] = (128, 128), name: str = "weight_scale_inv"
) -> tuple[dict[str, Tensor], Tensor]:
    """Blocks of rows x columns; a 0 stands for the whole side."""
    weight = weight.float()
    outputs, inputs = weight.shape
    down, across = block[0] or outputs, block[1] or inputs
    scales = torch.zeros(-(-outputs // down), -(-inputs // across))
    stored, dequantised = torch.zeros_like(weight).to(torch.float8_e4m3fn), torch.zeros_like(weight)
    for r in range(scales.shape[0]):
        for c in range(scales.shape[1]):
            place = slice(r * down, (r + 1) * down), slice(c * across, (c + 1) * across)
            scales[r, c] = weight[place].abs().max().clamp(min=1e-6) / 448
            stored[place] = (weight[place] / scales[r, c]).to(torch.float8_e4m3fn)
            dequantised[place] = stored[place].float() * scales[r, c]
    return {"weight": stored, name: scales if block != (0, 0) else scales.view(1)}, dequantised


def write(
    source: Path,
    folder: Path,
    make: Callable[[Tensor], tuple[dict[str, Tensor], Tensor]],
    quantization: dict[str, Any],
    *,
    covers: Callable[[str], bool] = lambda module: bool(DECODER_LINEAR.match(module)),
    dtype: torch.dtype | None = torch.float16,
    rename: Callable[[str], str] = lambda name: name,
) -> dict[str, Tensor]:
    """A quantised copy of a whole folder. Returns the fp32 weight that each quantised module stands for.

    `covers`: which modules, by their name in `source`. `dtype` is that of what stays plain (None: as it is).
    """
    shutil.copytree(
        source, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "*.index.json")
    )
    written: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            module, _, leaf = name.rpartition(".")
            if leaf == "weight" and covers(module):
                parts, weights[module] = make(tensor.float())
                written |= {rename(f"{module}.{part}"): t.contiguous() for part, t in parts.items()}
            else:
                written[rename(name)] = tensor if dtype is None else tensor.to(dtype)
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = quantization
    if dtype is not None:
        config["torch_dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return weights


# --- configs as published


def awq_config(group_size: int = 128, **changes: Any) -> dict[str, Any]:
    return {
        "bits": 4,
        "group_size": group_size,
        "modules_to_not_convert": ["visual"],
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    } | changes


def gptq_config(bits: int = 4, group_size: int = 128, **changes: Any) -> dict[str, Any]:
    return {
        "bits": bits,
        "damp_percent": 0.1,
        "dataset": None,
        "desc_act": False,
        "group_size": group_size,
        "modules_in_block_to_quantize": None,
        "quant_method": "gptq",
        "sym": True,
        "true_sequential": True,
    } | changes


def fp8_config(block: tuple[int, int] = (128, 128), **changes: Any) -> dict[str, Any]:
    return {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "modules_to_not_convert": ["lm_head", "model.visual"],
        "quant_method": "fp8",
        "weight_block_size": list(block),
    } | changes


def compressed_config(
    layout: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    return {
        "config_groups": {
            "group_0": {
                "input_activations": inputs,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": weights,
            }
        },
        "format": layout,
        "global_compression_ratio": None,
        "ignore": ["lm_head", "re:.*visual.*"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    } | changes


def int_weights(bits: int, group_size: int | None, symmetric: bool = True, **changes: Any) -> dict[str, Any]:
    return {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": group_size,
        "num_bits": bits,
        "observer": "minmax",
        "observer_kwargs": {},
        "strategy": "group" if group_size else "channel",
        "symmetric": symmetric,
        "type": "int",
    } | changes


INT8_TOKENS = {
    "actorder": None,
    "dynamic": True,
    "group_size": None,
    "num_bits": 8,
    "strategy": "token",
    "symmetric": True,
    "type": "int",
}
