"""Linear layers whose weights are 4- or 8-bit codes, in the one layout that our kernels read.

A weight is (code - zero) * scale, with one scale and one zero for each group of neighbouring inputs of an output
row. `dequantize` is the reference: everything else here computes x @ dequantize().T + bias, faster.

Codes lie in tiles of 16 output rows, so that a vector register holds one value of each row and sums need no
shuffling. Four inputs of a row are neighbouring bytes, which is what the 8-bit dot product instructions multiply.
A block is one 64-byte line:

    8 bits   block b holds inputs 4b … 4b+3             byte (row, j) = code of input 4b + j
    4 bits   block b holds inputs 8b … 8b+7             byte (row, j) = code of 8b + j | code of 8b + 4 + j << 4

Rows are padded to a whole tile and inputs to a whole 32 (the kernels' step); what is padded is never read back.
Legend: T rows of activations, O outputs, I inputs, G groups, N tiles, B blocks, D embedding width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.errors import CheckpointError
from qvl.models.kernels import ops

TILE = 16  # output rows whose codes lie together
STEP = 32  # inputs that share one scale of the activations, and to which rows of codes are padded
BITS = (4, 8)
GROUP = 128  # inputs that share a scale when we make 4-bit codes ourselves
SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WEIGHTS_AT_ONCE = 1 << 20  # rounded to codes together: their fp32 copies stay in the cache
WIDE_WEIGHTS = 4 << 20  # made fp32 at a time where bf16 products are emulated: 16 MiB, which a cache can hold


def pack_codes(codes_OI: Tensor, bits: int) -> Tensor:
    """uint8 codes (O, I) → uint8 (N, B, 16, 4), the layout above."""
    outputs, inputs = codes_OI.shape
    codes_OI = F.pad(codes_OI, (0, -inputs % STEP, 0, -outputs % TILE))
    codes_NLBJ = codes_OI.view(-1, TILE, codes_OI.shape[1] // 4, 4)
    codes_NBLJ = codes_NLBJ.transpose(1, 2)
    if bits == 8:
        return codes_NBLJ.contiguous()
    return (codes_NBLJ[:, 0::2] | codes_NBLJ[:, 1::2] << 4).contiguous()


def unpack_codes(packed: Tensor, bits: int, outputs: int, inputs: int) -> Tensor:
    """The inverse of `pack_codes`: uint8 (O, I)."""
    if bits == 4:
        packed = torch.stack((packed & 15, packed >> 4), dim=2).flatten(1, 2)
    return packed.transpose(1, 2).reshape(packed.shape[0] * TILE, -1)[:outputs, :inputs]


def _tiled(values_OG: Tensor) -> Tensor:
    """(O, G) → (N, G, 16): the values of a tile's rows side by side."""
    padded_OG = F.pad(values_OG, (0, 0, 0, -values_OG.shape[0] % TILE))
    return padded_OG.view(-1, TILE, padded_OG.shape[1]).transpose(1, 2).contiguous()


def _untiled(values: Tensor, outputs: int) -> Tensor:
    return values.transpose(1, 2).reshape(-1, values.shape[1])[:outputs]


@functools.cache
def multiplies_half() -> bool:
    """Whether this processor multiplies bf16 matrices in hardware. PyTorch emulates it at an eighth of fp32's speed
    on those that don't (AVX2), consumer ones up to today among them.
    """
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def few_rows() -> int:
    """Up to here bf16 weights are read by our kernel; beyond, PyTorch's matrix product is faster. Measured on one
    processor of each kind (benchmarks/cpu/kernels.py).
    """
    if ops.multiplies_bf16():
        return 128  # at 200 and 409 rows as fast as PyTorch's, at 1,536 slower
    return 6 if multiplies_half() else 16


def product(x: Tensor, weight_OI: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear(x, weight_OI, bias), by the fastest product that this processor has for so many rows."""
    held = (weight_OI,) if bias is None else (weight_OI, bias)
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16):
        return F.linear(x, *held)
    if takes_few_rows(x, weight_OI, bias):
        return ops.linear((row_matrix(weight_OI, bias),), x)
    # Too few rows to pay for widening the weights; but a transposed matrix is emulated at a GFLOP/s or less.
    few = x.numel() <= few_rows() * x.shape[-1] and weight_OI.is_contiguous()
    if few or multiplies_half() or (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *held))):
        return F.linear(x, *held)
    return wide_product(x, weight_OI, bias)


def takes_few_rows(x: Tensor, weight_OI: Tensor, bias: Tensor | None) -> bool:
    held = (weight_OI,) if bias is None else (weight_OI, bias)
    few = x.dtype == torch.bfloat16 and x.numel() <= few_rows() * x.shape[-1]
    return few and ops.ready(x, *held) and all(t.is_contiguous() for t in held)


def row_matrix(weight_OI: Tensor, bias: Tensor | None) -> ops.Matrix:
    outputs, inputs = weight_OI.shape
    return ops.Matrix(
        weight=weight_OI.data_ptr(), bias=ops.address(bias), outputs=outputs, inputs=inputs, kind=ops.ROWS
    )


def wide_product(x: Tensor, weight_OI: Tensor, bias: Tensor | None) -> Tensor:
    """The same in fp32, rounded to x's dtype once, with a slice of the weights widened at a time."""
    wide = x.float()
    y = x.new_empty(*x.shape[:-1], len(weight_OI))
    step = max(1, WIDE_WEIGHTS // max(1, weight_OI.shape[1]))
    for first in range(0, len(weight_OI), step):
        part = slice(first, first + step)
        y[..., part] = F.linear(wide, weight_OI[part].float(), None if bias is None else bias[part].float())
    return y


# What a layer whose product a compiled kernel can carry out has, beside `forward`:
#     takes_kernel(x)   whether it can for this x
#     matrix()          what it multiplies
#     shares            layers of one class that are equal in this can share one pass


class Linear(nn.Linear):
    """nn.Linear through `product`."""

    shares = None

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)

    def takes_kernel(self, x: Tensor) -> bool:
        return takes_few_rows(x, self.weight, self.bias)

    def matrix(self) -> ops.Matrix:
        return row_matrix(self.weight, self.bias)


class QuantizedLinear(nn.Module):
    """y = x @ W.T + bias with W held as codes. Inference only: the weights are buffers, not parameters."""

    packed: Tensor  # uint8 (N, B, 16, 4)
    scales: Tensor  # (N, G, 16)
    zeros: Tensor | None  # uint8 (N, G, 16); None: every zero is the middle of the codes, 8 or 128
    bias: Tensor | None
    input_order: Tensor | None  # int64 (I,)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        group_size: int,
        packed: Tensor,
        scales: Tensor,
        zeros: Tensor | None = None,
        bias: Tensor | None = None,
        input_order: Tensor | None = None,
    ):
        """From buffers in the layout of this file; `from_codes` takes plain matrices."""
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group_size = bits, group_size
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)
        self.register_buffer("bias", bias)
        self.register_buffer("input_order", input_order)

    @classmethod
    def from_codes(
        cls,
        codes_OI: Tensor,
        bits: int,
        scales_OG: Tensor,
        zeros_OG: Tensor | None = None,
        *,
        group_size: int,
        bias: Tensor | None = None,
        input_order: Tensor | None = None,
    ) -> QuantizedLinear:
        """From one uint8 code a weight.

        scales_OG, zeros_OG: group g covers inputs [g * group_size, (g + 1) * group_size), the last one may be
        short; a group_size of I or more is one group a row. Zeros are whole numbers from 0 to 255; None is the
        middle, 8 or 128. input_order: (I,), column i of the codes multiplies x[..., input_order[i]].
        Raises: CheckpointError when the pieces don't belong together.
        """
        if bits not in BITS:
            raise CheckpointError(f"{bits}-bit codes have no layer here; known: 4, 8")
        if codes_OI.ndim != 2 or codes_OI.dtype != torch.uint8:
            raise CheckpointError(
                f"codes are {tuple(codes_OI.shape)} {codes_OI.dtype}: one uint8 a weight, (out, in)"
            )
        outputs, inputs = codes_OI.shape
        group_size = min(group_size, inputs)
        if group_size < 1:
            raise CheckpointError(f"group_size {group_size} for {inputs} inputs: both must be at least 1")
        shape = (outputs, -(-inputs // group_size))
        for name, values in (("scales", scales_OG), ("zeros", zeros_OG)):
            if values is not None and tuple(values.shape) != shape:
                raise CheckpointError(
                    f"{name} are {tuple(values.shape)}; {outputs} x {inputs} codes in groups of {group_size} "
                    f"need {shape}"
                )
        if scales_OG.dtype not in SCALE_DTYPES:
            raise CheckpointError(f"scales are {scales_OG.dtype}; known: float32, bfloat16, float16")
        if bits == 4 and codes_OI.numel() and int(codes_OI.max()) > 15:
            raise CheckpointError(f"a 4-bit code is {int(codes_OI.max())}; the largest is 15")
        if input_order is not None and not torch.equal(
            input_order.sort().values.cpu(), torch.arange(inputs, dtype=input_order.dtype)
        ):
            raise CheckpointError(f"input_order must hold each of the {inputs} inputs once")
        return cls(
            inputs,
            outputs,
            bits,
            group_size,
            pack_codes(codes_OI, bits),
            _tiled(scales_OG),
            _packed_zeros(zeros_OG, bits),
            bias,
            None if input_order is None else input_order.long(),
        )

    @classmethod
    def empty(cls, in_features: int, out_features: int, bits: int, group_size: int) -> QuantizedLinear:
        """Zeros in the middle, bf16 scales, no bias; on the CPU; `put` fills it."""
        group_size = min(group_size, in_features)
        tiles, inputs = -(-out_features // TILE), in_features + -in_features % STEP
        packed = torch.empty(tiles, inputs * bits // 32, TILE, 4, dtype=torch.uint8)
        scales = torch.empty(tiles, -(-in_features // group_size), TILE, dtype=torch.bfloat16)
        return cls(in_features, out_features, bits, group_size, packed, scales)

    def put(self, first: int, weight_RI: Tensor) -> None:
        """Rounds output rows from `first` on, a multiple of TILE: whole tiles of them, or the last ones.

        A few tiles at a time, straight into their place: whole copies in between would be the peak of a load.
        """
        assert first % TILE == 0, first
        weight_RI = weight_RI.detach().cpu()
        if ops.ready(weight_RI):
            part = slice(first // TILE, -(-(first + len(weight_RI)) // TILE))
            ops.round_rows(weight_RI, self.bits, self.group_size, self.packed[part], self.scales[part])
            return
        step = max(1, WEIGHTS_AT_ONCE // (self.in_features * TILE)) * TILE
        for at in range(0, len(weight_RI), step):
            rows = weight_RI[at : at + step]
            codes_RI, scales_RG = quantize_codes(rows, self.bits, self.group_size)
            tile = (first + at) // TILE
            part = slice(tile, tile + -(-len(rows) // TILE))
            self.packed[part] = pack_codes(codes_RI, self.bits)
            self.scales[part] = _tiled(scales_RG)

    @property
    def num_bytes(self) -> int:
        """What the buffers hold, padding and bias included."""
        return sum(b.numel() * b.element_size() for b in self.buffers())

    @property
    def has_kernel(self) -> bool:
        """Groups must be whole steps of the kernel's; one group a row always is."""
        return self.group_size % STEP == 0 or self.group_size == self.in_features

    def takes_kernel(self, x: Tensor) -> bool:
        """bf16 activations may be rounded to 8 bits; fp32 ones are multiplied as they are, by `dequantize`."""
        return x.dtype == torch.bfloat16 and self.has_kernel and bias_fits(self, x) and ops.ready(x)

    def rows(self, indices_T: Tensor) -> Tensor:
        """fp32 (T, I): these rows of `dequantize`, without the others. For 8 bits, one scale a row, zeros in the
        middle: what a token table is made of.
        """
        tiles_T, lanes_T = indices_T // TILE, indices_T % TILE
        codes_TI = self.packed[tiles_T, :, lanes_T].flatten(1)[:, : self.in_features].float()
        return (codes_TI - 128) * self.scales[tiles_T, :, lanes_T].float()

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, bits={self.bits}, group_size={self.group_size}, "
            f"bias={self.bias is not None}"
        )

    def dequantize(self) -> Tensor:
        """fp32 (O, I), inputs in the order of x: the weights this layer stands for, exactly."""
        outputs, inputs = self.out_features, self.in_features
        codes_OI = unpack_codes(self.packed, self.bits, outputs, inputs).float()
        scales_OI = _untiled(self.scales, outputs).float().repeat_interleave(self.group_size, 1)[:, :inputs]
        middle = float(1 << (self.bits - 1))
        if self.zeros is None:
            weight_OI = (codes_OI - middle) * scales_OI
        else:
            zeros_OI = _untiled(self.zeros, outputs).float().repeat_interleave(self.group_size, 1)
            weight_OI = (codes_OI - zeros_OI[:, :inputs]) * scales_OI
        if self.input_order is None:
            return weight_OI
        ordered_OI = torch.empty_like(weight_OI)
        ordered_OI[:, self.input_order] = weight_OI
        return ordered_OI

    def forward(self, x: Tensor) -> Tensor:
        if self.takes_kernel(x):
            return ops.linear((self.matrix(),), x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.dequantize().to(x.dtype), bias)

    @property
    def shares(self) -> tuple[int, int | None]:
        return self.group_size, ops.address(self.input_order)

    def matrix(self) -> ops.Matrix:
        return ops.Matrix(
            weight=self.packed.data_ptr(),
            scales=self.scales.data_ptr(),
            zeros=ops.address(self.zeros),
            bias=ops.address(self.bias),
            order=ops.address(self.input_order),
            outputs=self.out_features,
            inputs=self.in_features,
            across=self.group_size,
            kind=ops.CODES,
            scale_dtype=ops.dtype_number(self.scales.dtype),
            bits=self.bits,
        )


class CodedEmbedding(nn.Module):
    """nn.Embedding over a table held as codes. Where it is tied to the head, `table` is the head's layer too."""

    def __init__(self, table: QuantizedLinear, dtype: torch.dtype):
        super().__init__()
        self.table, self.dtype = table, dtype

    def forward(self, ids_T: Tensor) -> Tensor:
        return self.table.rows(ids_T).to(self.dtype)


def linears(layers: Sequence[Any], x: Tensor) -> Sequence[Tensor]:
    """[layer(x) for layer in layers], in one pass over the weights where a kernel can.

    Then the outputs are slices of one tensor: their rows lie apart. A layer that is anything else than a plain one
    (adapted, hooked, being trained) is called as it is.
    """
    if not in_one_pass(layers) or not all(layer.takes_kernel(x) for layer in layers):
        return [layer(x) for layer in layers]
    y = ops.linear([layer.matrix() for layer in layers], x)
    out: Sequence[Tensor] = y.split([layer.out_features for layer in layers], dim=-1)
    return out


def bias_fits(layer: Any, x: Tensor) -> bool:
    """Kernels add a bias in the dtype of the activations only."""
    return layer.bias is None or layer.bias.dtype == x.dtype


def in_one_pass(layers: Sequence[Any]) -> bool:
    first = layers[0]
    # the class's own, not inherited: a class made of it may compute something else
    return "takes_kernel" in vars(type(first)) and all(
        type(layer) is type(first) and layer.shares == first.shares and not hooked(layer) for layer in layers
    )


def hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _packed_zeros(zeros_OG: Tensor | None, bits: int) -> Tensor | None:
    if zeros_OG is None or bool((zeros_OG == 1 << (bits - 1)).all()):
        return None
    stored_OG = zeros_OG.to(torch.uint8)
    if not torch.equal(stored_OG.to(zeros_OG.dtype), zeros_OG):
        raise CheckpointError("zeros must be whole numbers from 0 to 255")
    return _tiled(stored_OG)


def quantize_codes(weight_OI: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """uint8 codes_OI and bf16 scales_OG, zeros in the middle.

    The largest weight of a group becomes the lowest code, -8 or -128 from the middle, whichever sign it has: its
    scale is negative when the weight is positive. That uses all codes (llama.cpp's Q4_0 does the same).
    """
    outputs, inputs = weight_OI.shape
    group_size = min(group_size, inputs)
    middle = 1 << (bits - 1)
    padded_OI = F.pad(weight_OI.float(), (0, -inputs % group_size))
    groups_OGJ = padded_OI.view(outputs, -1, group_size)
    largest_OG1 = groups_OGJ.gather(2, groups_OGJ.abs().argmax(2, keepdim=True))
    # rounded before it is used, so that codes make up for the scale's own rounding
    scales_OG1 = (largest_OG1 / -middle).to(torch.bfloat16)
    inverse_OG1 = torch.where(scales_OG1 == 0, 0.0, 1.0 / scales_OG1.float())
    codes_OGJ = (groups_OGJ * inverse_OG1).round_().add_(middle).clamp_(0, 2 * middle - 1)
    return codes_OGJ.to(torch.uint8).view(outputs, -1)[:, :inputs], scales_OG1[:, :, 0]


def quantize_linear(linear: nn.Linear, bits: int, group_size: int = GROUP) -> QuantizedLinear:
    """A layer's weights made small, by nearest rounding. A group_size of I or more gives one scale a row."""
    outputs, inputs = linear.weight.shape
    layer = QuantizedLinear.empty(inputs, outputs, bits, group_size)
    layer.put(0, linear.weight)
    layer.bias = None if linear.bias is None else linear.bias.detach().cpu()
    return layer
