"""Tensor names: the networks' own ↔ the two layouts that published files use.

    here and flat files           nested files (Qwen3-VL; transformers from 4.52 on)
    visual.blocks.0.…             model.visual.blocks.0.…
    model.layers.0.…              model.language_model.layers.0.…
    lm_head.weight                lm_head.weight

Both functions are idempotent, and each undoes the other on names in its range.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from qvl.catalog.config import Family

Layout = Literal["flat", "nested"]

# what each family's published files look like
LAYOUTS: dict[Family, Layout] = {
    "qwen2_vl": "flat",
    "qwen2_5_vl": "flat",
    "qwen3_vl": "nested",
    "qwen3_vl_moe": "nested",
    "qwen3_5": "nested",
    "qwen3_5_moe": "nested",
}

_NESTED = (("model.visual.", "visual."), ("model.language_model.", "model."))


def to_canonical(name: str) -> str:
    """Either layout's name → the network's."""
    for nested, flat in _NESTED:
        if name.startswith(nested):
            return flat + name.removeprefix(nested)
    return name


def to_nested(name: str) -> str:
    """Either layout's name → the nested one."""
    name = to_canonical(name)
    for nested, flat in _NESTED:
        if name.startswith(flat):
            return nested + name.removeprefix(flat)
    return name


def published_names(names: Iterable[str], family: Family) -> dict[str, str]:
    """The network's names → the names that `family`'s published files have, in the same order."""
    if LAYOUTS[family] == "nested":
        return {name: to_nested(name) for name in names}
    return {name: to_canonical(name) for name in names}
