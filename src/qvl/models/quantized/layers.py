"""Making the layer of a network that its checkpoint stores quantised."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from qvl import moved
from qvl.checkpoint.compare import QuantizedLayer
from qvl.errors import CheckpointError
from qvl.models.moe import Experts
from qvl.models.quantized import reader
from qvl.models.quantized.experts import make_experts


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


__getattr__ = moved.names(__name__)
