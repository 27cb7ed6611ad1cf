"""`qvl find-moment CLIP "what happens"`: from when to when, in seconds of the clip."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl.cli.ask import (
    EndpointOption,
    FamilyOption,
    HighResolutionOption,
    KeyOption,
    ModelOption,
    PricesOption,
    RegionOption,
    SpendOption,
    WeightsOption,
    open_media,
    open_model,
    tell,
)

if TYPE_CHECKING:
    from qvl.outputs.events import Event


def run(
    clip: Annotated[str, typer.Argument(metavar="CLIP", help="A video file.")],
    what: Annotated[str, typer.Argument(metavar='"WHAT"', help="What happens then, in quotes.")],
    frames: Annotated[
        str | None,
        typer.Option(help="Saves the pictures at both ends of each moment here.", metavar="FOLDER"),
    ] = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    endpoint: EndpointOption = None,
    family: FamilyOption = None,
    api_key_env: KeyOption = None,
    high_resolution: HighResolutionOption = False,
    region: RegionOption = None,
    max_spend: SpendOption = None,
    prices: PricesOption = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second shown to the model.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Frames are shrunk to this area.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer in tokens.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object in place of the text.")] = False,
) -> int:
    """Find the moment of a clip where something happens."""
    from qvl.backends.answer import media_item
    from qvl.errors import PromptError

    if media_item(clip)["type"] != "video":
        raise PromptError(f"{clip}: is no clip by its name; known are .mp4, .mov, .mkv, .webm and others")
    open_media(clip)
    if frames is not None and not Path(frames).is_dir():
        raise PromptError(f"{frames}: no such folder; make it first")
    backend = open_model(
        model, endpoint, weights=weights, family=family, api_key_env=api_key_env, high_resolution=high_resolution,
        region=region, max_spend=max_spend, prices=prices, mapped=True,
    )  # fmt: skip

    from qvl.tasks.run import run_task

    asked: dict[str, Any] = {"fps": fps, "max_pixels": max_pixels, "max_new_tokens": max_new_tokens}
    found = run_task(backend, "moment", [clip], what, **{k: v for k, v in asked.items() if v is not None})
    events: list[Event] = list(found.result)
    saved = save_frames(clip, events, frames) if frames is not None else []
    if as_json:
        import json

        more = {"model": backend.name, "answer": found.answer.text, "frames": saved}
        print(json.dumps(found.to_dict() | more, ensure_ascii=False))
    else:
        for event in events:
            print(f"{clock(event.start)} - {clock(event.end)}")
        for path in saved:
            print(path, file=sys.stderr)
    tell(found)
    return 0 if events else 1


def clock(seconds: float) -> str:
    """`01:32.40`; from an hour on `1:01:32.40`."""
    hundredths = round(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    tail = f"{minutes:02d}:{rest // 100:02d}.{rest % 100:02d}"
    return f"{hours}:{tail}" if hours else tail


def save_frames(clip: str, events: list[Event], folder: str) -> list[str]:
    """The frames at the ends of each event as PNG; returns their paths. Raises: MediaError, OutputError."""
    from qvl.errors import OutputError
    from qvl.inputs.video import frames_at

    wanted = [
        (f"{Path(clip).stem}-{number}-{end}.png", seconds)
        for number, event in enumerate(events, 1)
        for end, seconds in (("start", event.start), ("end", event.end))
    ]
    paths = []
    for (name, _), image in zip(
        wanted, frames_at(clip, [s for _, s in wanted]) if wanted else [], strict=True
    ):
        path = Path(folder) / name
        try:
            image.save(path)
        except OSError as e:
            raise OutputError(f"{path}: can't be written ({e.strerror})") from e
        paths.append(str(path))
    return paths
