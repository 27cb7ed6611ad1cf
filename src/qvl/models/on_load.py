"""Weights made 8- or 4-bit while a plain checkpoint is read: which layers, and making one.

The decoder's linears, as the usual recipes choose: the tower, norms, routers and what else is narrow stay as stored
(catalog.quantization's `in_decoder`). A mixture's experts are linears of their own, whether they are stored fused or
one by one. `int8` has one scale an output row, `int4` one for 128 inputs, both nearest rounding without calibration.
On a CPU the token table, the head and the tower get 8 bits in either, one scale a row: plan.memory counts these very
layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from qvl import moved
from qvl.catalog.precisions import PRECISIONS, rounded_on_load
from qvl.checkpoint.compare import SINGLE, expert_shapes
from qvl.checkpoint.quantization import in_decoder
from qvl.errors import CheckpointError, nearest
from qvl.models.linear import GROUP, CodedEmbedding, Linear, QuantizedLinear
from qvl.models.moe import Experts
from qvl.models.quantized.experts import QuantizedExperts
from qvl.models.quantized.int4_matmul import on_device
from qvl.plan.memory import rest_in_8_bits

if TYPE_CHECKING:
    from qvl.models.base import VisionLanguageModel

BITS = {name: int(PRECISIONS[name].bits) for name in rounded_on_load()}


class Receiver(Protocol):
    """Takes a stored tensor as it is read, in pieces of rows from `first` on."""

    def put(self, first: int, rows: Tensor, /) -> None: ...


def coded_layers(model: VisionLanguageModel, weights: str, on_cpu: bool) -> dict[str, QuantizedLinear]:
    """Names of the layers (an expert's as `….experts.0.gate_proj`), and what each becomes, still empty.

    Raises: CheckpointError when this checkpoint's weights can't be made so.
    """
    if weights not in BITS:
        raise CheckpointError(f"weights {weights!r}: {nearest(weights, list(BITS))}")
    if model.config.quantization is not None:
        raise CheckpointError(
            f"weights {weights!r}: the checkpoint is quantised already; load it as it is, or take the plain one"
        )

    def empty(shape: tuple[int, ...], bits: int = BITS[weights]) -> QuantizedLinear:
        outputs, inputs = shape
        return QuantizedLinear.empty(inputs, outputs, bits, GROUP if bits == 4 else inputs)

    rest = rest_in_8_bits(model.config, weights, on_cpu)
    tower = rest and model.config.generation.rounds_tower
    layers: dict[str, QuantizedLinear] = {}
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            shapes = expert_shapes(tuple(module.down_proj.shape), module.inputs_first)
            for expert in range(module.num_experts):
                layers |= {f"{name}.{expert}.{part}": empty(shapes[part]) for part in SINGLE}
        elif isinstance(module, nn.Embedding) or name == "lm_head":
            if rest and not name.startswith("visual."):
                layers[name] = empty(module.weight.shape, bits=8)
        elif isinstance(module, Linear) and in_decoder(name):
            layers[name] = empty(module.weight.shape)
        elif isinstance(module, Linear) and name.startswith("visual.") and tower:
            layers[name] = empty(module.weight.shape, bits=8)
    return layers


def load_targets(model: VisionLanguageModel, coded: Mapping[str, QuantizedLinear]) -> dict[str, Receiver]:
    """Name of a stored tensor → who takes it."""
    found: dict[str, Receiver] = {f"{name}.weight": layer for name, layer in coded.items()}
    for name, module in model.named_modules():
        if coded and isinstance(module, Experts):
            for fused, parts in (("gate_up_proj", SINGLE[:2]), ("down_proj", SINGLE[2:])):
                layers = [[coded[f"{name}.{e}.{part}"] for part in parts] for e in range(module.num_experts)]
                found[f"{name}.{fused}"] = FusedCodes(layers, module.inputs_first)
    return found


class FusedCodes:
    """Takes one fused tensor apart: (E, out, in), or (E, in, out) with inputs first, parts side by side in out."""

    def __init__(self, layers: list[list[QuantizedLinear]], inputs_first: bool):
        self.layers, self.inputs_first = layers, inputs_first

    def put(self, first: int, experts_EAB: Tensor) -> None:
        for layers, matrix in zip(self.layers[first:], experts_EAB):
            matrix_OI = matrix.T if self.inputs_first else matrix
            for layer, part_OI in zip(layers, matrix_OI.chunk(len(layers))):
                layer.put(0, part_OI)


def place_coded(
    model: VisionLanguageModel,
    coded: Mapping[str, QuantizedLinear],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Puts the filled layers where the plain ones stood."""
    mixtures = [(n, m) for n, m in model.named_modules() if coded and isinstance(m, Experts)]
    left = dict(coded)
    for name, module in mixtures:
        parts = [[left.pop(f"{name}.{e}.{part}") for part in SINGLE] for e in range(module.num_experts)]
        experts = QuantizedExperts([list(p[:2]) for p in parts], [p[2] for p in parts])
        model.set_submodule(name, on_device(experts, device))
    for name, layer in left.items():
        model.set_submodule(name, placed(layer, model.get_submodule(name), dtype, device))


def placed(coded: QuantizedLinear, plain: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """What stands where `plain` stood."""
    if isinstance(plain, nn.Embedding):
        return CodedEmbedding(coded, dtype)
    bias: Any = plain.bias
    coded.bias = None if bias is None else bias.detach().cpu()
    return on_device(coded, device)


__getattr__ = moved.names(__name__)
