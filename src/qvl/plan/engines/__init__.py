"""The engines that the planner knows: every file of this folder with an `ENGINE`, or `ENGINES` for several.

An engine is added by its record here, its flags in plan/launch/ and its dated facts in catalog/data/engines.json.
"""

from importlib import import_module
from pkgutil import iter_modules

from qvl import moved
from qvl.plan.setup import EngineRecord


def _records() -> list[EngineRecord]:
    modules = [import_module(f"{__name__}.{m.name}") for m in iter_modules(__path__)]
    return [e for m in modules for e in getattr(m, "ENGINES", None) or (m.ENGINE,)]


ENGINES: dict[str, EngineRecord] = {e.name: e for e in sorted(_records(), key=lambda e: e.trains)}

__getattr__ = moved.names(__name__)
