"""Over how many GPUs the checkpoint can be cut: heads, groups, packed words, FP8 blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qvl.checkpoint.check.finding import Finding
from qvl.checkpoint.checkpoint import Checkpoint
from qvl.checkpoint.quantization import Scheme
from qvl.plan.memory import Shards
from qvl.plan.parameters import LinearShape, language_linears
from qvl.plan.split import split_problems

SIZES = (2, 4, 8)
_MOST = 64


def findings(checkpoint: Checkpoint, asked: int | None = None) -> Iterator[Finding]:
    """asked: a number of GPUs; without one, some are looked at."""
    for size in (asked,) if asked else SIZES:
        shapes = [
            _own_names(checkpoint, problem)
            for problem in split_problems(checkpoint.config, "bf16", Shards(size, vision="replicate"))
        ]
        packed = [] if shapes else _quantised_problems(checkpoint, size)
        if not shapes and not packed:
            continue
        legal = [n for n in range(1, 17) if _is_legal(checkpoint, n)]
        fix = f"cut over {', '.join(map(str, legal))} GPUs"
        if packed:
            fix += "; " + "; ".join(dict.fromkeys(advice for _, advice in packed))
        yield Finding(
            "error" if asked else "warning" if packed else "note",
            "split",
            f"{size} GPUs can't share it: {'; '.join([*shapes, *(what for what, _ in packed)][:2])}",
            fix,
        )


def _is_legal(checkpoint: Checkpoint, size: int) -> bool:
    return not split_problems(checkpoint.config, "bf16", Shards(size, vision="replicate")) and not (
        _quantised_problems(checkpoint, size)
    )


def _own_name(checkpoint: Checkpoint, shape: LinearShape) -> str:
    """The layer's name in the files: the planner's, or with its place where the network calls it otherwise."""
    if not shape.module or shape.module.endswith(shape.name) or shape.name == "router":
        return shape.name
    return shape.module.split(".0.", 1)[-1]


def _own_names(checkpoint: Checkpoint, text: str) -> str:
    """Words about layers with the names that the files have."""
    names = {s.name: _own_name(checkpoint, s) for s in language_linears(checkpoint.config)}
    return re.sub(r"\b([qkvo]|gate|up|down)_proj\b", lambda m: names.get(m[0], m[0]), text)


def _quantised_problems(checkpoint: Checkpoint, size: int) -> list[tuple[str, str]]:
    """(what, what to do) for each kind of layer."""
    if checkpoint.quantization is None or size == 1:
        return []
    found = []
    for shape in language_linears(checkpoint.config):
        scheme = checkpoint.quantization.scheme_of(shape.module or f"model.layers.0.mlp.{shape.name}")
        # KV heads are whole where heads are, and a GPU may keep one whole
        if scheme is None or shape.split == "replicated" or shape.name in ("k_proj", "v_proj"):
            continue
        step, unit = _step(scheme, shape)
        side = shape.in_features if shape.split == "row" else shape.out_features
        if not step or side % (step * size) == 0:
            continue
        whole = f"{side // step} {unit} of {step}" if side % step == 0 else f"no whole {unit} of {step}"
        padded = -(-side // (step * size)) * step * size
        name = _own_name(checkpoint, shape)
        advice = f"quantise again without {name}, or in smaller groups"
        if shape.name.endswith(("gate_proj", "up_proj", "down_proj")):
            advice = f"pad {_inner_size(checkpoint, shape, padded)} before quantising"
        if shape.expert:
            advice = f"deal experts whole (--enable-expert-parallel), or {advice}"
        found.append((f"{name}'s {side} are {whole}, which {size} doesn't divide", advice))
    return found


def _inner_size(checkpoint: Checkpoint, shape: LinearShape, padded: int) -> str:
    """The setting of config.json that holds this size, and what it must become."""
    kind = "moe_" if shape.expert else "shared_expert_" if shape.name.startswith("shared_expert.") else ""
    return f"{kind}intermediate_size to {padded * checkpoint.config.generation.mlp_width_factor}"


def _step(scheme: Scheme, shape: LinearShape) -> tuple[int, str]:
    """How many outputs or inputs can't be parted, and what they are called; 0 where any cut will do."""
    if shape.split == "row":
        if scheme.format == "fp8":
            return (scheme.block[1] if scheme.block[1] > 1 else 0), "blocks"
        return scheme.group_size, "groups"
    if scheme.format == "fp8":
        return (scheme.block[0] if scheme.block[0] > 1 else 0), "blocks"
    return (32 // scheme.bits if scheme.format in ("awq", "gptq") else 0), "packed words"
