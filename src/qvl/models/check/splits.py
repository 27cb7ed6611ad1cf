"""Over how many GPUs the checkpoint can be cut: heads, groups, packed words, FP8 blocks."""

from __future__ import annotations

from collections.abc import Iterator

from qvl.catalog.quantization import Scheme
from qvl.models.check import Finding, Subject
from qvl.plan.memory import Shards
from qvl.plan.parameters import LinearShape, language_linears
from qvl.plan.split import split_problems

SIZES = (2, 4, 8)
_MOST = 64


def findings(subject: Subject) -> Iterator[Finding]:
    asked = subject.tensor_parallel_size
    for size in (asked,) if asked else SIZES:
        shapes = list(split_problems(subject.config, "bf16", Shards(size, vision="replicate")))
        packed = [] if shapes else _quantised_problems(subject, size)
        if not shapes and not packed:
            continue
        legal = [n for n in range(1, 17) if _is_legal(subject, n)]
        fix = f"cut over {', '.join(map(str, legal))} GPUs"
        if packed:
            fix += f"; {packed[0][1]}"
        yield Finding(
            "error" if asked else "warning" if packed else "note",
            "split",
            f"{size} GPUs can't share it: {'; '.join([*shapes, *(what for what, _ in packed)][:2])}",
            fix,
        )


def _is_legal(subject: Subject, size: int) -> bool:
    return not split_problems(subject.config, "bf16", Shards(size, vision="replicate")) and not (
        _quantised_problems(subject, size)
    )


def _quantised_problems(subject: Subject, size: int) -> list[tuple[str, str]]:
    """(what, what to do) for each kind of layer."""
    if subject.quantization is None or size == 1:
        return []
    found = []
    for shape in language_linears(subject.config.text):
        scheme = subject.quantization.scheme_of(_module(shape))
        # KV heads are whole where heads are, and a GPU may keep one whole
        if scheme is None or shape.split == "replicated" or shape.name in ("k_proj", "v_proj"):
            continue
        step, unit = _step(scheme, shape)
        side = shape.in_features if shape.split == "row" else shape.out_features
        if not step or side % (step * size) == 0:
            continue
        whole = f"{side // step} {unit} of {step}" if side % step == 0 else f"no whole {unit} of {step}"
        padded = -(-side // (step * size)) * step * size
        name = "moe_intermediate_size" if shape.expert else "intermediate_size"
        advice = f"pad {name} to {padded} before quantising" if "proj" in shape.name else "quantise by rows"
        if shape.expert:
            advice = f"deal experts whole (--enable-expert-parallel), or {advice}"
        found.append((f"{shape.name}'s {side} are {whole}, which {size} doesn't divide", advice))
    return found


def _module(shape: LinearShape) -> str:
    """A module of the kind, as patterns of a config would name it."""
    if shape.name in ("q_proj", "o_proj"):
        return f"model.layers.0.self_attn.{shape.name}"
    if shape.name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"):
        return f"model.layers.0.linear_attn.{shape.name}"
    return f"model.layers.0.mlp.{shape.name}"


def _step(scheme: Scheme, shape: LinearShape) -> tuple[int, str]:
    """How many outputs or inputs can't be parted, and what they are called; 0 where any cut will do."""
    if shape.split == "row":
        if scheme.format == "fp8":
            return (scheme.block[1] if scheme.block[1] > 1 else 0), "blocks"
        return scheme.group_size, "groups"
    if scheme.format == "fp8":
        return (scheme.block[0] if scheme.block[0] > 1 else 0), "blocks"
    return (32 // scheme.bits if scheme.format in ("awq", "gptq") else 0), "packed words"
