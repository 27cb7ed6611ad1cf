"""Which layers of a network a checkpoint stores quantised, what must be in the file for each, and making them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qvl.checkpoint.quantization import Part, Scheme, read_quantization
from qvl.errors import CheckpointError
from qvl.models.moe import Experts
from qvl.models.quantized import reader
from qvl.models.quantized.experts import expert_parts, expert_shapes, make_experts

if TYPE_CHECKING:
    from qvl.models.base import VisionLanguageModel


@dataclass(frozen=True)
class QuantizedLayer:
    """`parts`: a tensor's name after the layer's → what it must look like. The bias of a layer that has one in
    the network is a plain tensor and not among them. `replaces`: parameters of the network that fall away.
    """

    scheme: Scheme
    parts: Mapping[str, Part]
    replaces: tuple[str, ...] = ("weight",)


def quantized_layers(
    model: VisionLanguageModel, where: str | Path, stored: Container[str] = ()
) -> dict[str, QuantizedLayer]:
    """By canonical name; empty for a plain checkpoint. `stored`: canonical names in the files, which tell whether
    experts are fused.

    Raises: ConfigError for a quantization_config that can't be read; CheckpointError naming the layers whose
    sizes it doesn't fit.
    """
    quantization = read_quantization(model.config.quantization)
    if quantization is None:
        return {}
    found: dict[str, QuantizedLayer] = {}
    misfits = []
    for name, module in model.named_modules():
        if isinstance(module, Experts) and (scheme := quantization.scheme_of(f"{name}.down_proj")):
            shapes = expert_shapes(module)
            misfits += [
                f"{name}: {why}"
                for part in ("gate_proj", "down_proj")
                if (why := scheme.misfit(*shapes[part]))
            ]
            parts = expert_parts(scheme, module, name, stored)
            found[name] = QuantizedLayer(scheme, parts, ("gate_up_proj", "down_proj"))
            continue
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
    name: str, plain: nn.Module, layer: QuantizedLayer, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """What replaces `plain`, a linear layer, which gives its bias, or a mixture's experts.

    Raises: CheckpointError with the layer's name.
    """
    try:
        if isinstance(plain, Experts):
            return make_experts(layer.scheme, plain, tensors)
        assert isinstance(plain, nn.Linear)
        return _make_linear(plain, layer, dict(tensors))
    except CheckpointError as e:
        raise CheckpointError(f"{name}: {e}") from e


def _make_linear(linear: nn.Linear, layer: QuantizedLayer, tensors: dict[str, Tensor]) -> nn.Module:
    bias = tensors.pop("bias", None)
    if linear.bias is not None:
        bias = linear.bias.detach()
    elif bias is not None and not bias.any():
        bias = None
    return reader(layer.scheme)(layer.scheme, tensors, bias)
