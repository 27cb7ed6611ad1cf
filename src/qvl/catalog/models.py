"""The models: names, licences, abilities and shapes.

`find_model` takes any name people use; `config_of` gives the exact shape as a `ModelConfig`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from qvl import moved
from qvl.catalog import generations
from qvl.catalog.figures import Figure, Source, figure, read_json, sources
from qvl.catalog.generations import Generation
from qvl.errors import CatalogError, nearest

Commercial = Literal["yes", "with limits", "no"]
Ability = Literal["boxes", "points", "html", "video", "agent", "thinking"]
ABILITIES: tuple[Ability, ...] = ("boxes", "points", "html", "video", "agent", "thinking")


@dataclass(frozen=True)
class Licence:
    key: str
    title: str
    commercial: Commercial
    permits: str
    source: Source
    verified: bool


@dataclass(frozen=True)
class Checkpoint:
    """Published weights of a model in one precision."""

    hub_id: str
    precision: str
    official: bool  # published by Qwen
    source: Source
    verified: bool = True
    note: str = ""


@dataclass(frozen=True)
class Other:
    """A name of the wider family that qvl doesn't run, and what it is for."""

    name: str
    what: str
    status: str
    source: Source
    licence: str = ""


@dataclass(frozen=True)
class Regression:
    """An engine version that makes a family wrong, and the way out."""

    engine: str
    versions: str
    families: tuple[str, ...]
    what: str
    escape: str
    source: Source
    note: str
    third_party_only: bool = False  # it touches checkpoints that Qwen didn't publish
    warn_only: bool = False  # a launch is warned, not refused

    def is_of(self, version: str) -> bool:
        """Whether the version is among those named; words about builds name none that could be compared."""
        from qvl.catalog.engines import parse_version

        named = self.versions.replace(",", " ").split()
        if not all(re.fullmatch(r"\d+(\.\d+)*", v) for v in named):
            return False
        return parse_version(version) in map(parse_version, named)


@dataclass(frozen=True, kw_only=True, eq=False)  # one object each, so that it can be a key
class Model:
    name: str
    title: str
    family: str
    variant: str  # base, chat, instruct, thinking, hybrid (thinks or not), hosted
    aliases: tuple[str, ...]
    hub_id: str  # "" for hosted models
    hosted: bool
    shape: str  # key for config_of; "" when no config was seen
    released: Figure
    licence_figure: Figure  # its value is the licence's key
    licence: Licence
    context: Figure  # tokens
    languages: Figure  # ISO 639-1 codes; "*" means more than are listed
    parameters: Figure | None  # counts by part; derived from the shape, kept to check the arithmetic
    abilities: Mapping[str, Figure]  # yes, weak, no, unknown
    engines: Mapping[str, Figure]  # engine → first version that serves it well
    checkpoints: tuple[Checkpoint, ...]  # all of them, the 16-bit original first
    notes: tuple[Figure, ...]
    retired: Figure | None = None  # the day from which its name answers no more
    replacement: str = ""  # the catalogue name that its maker, or we, advise instead

    @property
    def switched_off(self) -> str:
        """Since when its name answers no more and what replaces it, in a sentence; empty while it answers."""
        if self.retired is None:
            return ""
        doubt = "" if self.retired.verified else " (read at a reseller)"
        return f"{self.name} was switched off on {self.retired.value}{doubt}; use {self.replacement}"

    @property
    def generation(self) -> Generation:
        return generations.by_name(self.family)

    @property
    def num_parameters(self) -> int | None:
        return None if self.parameters is None else self.parameters.value["total"]

    @property
    def num_active_parameters(self) -> int | None:
        """Parameters a token passes through; all of them in a dense model."""
        return None if self.parameters is None else self.parameters.value.get("active", self.num_parameters)

    def ability(self, name: Ability) -> str:
        return str(self.abilities[name].value)

    def figures(self) -> dict[str, Figure]:
        """Every sourced figure by the name a reader would look for."""
        found = {
            "released": self.released,
            "licence": self.licence_figure,
            "context": self.context,
            "languages": self.languages,
        }
        if self.retired:
            found["retired"] = self.retired
        if self.parameters:
            found["parameters"] = self.parameters
        found |= {f"ability {k}": v for k, v in self.abilities.items()}
        found |= {f"engine {k}": v for k, v in self.engines.items()}
        found |= {f"note {i}": v for i, v in enumerate(self.notes, 1)}
        return found


def _source(key: str, where: str) -> Source:
    if key not in sources():
        raise CatalogError(f"{where}: source {key!r} is not in sources.json")
    return sources()[key]


@cache
def _raw() -> Mapping[str, Any]:
    raw: Mapping[str, Any] = read_json("models.json")
    return raw


@cache
def licences() -> Mapping[str, Licence]:
    return {
        key: Licence(key=key, **{**raw, "source": _source(raw["source"], f"licence {key}")})
        for key, raw in _raw()["licences"].items()
    }


@cache
def regressions() -> tuple[Regression, ...]:
    return tuple(
        Regression(
            **{
                **raw,
                "families": tuple(raw["families"]),
                "source": _source(raw["source"], f"regression {raw['note']}"),
            }
        )
        for raw in _raw()["regressions"]
    )


@cache
def others() -> Mapping[str, Other]:
    """Names of the wider family that are no rows of `models`, by their plain spelling."""
    return {
        _plain(raw["name"]): Other(**{**raw, "source": _source(raw["source"], raw["name"])})
        for raw in _raw()["others"]
    }


def other_named(name: str) -> Other | None:
    return others().get(_plain(name))


def regressions_of(engine: str, family: str) -> list[Regression]:
    return [r for r in regressions() if r.engine == engine and family in r.families]


@cache
def models() -> tuple[Model, ...]:
    """All of them, in order of generation and size."""
    return tuple(_model(raw) for raw in _raw()["models"])


_MODEL_KEYS = set(
    """name title family variant aliases hub_id hosted shape retired replacement released licence context languages
    parameters abilities engines checkpoints notes""".split()
)


def _model(raw: Mapping[str, Any]) -> Model:
    name = raw["name"]
    if unknown := set(raw) - _MODEL_KEYS:
        raise CatalogError(f"model {name}: unknown keys {sorted(unknown)}")

    def fig(key: str) -> Figure:
        return figure(raw[key], f"{name} {key}")

    def figs(key: str) -> dict[str, Figure]:
        return {k: figure(v, f"{name} {key} {k}") for k, v in raw[key].items()}

    published = [
        Checkpoint(**{**c, "source": _source(c["source"], f"{name} checkpoints")})
        for c in raw.get("checkpoints", ())
    ]
    if raw.get("hub_id"):
        original = Checkpoint(raw["hub_id"], "bf16", True, _source(raw["released"]["source"], name))
        published.insert(0, original)
    licence = fig("licence")
    if licence.value not in licences():
        raise CatalogError(f"model {name}: licence {licence.value!r} is not described")
    return Model(
        name=name,
        title=raw["title"],
        family=raw["family"],
        variant=raw["variant"],
        aliases=tuple(raw.get("aliases", ())),
        hub_id=raw.get("hub_id", ""),
        hosted=raw.get("hosted", False),
        shape=raw.get("shape", ""),
        released=fig("released"),
        licence_figure=licence,
        licence=licences()[licence.value],
        context=fig("context"),
        languages=fig("languages"),
        parameters=fig("parameters") if "parameters" in raw else None,
        abilities=figs("abilities"),
        engines=figs("engines"),
        checkpoints=tuple(published),
        notes=tuple(figure(n, f"{name} notes") for n in raw.get("notes", ())),
        retired=fig("retired") if "retired" in raw else None,
        replacement=raw.get("replacement", ""),
    )


def _plain(name: str) -> str:
    """`Qwen/Qwen2.5-VL-7B-Instruct` → `qwen2.5-vl-7b-instruct`; spaces and underscores become dashes."""
    return re.sub(r"[\s_]+", "-", name.strip().lower()).rpartition("/")[2]


@cache
def _index() -> Mapping[str, tuple[Model, Checkpoint | None]]:
    found: dict[str, tuple[Model, Checkpoint | None]] = {}
    for model in models():
        for name in (model.name, *model.aliases):
            found[_plain(name)] = (model, None)
        short = _plain(model.name).removesuffix("-instruct")
        found.setdefault(short, (model, None))
        for checkpoint in model.checkpoints:
            found.setdefault(_plain(checkpoint.hub_id), (model, checkpoint))
            if checkpoint.official and checkpoint.precision != "bf16":
                # people write qwen2.5-vl-7b-awq for Qwen2.5-VL-7B-Instruct-AWQ
                found.setdefault(_plain(checkpoint.hub_id).replace("-instruct", ""), (model, checkpoint))
    return found


def resolve(name: str) -> tuple[Model, Checkpoint | None]:
    """Any name people use → the model, and the checkpoint when the name names one.

    Raises: CatalogError with the nearest names.
    """
    found = _index().get(_plain(name))
    if found is None and (other := others().get(_plain(name))):
        raise CatalogError(f"{other.name} ({other.what}): {other.status}")
    if found is None:
        spellings = ((_plain(alias), _plain(model.name)) for model in models() for alias in model.aliases)
        other_spellings = {alias for alias, proper in spellings if alias not in proper}
        offered = [known for known in _index() if known not in other_spellings]
        raise CatalogError(f"no model {name!r}; {nearest(_plain(name), offered)}")
    return found


def find_model(name: str) -> Model:
    """By name, alias or hub id, quantised ones included; case doesn't matter.

    Raises: CatalogError with the nearest names.
    """
    return resolve(name)[0]


def first_version(model: Model | str, engine: str) -> str:
    """The first version of `engine` that serves the model, or the earliest for a family such as `qwen3_vl`.

    "" where any version will do, or none is recorded.
    """
    asked = [model] if isinstance(model, Model) else [m for m in models() if m.family == model]
    named = [str(m.engines[engine].value) for m in asked if engine in m.engines]
    numbers = [v for v in named if re.fullmatch(r"\d+(\.\d+)*", v)]
    return min(numbers, key=lambda v: tuple(map(int, v.split("."))), default="")


def config_of(model: Model | str) -> Any:
    """The exact shape as a `catalog.config.ModelConfig`.

    Raises: CatalogError for hosted models and for sizes whose config isn't stored here.
    """
    if isinstance(model, str):
        model = find_model(model)
    if not model.shape:
        why = "it is hosted, its shape is not public" if model.hosted else "its config.json was not seen"
        raise CatalogError(
            f"{model.name} has no shape here: {why}; qvl fit and qvl launch take a local config.json (--config)"
        )
    return _config(model.shape)


@cache
def _config(shape: str) -> Any:
    from qvl.catalog.generations.generation import ModelConfig
    from qvl.catalog.generations.shape import TextConfig, VisionConfig

    size = _shapes()["sizes"][shape]
    family = _shapes()["families"][size["family"]]
    text = {**family["text"], **size["text"]}
    vision = {"out_hidden_size": text["hidden_size"], **family["vision"], **size["vision"]}
    if text.get("linear_num_value_heads"):
        # every fourth layer keeps full attention: 3, 7, 11 …
        kinds = ("linear_attention", "linear_attention", "linear_attention", "full_attention")
        text["layer_types"] = tuple(kinds[i % 4] for i in range(text["num_hidden_layers"]))
    return ModelConfig(
        generation=generations.by_name(size["family"]),
        text=TextConfig(**_tuples(text)),
        vision=VisionConfig(**_tuples(vision)),
        **_tuples(family["ids"]),
    )


@cache
def _shapes() -> Mapping[str, Any]:
    raw: Mapping[str, Any] = read_json("shapes.json")
    return raw


def _tuples(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}


__getattr__ = moved.names(__name__)
