"""Chat completions: OpenAI's request → what the engine takes, and its events → OpenAI's answers, whole or in pieces."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qvl.engine.sampling import Logprob
from qvl.errors import QvlError
from qvl.inputs.processor import MediaSettings
from qvl.inputs.sampling import SamplingParams
from qvl.outputs.thinking import Piece, ThinkSplitter
from qvl.serve.problems import Problem, overloaded, problem_of, to_json
from qvl.serve.schema import ChatRequest, CompletionRequest, Message, NamedTool, TokenizeRequest
from qvl.serve.service import LOW_DETAIL_PIXELS, Conversation, Flight, Service
from qvl.serve.structured import structured
from qvl.serve.tools import Call, CallReader, ForcedCallReader, Said, call_grammar

if TYPE_CHECKING:
    from qvl.engine.engine import Event
    from qvl.engine.sampling import Constraint
    from qvl.inputs.tokenizer import Tokenizer


# ------------------------------------------------------------------------------------------------- the request


def conversation_of(request: ChatRequest) -> Conversation:
    settings = request.mm_processor_kwargs
    return Conversation(
        messages=[_message(message) for message in request.messages],
        tools=_tools(request) if request.calls_tools else (),
        settings=MediaSettings(**settings.model_dump(exclude_none=True)) if settings else MediaSettings(),
        template_variables=_thinking(request.reasoning_effort) | (request.chat_template_kwargs or {}),
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_message=bool(request.continue_final_message),
    )


def _thinking(effort: str | None) -> dict[str, Any]:
    """The templates know no degrees: they think, or they don't."""
    return {} if effort is None else {"enable_thinking": effort != "none"}


def conversation_to_count(request: TokenizeRequest) -> Conversation:
    return Conversation(
        messages=[_message(message) for message in request.messages or []],
        tools=_tools(request),
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_message=bool(request.continue_final_message),
    )


def _tools(request: ChatRequest | TokenizeRequest) -> list[dict[str, Any]]:
    return [tool.model_dump(exclude_none=True) for tool in request.tools or []]


def _message(message: Message) -> dict[str, Any]:
    """As inputs.chat reads it, with media as addresses under `image` and `video`."""
    raw = message.model_dump(exclude_none=True)
    raw["role"] = "system" if raw["role"] == "developer" else raw["role"]
    refusal, reasoning = raw.pop("refusal", ""), raw.pop("reasoning", None)
    raw["content"] = raw.get("content") or refusal
    if reasoning is not None:
        raw.setdefault("reasoning_content", reasoning)
    if isinstance(raw["content"], list):
        raw["content"] = [_part(part) for part in raw["content"]]
    return raw


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    if part["type"] == "refusal":
        return {"type": "text", "text": part["refusal"]}
    address = part.pop(part["type"])
    kind = part["type"].removesuffix("_url")
    if address.get("detail") == "low":
        part["max_pixels"] = min(LOW_DETAIL_PIXELS, part.get("max_pixels", LOW_DETAIL_PIXELS))
    return {**part, "type": kind, kind: address["url"]}


def params_of(request: ChatRequest | CompletionRequest) -> list[SamplingParams]:
    """One for each of the n answers; with a seed, each gets its own."""
    base = SamplingParams(
        max_new_tokens=request.limit,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        seed=request.seed,
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()},
        logprobs=request.num_logprobs,
    )
    seeds = [None if request.seed is None else _wrapped(request.seed + i) for i in range(request.n or 1)]
    return [replace(base, seed=seed) for seed in seeds]


def _wrapped(seed: int) -> int:
    return seed if seed < 2**63 else seed - 2**64


async def constraints_of(request: ChatRequest, service: Service) -> list[Constraint | None]:
    """A grammar for each of the n answers, or None. Raises: Problem for a schema that can't be kept to."""
    count = request.n or 1
    wanted = request.structured_outputs
    if not (request.constrained or request.forced or wanted):
        return [None] * count
    if wanted is not None:
        return await service.compiled(count, lambda grammars: structured(grammars, wanted))
    body: dict[str, Any] | None = None
    if request.constrained:
        assert request.response_format is not None
        schema = request.response_format.json_schema
        body = {"type": "object"} if schema is None else schema.schema_
    if not request.calls_tools:
        return await service.compiled(count, lambda grammars: grammars.json(body))
    special = frozenset(service.processor.tokenizer.special)
    tools = _tools(request)
    if isinstance(request.tool_choice, NamedTool):
        tools = [t for t in tools if t["function"]["name"] == request.tool_choice.function.name]
    # a forced call is all there is; otherwise the answer is a call, or what the format says
    grammar = call_grammar(tools, special, None if request.forced else body)
    return await service.compiled(count, lambda grammars: grammars.lark(grammar))


# ------------------------------------------------------------------------------------------------- the answer


def check_event(event: Event) -> None:
    """Raises: Problem when it says that there is no answer."""
    if event.finish_reason == "cancelled":
        raise overloaded(503, "the server is shutting down and ended the answer", 2)
    if event.finish_reason == "error":
        raise Problem(500, f"the device failed: {event.error}", kind="server_error", code="engine_error")


@dataclass
class Choice:
    """One answer as it grows."""

    index: int
    reader: CallReader | ForcedCallReader | None
    splitter: ThinkSplitter
    parse: Callable[[str], dict[str, Any]] | None = None
    text: list[str] = field(default_factory=list)  # of the answer, calls included
    reasoning: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    num_tokens: int = 0

    def take(self, event: Event, logprobs: list[dict[str, Any]]) -> list[Said | Piece]:
        """What an event says. Raises: Problem when it says that there is no answer."""
        check_event(event)
        ended = event.finish_reason is not None
        self.num_tokens += len(event.token_ids)
        pieces = [*self.splitter.push(event.text), *(self.splitter.finish() if ended else ())]
        said: list[Said | Piece] = []
        for piece in pieces:
            if piece.thought:
                said.append(piece)
            else:
                self.text.append(piece.text)
                said += [piece.text] if self.reader is None else self.reader.push(piece.text)
        if ended and self.reader is not None:
            said += self.reader.finish()
        self.logprobs += logprobs
        for one in said:
            if isinstance(one, Call):
                if one.goes_on:
                    last = self.calls[-1]
                    self.calls[-1] = replace(last, arguments=last.arguments + one.arguments)
                else:
                    self.calls.append(one)
            elif isinstance(one, Piece):
                self.reasoning.append(one.text)
            else:
                self.content.append(one)
        if ended:
            stopped = event.finish_reason == "stop"
            self.finish_reason = "tool_calls" if self.calls and stopped else event.finish_reason
        return said

    def parsed(self) -> dict[str, Any]:
        """The extra field, where one was asked for."""
        return {} if self.parse is None else {"qvl_parsed": self.parse("".join(self.text))}


class Completion:
    """A request that runs, and the forms its answer is given in. thinks: its prompt has opened `<think>`."""

    def __init__(
        self,
        request: ChatRequest,
        service: Service,
        flight: Flight,
        thinks: bool = False,
        parse: Callable[[str], dict[str, Any]] | None = None,
    ):
        self._request = request
        self._flight = flight
        self._tokenizer = service.processor.tokenizer
        self._hide = service.hide
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = service.options.model_name
        names = [tool.function.name for tool in request.tools or []] if request.calls_tools else []

        def reader() -> CallReader | ForcedCallReader | None:
            if not names:
                return None
            return (
                ForcedCallReader()
                if request.forced
                else CallReader(names, request.parallel_tool_calls is False)
            )

        self.choices = [Choice(i, reader(), ThinkSplitter(thinks), parse) for i in range(request.n or 1)]
        self._usage = {"prompt": 0, "completion": 0, "cached": 0, "visual": 0}

    async def whole(self) -> dict[str, Any]:
        """Raises: QvlError when there is no answer."""
        async for _ in self.said():
            pass
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [self._message(choice) for choice in self.choices],
            "usage": self.usage_object(),
        }

    async def said(self) -> AsyncIterator[tuple[Choice, list[Said | Piece], list[dict[str, Any]]]]:
        """What each event brings: whose it is, what it says, and its log probabilities. Raises: QvlError."""
        while (pair := await self._flight.next()) is not None:
            index, event = pair
            choice, logprobs = self.choices[index], self._count(event)
            yield choice, choice.take(event, logprobs), logprobs

    async def pieces(self) -> AsyncIterator[bytes]:
        """Server-sent events. A failure on the way is the last of them, in OpenAI's error shape."""
        for choice in self.choices:
            yield self._chunk(choice, {"role": "assistant", "content": ""})
        try:
            async for choice, said, logprobs in self.said():
                deltas: list[dict[str, Any]] = [self._delta(choice, piece) for piece in said]
                if logprobs and not deltas:  # tokens whose text isn't certain yet
                    deltas.append({"content": ""})
                for at, delta in enumerate(deltas):
                    yield self._chunk(choice, delta, logprobs if at == 0 else [])
                if choice.finish_reason is not None:
                    yield self._chunk(choice, {}, finish_reason=choice.finish_reason)
        except QvlError as e:
            yield sse(problem_of(e, self._hide).body())
            return
        options = self._request.stream_options
        if options is not None and options.include_usage:
            yield sse(self._frame([]) | {"usage": self.usage_object()})
        yield b"data: [DONE]\n\n"

    def _count(self, event: Event) -> list[dict[str, Any]]:
        """Adds up an ended answer's usage; the event's log probabilities in OpenAI's form."""
        if event.usage is not None:
            usage = self._usage
            usage["prompt"] = event.usage.prompt_tokens  # the same for each of n answers, and counted once
            usage["visual"] = event.usage.visual_tokens
            usage["cached"] = max(usage["cached"], event.usage.cached_tokens)
            usage["completion"] += event.usage.completion_tokens
        return openai_logprobs(event.logprobs, self._tokenizer)

    def usage_object(self) -> dict[str, Any]:
        usage = self._usage
        return {
            "prompt_tokens": usage["prompt"],
            "completion_tokens": usage["completion"],
            "total_tokens": usage["prompt"] + usage["completion"],
            "prompt_tokens_details": {"cached_tokens": usage["cached"], "image_tokens": usage["visual"]},
        }

    @property
    def num_thought_tokens(self) -> int:
        """As the thoughts' text is cut into tokens again, which may differ a little from how it came."""
        return sum(len(self._tokenizer.encode("".join(choice.reasoning))) for choice in self.choices)

    def _message(self, choice: Choice) -> dict[str, Any]:
        text = "".join(choice.content)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = "".join(choice.reasoning)
        if choice.calls:
            message["content"] = text or None
            message["tool_calls"] = [call.openai() for call in choice.calls]
        return {
            "index": choice.index,
            "message": message,
            "logprobs": {"content": choice.logprobs, "refusal": None} if self._request.logprobs else None,
            "finish_reason": choice.finish_reason,
            **choice.parsed(),
        }

    def _delta(self, choice: Choice, piece: Said | Piece) -> dict[str, Any]:
        if isinstance(piece, Piece):
            return {"reasoning_content": piece.text}
        if isinstance(piece, str):
            return {"content": piece}
        index = next(i for i, call in enumerate(choice.calls) if call.id == piece.id)
        if piece.goes_on:
            return {"tool_calls": [{"index": index, "function": {"arguments": piece.arguments}}]}
        return {"tool_calls": [{"index": index, **piece.openai()}]}

    def _chunk(
        self,
        choice: Choice,
        delta: dict[str, Any],
        logprobs: Sequence[dict[str, Any]] = (),
        finish_reason: str | None = None,
    ) -> bytes:
        said = {
            "index": choice.index,
            "delta": delta,
            "logprobs": {"content": list(logprobs), "refusal": None} if logprobs else None,
            "finish_reason": finish_reason,
            **(choice.parsed() if finish_reason is not None else {}),
        }
        return sse(self._frame([said]))

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        frame = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        options = self._request.stream_options
        if options is None or not options.include_usage:
            return frame
        return frame | {"usage": self._usage_so_far() if options.continuous_usage_stats else None}

    def _usage_so_far(self) -> dict[str, Any]:
        """While answers run, from the tokens that came; the engine's own count comes with their ends."""
        prompt = self._flight.num_prompt_tokens
        completion = sum(choice.num_tokens for choice in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }


def sse(value: Any) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def openai_logprobs(logprobs: Sequence[Logprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Tokens that end an answer are left out, since they aren't part of it."""
    return [
        {
            **_token(entry.token_id, entry.logprob, tokenizer),
            "top_logprobs": [_token(i, value, tokenizer) for i, value in entry.top if value > -1e30],
        }
        for entry in logprobs
        if entry.token_id not in tokenizer.control_ids
    ]


def _token(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token_id)
    # JSON has no infinity; OpenAI writes -9999 for what can't be
    return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(raw)}
