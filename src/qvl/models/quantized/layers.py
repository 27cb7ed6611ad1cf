"""Which layers of a network a checkpoint stores quantised, what must be in the file for each, and making them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qvl.catalog.quantization import Part, Scheme, read_quantization
from qvl.errors import CheckpointError
from qvl.models.quantized import reader

if TYPE_CHECKING:
    from qvl.models.base import VisionLanguageModel


@dataclass(frozen=True)
class QuantizedLayer:
    """`parts`: last part of a tensor's name → what it must look like. The bias of a layer that has one in the
    network is a plain tensor and not among them."""

    scheme: Scheme
    parts: Mapping[str, Part]


def quantized_layers(model: VisionLanguageModel, where: str | Path) -> dict[str, QuantizedLayer]:
    """By canonical name; empty for a plain checkpoint.

    Raises: ConfigError for a quantization_config that can't be read; CheckpointError naming the layers whose
    sizes it doesn't fit.
    """
    quantization = read_quantization(model.config.quantization)
    if quantization is None:
        return {}
    found: dict[str, QuantizedLayer] = {}
    misfits = []
    for name, module in model.named_modules():
        scheme = quantization.scheme_of(name) if isinstance(module, nn.Linear) else None
        if scheme is None:
            continue
        out, inn = module.out_features, module.in_features
        if why := scheme.misfit(out, inn):
            misfits.append(f"{name}: {why}")
            continue
        parts = scheme.parts(out, inn)
        if scheme.format == "gptq" and module.bias is None:
            # AutoGPTQ writes a bias, of zeros, for every layer
            parts["bias"] = Part((out,), ("F16", "BF16", "F32"), required=False)
        found[name] = QuantizedLayer(scheme, parts)
    if misfits:
        rest = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise CheckpointError(
            f"{where}: quantization_config doesn't fit these layers: {'; '.join(misfits[:3])}{rest}. Were they meant "
            "to stay unquantised? Then modules_to_not_convert (or ignore) must name them"
        )
    return found


def make_layer(
    name: str, linear: nn.Linear, layer: QuantizedLayer, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """The layer that replaces `linear`, which gives its bias. Raises: CheckpointError with the layer's name."""
    tensors = dict(tensors)
    bias = tensors.pop("bias", None)
    if linear.bias is not None:
        bias = linear.bias.detach()
    elif bias is not None and not bias.any():
        bias = None
    try:
        return reader(layer.scheme)(layer.scheme, tensors, bias)
    except CheckpointError as e:
        raise CheckpointError(f"{name}: {e}") from e
