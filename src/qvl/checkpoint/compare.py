"""The tensors that are there against those that config.json asks for: the one comparison, for loading and checking.

    expected_tensors(config, quantization, stored)   what must be there, and in which form
    compare(expected, stored)                        what of it is missing, extra, misshaped or oddly stored

Names are canonical. What is expected depends on what is stored in one respect: a mixture's experts may lie in fused
tensors or one by one:

    fused                        one by one (transformers 5 writes these; so do most quantisers)
    ….experts.gate_up_proj       ….experts.0.gate_proj.weight, ….experts.0.up_proj.weight, ….experts.1.…
    ….experts.down_proj          ….experts.0.down_proj.weight, ….experts.1.…
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from qvl.catalog.config import ModelConfig, TextConfig, tensor_table
from qvl.checkpoint.quantization import Part, Quantization, Scheme
from qvl.checkpoint.stored import listed
from qvl.checkpoint.weight_files import StoredTensor
from qvl.errors import CheckpointError

PLAIN_DTYPES = ("BF16", "F16", "F32", "F64")
SINGLE = ("gate_proj", "up_proj", "down_proj")  # of one expert
FUSED = ("gate_up_proj", "down_proj")  # of all of them
# Tensors that old files carry and that are computed here, and those of multi-token prediction, which isn't run.
_IGNORABLE = re.compile(r"(^|\.)rotary_(pos_)?emb\.inv_freq$|^mtp\.")
_PARTS = {"experts.gate_up_proj": SINGLE[:2], "experts.down_proj": SINGLE[2:]}


@dataclass(frozen=True)
class QuantizedLayer:
    """`parts`: a tensor's name after the layer's → what it must look like. The bias of a layer that has one in
    the network is a plain tensor and not among them. `replaces`: parameters of the network that fall away.
    """

    scheme: Scheme
    parts: Mapping[str, Part]
    replaces: tuple[str, ...] = ("weight",)


class Place(NamedTuple):
    """Where one expert's matrix (out, in) lies in a fused tensor."""

    fused: str
    expert: int
    part: int  # 0 gate or down, 1 up
    num_parts: int


@dataclass(frozen=True)
class Expected:
    """`shapes`: of the plain tensors. `fused`: shapes of the fused tensors whose experts are stored one by one, by
    `experts`. `misfits`: layers whose sizes the quantisation can't have, with the reason.
    """

    shapes: Mapping[str, tuple[int, ...]]
    layers: Mapping[str, QuantizedLayer]
    experts: Mapping[str, Place]
    fused: Mapping[str, tuple[int, ...]]
    misfits: tuple[str, ...]

    @property
    def parts(self) -> dict[str, Part]:
        """The tensors of the quantised layers."""
        return {
            f"{name}.{part}": spec
            for name, layer in self.layers.items()
            for part, spec in layer.parts.items()
        }


def expected_tensors(
    config: ModelConfig, quantization: Quantization | None, stored: Container[str] = ()
) -> Expected:
    """Raises: ConfigError for a family whose tensors aren't known."""
    table = tensor_table(config)
    shapes = dict(table.shapes)
    layers, misfits = _quantized_layers(config, quantization, shapes, table.linears, stored)
    for name, layer in layers.items():
        for part in layer.replaces:
            del shapes[f"{name}.{part}"]
    experts = expert_places(config.text, shapes, stored)
    fused = {at.fused: shapes.pop(at.fused) for at in experts.values() if at.fused in shapes}
    shapes |= {name: single_shape(config.text, at) for name, at in experts.items()}
    return Expected(shapes, layers, experts, fused, tuple(misfits))


def _quantized_layers(
    config: ModelConfig,
    quantization: Quantization | None,
    shapes: Mapping[str, tuple[int, ...]],
    linears: Mapping[str, tuple[int, int]],
    stored: Container[str],
) -> tuple[dict[str, QuantizedLayer], list[str]]:
    """By canonical name, and the layers whose sizes don't fit."""
    layers: dict[str, QuantizedLayer] = {}
    misfits: list[str] = []
    if quantization is None:
        return layers, misfits
    for name, (out, inn) in linears.items():
        if (scheme := quantization.scheme_of(name)) is None:
            continue
        if why := scheme.misfit(out, inn):
            misfits.append(f"{name}: {why}")
        parts = scheme.parts(out, inn)
        if scheme.format == "gptq" and f"{name}.bias" not in shapes:
            # AutoGPTQ writes a bias, of zeros, for every layer
            parts["bias"] = Part((out,), ("F16", "BF16", "F32"), required=False)
        layers[name] = QuantizedLayer(scheme, parts)
    for name in shapes:
        at, _, last = name.rpartition(".")
        if not at.endswith(".experts") or last != "down_proj":
            continue
        if (scheme := quantization.scheme_of(name)) is None:
            continue
        sizes = expert_shapes(shapes[name], config.text.expert_inputs_first)
        misfits += [
            f"{at}: {why}" for part in ("gate_proj", "down_proj") if (why := scheme.misfit(*sizes[part]))
        ]
        if scheme.format == "fp8" and f"{at}.gate_up_proj" in stored:
            parts = {
                key: spec
                for part in FUSED
                for key, spec in scheme.fused_parts(part, shapes[f"{at}.{part}"]).items()
            }
        else:
            parts = {
                f"{expert}.{part}.{key}": spec
                for expert in range(shapes[name][0])
                for part in SINGLE
                for key, spec in scheme.parts(*sizes[part]).items()
            }
        layers[at] = QuantizedLayer(scheme, parts, FUSED)
    return layers, misfits


def expert_shapes(down: tuple[int, ...], inputs_first: bool) -> dict[str, tuple[int, int]]:
    """(out, in) of one expert's matrices, single and fused, from the shape of the fused `down_proj`."""
    inner, width = (down[1], down[2]) if inputs_first else (down[2], down[1])
    one = (inner, width)
    return {"gate_proj": one, "up_proj": one, "down_proj": (width, inner), "gate_up_proj": (2 * inner, width)}


def expert_places(
    text: TextConfig, shapes: Mapping[str, tuple[int, ...]], stored: Container[str]
) -> dict[str, Place]:
    """Name of a single matrix → its place, for every fused tensor in `shapes` that is stored one by one."""
    places = {}
    for fused in shapes:
        parts = next((parts for end, parts in _PARTS.items() if fused.endswith(end)), ())
        at = fused.rpartition(".")[0]
        if not parts or fused in stored or f"{at}.0.{parts[0]}.weight" not in stored:
            continue
        for expert in range(text.num_experts):
            for i, part in enumerate(parts):
                places[f"{at}.{expert}.{part}.weight"] = Place(fused, expert, i, len(parts))
    return places


def single_shape(text: TextConfig, place: Place) -> tuple[int, int]:
    """(out, in) of one expert's matrix."""
    width, inner = text.hidden_size, text.moe_intermediate_size
    return (inner, width) if place.num_parts == 2 else (width, inner)


def is_fused(name: str) -> bool:
    return name.endswith(tuple(_PARTS))


class Mismatch(NamedTuple):
    """One tensor that isn't as it should be; `what` says how, after the name."""

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name} {self.what}"


@dataclass(frozen=True)
class Comparison:
    """`skipped`: stored tensors that are known and not needed."""

    expected: Expected
    missing: list[str]
    extra: list[str]
    skipped: list[str]
    misshaped: list[Mismatch]
    odd: list[Mismatch]  # plain tensors in a dtype that none has
    misstored: list[Mismatch]  # parts of quantised layers in another dtype than theirs

    def num_bytes(self, stored: Mapping[str, StoredTensor], item_bytes: int) -> int:
        """Of the weights once they are loaded, a plain number taking `item_bytes`."""
        plain = sum(math.prod(stored[name].shape) for name in self.expected.shapes)
        return plain * item_bytes + sum(
            stored[name].num_bytes for name in self.expected.parts if name in stored
        )

    def error(self, folder: Path) -> CheckpointError | None:
        """Why this can't be loaded, with everything that is wrong."""
        if misfits := self.expected.misfits:
            rest = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
            return CheckpointError(
                f"{folder}: quantization_config doesn't fit these layers: {'; '.join(misfits[:3])}{rest}. Were they "
                "meant to stay unquantised? Then modules_to_not_convert (or ignore) must name them"
            )
        problems = [
            f"{len(names)} {kind}: {listed(map(str, names))}"
            for kind, names in (
                ("missing", self.missing),
                ("extra", self.extra),
                ("misshaped", self.misshaped),
                (f"not stored as {', '.join(PLAIN_DTYPES)}", self.odd),
                ("of another dtype", self.misstored),
            )
            if names
        ]
        if not problems:
            return None
        return CheckpointError(
            f"{folder}: the weights don't fit config.json. {'; '.join(problems)}. Check that both come from the same "
            "checkpoint"
        )


def compare(expected: Expected, stored: Mapping[str, StoredTensor]) -> Comparison:
    """`stored`: canonical name → header entry."""
    shapes, parts = expected.shapes, expected.parts
    missing = [name for name in shapes if name not in stored]
    missing += [name for name, part in parts.items() if part.required and name not in stored]
    extra: list[str] = []
    skipped: list[str] = []
    for name in stored:
        if name in shapes or name in parts:
            continue
        tied_head = name == "lm_head.weight"  # only a tied network has no place for it
        (skipped if tied_head or _IGNORABLE.search(name) else extra).append(name)
    wanted = {**shapes, **{name: part.shape for name, part in parts.items()}}
    return Comparison(
        expected,
        missing,
        extra,
        skipped,
        misshaped=[
            Mismatch(name, f"{list(stored[name].shape)}, should be {list(shape)}")
            for name, shape in wanted.items()
            if name in stored and stored[name].shape != shape
        ],
        odd=[
            Mismatch(name, stored[name].dtype)
            for name in shapes
            if name in stored and stored[name].dtype not in PLAIN_DTYPES
        ],
        misstored=[
            Mismatch(name, f"{stored[name].dtype}, should be {' or '.join(part.dtypes)}")
            for name, part in parts.items()
            if name in stored and stored[name].dtype not in part.dtypes
        ],
    )
