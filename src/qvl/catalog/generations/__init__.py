"""The generations, and the one place where a name is resolved to its record.

`by_name("qwen3_vl")`, `of_model_type("qwen")` and `of_served_name("Qwen/Qwen3-VL-8B-Instruct")`; past them the record
is handed on. `register` adds one.
"""

from __future__ import annotations

from qvl.catalog.generations.generation import Generation, ModelConfig
from qvl.catalog.generations.qwen2_5_vl import QWEN2_5_VL
from qvl.catalog.generations.qwen2_vl import QWEN2_VL
from qvl.catalog.generations.qwen3_5 import QWEN3_5, QWEN3_5_MOE
from qvl.catalog.generations.qwen3_vl import QWEN3_VL, QWEN3_VL_MOE
from qvl.catalog.generations.qwen_vl import QWEN_VL
from qvl.errors import GenerationError, nearest

__all__ = ["Generation", "ModelConfig", "by_name", "names", "of_model_type", "of_served_name", "register"]

# by name, in order of publication
GENERATIONS: dict[str, Generation] = {
    g.name: g for g in (QWEN_VL, QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE, QWEN3_5, QWEN3_5_MOE)
}


def register(generation: Generation) -> None:
    """Makes a record of your own known everywhere. Raises: GenerationError for a name or model_type that is taken."""
    taken = {g.name for g in GENERATIONS.values()} | {t for g in GENERATIONS.values() for t in g.model_types}
    if both := sorted(taken & {generation.name, *generation.model_types}):
        raise GenerationError(f"{', '.join(both)}: there is a generation of that name already")
    GENERATIONS[generation.name] = generation


def names() -> tuple[str, ...]:
    return tuple(GENERATIONS)


def by_name(name: Generation | str) -> Generation:
    """A record is taken as it is. Raises: GenerationError with the nearest names."""
    if isinstance(name, Generation):
        return name
    if name not in GENERATIONS:
        raise _unknown(f"generation {name!r}", names())
    return GENERATIONS[name]


def of_model_type(model_type: object, where: str = "") -> Generation:
    """Of a config.json. Raises: GenerationError listing the known ones."""
    for generation in GENERATIONS.values():
        if model_type in generation.model_types:
            return generation
    known = tuple(t for g in GENERATIONS.values() for t in g.model_types)
    raise _unknown(f"{where}: model_type {model_type!r}" if where else f"model_type {model_type!r}", known)


def of_served_name(name: str) -> Generation | None:
    """By the part that a generation's names share; None where the name doesn't tell."""
    name = name.lower().replace("_", "-").rpartition("/")[2]
    name = name.replace("qwen-2", "qwen2").replace("qwen-3", "qwen3").replace("vision", "vl")
    # mixtures before the dense models whose names they carry
    for generation in sorted(GENERATIONS.values(), key=lambda g: not g.size_parts):
        if any(part in name for part in generation.name_parts) and (
            not generation.size_parts or any(part in name for part in generation.size_parts)
        ):
            return generation
    return None


def _unknown(what: str, known: tuple[str, ...]) -> GenerationError:
    asked = what.rpartition("'")[0].rpartition("'")[2]
    return GenerationError(
        f"{what} is not known; {nearest(asked, known)}. A fine-tune keeps the name of the generation it was made "
        "from; a newer generation needs a newer qvl"
    )
