"""Canned answers, for testing code that is built on a backend. Media are read and sized for real.

model = FakeModel({"What is the total?": "10.36"})
model = FakeModel(["first", "second"])                    # in turn
model = FakeModel(lambda media, question: question.upper())
model = qvl.load("fake:10.36")                            # or fake:answers.json, which holds an object or a list
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from qvl.backends.answer import Answer, MediaSize
from qvl.backends.base import Backend, Stream
from qvl.backends.media import image_limits, prepare
from qvl.backends.settings import Settings
from qvl.catalog.generations import Generation, by_name
from qvl.catalog.generations.qwen2_5_vl import QWEN2_5_VL
from qvl.errors import BackendError, PromptError, nearest
from qvl.geometry import PixelLimits
from qvl.inputs.chat import read_messages
from qvl.inputs.processor import MediaSettings
from qvl.outputs.thinking import Piece, split_thinking

DEFAULT_FAMILY = QWEN2_5_VL.name
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


class FakeModel(Backend):
    """A Backend without a model. `calls` holds all that was asked; an exception among the answers is raised.

    Tokens are counted as words, which no test should rely on beyond their being there.
    """

    def __init__(
        self,
        answers: Answers = "",
        *,
        family: Generation | str | None = DEFAULT_FAMILY,
        limits: PixelLimits | None = None,
        name: str = "fake",
        max_model_len: int | None = None,
    ):
        self.name = name
        self._generation = None if family is None else by_name(family)
        self._max_model_len = max_model_len
        self._limits = limits or image_limits(self._generation)
        self.calls: list[Call] = []
        self._answers = answers
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"FakeModel({self.family}, {len(self.calls)} calls)"

    @property
    def generation(self) -> Generation | None:
        return self._generation

    @property
    def limits(self) -> PixelLimits | None:
        return self._limits

    @property
    def max_model_len(self) -> int | None:
        return self._max_model_len

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **settings: Unpack[Settings]) -> FakeStream:
        given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        for name in sorted(set(given) - self.can.settings):
            raise PromptError(f"{name} is not a setting; {nearest(name, sorted(self.can.settings))}")
        pixels = {name: value for name, value in given.items() if name in MediaSettings.__dataclass_fields__}
        clean, items = read_messages(messages)
        sent = [prepare(item, self.generation, self.limits, MediaSettings(**pixels)) for item in items]
        media = tuple(s.size for s in sent if s.size is not None)
        system = next((_words(m) for m in clean if m["role"] == "system"), None)
        call = Call(tuple(messages), _words(clean[-1]), system, media, given)
        with self._lock:
            answer = self._next(call)
            self.calls.append(call)
        if isinstance(answer, Exception):
            raise answer
        return FakeStream(answer if isinstance(answer, Answer) else _answer(answer, call))

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


def read_fake(said: str, family: str | None = None, name: str = "fake") -> FakeModel:
    """What stands after `fake:` at the door: the one answer, or a JSON file of answers.

    The file holds a text, a list of texts (in turn), or an object from question to text.
    Raises: BackendError for a file that holds something else.
    """
    answers: Any = said
    if said.endswith(".json"):
        try:
            answers = json.loads(Path(said).read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise BackendError(f"fake:{said}: can't be read as JSON ({e})") from e
    texts = answers.values() if isinstance(answers, dict) else answers
    if not isinstance(answers, str | list | dict) or not all(isinstance(text, str) for text in texts):
        raise BackendError(f"fake:{said}: must hold a string, a list of strings or an object of strings")
    return FakeModel(answers, family=family or DEFAULT_FAMILY, name=name)


class FakeStream(Stream):
    """A written answer, line by line."""

    def __init__(self, answer: Answer):
        super().__init__()
        self.media = answer.media
        self._whole = answer
        self._lines = iter(
            [Piece(line, thought) for text, thought in ((answer.reasoning, True), (answer.text, False))
             for line in text.splitlines(keepends=True)]
        )  # fmt: skip

    def fetch_more(self) -> bool:
        if self._closed:
            return False
        line = next(self._lines, None)
        if line is None:
            self.answer = self._whole
            return False
        self._pieces.append(line)
        return True

    async def afetch_more(self) -> bool:
        return self.fetch_more()


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
    thought, said = split_thinking(" ".join(words[:limit]) if cut else text)
    return Answer(
        text=said,
        reasoning=thought,
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
