"""`qvl ask MEDIA... "QUESTION"`: only the answer is written to stdout."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl import moved
from qvl.cli.options import AnswerOptions, JsonOption, RetryOption, SourceOptions, command, option
from qvl.errors import PromptError
from qvl.records import json_text

if TYPE_CHECKING:
    from qvl.backends.answer import Answer
    from qvl.backends.base import Stream
    from qvl.outputs.mapping import Rect
    from qvl.tasks.model import Model
    from qvl.tasks.prompts import Task
    from qvl.tasks.retry import Retry


@dataclass(frozen=True)
class TaskOptions:
    """What is to be found, and what is done with it."""

    boxes: bool = option(False, "Print boxes and points, in pixels of the image.", "--boxes")
    document: bool = option(False, "Print the page as Markdown.", "--document")
    events: bool = option(False, "Print times in the video, in seconds.", "--events")
    actions: bool = option(False, "Print the actions for this screenshot; none is executed.", "--actions")
    phone: bool = option(False, "With --actions: the screen is a phone's, not a computer's.", "--phone")
    schema: str | None = option(
        None,
        "Print the fields of this JSON schema, typed and checked (default: no schema).",
        metavar="FILE.json",
    )
    retry: RetryOption = None
    draw: str | None = option(None, "Draw what was found onto the image, into this file.", metavar="OUT.png")

    @property
    def task(self) -> Task | None:
        chosen: list[Task] = [
            name for name in ("boxes", "document", "events", "actions") if getattr(self, name)
        ]
        if len(chosen) > 1:
            raise PromptError(f"--{' and --'.join(chosen)} exclude each other: ask once for each")
        return chosen[0] if chosen else None

    def check(self, system: str | None) -> None:
        """Raises: PromptError for options that don't go together."""
        if self.draw is not None and self.task not in ("boxes", "document", "actions"):
            raise PromptError("--draw needs --boxes, --document or --actions")
        if self.schema is not None and (
            self.task is not None or self.retry is not None or system is not None
        ):
            raise PromptError(
                "--schema has its own prompt: it can't be combined with a task, --retry or --system"
            )
        if self.phone and self.task != "actions":
            raise PromptError("--phone goes with --actions")
        if system is not None and self.task is not None:
            raise PromptError(f"--system can't be combined with --{self.task}, which has its own prompt")


@command
def run(
    wanted: TaskOptions,
    source: SourceOptions,
    answering: AnswerOptions,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar='MEDIA... "QUESTION"', help="Images and videos, then the question in quotes."),
    ] = None,
    system: str | None = option(None, "The system prompt (default: the checkpoint's).", metavar="TEXT"),
    show_thinking: bool = option(False, "Print a thinking model's reasoning to stderr.", "--show-thinking"),
    stats: bool = option(False, "Print tokens, seconds and memory, to stderr.", "--stats"),
    as_json: JsonOption = False,
) -> int:
    """Ask a model about images or videos."""
    # here, so that --help needs no numpy
    from qvl.cli.media import check_writable, open_media, split_words
    from qvl.cli.show import (
        answer_dict,
        draw_to,
        found_text,
        print_doubts,
        print_notes,
        print_stream,
        statistics,
        terminal_safe,
    )
    from qvl.tasks.fields import extract_fields, read_schema
    from qvl.tasks.retry import check_retry
    from qvl.tasks.run import run_task

    wanted.check(system)
    check_writable(wanted.draw, drawing=True)
    retry = None if wanted.retry is None else check_retry(wanted.retry)
    names, question = split_words(
        words or [], question_needed=wanted.task != "document" and wanted.schema is None
    )
    media = [open_media(name) for name in names]  # before torch is imported: a bad file is told at once

    schema = None if wanted.schema is None else read_schema(wanted.schema)
    began = time.perf_counter()
    backend = source.open(mapped=True)
    load_s = time.perf_counter() - began
    if not backend.can.local:
        media = list(names)  # a server gets the files as they are
    settings = answering.settings()
    more: dict[str, Any] = {}
    shown = show_thinking
    if wanted.task is not None:
        found = run_task(
            backend,
            wanted.task,
            media,
            question,
            tool="mobile_use" if wanted.phone else "computer_use",
            retry=retry or "seed",
            **settings,
        )
        answer, status = found.answer, 0 if found.reason is None else 1
        if as_json:
            more = {"found": found.to_dict()}
        elif text := found_text(found):
            print(text)
        print_doubts(found, () if wanted.draw is None else draw_to(found, names[0], wanted.draw))
    elif schema is not None:
        fields = extract_fields(backend, media, schema, question, **settings)
        answer, status = fields.answer, 1 if fields.problems else 0
        if as_json:
            more = {"found": fields.to_dict()}
        else:
            print(json_text(fields.values, indent=1))
        for line in fields.problems:
            print(f"note: {terminal_safe(line)}", file=sys.stderr)
    elif retry is not None:
        answer, notes = _ask_watched(backend, media, question, system, retry, settings)
        status = 0
        if not as_json:
            print(answer.text)
        for line in notes:
            print(f"note: {line}", file=sys.stderr)
    else:
        stream = backend.stream(media, question, system=system, **settings)
        answer, status = print_stream(stream, show_thinking, as_json), 0
        shown = False  # the thoughts went by already
    peak_bytes = backend.peak_memory_bytes
    if as_json:
        print(json_text(answer_dict(backend.name, answer, load_s, peak_bytes) | more))
    elif wanted.task is None and schema is None:
        print_notes(answer)
    if shown and answer.reasoning:
        print(terminal_safe(answer.reasoning), file=sys.stderr)
    if stats:
        print(statistics(answer, load_s, peak_bytes), file=sys.stderr)
    return status


def _ask_watched(
    backend: Model,
    media: list[Any],
    question: str,
    system: str | None,
    retry: Retry,
    settings: dict[str, Any],
) -> tuple[Answer, tuple[str, ...]]:
    """(the answer, why earlier tries were stopped). Only a single image is cut."""
    from qvl.backends.answer import media_item
    from qvl.geometry import Size
    from qvl.inputs.image import load_image
    from qvl.tasks.retry import ask_watched
    from qvl.tasks.run import cut

    single = retry == "crop" and len(media) == 1 and media_item(media[0])["type"] == "image"
    image = load_image(media[0]) if single else None

    def ask(crop: Rect | None, drawn: dict[str, Any]) -> Stream:
        shown = media if crop is None or image is None else [cut(image, crop)]
        return backend.stream(shown, question, system=system, **(settings | drawn))

    size = None if image is None else Size(image.height, image.width)
    watched = ask_watched(ask, retry=retry, size=size)
    return watched.answer, watched.notes


__getattr__ = moved.names(__name__)
