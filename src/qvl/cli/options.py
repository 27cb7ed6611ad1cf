"""Options that several verbs share, each written once: which model is asked and where, and how it answers.

A verb takes them as one object: `@command def run(source: SourceOptions, ...)`. `command` puts the fields of such a
dataclass into the signature that typer reads, and the object back together when the verb is called.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from qvl.catalog.precisions import rounded_on_load

if TYPE_CHECKING:
    from qvl.tasks.model import Model

T = TypeVar("T")


def option(default: Any, help: str, *flags: str, **more: Any) -> Any:
    """A field of an options class, or a verb's parameter: its default, its help, what else typer.Option takes."""
    return dataclasses.field(default=default, metadata={"option": typer.Option(*flags, help=help, **more)})


HUB_NAMES = "PATH|HUB_ID|mini|NAME|URL"
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="A checkpoint folder, a hub id, mini (the embedded model), a hosted model such as qwen3.7-plus, or a "
        "server's address; with --endpoint, the served model's name (default: mini).",
        metavar=HUB_NAMES,
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(help="Quantize while loading (default: as stored).", metavar="|".join(rounded_on_load())),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="The device to run on (default: a GPU when there is one, else the CPU).",
        metavar="cpu|cuda|cuda:N",
    ),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(help="Ask an OpenAI-compatible server (default: this machine).", metavar="URL"),
]
FamilyOption = Annotated[
    str | None,
    typer.Option(
        help="The served model's family (default: read from the model's name).", metavar="GENERATION"
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        help="The environment variable that holds the server's key (default: DASHSCOPE_API_KEY for Alibaba Model "
        "Studio, else OPENAI_API_KEY).",
        metavar="NAME",
    ),
]
RegionOption = Annotated[
    str | None,
    typer.Option(
        help="The region of Alibaba Model Studio, to which the key belongs (default: beijing).",
        metavar="beijing|singapore|virginia",
    ),
]
SpendOption = Annotated[
    str | None,
    typer.Option(
        help="Refuse calls that could raise the total cost above this (default: no limit).",
        metavar="0.50|$2|3CNY",
    ),
]
PricesOption = Annotated[
    str | None,
    typer.Option(help="Your own prices, as for qvl cost (default: the catalogue's).", metavar="FILE.toml"),
]
HighResolutionOption = Annotated[
    bool, typer.Option("--high-resolution", help="Turn on Alibaba Model Studio's switch for large images.")
]
RetryOption = Annotated[
    str | None,
    typer.Option(
        help="What to do with a reply that repeats itself without end: only stop it (no), sample it again (seed), "
        "or then ask about the halves of the image too (crop). The default is seed for tasks, else no.",
        metavar="no|seed|crop",
    ),
]
ThinkingOption = Annotated[
    bool | None,
    typer.Option(
        "--thinking/--no-thinking",
        help="Turn thinking on or off, for models that can do both (default: the chat template's).",
    ),
]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option(help="The longest answer in tokens (default: the checkpoint's, else 1024)."),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(help="Shrink images and frames to this area (default: the checkpoint's limit)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@dataclass(frozen=True)
class SourceOptions:
    """The model that is asked. Every verb that asks one takes all of these."""

    model: ModelOption = None
    weights: WeightsOption = None
    device: DeviceOption = None
    adapter: str | None = option(
        None, "A LoRA adapter to merge into the model as it loads (default: none).", metavar="FOLDER"
    )
    endpoint: EndpointOption = None
    family: FamilyOption = None
    api_key_env: KeyOption = None
    region: RegionOption = None
    max_spend: SpendOption = None
    prices: PricesOption = None
    high_resolution: HighResolutionOption = False

    def open(self, **options: Any) -> Model:
        """The model itself; options: others of `open_backend`. Raises: BackendError for a server's without one."""
        from qvl.tasks import open as door  # not for --help

        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | options
        given["high_resolution"] = (
            self.high_resolution or None
        )  # a switch that is off says nothing to our own engine
        given = {name: value for name, value in given.items() if value is not None}
        return door.open_backend(given.pop("model", None), **given)


@dataclass(frozen=True)
class AnswerOptions:
    """How a model answers."""

    max_new_tokens: MaxNewTokensOption = None
    temperature: float | None = option(None, "Sampling temperature; 0 is greedy (default: the checkpoint's).")
    seed: int | None = option(None, "The seed of sampling (default: random).")
    max_pixels: MaxPixelsOption = None
    fps: float | None = option(
        None, "Frames per second taken from videos (default: the checkpoint's, else 2)."
    )
    thinking: ThinkingOption = None

    def settings(self) -> dict[str, Any]:
        """Those that were set, by the names that every backend takes."""
        return {name: value for name, value in vars(self).items() if value is not None}


def command(run: Callable[..., T]) -> Callable[..., T]:
    """`run` as typer reads it: each parameter that is a dataclass stands for its fields."""
    hints = get_type_hints(run, include_extras=True)
    groups: dict[str, type[Any]] = {}
    flat: list[inspect.Parameter] = []
    for parameter in inspect.signature(run).parameters.values():
        kind = hints[parameter.name]
        if not dataclasses.is_dataclass(kind):
            flat.append(_plain(parameter.name, kind, parameter.default))
            continue
        groups[parameter.name] = kind  # type: ignore[assignment]
        types = get_type_hints(kind, include_extras=True)
        flat += [
            _plain(f.name, types[f.name], f if f.metadata else f.default) for f in dataclasses.fields(kind)
        ]

    @wraps(run)
    def flattened(**values: Any) -> T:
        made = {
            name: kind(**{f.name: values.pop(f.name) for f in dataclasses.fields(kind)})
            for name, kind in groups.items()
        }
        return run(**made, **values)

    del flattened.__dict__["__wrapped__"]  # typer would read the names of its signature
    flattened.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    flattened.__annotations__ = {p.name: p.annotation for p in flat}
    return flattened


def _plain(name: str, kind: Any, default: Any) -> inspect.Parameter:
    """A parameter as typer reads it; `default` is a value, or the field that `option` made."""
    if isinstance(default, dataclasses.Field):
        kind, default = Annotated[kind, default.metadata["option"]], default.default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
