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

from qvl.catalog.generations import GENERATIONS, Generation

# what transformers from 4.52 on writes, also for generations whose published files are flat
_NESTED = (("model.visual.", "visual."), ("model.language_model.", "model."))


def to_canonical(name: str) -> str:
    """Any layout's name → the network's."""
    for pairs in (_NESTED, *(g.published for g in GENERATIONS.values())):
        for published, ours in pairs:
            if name.startswith(published):
                return ours + name.removeprefix(published)
    return name


def to_nested(name: str) -> str:
    """Either layout's name → the nested one."""
    return _renamed(to_canonical(name), _NESTED)


def to_published(name: str, generation: Generation) -> str:
    """Any layout's name → the one in the published files of a generation."""
    return _renamed(to_canonical(name), generation.published)


def is_nested(generation: Generation) -> bool:
    return generation.published == _NESTED


def published_names(names: Iterable[str], generation: Generation) -> dict[str, str]:
    """The network's names → the names that the generation's published files have, in the same order."""
    return {name: to_published(name, generation) for name in names}


def _renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for published, ours in pairs:
        if name.startswith(ours):
            return published + name.removeprefix(ours)
    return name
