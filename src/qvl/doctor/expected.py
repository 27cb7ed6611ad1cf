"""What an endpoint's answers are compared with: the same model on this machine, or its own earlier answers."""

from __future__ import annotations

from typing import Any, Protocol

from qvl.backends.answer import conversation
from qvl.backends.base import Backend
from qvl.doctor.compare import NUM_LOGPROBS, Question, Reply, reply_of
from qvl.geometry import PixelLimits


class ExpectedAnswers(Protocol):
    """`title` names it in evidence."""

    @property
    def title(self) -> str: ...

    def reply(self, question: Question) -> Reply | None:
        """None when it never answered this question."""


class Reference:
    """A model loaded here that should be the served one. Its images get the endpoint's pixel limits."""

    def __init__(self, backend: Backend, limits: PixelLimits | None = None):
        self.backend = backend
        self.title = f"the reference {backend.name}"
        self._pixels: dict[str, Any] = {}
        if limits is not None and backend.limits is not None and limits != backend.limits:
            self._pixels = {"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}
        self._replies: dict[str, Reply] = {}

    def reply(self, question: Question) -> Reply | None:
        if question.name not in self._replies:
            answer = self.backend.chat(
                conversation(question.media, question.words, question.system),
                temperature=0,
                logprobs=NUM_LOGPROBS,
                max_new_tokens=question.max_new_tokens,
                **self._pixels,
            )
            self._replies[question.name] = reply_of(answer, self.backend.token_bytes)
        return self._replies[question.name]
