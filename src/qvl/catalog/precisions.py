"""Precisions of weights: one record each, with its bits, its layout, what it needs and what it is called elsewhere.

A precision is added here, and in the code that reads its tensors. The planner, the launch commands and the help texts
ask these records.
Source: safetensors layouts of the published checkpoints (AWQ gemm, GPTQ with act-order index, FP8 blocks),
GGUF block formats, bitsandbytes NF4 with double quantisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from qvl.errors import ConfigError, PlanError, nearest

GROUP = 128  # inputs that share a scale in int4, AWQ and GPTQ as published
FP8_BLOCK = 128  # side of the square that shares a scale
NF4_BLOCK, NF4_SCALES_BLOCK = 64, 256
PACK = 8  # 4-bit outputs in one 32-bit word of AWQ

# (kind of linear, inputs, outputs) → bytes of (weights, scales and zero points)
Layout = Callable[[str, int, int], tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class PrecisionRecord:
    """`layout` is of one quantised matrix. `bits` are of one weight, without scales."""

    name: str
    bits: float
    layout: Layout
    dtype: str = ""  # of a plain checkpoint's config
    methods: tuple[
        tuple[str, str, int], ...
    ] = ()  # (quant_method, type, bits) of a quantised one; 0: any bits
    # engines that take it beside their own lists; None: all that read checkpoints; (): only under an engine's own name
    engines: tuple[str, ...] | None = None
    published: bool = True  # checkpoints of the catalogue may have it
    loss_order: int | None = None  # where a smaller precision is looked for, in this order
    read_by_qvl: bool = False  # as published
    rounded_on_load: bool = False  # by qvl's engine, of a plain checkpoint
    published_as: tuple[
        str, ...
    ] = ()  # what else is this precision in other words, best liked by engines first
    measured_as: tuple[str, ...] = ()  # whose measured losses stand for it
    capability: float = 0.0  # least of NVIDIA's compute capability
    needs: str = ""  # the subject of the sentence that says so
    group: int = 0  # inputs that share a scale, which a cut must keep whole
    pack: int = 0  # outputs in one word, likewise
    block: int = 0  # side of a square that shares a scale, likewise
    table: Callable[[int, bool], int] | None = None  # bytes of so many table weights, tied or not
    head: Callable[[int], int] | None = None

    @property
    def is_plain(self) -> bool:
        """Nothing is quantised."""
        return bool(self.dtype)

    @property
    def value_bytes(self) -> int:
        """Of what stays unquantised: 4 in fp32, else 2."""
        return 4 if self.bits == 32 else 2


def gguf_bytes(n: int, kind: str) -> int:
    """GGUF blocks: 32 values in 34 bytes, 256 in 144, 256 in 210."""
    values, size = {"q8_0": (32, 34), "q4_k": (256, 144), "q6_k": (256, 210)}[kind]
    return ceil(n / values) * size


def _plain(size: int) -> Layout:
    return lambda _, inputs, outputs: (size * inputs * outputs, 0)


def _fp8(_: str, inputs: int, outputs: int) -> tuple[int, int]:
    return inputs * outputs, 4 * ceil(inputs / FP8_BLOCK) * ceil(outputs / FP8_BLOCK)


def _int8(_: str, inputs: int, outputs: int) -> tuple[int, int]:
    """One 16-bit scale per output row."""
    return inputs * outputs, 2 * outputs


def _int4(_: str, inputs: int, outputs: int) -> tuple[int, int]:
    """Symmetric groups with a 16-bit scale."""
    return ceil(inputs * outputs / 2), 2 * ceil(inputs / GROUP) * outputs


def _awq(_: str, inputs: int, outputs: int) -> tuple[int, int]:
    """16-bit scales and 4-bit zero points."""
    scales = ceil(inputs / GROUP) * outputs
    return ceil(inputs * outputs / 2), 2 * scales + ceil(scales / 2)


def _gptq(bits: int) -> Layout:
    def layout(_: str, inputs: int, outputs: int) -> tuple[int, int]:
        """As AWQ, and an int32 group index for each input."""
        scales = ceil(inputs / GROUP) * outputs
        return ceil(inputs * outputs * bits / 8), 2 * scales + ceil(scales * bits / 8) + 4 * inputs

    return layout


def _nvfp4(_: str, inputs: int, outputs: int) -> tuple[int, int]:
    """An FP8 scale every 16 values, one fp32 scale for the matrix."""
    return ceil(inputs * outputs / 2), ceil(inputs * outputs / 16) + 4


def _nf4(_: str, inputs: int, outputs: int) -> tuple[int, int]:
    blocks = ceil(inputs * outputs / NF4_BLOCK)
    return ceil(inputs * outputs / 2), blocks + 4 * ceil(blocks / NF4_SCALES_BLOCK)


def _q4_k_m(name: str, inputs: int, outputs: int) -> tuple[int, int]:
    """llama.cpp gives half of the value and down projections 6 bits (first and last eighth of the layers, every third
    between): 1/8 + 1/8 + 3/4 / 3 = 1/2."""
    n = inputs * outputs
    if name.endswith(("v_proj", "down_proj")):
        return (gguf_bytes(n, "q6_k") + gguf_bytes(n, "q4_k")) // 2, 0
    return gguf_bytes(n, "q4_k"), 0


_FOUR_BIT_RELATIVES = ("gptq-int4", "awq")  # GGUF, bitsandbytes and NVFP4 have no paired run of their own

PRECISIONS: dict[str, PrecisionRecord] = {
    p.name: p
    for p in (
        PrecisionRecord(name="bf16", bits=16, layout=_plain(2), dtype="bfloat16", loss_order=0, read_by_qvl=True),
        PrecisionRecord(
            name="fp16", bits=16, layout=_plain(2), dtype="float16", published=False, published_as=("bf16",)
        ),
        PrecisionRecord(name="fp32", bits=32, layout=_plain(4), dtype="float32", published=False),
        PrecisionRecord(
            name="fp8", bits=8, layout=_fp8, loss_order=1, read_by_qvl=True, block=FP8_BLOCK,
            methods=(("fp8", "", 0), ("compressed-tensors", "float", 8)),
            capability=8.0, needs="fp8 weights need",
        ),
        PrecisionRecord(
            name="int8", bits=8, layout=_int8, loss_order=2, read_by_qvl=True, rounded_on_load=True,
            methods=(("compressed-tensors", "int", 8),),
            published_as=("int8", "gptq-int8"), measured_as=("int8", "gptq-int8"),
        ),
        PrecisionRecord(
            name="int4", bits=4, layout=_int4, loss_order=6, rounded_on_load=True, group=GROUP, pack=PACK,
            methods=(("compressed-tensors", "int", 4),),
            published_as=("awq", "gptq-int4"), measured_as=_FOUR_BIT_RELATIVES,
        ),
        PrecisionRecord(
            name="awq", bits=4, layout=_awq, loss_order=4, read_by_qvl=True, group=GROUP, pack=PACK,
            methods=(("awq", "", 4),), capability=7.5, needs="AWQ kernels need",
        ),
        PrecisionRecord(
            name="gptq-int8", bits=8, layout=_gptq(8), loss_order=3, read_by_qvl=True, group=GROUP,
            methods=(("gptq", "", 8),),
        ),
        PrecisionRecord(
            name="gptq-int4", bits=4, layout=_gptq(4), loss_order=5, read_by_qvl=True, group=GROUP,
            methods=(("gptq", "", 4),),
        ),
        PrecisionRecord(
            name="nvfp4", bits=4, layout=_nvfp4, engines=("vllm",), measured_as=_FOUR_BIT_RELATIVES,
            capability=10.0, needs="NVFP4 needs",
        ),
        PrecisionRecord(name="nf4", bits=4, layout=_nf4, engines=(), published=False),
        PrecisionRecord(
            name="q8_0", bits=8, layout=lambda _, i, o: (gguf_bytes(i * o, "q8_0"), 0), engines=(), published=False,
            table=lambda n, _: gguf_bytes(n, "q8_0"), head=lambda n: gguf_bytes(n, "q8_0"),
        ),
        PrecisionRecord(
            name="q4_k_m", bits=4, layout=_q4_k_m, engines=(), published=False,
            # the matrix that makes the logits gets 6 bits, tied or not
            table=lambda n, tied: gguf_bytes(n, "q6_k" if tied else "q4_k"), head=lambda n: gguf_bytes(n, "q6_k"),
        ),
    )
}  # fmt: skip


def find_precision(name: str) -> PrecisionRecord:
    """Raises: PlanError for a name that stands for none."""
    if name not in PRECISIONS:
        raise PlanError(f"no precision {name!r}; known: {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def published_precisions() -> list[str]:
    """Those that checkpoints of the catalogue may have."""
    return [p.name for p in PRECISIONS.values() if p.published]


def rounded_on_load() -> list[str]:
    """What qvl's engine makes of a plain checkpoint as it reads it."""
    return [p.name for p in PRECISIONS.values() if p.rounded_on_load]


def by_loss(*, read_by_qvl: bool = False) -> list[str]:
    """The least loss first; `read_by_qvl`: only what its engine reads as published."""
    tried = [
        p for p in PRECISIONS.values() if p.loss_order is not None and (p.read_by_qvl or not read_by_qvl)
    ]
    return [p.name for p in sorted(tried, key=lambda p: p.loss_order or 0)]


def stored_precision(dtype: str, quantization: Mapping[str, Any] | None) -> str:
    """The precision a checkpoint is published in, from its quantization_config and dtype.

    Raises: ConfigError for a dtype or a method that no record names.
    """
    if quantization is None:
        short = {p.dtype: p.name for p in PRECISIONS.values() if p.dtype}
        if dtype not in short:
            raise ConfigError(f"dtype {dtype!r} is not known; {nearest(dtype, list(short))}")
        return short[dtype]
    method, kind = str(quantization.get("quant_method", "")), ""
    bits = quantization.get("bits", quantization.get("w_bit", 4))
    sought = (method, kind, bits)
    if method == "compressed-tensors":
        first: Mapping[str, Any] = next(iter((quantization.get("config_groups") or {}).values()), {})
        weights = first.get("weights") or {}
        sought = (method, weights.get("type", "int"), weights.get("num_bits"))
    for p in PRECISIONS.values():
        if sought in p.methods or (*sought[:2], 0) in p.methods:
            return p.name
    known = dict.fromkeys(m for p in PRECISIONS.values() for m, _, _ in p.methods)
    raise ConfigError(f"quant_method {method!r} with {bits} bits is not known; known: {', '.join(known)}")
