"""Weights made 8- or 4-bit while a plain checkpoint is read: which layers, and making one.

The decoder's linears, as the usual recipes choose: the tower, norms and routers stay as stored. `int8` has one scale
an output row, `int4` one for 128 inputs, both nearest rounding without calibration. On a CPU the token table and the
head get 8 bits in either, one scale a row: plan.memory counts these very layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qvl.errors import CheckpointError, nearest
from qvl.models.linear import GROUP, CodedEmbedding, Linear, QuantizedLinear
from qvl.models.moe import Experts
from qvl.models.quantized.int4_matmul import on_device

if TYPE_CHECKING:
    from qvl.models.base import VisionLanguageModel

BITS = {"int8": 8, "int4": 4}
KEPT = ("gate", "shared_expert_gate", "in_proj_a", "in_proj_b")  # what is narrow


def coded_layers(model: VisionLanguageModel, weights: str, on_cpu: bool) -> dict[str, QuantizedLinear]:
    """Names of the layers, and what each becomes, still empty.

    Raises: CheckpointError when this checkpoint's weights can't be made so.
    """
    if weights not in BITS:
        raise CheckpointError(f"weights {weights!r}: {nearest(weights, list(BITS))}")
    if model.config.quantization is not None:
        raise CheckpointError(
            f"weights {weights!r}: the checkpoint is quantised already; load it as it is, or take the plain one"
        )
    if any(isinstance(module, Experts) for module in model.modules()):
        raise CheckpointError(
            f"weights {weights!r}: fused experts aren't made smaller here; take an AWQ, GPTQ or FP8 checkpoint"
        )
    layers = {}
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if name.startswith("visual.") or leaf in KEPT or not isinstance(module, Linear | nn.Embedding):
            continue
        outputs, inputs = module.weight.shape
        bits, group = BITS[weights], GROUP if weights == "int4" else inputs
        if isinstance(module, nn.Embedding) or leaf == "lm_head":
            if not on_cpu:
                continue
            bits, group = 8, inputs
        layers[name] = QuantizedLinear.empty(inputs, outputs, bits, group)
    return layers


def placed(coded: QuantizedLinear, plain: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """What stands where `plain` stood."""
    if isinstance(plain, nn.Embedding):
        return CodedEmbedding(coded, dtype)
    bias: Any = plain.bias
    coded.bias = None if bias is None else bias.detach().cpu()
    return on_device(coded, device)
