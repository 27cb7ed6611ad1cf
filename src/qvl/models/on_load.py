"""Weights made 8- or 4-bit while a plain checkpoint is read: which layers, and making one.

The decoder's linears, as the usual recipes choose: the tower, norms, routers, the table and the head stay as stored.
`int8` has one scale an output row, `int4` one for 128 inputs, both nearest rounding without calibration: what
plan.memory counts under these names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from qvl.errors import CheckpointError, nearest
from qvl.models.linear import GROUP, Linear, QuantizedLinear, quantize_weight
from qvl.models.moe import Experts

if TYPE_CHECKING:
    from qvl.models.base import VisionLanguageModel

BITS = {"int8": 8, "int4": 4}
KEPT = ("lm_head", "gate", "shared_expert_gate", "in_proj_a", "in_proj_b")  # the head, and what is narrow


def layers_to_shrink(model: VisionLanguageModel, weights: str) -> set[str]:
    """Names of the layers. Raises: CheckpointError when this checkpoint's weights can't be made so."""
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
    linears = [name.split(".") for name, module in model.named_modules() if isinstance(module, Linear)]
    return {".".join(at) for at in linears if "visual" not in at and at[-1] not in KEPT}


def shrunk(weight_OI: Tensor, weights: str) -> QuantizedLinear:
    """Without a bias. On the CPU, wherever the weight is."""
    bits = BITS[weights]
    return quantize_weight(weight_OI, bits, GROUP if bits == 4 else weight_OI.shape[1])
