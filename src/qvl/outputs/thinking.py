"""A reply → what the model thought and what it answered, while it streams.

Thinking models write `<think>…</think>` before their answer. Templates of some (Qwen3-VL-Thinking, Qwen3.5) write the
opening tag into the prompt, so that only the closing one comes. A tag anywhere later is a part of the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"


class Piece(NamedTuple):
    """Some text of a reply; `thought` says that it is no part of the answer."""

    text: str
    thought: bool = False


def opens_thinking(prompt_end: str) -> bool:
    """Whether a prompt that ends so has already opened the thinking."""
    return prompt_end.rstrip().endswith(OPEN)


class ThinkSplitter:
    """Text goes in as it comes, pieces come out; what they are doesn't depend on how the text was cut.

    opened: the prompt wrote `<think>`. closed: the thoughts came another way, so this is the answer. Space around
    the thoughts and before the answer after them is left out; a reply without thoughts passes as it is. Thoughts
    without an end stay thoughts: then there is no answer.
    """

    def __init__(self, opened: bool = False, closed: bool = False):
        self._opened = opened
        self._held = ""  # may still turn out to be a tag
        self._space: list[str] = []  # seen, until it is known whether it counts
        self._at = self._gap if closed else self._begin
        self._thought_any = False

    @property
    def thinking(self) -> bool:
        """Whether the next text is a thought, as far as can be told."""
        return self._at == self._think or (self._at == self._begin and self._opened)

    def push(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while self._held:
            before = self._at
            pieces += self._at()
            if self._at == before:
                break
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back; the reply is over."""
        held, self._held = self._held, ""
        if self.thinking:
            return self._thought(held)
        if self._at == self._begin:
            held = "".join(self._space) + held
        return [Piece(held)] if held else []

    def _begin(self) -> list[Piece]:
        bare = self._held.lstrip()
        self._space.append(self._held[: len(self._held) - len(bare)])
        self._held = bare
        if bare.startswith(OPEN):
            self._held, self._at = bare[len(OPEN) :], self._think
        elif self._opened and not OPEN.startswith(bare):
            self._at = self._think
        elif not OPEN.startswith(bare):
            self._held, self._at = "".join(self._space) + bare, self._answer
        return []

    def _think(self) -> list[Piece]:
        before, closed, after = self._held.partition(CLOSE)
        if closed:
            self._held, self._at = after, self._gap
            return self._thought(before)
        cut = len(self._held) - _overlap(self._held, CLOSE)
        text, self._held = self._held[:cut], self._held[cut:]
        return self._thought(text)

    def _thought(self, text: str) -> list[Piece]:
        """The words of it; space after them waits for the next ones."""
        said = text.rstrip()
        pieces = []
        if said:
            whole = "".join(self._space) + said if self._thought_any else said.lstrip()
            self._space, self._thought_any = [], True
            pieces.append(Piece(whole, thought=True))
        self._space.append(text[len(said) :])
        return pieces

    def _gap(self) -> list[Piece]:
        self._held = self._held.lstrip()
        if self._held:
            self._at = self._answer
        return []

    def _answer(self) -> list[Piece]:
        text, self._held = self._held, ""
        return [Piece(text)]


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that `mark` could begin with."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)


def joined(pieces: Iterable[Piece]) -> tuple[str, str]:
    """(the thoughts, the answer) of pieces in their order."""
    pieces = list(pieces)
    return "".join(p.text for p in pieces if p.thought), "".join(p.text for p in pieces if not p.thought)


def split_thinking(text: str, opened: bool = False) -> tuple[str, str]:
    """(the thoughts, the answer) of a whole reply. opened: the prompt wrote `<think>`."""
    splitter = ThinkSplitter(opened)
    return joined([*splitter.push(text), *splitter.finish()])
