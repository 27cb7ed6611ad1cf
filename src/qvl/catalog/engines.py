"""Engines as dated data: which version knows which flag, and which dropped which generation.

Minimum versions and regressions of a model stand with the model (`catalog.models`). What to write on a
command line is for `plan.launch`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from qvl.catalog.figures import Source, read_json
from qvl.errors import CatalogError, PlanError

Version = tuple[int, ...]


@cache
def parse_version(text: str) -> Version:
    """`0.11.0` → (0, 11): trailing zeros go, so that 0.11 and 0.11.0 are equal.

    Raises: PlanError for what is no version number.
    """
    if not re.fullmatch(r"\d+(\.\d+)*", text):
        raise PlanError(f"{text!r} is not a version, such as 0.32 or 0.11.2")
    parts = [int(p) for p in text.split(".")]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


@dataclass(frozen=True)
class Since:
    """The first version with something, as far as the source knows."""

    version: str
    source: Source
    note: str = ""


@dataclass(frozen=True)
class Engine:
    """`version` is the one that commands are written for unless the user names another; "" where any will do."""

    name: str
    version: str
    source: Source
    image: str  # container image with {version}; "" where none is published
    last: Mapping[str, Since]  # family → last version that serves it; version "" means none ever did
    features: Mapping[str, Since]  # flag, environment variable or spelling → first version

    def has(self, feature: str, version: str) -> bool:
        """Whether `version` ("" = the newest) knows the feature.

        Raises: CatalogError for a feature that isn't recorded: never a guess.
        """
        if feature not in self.features:
            raise CatalogError(f"{self.name} has no feature {feature!r}; known: {', '.join(self.features)}")
        return not version or parse_version(version) >= parse_version(self.features[feature].version)

    def dropped(self, family: str, version: str) -> Since | None:
        """The last version that served the family, when `version` is later; None when it still does."""
        last = self.last.get(family)
        if last is None:
            return None
        if not last.version or not version or parse_version(version) > parse_version(last.version):
            return last
        return None

    def container(self, version: str) -> str:
        full = ".".join([*version.split("."), "0", "0"][:3]) if version else ""
        return self.image.format(version=full)


@cache
def engines() -> Mapping[str, Engine]:
    raw = read_json("engines.json")
    sources = {key: Source(key=key, **s) for key, s in raw["sources"].items()}

    def since(record: Mapping[str, Any], key: str) -> Since:
        return Since(record[key], sources[record["source"]], record.get("note", ""))

    return {
        name: Engine(
            name=name,
            version=e["version"],
            source=sources[e["source"]],
            image=e["image"],
            last={family: since(r, "value") for family, r in e["last"].items()},
            features={feature: since(r, "since") for feature, r in e["features"].items()},
        )
        for name, e in raw["engines"].items()
    }


def find_engine(text: str) -> tuple[Engine, str]:
    """`vllm@0.11` → (vLLM, "0.11"); without a version the one that commands are written for.

    Raises: PlanError for an unknown engine or a version that is none.
    """
    name, at, version = text.strip().lower().partition("@")
    if name not in engines():
        raise PlanError(f"no engine {name!r}; known: {', '.join(engines())}")
    if at:
        version = version.removeprefix("v")
        parse_version(version)
    return engines()[name], version or engines()[name].version
