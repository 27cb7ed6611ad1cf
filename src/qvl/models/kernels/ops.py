"""The compiled kernels as functions of tensors. Each needs `ready(x)`; what they compute is said beside the callers'
PyTorch forms, which the tests compare them with.

Legend: T rows, I inputs, O outputs, N heads, H head dim, D width.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from qvl.models.kernels.build import library

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_TAKEN = (torch.float32, torch.bfloat16)
_I64, _I32, _PTR, _FLOAT = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p, ctypes.c_float


ROWS, CODES, FP8 = range(3)  # kinds of Matrix; matrix.h says what each holds


class Matrix(ctypes.Structure):
    """A layer's weights as the kernels see them. It holds addresses: the tensors must outlive it."""

    _fields_ = [
        ("weight", _PTR),
        ("scales", _PTR),
        ("zeros", _PTR),
        ("bias", _PTR),
        ("order", _PTR),
        ("outputs", _I64),
        ("inputs", _I64),
        ("down", _I64),
        ("across", _I64),
        ("kind", _I32),
        ("scale_dtype", _I32),
        ("bits", _I32),
    ]


class Layer(ctypes.Structure):
    """decode.cpp's; addresses too."""

    _fields_ = [
        ("input_norm", _PTR),
        ("post_norm", _PTR),
        ("q_norm", _PTR),
        ("k_norm", _PTR),
        ("qkv", Matrix * 3),
        ("out", Matrix),
        ("gate_up", Matrix * 2),
        ("down", Matrix),
        ("keys", _PTR),
        ("values", _PTR),
    ]


class Step(ctypes.Structure):
    """decode.cpp's; addresses too."""

    _fields_ = [
        *((name, _I64) for name in ("rows", "width", "heads", "kv_heads", "head_dim", "inner")),
        *((name, _I64) for name in ("block_size", "table_width")),
        *((name, _PTR) for name in ("blocks", "ends", "cos", "sin", "final_norm", "hidden")),
        ("eps", _FLOAT),
    ]


class Span(ctypes.Structure):
    """attend.cpp's; `blocks` is an address or None."""

    _fields_ = [
        *((name, _I64) for name in ("query", "num_queries", "key", "num_keys")),
        ("blocks", _PTR),
    ]


class Attention(ctypes.Structure):
    """attend.cpp's; addresses too."""

    _fields_ = [
        *((name, _I64) for name in ("heads", "kv_heads", "head_dim", "block_size")),
        *((name, _I64) for name in ("query_row", "key_row", "value_row")),
        *((name, _PTR) for name in ("queries", "keys", "values", "out")),
        ("scale", _FLOAT),
        ("in_8_bits", _I32),
        ("causal", _I32),
    ]


_SIGNATURES = {
    "qvl_attend": [_PTR, _PTR, _I64, _I32],
    "qvl_multiplies_bf16": [],
    "qvl_linear": [_PTR, _I64, _PTR, _I32, _I64, _PTR, _I32],
    "qvl_decode": [_PTR, _I64, _PTR, _I32],
    "qvl_fp8_widen": [_PTR, _PTR, _I32, _I64, _I64, _I64, _I64, _PTR, _I32, _I32],
    "qvl_rms_norm": [_PTR, _PTR, _PTR, _I64, _I64, _FLOAT, _I32, _I32],
    "qvl_silu_mul": [_PTR, _PTR, _PTR, _I64, _I64, _I64, _I32, _I32],
    "qvl_round": [_PTR, _I32, _I64, _I64, _I64, _I32, _I64, _PTR, _PTR, _I32],
    "qvl_rope": [_PTR, _PTR, _PTR, _PTR, _I64, _I64, _I64, _I64, _I32, _I32, _I32],
}

_RESULTS = {"qvl_multiplies_bf16": _I32}


def ready(x: Tensor, *weights: Tensor) -> bool:
    """Whether the kernels can take these: on the CPU, fp32 or bf16 all alike, nothing to differentiate."""
    dtype = x.dtype
    if dtype not in _TAKEN or x.device.type != "cpu" or functions() is None:
        return False
    if any(weight.dtype != dtype for weight in weights):
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights)))


@functools.cache
def functions() -> ctypes.CDLL | None:
    lib = library()
    for name, arguments in _SIGNATURES.items() if lib is not None else ():
        function = getattr(lib, name)
        function.argtypes, function.restype = arguments, _RESULTS.get(name)
    return lib


@functools.cache
def multiplies_bf16() -> bool:
    """Whether the kernels have a product of bf16 matrices, which is for any number of rows."""
    lib = functions()
    return lib is not None and bool(lib.qvl_multiplies_bf16())


def _lib() -> ctypes.CDLL:
    lib = functions()
    assert lib is not None, "ready() comes first"
    return lib


def address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def dtype_number(dtype: torch.dtype) -> int:
    return _DTYPES[dtype]


def linear(matrices: Sequence[Matrix], x: Tensor) -> Tensor:
    """x times each matrix, side by side, (…, sum of O), in x's dtype. They are of one kind and alike in inputs, order
    and `across`.
    """
    inputs = matrices[0].inputs
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], sum(matrix.outputs for matrix in matrices))
    _lib().qvl_linear(
        (Matrix * len(matrices))(*matrices),
        len(matrices),
        x.data_ptr(),
        _DTYPES[x.dtype],
        x.numel() // inputs,
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


def decode(layers: ctypes.Array[Layer], step: Step) -> None:
    """A decoding step, in place in `step.hidden`."""
    _lib().qvl_decode(layers, len(layers), ctypes.byref(step), torch.get_num_threads())


def takes_attention(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor) -> bool:
    held = () if k_SKH.dtype == torch.uint8 == v_SKH.dtype else (k_SKH, v_SKH)
    return q_TNH.dtype == torch.bfloat16 and ready(q_TNH, *held)


def attend(
    q_TNH: Tensor,
    k_SKH: Tensor,
    v_SKH: Tensor,
    spans: Sequence[Span],
    *,
    is_causal: bool,
    block_size: int = 1,
) -> Tensor:
    """Scaled dot-product attention of each span's queries to its own keys; causal: its last query sees all of them.

    q is bf16; keys and values too, or e4m3 as uint8. Rows of q in no span stay undefined.
    """
    q_TNH, k_SKH, v_SKH = (_heads_together(x) for x in (q_TNH, k_SKH, v_SKH))
    num_rows, heads, size = q_TNH.shape
    out_TNH = q_TNH.new_empty(num_rows, heads, size)
    attention = Attention(
        heads=heads,
        kv_heads=k_SKH.shape[1],
        head_dim=size,
        block_size=block_size,
        query_row=q_TNH.stride(0),
        key_row=k_SKH.stride(0),
        value_row=v_SKH.stride(0),
        queries=q_TNH.data_ptr(),
        keys=k_SKH.data_ptr(),
        values=v_SKH.data_ptr(),
        out=out_TNH.data_ptr(),
        scale=size**-0.5,
        in_8_bits=k_SKH.dtype == torch.uint8,
        causal=is_causal,
    )
    _lib().qvl_attend(
        ctypes.byref(attention), (Span * len(spans))(*spans), len(spans), torch.get_num_threads()
    )
    return out_TNH


def _heads_together(x_TNH: Tensor) -> Tensor:
    """Heads of a row side by side, rows anyhow."""
    size = x_TNH.shape[2]
    return x_TNH if x_TNH.stride(2) == 1 and x_TNH.stride(1) == size else x_TNH.contiguous()


def round_rows(weight_RI: Tensor, bits: int, group_size: int, packed: Tensor, scales: Tensor) -> None:
    """Fills packed (N, B, 16, 4) and bf16 scales (N, G, 16), both contiguous, with the nearest codes of these rows."""
    weight_RI = weight_RI.contiguous()
    _lib().qvl_round(
        weight_RI.data_ptr(),
        _DTYPES[weight_RI.dtype],
        *weight_RI.shape,
        group_size,
        bits,
        packed.shape[1],
        packed.data_ptr(),
        scales.data_ptr(),
        torch.get_num_threads(),
    )


def fp8_widen(weight_RI: Tensor, scales: Tensor, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """FP8 rows, the first of which begins a block, times their scales, as bf16 or fp32."""
    out_RI = torch.empty(weight_RI.shape, dtype=dtype)
    _lib().qvl_fp8_widen(
        weight_RI.data_ptr(),
        scales.data_ptr(),
        _DTYPES[scales.dtype],
        *weight_RI.shape,
        *block,
        out_RI.data_ptr(),
        _DTYPES[dtype],
        torch.get_num_threads(),
    )
    return out_RI


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * (x / rms(x)), over the last axis."""
    size = x.shape[-1]
    x = x.contiguous()
    y = torch.empty_like(x)
    _lib().qvl_rms_norm(
        x.data_ptr(),
        weight.data_ptr(),
        y.data_ptr(),
        x.numel() // size,
        size,
        eps,
        _DTYPES[x.dtype],
        torch.get_num_threads(),
    )
    return y


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up. Both may be slices of one matrix."""
    size = gate.shape[-1]
    if gate.ndim != 2 or gate.stride() != up.stride() or gate.stride(1) != 1:
        gate, up = gate.contiguous(), up.contiguous()
    y = gate.new_empty(gate.shape)
    _lib().qvl_silu_mul(
        gate.data_ptr(),
        up.data_ptr(),
        y.data_ptr(),
        gate.numel() // size,
        size,
        gate.stride(0) if gate.ndim == 2 else size,
        _DTYPES[y.dtype],
        torch.get_num_threads(),
    )
    return y


def rope(x_TNH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    """x turned by the angles whose cosines and sines are given; heads of a row lie side by side, rows anyhow.

    Tables in x's dtype: every product is rounded to it, as PyTorch does. fp32 tables: rounded once, at the end.
    """
    rows, heads, size = x_TNH.shape
    x_TNH = _heads_together(x_TNH)
    y_TNH = x_TNH.new_empty(x_TNH.shape)
    tables = _DTYPES[cos_TH.dtype]
    _lib().qvl_rope(
        x_TNH.data_ptr(),
        cos_TH.data_ptr(),
        sin_TH.data_ptr(),
        y_TNH.data_ptr(),
        rows,
        heads,
        size,
        x_TNH.stride(0),
        _DTYPES[x_TNH.dtype],
        tables,
        torch.get_num_threads(),
    )
    return y_TNH
