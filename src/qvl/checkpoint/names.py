"""Tensor names: the networks' own ↔ the layouts that published files use.

    here and flat files           nested files (Qwen3-VL; transformers from 4.52 on)
    visual.blocks.0.…             model.visual.blocks.0.…
    model.layers.0.…              model.language_model.layers.0.…
    lm_head.weight                lm_head.weight

    here                          first generation's files
    visual.conv1.weight           transformer.visual.conv1.weight
    model.h.0.…                   transformer.h.0.…
    lm_head.weight                lm_head.weight

Each function is idempotent, and `to_canonical` undoes the others on names in their range.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Layout = Literal["first", "flat", "nested"]

# what each family's published files look like
LAYOUTS: dict[str, Layout] = {
    "qwen_vl": "first",
    "qwen2_vl": "flat",
    "qwen2_5_vl": "flat",
    "qwen3_vl": "nested",
    "qwen3_vl_moe": "nested",
    "qwen3_5": "nested",
    "qwen3_5_moe": "nested",
}

_NESTED = (("model.visual.", "visual."), ("model.language_model.", "model."))
_FIRST = (("transformer.visual.", "visual."), ("transformer.", "model."))


def to_canonical(name: str) -> str:
    """Any layout's name → the network's."""
    for published, ours in (*_NESTED, *_FIRST):
        if name.startswith(published):
            return ours + name.removeprefix(published)
    return name


def to_nested(name: str) -> str:
    """Either layout's name → the nested one."""
    name = to_canonical(name)
    for nested, flat in _NESTED:
        if name.startswith(flat):
            return nested + name.removeprefix(flat)
    return name


def to_first(name: str) -> str:
    """The network's name → the one in the first generation's files."""
    name = to_canonical(name)
    for first, ours in _FIRST:
        if name.startswith(ours):
            return first + name.removeprefix(ours)
    return name


def published_names(names: Iterable[str], family: str) -> dict[str, str]:
    """The network's names → the names that `family`'s published files have, in the same order."""
    write = {"first": to_first, "flat": to_canonical, "nested": to_nested}[LAYOUTS[family]]
    return {name: write(name) for name in names}
