"""Published quantised tensors → linear layers that compute with them. One file per format.

What a config says about which layers are quantised, and the names, shapes and dtypes of their tensors, is in
checkpoint/quantization.py; here tensors become layers. `READERS` maps a format to its function
(scheme, parts, bias) → layer, where `parts` maps the last part of each tensor's name to the tensor. A reader
raises CheckpointError for contents that can't be; names, shapes and dtypes are checked before it is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qvl.checkpoint.quantization import Scheme


class Reader(Protocol):
    def __call__(self, scheme: Scheme, parts: Mapping[str, Tensor], bias: Tensor | None) -> nn.Module: ...


READERS = {
    "awq": "qvl.models.quantized.awq:read",
    "gptq": "qvl.models.quantized.gptq:read",
    "pack-quantized": "qvl.models.quantized.compressed_tensors:read_packed",
    "int-quantized": "qvl.models.quantized.compressed_tensors:read_int8",
    "fp8": "qvl.models.quantized.fp8:read",
}


def reader(scheme: Scheme) -> Reader:
    """The function that makes a layer of tensors stored by `scheme`."""
    module, name = READERS[scheme.format].split(":")
    found: Reader = getattr(import_module(module), name)
    return found
