"""Which numbers of GPUs a model can be cut over, and why not: heads, quantisation groups, FP8 blocks, experts.

Tensor parallelism cuts every matrix by its outputs or inputs; each piece must hold whole heads and whole
quantisation groups. Expert parallelism deals experts whole, so their width no longer matters.
Source: checks of vLLM's linear layers and quantisation methods; tracker threads on 72B AWQ (29,568 = 231
groups of 128), 30B-A3B FP8 at 4 GPUs and 235B FP8 at 8.
"""

from __future__ import annotations

from functools import cache

from qvl import moved
from qvl.catalog.config import ModelConfig
from qvl.catalog.precisions import PRECISIONS
from qvl.errors import PlanError
from qvl.plan.memory import Precision, Shards
from qvl.plan.parameters import language_linears, vision_linears

MAX_GPUS = 64


@cache  # choose asks for the same few hundreds of times
def split_problems(config: ModelConfig, precision: Precision, shards: Shards) -> tuple[str, ...]:
    """Why this cut is illegal, one sentence a reason; empty when it is legal.

    Raises: PlanError for a number of GPUs below 1.
    """
    tp, text = shards.tensor, config.text
    if tp < 1:
        raise PlanError(f"tensor parallel over {tp} GPUs: it must be at least 1")
    if tp == 1:
        return ()
    found: list[str] = []
    if text.num_attention_heads % tp:
        found.append(f"{text.num_attention_heads} attention heads do not divide by {tp}")
    kv = text.num_key_value_heads
    if kv % tp and tp % kv:
        found.append(f"{kv} KV heads neither divide by {tp} nor into it")
    for name, heads in (("key", text.linear_num_key_heads), ("value", text.linear_num_value_heads)):
        if heads % tp:
            found.append(f"{heads} linear-attention {name} heads do not divide by {tp}")
    if shards.expert_parallel:
        if not text.num_experts:
            found.append("expert parallel needs a mixture of experts, this model is dense")
        elif text.num_experts % tp:
            found.append(f"{text.num_experts} experts do not divide by {tp}")
    if shards.vision == "split":
        found += _vision_problems(config, tp)
    found += _matrix_problems(config, precision, shards)
    return tuple(dict.fromkeys(found))


def _vision_problems(config: ModelConfig, tp: int) -> list[str]:
    found = []
    if config.vision.num_heads % tp:
        found.append(f"the tower's {config.vision.num_heads} heads do not divide by {tp}")
    for s in vision_linears(config, "tower"):
        cut = {"column": s.out_features, "row": s.in_features}.get(s.split)
        if cut is not None and s.name != "qkv" and cut % tp:
            found.append(
                f"the tower's inner size {cut} does not divide by {tp} "
                "(give each GPU a whole tower: --mm-encoder-tp-mode data)"
            )
    return found


def _matrix_problems(config: ModelConfig, precision: Precision, shards: Shards) -> list[str]:
    tp, found, record = shards.tensor, [], PRECISIONS[precision]
    for s in language_linears(config):
        if s.split == "replicated" or (s.expert and shards.expert_parallel):
            continue
        if s.name in ("k_proj", "v_proj"):  # whole heads, checked above
            continue
        size = s.out_features if s.split == "column" else s.in_features
        if size % tp:
            found.append(f"{s.name} has {size} {_side(s.split)}, which do not divide by {tp}")
            continue
        if not s.quantized:
            continue
        if record.group and s.split == "row" and size % (record.group * tp):
            whole = size % record.group == 0
            groups = (
                f"{size // record.group} groups of {record.group}"
                if whole
                else f"not whole groups of {record.group}"
            )
            found.append(f"{s.name}'s {size} inputs are {groups}, which do not divide by {tp}")
        if record.pack and s.split == "column" and size % (record.pack * tp):
            found.append(f"{s.name}'s {size} outputs are packed by {record.pack} and do not divide by {tp}")
        if record.block and size % (record.block * tp):
            blocks = f"{size / record.block:g} blocks of {record.block}"
            found.append(f"{s.name}'s {size} {_side(s.split)} are {blocks}, which do not divide by {tp}")
    return found


def _side(split: str) -> str:
    return "outputs" if split == "column" else "inputs"


def legal_splits(
    config: ModelConfig, precision: Precision, limit: int = 16, *, any_vision: bool = True
) -> tuple[Shards, ...]:
    """Every legal cut over 1 … limit GPUs, tensor parallel before expert parallel.

    `any_vision`: where the tower alone forbids a cut, give every GPU a whole one.
    """
    found = []
    for tp in range(1, min(limit, MAX_GPUS) + 1):
        best = best_split(config, precision, tp, any_vision=any_vision)
        if best is not None:
            found.append(best)
    return tuple(found)


def best_split(
    config: ModelConfig,
    precision: Precision,
    gpus: int,
    *,
    any_vision: bool = True,
    expert_parallel: bool | None = None,
) -> Shards | None:
    """The plainest legal cut over exactly this many GPUs: experts cut before experts dealt whole (unless
    `expert_parallel` says which), the tower cut before the tower copied; None when there is none."""
    dealt = [False, True] if config.text.num_experts else [False]
    for expert in dealt if expert_parallel is None else [expert_parallel]:
        for vision in ("split", "replicate") if any_vision else ("split",):
            shards = Shards(gpus, expert, vision)
            if not split_problems(config, precision, shards):
                return shards
    return None


def nearest_split(config: ModelConfig, precision: Precision, gpus: int) -> Shards:
    """The legal cut whose number of GPUs is nearest, the smaller of two equally near."""
    legal = legal_splits(config, precision, min(MAX_GPUS, 2 * gpus))
    return min(legal, key=lambda s: (abs(s.tensor - gpus), s.tensor))


__getattr__ = moved.names(__name__)
