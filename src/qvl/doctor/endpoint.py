"""The endpoint under examination: one way to ask it, what it can tell, and what it is compared with."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from qvl.backends.answer import Answer, MediaSize, conversation
from qvl.backends.base import Backend
from qvl.backends.media import image_size
from qvl.doctor.compare import NUM_LOGPROBS, Gap, Question, Reply, gap, reply_of
from qvl.doctor.expected import ExpectedAnswers
from qvl.doctor.images import blocks
from qvl.errors import BackendError, PromptError
from qvl.geometry import PixelLimits, Size

LARGE_PIXELS = 1_204_224  # 1,536 tokens of 28x28: a page, ten windows wide; faults of windows show from two
DEFAULT_ROOM = 8192  # tokens of context taken for granted where a server doesn't say


class EndpointUnderTest:
    """Asks greedily and with log probabilities where there are any; counts what it asks.

    expected: how the same model answers elsewhere or answered before. limits: the server's pixel limits where they
    aren't those that it lists or the family's own.
    Raises: BackendError when the endpoint doesn't answer at all.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        seed: int = 0,
        expected: ExpectedAnswers | None = None,
        limits: PixelLimits | None = None,
    ):
        self.backend = backend
        self.seed = seed
        self.expected = expected
        self.limits = limits or backend.limits
        self.num_asked = 0
        self.answered: dict[str, list[tuple[Any, Reply]]] = {}  # by question set: what `sets.asked` has asked
        self.memo: dict[str, Any] = {}  # what several probes of a theme start from
        self.has_logprobs = self._gives_logprobs()

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def generation(self) -> Any:
        return self.backend.generation

    @property
    def family(self) -> Any:
        return self.backend.family

    @property
    def room(self) -> int:
        """Tokens of prompt and answer together."""
        return self.backend.max_model_len or DEFAULT_ROOM

    @property
    def unit(self) -> int:
        """Side in pixels of the square that becomes one visual token."""
        return self.limits.factor if self.limits else 28

    @property
    def large(self) -> int:
        """Side of a large square image that the endpoint takes without shrinking it, in whole units."""
        most = min(LARGE_PIXELS, self.room // 2 * self.unit**2)
        if self.limits:
            most = min(most, self.limits.max_pixels)
        return max(2, int(most**0.5) // self.unit) * self.unit

    def rng(self, name: str) -> np.random.Generator:
        """Random numbers of one probe: the same for the same seed, whatever else runs."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def seen(self, size: tuple[int, int], **pixels: int) -> MediaSize | None:
        """How the model should see an image of (height, width); None where its family isn't known.

        pixels: min_pixels, max_pixels of the question.
        """
        if self.family is None or (pixels and self.limits is None):
            return None
        limits = self.limits
        if limits is not None and pixels:
            low = min(
                pixels.get("min_pixels", limits.min_pixels), pixels.get("max_pixels", limits.max_pixels)
            )
            limits = replace(limits, **({"min_pixels": low} | pixels))
        return image_size(Size(*size), self.generation, limits)

    # asking

    def ask(
        self,
        media: Sequence[Any],
        words: str,
        *,
        system: str | None = None,
        max_new_tokens: int = 3,
        **settings: Any,
    ) -> Answer:
        return self.chat(conversation(media, words, system), max_new_tokens=max_new_tokens, **settings)

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Answer:
        self.num_asked += 1
        return self.backend.chat(messages, **self.settings(**settings))

    def answer(self, question: Question) -> Reply:
        """A question that is compared over time."""
        answer = self.ask(
            question.media, question.words, system=question.system, max_new_tokens=question.max_new_tokens
        )
        return self.reply(answer)

    def ask_many(
        self, questions: Sequence[tuple[Sequence[Any], str]], *, system: str | None = None, **settings: Any
    ) -> list[Answer]:
        self.num_asked += len(questions)
        return self.backend.ask_many(questions, system=system, **self.settings(**settings))

    def settings(self, **changes: Any) -> dict[str, Any]:
        base: dict[str, Any] = {"temperature": 0}
        if self.has_logprobs:
            base["logprobs"] = NUM_LOGPROBS
        return {name: value for name, value in (base | changes).items() if value is not None}

    def reply(self, answer: Answer) -> Reply:
        return reply_of(answer, self.backend.token_bytes)

    def gap(self, a: Answer, b: Answer) -> Gap:
        return gap(self.reply(a), self.reply(b))

    @cached_property
    def noise(self) -> float:
        """Nats by which the same question, asked three times, differs from itself: 0 for most engines."""
        image = blocks(self.rng("noise"), 4 * self.unit, 6 * self.unit, self.unit)
        answers = [self.ask([image], "What is shown here?", max_new_tokens=3) for _ in range(3)]
        gaps = [self.gap(answers[0], other) for other in answers[1:]]
        return max((g.any_nats or 0.0 for g in gaps), default=0.0)

    def _gives_logprobs(self) -> bool:
        """Raises: BackendError when even a plain question isn't answered."""
        asked: dict[str, Any] = dict(max_new_tokens=2, temperature=0)
        try:
            answer = self.backend.ask([], "Say something.", logprobs=NUM_LOGPROBS, **asked)
            return bool(answer.logprobs)
        except (BackendError, PromptError):
            self.backend.ask([], "Say something.", **asked)
            return False
