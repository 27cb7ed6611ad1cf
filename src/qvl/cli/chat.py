"""`qvl chat`: a conversation in the terminal. Images come by path; Ctrl-C stops the answer, not the program."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from qvl.backends.answer import media_item
from qvl.cli.gate import gated_console
from qvl.cli.media import is_media_name
from qvl.cli.options import AnswerOptions, SourceOptions, command, option
from qvl.cli.show import cut_note, terminal_safe
from qvl.errors import PromptError, QvlError, nearest
from qvl.records import json_text
from qvl.units import format_seconds

if TYPE_CHECKING:
    from qvl.tasks.model import Model

HELP = """\
Write and press return. A word that is the path of a image or video is shown to the model.
/reset       forget the conversation
/save FILE   write the conversation as JSON
/help        these lines
/quit        leave; so does Ctrl-D. Ctrl-C stops an answer."""


@command
def run(
    source: SourceOptions,
    answering: AnswerOptions,
    system: str | None = option(None, "The system prompt (default: the checkpoint's).", metavar="TEXT"),
) -> int:
    """Talk with a model about images and videos."""
    console = gated_console(highlight=False)
    model = source.open()
    talk = Talk(model, console, system, answering.settings())
    if sys.stdin.isatty():
        import readline  # noqa: F401  arrow keys and history in input()

        name = source.model or model.name
        console.print(f"{name}; /help says what can be done, Ctrl-D leaves", style="dim", markup=False)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            console.print()
            return 0
        except KeyboardInterrupt:
            console.print("(Ctrl-D leaves)", style="dim")
            continue
        if not talk.hear(line):
            return 0


class Talk:
    """A conversation and what may be done with it. `hear` takes one line of the person."""

    def __init__(self, model: Model, console: Console, system: str | None, settings: dict[str, Any]):
        self._model = model
        self._console = console
        self._settings = settings
        self._first = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict[str, Any]] = list(self._first)

    def hear(self, line: str) -> bool:
        """False when the person wants to leave. A mistake is told and changes nothing."""
        line = line.strip()
        try:
            if line.startswith("/") and not Path(line.split()[0]).exists():
                return self._command(line)
            if line:
                self._ask(line)
        except QvlError as e:
            self._note(str(e))
        return True

    def _command(self, line: str) -> bool:
        name, _, rest = line.partition(" ")
        if name == "/quit":
            return False
        if name == "/help":
            self._note(HELP)
        elif name == "/reset":
            self.messages = list(self._first)
            self._note("the conversation is forgotten")
        elif name == "/save":
            self._save(rest.strip())
        else:
            raise PromptError(f"no command {name}; {nearest(name, ['/help', '/quit', '/reset', '/save'])}")
        return True

    def _save(self, name: str) -> None:
        if not name:
            raise PromptError("/save needs the name of a file")
        try:
            text = json_text(self.messages, indent=1)
            Path(name).write_text(text + "\n", encoding="utf-8")
        except OSError as e:
            raise PromptError(f"{name}: can't be written ({e.strerror})") from e
        self._note(f"{len(self.messages)} messages in {name}")

    def _ask(self, line: str) -> None:
        message = {"role": "user", "content": content_of(line)}
        stream = self._model.stream_chat([*self.messages, message], **self._settings)
        said: list[str] = []
        try:
            thinking = False
            for text, thought in stream.pieces():
                if thinking and not thought:
                    self._console.print("\n")
                thinking = thought
                if not thought:
                    said.append(text)
                style = "dim" if thought else None
                self._console.print(terminal_safe(text), end="", markup=False, soft_wrap=True, style=style)
            self._console.print()
        except KeyboardInterrupt:
            self._console.print()
            self._note("stopped")
        finally:
            stream.close()
        # what was said before a stop is part of the conversation, so that "go on" can mean something
        self.messages += [message, {"role": "assistant", "content": "".join(said)}]
        if stream.answer is not None:
            if (cut := cut_note(stream.answer)) is not None:
                self._note(cut)
            self._note(figures(stream.answer))

    def _note(self, text: str) -> None:
        self._console.print(terminal_safe(text), style="dim", markup=False)


def content_of(line: str) -> list[dict[str, Any]]:
    """Items of a message: the images and videos that the line names, then its words.

    Raises: PromptError for a name that looks like one and isn't there.
    """
    try:
        words = shlex.split(line)  # names with spaces stand in quotes
    except ValueError:  # an apostrophe is no quote
        words = line.split()
    names = [word for word in words if is_media_name(word.strip()) or _is_quoted_file(word)]
    missing = [name for name in names if not Path(name).is_file()]
    if missing:
        raise PromptError(f"{missing[0]}: no such file")
    if not names:
        return [{"type": "text", "text": line}]
    rest = " ".join(word for word in words if word not in names)
    return [*map(media_item, names), {"type": "text", "text": rest or "Describe this."}]


def _is_quoted_file(word: str) -> bool:
    """A name with spaces that ends like a image or video and is there."""
    return " " in word and is_media_name(word.replace(" ", "")) and Path(word).is_file()


def figures(answer: Any) -> str:
    """`409 prompt tokens (384 visual, 350 cached), 12 tokens in 0.35 s + 30.1 tok/s`"""
    seconds = answer.seconds
    first = sum(seconds.get(phase, 0.0) for phase in ("inputs", "queue", "vision", "prefill", "first"))
    rate = answer.decode_tokens_per_s
    return (
        f"{answer.prompt_tokens} prompt tokens ({answer.visual_tokens} visual, {answer.cached_tokens} cached), first "
        f"word after {format_seconds(first)}, {answer.completion_tokens} tokens"
        + ("" if rate is None else f" at {rate:.1f}/s")
    )
