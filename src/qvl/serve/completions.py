"""Text completions: prompts as they stand, and their answers in OpenAI's older form, whole or in pieces."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from qvl.errors import QvlError
from qvl.serve.chat import check_event, openai_logprobs, params_of, sse
from qvl.serve.problems import problem_of
from qvl.serve.structured import structured

if TYPE_CHECKING:
    from qvl.engine.engine import Event
    from qvl.engine.sampling import Constraint
    from qvl.serve.schema import CompletionRequest
    from qvl.serve.service import Flight, Service


async def launched_text(body: CompletionRequest, service: Service, flight: Flight) -> TextCompletion:
    """Raises: PromptError, CapacityError, Problem."""
    params = params_of(body)
    inputs = [await service.text_inputs(prompt) for prompt in body.prompts]
    wanted = body.structured_outputs
    for one in inputs:
        constraints: list[Constraint | None] = [None for _ in params]
        if wanted is not None:
            constraints = await service.compiled(len(params), partial(structured, wanted=wanted))
        await flight.launch(one, params, constraints)
    return TextCompletion(body, service, flight)


@dataclass
class _Text:
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None


class TextCompletion:
    def __init__(self, request: CompletionRequest, service: Service, flight: Flight):
        self._request, self._flight, self._hide = request, flight, service.hide
        self._tokenizer = service.processor.tokenizer
        self._frame = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.options.model_name,
        }
        self._num_tokens = 0

    async def whole(self) -> dict[str, Any]:
        """Raises: QvlError when there is no answer."""
        texts = [_Text() for _ in range(len(self._request.prompts) * (self._request.n or 1))]
        async for index, event in self._events():
            one = texts[index]
            one.text += event.text
            one.logprobs += openai_logprobs(event.logprobs, self._tokenizer)
            one.finish_reason = event.finish_reason
        choices = [
            self._choice(index, one.text, one.logprobs, 0, one.finish_reason)
            for index, one in enumerate(texts)
        ]
        return self._frame | {"choices": choices, "usage": self._usage()}

    async def pieces(self) -> AsyncIterator[bytes]:
        options = self._request.stream_options
        counted = options is not None and bool(options.include_usage)
        continuous = counted and options is not None and bool(options.continuous_usage_stats)
        offsets: dict[int, int] = {}
        try:
            async for index, event in self._events():
                logprobs = openai_logprobs(event.logprobs, self._tokenizer)
                if not event.text and not logprobs and event.finish_reason is None:
                    continue
                at = offsets.get(index, 0)
                offsets[index] = at + len(event.text)
                choice = self._choice(index, event.text, logprobs, at, event.finish_reason)
                usage = {"usage": self._usage() if continuous else None} if counted else {}
                yield sse(self._frame | {"choices": [choice]} | usage)
        except QvlError as e:
            yield sse(problem_of(e, self._hide).body())
            return
        if counted:
            yield sse(self._frame | {"choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    async def _events(self) -> AsyncIterator[tuple[int, Event]]:
        while (pair := await self._flight.next()) is not None:
            index, event = pair
            check_event(event)
            self._num_tokens += len(event.token_ids)
            yield index, event

    def _choice(
        self, index: int, text: str, logprobs: list[dict[str, Any]], offset: int, reason: str | None
    ) -> dict[str, Any]:
        told = None
        if self._request.logprobs is not None:
            starts = [offset]
            for entry in logprobs:
                starts.append(starts[-1] + len(entry["token"]))
            told = {
                "tokens": [entry["token"] for entry in logprobs],
                "token_logprobs": [entry["logprob"] for entry in logprobs],
                "top_logprobs": [
                    {one["token"]: one["logprob"] for one in entry["top_logprobs"]} for entry in logprobs
                ],
                "text_offset": starts[:-1],
            }
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}

    def _usage(self) -> dict[str, int]:
        prompt = self._flight.num_prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._num_tokens,
            "total_tokens": prompt + self._num_tokens,
        }
