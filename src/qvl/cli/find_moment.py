"""`qvl find-moment VIDEO "what happens"`: from when to when, in seconds of the video."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvl.backends.answer import media_item
from qvl.cli.media import open_media
from qvl.cli.options import AnswerOptions, JsonOption, SourceOptions, command, option
from qvl.cli.show import print_doubts
from qvl.errors import OutputError, PromptError
from qvl.inputs.video import frames_at
from qvl.records import json_text
from qvl.tasks.run import run_task

if TYPE_CHECKING:
    from qvl.outputs.events import Event


@command
def run(
    source: SourceOptions,
    answering: AnswerOptions,
    clip: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file.")],
    what: Annotated[str, typer.Argument(metavar='"WHAT"', help="What to look for, in quotes.")],
    frames: str | None = option(
        None, "Save the frames at both ends of each moment in this folder.", metavar="FOLDER"
    ),
    as_json: JsonOption = False,
) -> int:
    """Find the moment of a video where something happens."""
    if media_item(clip)["type"] != "video":
        raise PromptError(
            f"{clip}: does not have the name of a video; known: .mp4, .mov, .mkv, .webm and others"
        )
    open_media(clip)
    if frames is not None and not Path(frames).is_dir():
        raise PromptError(f"{frames}: no such folder; make it first")
    backend = source.open(mapped=True)
    found = run_task(backend, "moment", [clip], what, **answering.settings())
    events: list[Event] = list(found.result)
    saved = save_frames(clip, events, frames) if frames is not None else []
    if as_json:
        more = {"model": backend.name, "answer": found.answer.text, "frames": saved}
        print(json_text(found.to_dict() | more))
    else:
        for event in events:
            print(f"{clock(event.start)} - {clock(event.end)}")
        for path in saved:
            print(path, file=sys.stderr)
    print_doubts(found)
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
