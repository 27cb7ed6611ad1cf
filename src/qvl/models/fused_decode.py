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

from qvl.catalog.config import TextConfig
from qvl.models.attention import Attend, PagedAttend
from qvl.models.decoder import Attention, Decoder, DecoderLayer, mrope_cos_sin
from qvl.models.kernels import ops
from qvl.models.layers import RMSNorm, SwiGLU
from qvl.models.linear import hooked, in_one_pass


class _Program:
    """The layers as the kernel reads them, and for how many rows it can carry out their products."""

    def __init__(self, decoder: Decoder, addresses: list[int]):
        self.addresses = addresses
        # what is read must still be there; `module.to` gives a parameter, but not what is detached, other memory
        self.held = [t.detach() for t in (*decoder.parameters(), *decoder.buffers())]
        self.linears: list[Any] = []
        self.kv_layers: list[int] = []
        self.layers = (ops.Layer * len(decoder.layers))()
        self.can_run = (
            decoder.config.rotary_dim == decoder.config.head_dim
            and _is_plain(decoder.norm)
            and all(
                self._fill(place, layer, decoder.config) for place, layer in zip(self.layers, decoder.layers)
            )
        )
        self._takes: dict[int, bool] = {}

    def _fill(self, place: ops.Layer, layer: Any, config: TextConfig) -> bool:
        if type(layer) is not DecoderLayer or layer.is_linear:
            return False
        attention, mlp = layer.self_attn, layer.mlp
        if type(attention) is not Attention or type(mlp) is not SwiGLU:
            return False
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        passes = (qkv, (attention.o_proj,), (mlp.gate_proj, mlp.up_proj), (mlp.down_proj,))
        norms = (layer.input_layernorm, layer.post_attention_layernorm, attention.q_norm, attention.k_norm)
        used = norms[:2] if all(type(norm) is nn.Identity for norm in norms[2:]) else norms
        if (
            attention.gated
            or any(hooked(part) for part in (layer, attention, mlp, *norms))
            or not all(_is_plain(norm) for norm in used)
            or not all(in_one_pass(layers) for layers in passes)
            or [(one.in_features, one.out_features) for layers in passes for one in layers] != _sizes(config)
        ):
            return False
        self.kv_layers.append(attention.layer)
        for name, norm in zip(("input_norm", "post_norm", "q_norm", "k_norm"), used):
            setattr(place, name, cast(RMSNorm, norm).weight.data_ptr())
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

    Layers that are replaced, hooked or moved are seen at the first such step after another one, so with a new prompt
    unless all but its last token was computed before: looking at all of them takes a fiftieth of a token's time.
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
            or decoder.config.num_experts  # looking at thousands of experts takes as long as a token
            or hidden_TD.dtype != torch.bfloat16
            or hidden_TD.shape[1] != decoder.config.hidden_size
            or torch.is_grad_enabled()
            or not ops.ready(hidden_TD)
            or not isinstance(attend, PagedAttend)
        ):
            return None
        if (places := attend.in_place()) is None:
            self._is_checked = False
            return None
        program = self._checked(decoder)
        if not program.takes(hidden_TD):
            return None
        config = decoder.config
        cos_TH, sin_TH = mrope_cos_sin(positions_3T, config, hidden_TD.dtype)
        hidden_TD = hidden_TD.clone(memory_format=torch.contiguous_format)
        for layer, kv_layer in zip(program.layers, program.kv_layers):
            keys, values = places.held(kv_layer)
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


def _is_plain(norm: nn.Module) -> bool:
    return type(norm) is RMSNorm and norm.weight.dtype == torch.bfloat16 and not hooked(norm)


def _sizes(config: TextConfig) -> list[tuple[int, int]]:
    """(in, out) of a layer's products, which the kernel reckons with."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    qkv = [(width, queries), (width, keys), (width, keys)]
    return [*qkv, (queries, width), (width, inner), (width, inner), (inner, width)]


def _addresses(decoder: Decoder) -> Iterator[int]:
    """What a program depends on."""
    for part in (*decoder.layers, decoder.norm):
        for module in part.modules():
            yield id(module)
            yield len(module._forward_hooks) + len(module._forward_pre_hooks)
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                yield tensor.data_ptr()
