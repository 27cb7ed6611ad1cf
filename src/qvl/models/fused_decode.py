"""A decoding step through all layers of a dense decoder as one call of the compiled kernels.

A step of few tokens reads every weight once and does little else. Done operation by operation, a tenth of its time goes
to starting them and to threads that wait for each other between them; here one team of threads goes through all layers
(kernels/decode.cpp). Roundings are those of `Decoder`, but for attention's sums, which stay in fp32.
Legend: T rows, D width, H head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from qvl.models.attention import Attend, PagedAttend
from qvl.models.decoder import Attention, Decoder, mrope_cos_sin
from qvl.models.kernels import ops
from qvl.models.layers import RMSNorm, SwiGLU
from qvl.models.linear import hooked, in_one_pass


class _Program:
    """The layers as the kernel reads them, and for how many rows it can carry out their products."""

    def __init__(self, decoder: Decoder, addresses: list[int]):
        self.addresses = addresses
        self.held = [*decoder.parameters(), *decoder.buffers()]  # what is read must still be there
        self.linears: list[Any] = []
        self.layers = (ops.Layer * len(decoder.layers))()
        self.can_run = type(decoder.norm) is RMSNorm and all(
            self._fill(place, layer) for place, layer in zip(self.layers, decoder.layers)
        )
        self._takes: dict[int, bool] = {}

    def _fill(self, place: ops.Layer, layer: Any) -> bool:
        if layer.is_linear or type(layer.self_attn) is not Attention or type(layer.mlp) is not SwiGLU:
            return False
        attention, mlp = layer.self_attn, layer.mlp
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        passes = (qkv, (attention.o_proj,), (mlp.gate_proj, mlp.up_proj), (mlp.down_proj,))
        norms = (layer.input_layernorm, layer.post_attention_layernorm, attention.q_norm, attention.k_norm)
        inner = [norm for norm in norms if type(norm) is not nn.Identity]
        if (
            attention.gated
            or any(hooked(part) for part in (layer, attention, mlp, *norms))
            or not all(type(norm) is RMSNorm and norm.weight.dtype == torch.bfloat16 for norm in inner)
            or not all(in_one_pass(layers) for layers in passes)
        ):
            return False
        place.input_norm, place.post_norm = (norm.weight.data_ptr() for norm in norms[:2])
        if len(inner) == len(norms):
            place.q_norm, place.k_norm = (cast(RMSNorm, norm).weight.data_ptr() for norm in norms[2:])
        place.qkv = tuple(layer.matrix() for layer in qkv)
        place.out, place.down = attention.o_proj.matrix(), mlp.down_proj.matrix()
        place.gate_up = mlp.gate_proj.matrix(), mlp.up_proj.matrix()
        self.linears += [layer for layers in passes for layer in layers]
        return True

    def takes(self, hidden_TD: Tensor) -> bool:
        rows = len(hidden_TD)
        if rows not in self._takes:
            self._takes[rows] = self.can_run and all(
                layer.takes_kernel(hidden_TD.new_empty(rows, layer.in_features)) for layer in self.linears
            )
        return self._takes[rows]


class FusedDecode:
    """`decoder(hidden_TD, positions_3T, attend)` where the kernel can do it: bf16 on a CPU, a few rows that each add a
    token to a sequence of their own, layers of plain attention and plain MLPs, nothing to train.

    Layers that are replaced, hooked or moved are seen at the first step after one that the kernel couldn't take, so
    with every new prompt: looking at all of them takes as long as a fiftieth of a token.
    """

    def __init__(self, decoder: nn.Module):
        self.decoder = decoder
        self._program: _Program | None = None
        self._is_checked = False

    def __call__(self, hidden_TD: Tensor, positions_3T: Tensor, attend: Attend) -> Tensor | None:
        """(T, D) after the final norm; None where the layers must be called."""
        decoder = self.decoder
        if (
            type(decoder) is not Decoder
            or hidden_TD.dtype != torch.bfloat16
            or hidden_TD.shape[1] != decoder.config.hidden_size
            or torch.is_grad_enabled()
            or not ops.ready(hidden_TD)
            or not isinstance(attend, PagedAttend)
            or (places := attend.in_place()) is None
            or not (program := self._checked(decoder)).takes(hidden_TD)
        ):
            self._is_checked = False
            return None
        config = decoder.config
        cos_TH, sin_TH = mrope_cos_sin(positions_3T, config, hidden_TD.dtype)
        hidden_TD = hidden_TD.clone()
        for i, layer in enumerate(program.layers):
            keys, values = places.held(i)
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
        step = ops.Step(
            rows=len(hidden_TD),
            width=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            inner=config.intermediate_size,
            block_size=places.block_size,
            table_width=places.blocks_TM.shape[1],
            blocks=places.blocks_TM.data_ptr(),
            ends=places.ends_T.data_ptr(),
            cos=cos_TH.data_ptr(),
            sin=sin_TH.data_ptr(),
            final_norm=cast(RMSNorm, decoder.norm).weight.data_ptr(),
            hidden=hidden_TD.data_ptr(),
            eps=config.rms_norm_eps,
        )
        ops.decode(program.layers, step)
        return hidden_TD

    def _checked(self, decoder: Decoder) -> _Program:
        """Made anew when a layer or where its tensors lie has changed."""
        if self._program is None or not self._is_checked:
            addresses = list(_addresses(decoder))
            if self._program is None or self._program.addresses != addresses:
                self._program = _Program(decoder, addresses)
            self._is_checked = True
        return self._program


def _addresses(decoder: Decoder) -> Iterator[int]:
    """What a program depends on."""
    for layer in decoder.layers:
        for module in layer.modules():
            yield id(module)
            yield len(module._forward_hooks) + len(module._forward_pre_hooks)
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                yield tensor.data_ptr()
