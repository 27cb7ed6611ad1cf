"""Answers that were written beforehand, for testing what is built on a backend. Media are read and sized for real.

model = FakeModel({"What is the total?": "10.36"})
model = FakeModel(["first", "second"])                    # in turn
model = FakeModel(lambda media, question: question.upper())
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qvl.backends.answer import Answer, MediaSize, conversation
from qvl.backends.media import image_limits, prepare
from qvl.catalog.config import Family
from qvl.errors import BackendError, PromptError
from qvl.inputs.chat import read_messages
from qvl.inputs.geometry import PixelLimits
from qvl.inputs.processor import MediaSettings
from qvl.outputs.mapping import check_family

if TYPE_CHECKING:
    from qvl.backends.base import Backend

Script = str | Answer | Exception
Answers = (
    Script | Sequence[Script] | Mapping[str, Script] | Callable[[tuple[MediaSize, ...], str], Script]
)  # a function gets the media's sizes and the last words of the user


@dataclass(frozen=True)
class Call:
    """What was asked once."""

    messages: tuple[Mapping[str, Any], ...]
    question: str  # the words of the last message
    system: str | None
    media: tuple[MediaSize, ...]
    settings: Mapping[str, Any]


class FakeModel:
    """A Backend without a model. `calls` holds all that was asked; an exception among the answers is raised.

    Tokens are counted as words, which no test should rely on beyond their being there.
    """

    def __init__(
        self,
        answers: Answers = "",
        *,
        family: str | None = "qwen2_5_vl",
        limits: PixelLimits | None = None,
        name: str = "fake",
    ):
        self.name = name
        self.family: Family | None = None if family is None else check_family(family)
        self.limits = limits or image_limits(self.family)
        self.calls: list[Call] = []
        self._answers = answers
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"FakeModel({self.family}, {len(self.calls)} calls)"

    def ask(
        self, media: Sequence[Any], question: str, *, system: str | None = None, **settings: Any
    ) -> Answer:
        return self.stream(media, question, system=system, **settings).finish()

    def stream(
        self, media: Sequence[Any], question: str, *, system: str | None = None, **settings: Any
    ) -> FakeStream:
        listed = list(media) if isinstance(media, (list, tuple)) else [media]
        return self.stream_chat(conversation(listed, question, system), **settings)

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Answer:
        return self.stream_chat(messages, **settings).finish()

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> FakeStream:
        given = {name: value for name, value in settings.items() if value is not None}
        pixels = {name: value for name, value in given.items() if name in MediaSettings.__dataclass_fields__}
        clean, items = read_messages(messages)
        sent = [prepare(item, self.family, self.limits, MediaSettings(**pixels)) for item in items]
        media = tuple(s.size for s in sent if s.size is not None)
        system = next((_words(m) for m in clean if m["role"] == "system"), None)
        call = Call(tuple(messages), _words(clean[-1]), system, media, given)
        with self._lock:
            answer = self._next(call)
            self.calls.append(call)
        if isinstance(answer, Exception):
            raise answer
        return FakeStream(answer if isinstance(answer, Answer) else _answer(answer, call))

    def ask_many(
        self,
        questions: Iterable[tuple[Sequence[Any], str]],
        *,
        system: str | None = None,
        **settings: Any,
    ) -> list[Answer]:
        return [self.ask(media, question, system=system, **settings) for media, question in questions]

    def _next(self, call: Call) -> Script:
        answers = self._answers
        if isinstance(answers, (str, Answer, Exception)):
            return answers
        if isinstance(answers, Mapping):
            if call.question not in answers:
                raise BackendError(
                    f"the fake model has no answer to {call.question!r}; known: {list(answers)}"
                )
            return answers[call.question]
        if callable(answers):
            return answers(call.media, call.question)
        if len(self.calls) >= len(answers):
            raise BackendError(f"the fake model's {len(answers)} answers are used up")
        return answers[len(self.calls)]


if TYPE_CHECKING:
    _conforms: type[Backend] = FakeModel  # mypy holds it to the protocol


class FakeStream(Iterator[str]):
    """A written answer, word by word."""

    def __init__(self, answer: Answer):
        self.answer: Answer | None = None
        self.media = answer.media
        self._whole = answer
        self._pieces = iter([*answer.text.splitlines(keepends=True)] if answer.text else [])
        self._closed = False

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> str:
        piece = None if self._closed else next(self._pieces, None)
        if piece is None:
            if not self._closed:
                self.answer = self._whole
            raise StopIteration
        return piece

    def finish(self) -> Answer:
        for _ in self:
            pass
        if self.answer is None:
            raise PromptError("the answer was closed before its end")
        return self.answer

    def close(self) -> None:
        self._closed = True


def _words(message: Mapping[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _answer(text: str, call: Call) -> Answer:
    visual = sum(size.visual_tokens for size in call.media)
    limit = call.settings.get("max_new_tokens")
    words = text.split(" ")
    cut = limit is not None and len(words) > limit
    return Answer(
        text=" ".join(words[:limit]) if cut else text,
        finish_reason="length" if cut else "stop",
        prompt_tokens=visual + sum(len(_words_of(m).split()) for m in call.messages),
        visual_tokens=visual,
        completion_tokens=min(len(words), limit) if limit else len(words),
        media=call.media,
    )


def _words_of(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(str(p.get("text", "")) for p in content if isinstance(p, Mapping))
