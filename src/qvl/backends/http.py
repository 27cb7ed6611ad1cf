"""Any OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, Alibaba Model Studio, ours.

model = connect("http://localhost:8000", "Qwen/Qwen2.5-VL-7B-Instruct")
print(model.ask(["receipt.png"], "What is the total?"))

Keys come from the environment and go into one header: never into logs, errors or a repr, and no redirect is
followed with them. Addresses and names are endpoint's, sending and waiting transport's, reading replies wire's; here
a conversation becomes a request, and a reply an Answer.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import httpx

from qvl.backends.answer import Answer, MediaSize
from qvl.backends.base import AsyncStream, Backend, Capabilities, Stream
from qvl.backends.endpoint import (
    base_url,
    declared_family,
    declared_limits,
    entry_of,
    find_family,
    is_model_studio,
    model_studio_limits,
    only_model,
    read_key,
)
from qvl.backends.media import SentMedia, image_limits, prepare
from qvl.backends.settings import MEDIA_SETTINGS, Settings
from qvl.backends.spend import Hold, Meter, call_cost, parse_amount
from qvl.backends.studio import check_region, find_price, longest_output, region_of, thinks
from qvl.backends.transport import OpenReply, Transport
from qvl.backends.wire import DataLines, Reply, assembled, read_chunk, read_reply
from qvl.catalog.generations import Generation, by_name
from qvl.catalog.prices import price_book
from qvl.errors import BackendError, PlanError, PromptError, nearest
from qvl.geometry import PixelLimits
from qvl.inputs.chat import read_messages
from qvl.inputs.processor import MediaSettings
from qvl.outputs.thinking import CLOSE, OPEN, Piece, ThinkSplitter

# our names → the API's; those after the gap are extensions of vLLM and SGLang that other servers may refuse
FIELDS = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "logprobs": "logprobs",
    "tools": "tools",
    "response_format": "response_format",
    #
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
}
_OWN_FIELDS = frozenset(
    ["model", "messages", "stream", "stream_options", "n"]
)  # extra_body may not change them


_PATH = "/chat/completions"
_STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True)
class _Asked:
    """A request ready to go, and what is known of it before the answer."""

    body: dict[str, Any]
    media: tuple[MediaSize, ...]
    only_images: bool
    thinks: bool  # by the model's name
    most_input_tokens: int | None  # an upper bound; None where there is none, as for videos
    inputs_s: float


def connect(
    endpoint: str,
    model: str | None = None,
    *,
    family: str | None = None,
    limits: PixelLimits | None = None,
    api_key_env: str | None = None,
    high_resolution: bool = False,
    region: str | None = None,
    max_spend: str | float | None = None,
    prices: str | Path | None = None,
    timeout_s: float = 600.0,
    max_retries: int = 4,
    max_concurrency: int = 8,
) -> HttpModel:
    """A model behind a URL. Without a name the server is asked, which must serve exactly one.

    family: told, or read from the model's name (`find_family`). limits: the server's pixel limits where they are not
    the published ones. api_key_env: the variable that holds the key; by default DASHSCOPE_API_KEY for Alibaba Cloud
    and OPENAI_API_KEY elsewhere, either of which may be unset for a server without keys. high_resolution: Model
    Studio's switch, which lifts its bound on images. region: says that the address is Model Studio's (a gateway
    before it), and whose prices hold. max_spend: an amount (`0.50`, `$2`, `3 CNY`) that all calls of this model
    together may not exceed. prices: a TOML file with prices of one's own.
    Raises: BackendError for an address that can't be one, a missing key, or a server that can't be reached;
    PlanError for a limit that can't be kept for want of a price.
    """
    if max_retries < 0 or max_concurrency < 1 or not timeout_s > 0:
        raise BackendError(
            f"max_retries {max_retries}, max_concurrency {max_concurrency}, timeout_s {timeout_s:g}: must be at least "
            "0, at least 1, and above 0"
        )
    url = base_url(endpoint)
    region = region_of(url) if region is None else check_region(region)
    studio = region is not None or is_model_studio(url)
    if high_resolution and not studio:
        raise BackendError(
            f"high_resolution is a switch of Alibaba Model Studio, and {url} isn't its address; "
            "raise the server's own max_pixels"
        )
    client = httpx.Client(
        timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
        limits=httpx.Limits(max_connections=max_concurrency + 1),
        follow_redirects=False,
    )
    key = read_key(api_key_env, studio)
    wire = Transport(client, url, key, max_retries, max_concurrency)
    listed = only_model(wire) if model is None else {"id": model}
    name = str(listed["id"])
    known = by_name(family) if family is not None else find_family(name)
    if known is None and not studio:
        listed = entry_of(wire, name) if model is not None else listed
        known = declared_family(listed)
    if limits is None:
        limits = (
            model_studio_limits(name, known, high_resolution)
            if studio
            else declared_limits(listed) or image_limits(known)
        )
    meter = _meter(name, region, max_spend, prices)
    return HttpModel(wire, name, known, limits, high_resolution, studio=studio, meter=meter)


def _meter(
    name: str, region: str | None, max_spend: str | float | None, prices: str | Path | None
) -> Meter | None:
    if region is None and prices is None and max_spend is None:
        return None
    book = price_book(prices)
    price = find_price(book, name, region)
    if max_spend is None:
        return None if price is None else Meter(price)
    if price is None:
        where = f"{name} in {region}" if region else f"{name}, which isn't at Alibaba Model Studio"
        raise PlanError(
            f"max-spend can't be enforced: no price is known for {where}; give it with --prices FILE"
        )
    return Meter(price, parse_amount(str(max_spend), price.currency, book))


class HttpModel(Backend):
    """A served model. Threads may ask it together; at most `max_concurrency` requests are under way."""

    can = Capabilities(
        settings=frozenset([*FIELDS, *MEDIA_SETTINGS, "thinking", "thinking_budget", "extra_body"]),
        raw=True, prices=True,
    )  # fmt: skip

    def __init__(
        self,
        wire: Transport,
        name: str,
        generation: Generation | None,
        limits: PixelLimits | None,
        high_resolution: bool,
        *,
        studio: bool = False,
        meter: Meter | None = None,
    ):
        self.name = name
        self._generation = generation
        self._limits = limits
        self.wire = wire
        self._meter = meter
        self._high_resolution = high_resolution
        self._studio = studio

    def __repr__(self) -> str:
        return f"HttpModel({self.wire.url!r}, {self.name!r}, {self.family})"

    @property
    def generation(self) -> Generation | None:
        return self._generation

    @property
    def limits(self) -> PixelLimits | None:
        return self._limits

    @property
    def meter(self) -> Meter | None:
        return self._meter

    @property
    def max_concurrency(self) -> int:
        return self.wire.max_concurrency

    def close(self) -> None:
        """Gives the connections back."""
        self.wire.client.close()

    async def aclose(self) -> None:
        await self.wire.aclose()

    @cached_property
    def max_model_len(self) -> int | None:
        """Prompt and answer together, in tokens; ours and vLLM's servers say it, None where it isn't said."""
        said = entry_of(self.wire, self.name).get("max_model_len")
        return said if isinstance(said, int) and not isinstance(said, bool) and said > 0 else None

    # Asking

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Unpack[Settings]) -> Answer:
        """The next turn of a conversation, waited for whole.

        extra_body: fields that go to the server as they are.
        """
        asked = self._prepare(messages, settings)
        if self._thinks(asked):  # which Model Studio takes over a stream alone
            return self._streamed(asked).finish()
        with self._held(asked) as hold:
            began = time.perf_counter()
            return self._answer(self.wire.post(asked.body), asked, began, hold)

    async def achat(self, messages: Sequence[Mapping[str, Any]], **settings: Unpack[Settings]) -> Answer:
        asked = await asyncio.to_thread(self._prepare, messages, settings)
        if self._thinks(asked):
            return await AsyncStream(lambda: self._astreamed(asked)).finish()
        with self._held(asked) as hold:
            began = time.perf_counter()
            return self._answer(await self.wire.apost(asked.body), asked, began, hold)

    def _answer(self, raw: Mapping[str, Any], asked: _Asked, began: float, hold: Hold | None) -> Answer:
        seconds = {"inputs": asked.inputs_s, "total": time.perf_counter() - began}
        return answer_of(read_reply(raw, self.wire.url), asked, seconds, hold=hold)

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **settings: Unpack[Settings]) -> HttpStream:
        return self._streamed(self._prepare(messages, settings))

    async def _aopen(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Stream:
        return await self._astreamed(await asyncio.to_thread(self._prepare, messages, settings))

    def _streamed(self, asked: _Asked) -> HttpStream:
        body = {**asked.body, **_STREAMED}
        with self._held(asked) as hold:
            began = time.perf_counter()
            return HttpStream(self.wire, asked, self.wire.open("POST", _PATH, body), began, hold)

    async def _astreamed(self, asked: _Asked) -> HttpStream:
        body = {**asked.body, **_STREAMED}
        with self._held(asked) as hold:
            began = time.perf_counter()
            return HttpStream(self.wire, asked, await self.wire.aopen("POST", _PATH, body), began, hold)

    @contextmanager
    def _held(self, asked: _Asked) -> Iterator[Hold | None]:
        """What the call may cost is set aside; an error inside settles it."""
        hold = self._hold(asked)
        try:
            yield hold
        except BaseException as e:
            _settle_failed(hold, e)
            raise

    def _hold(self, asked: _Asked) -> Hold | None:
        """Raises: CapacityError when the call could cost more than is left to spend."""
        if self.meter is None:
            return None
        most = self.meter.price.max_input
        return self.meter.hold(
            min(asked.most_input_tokens or most, most), longest_output(self.name, asked.body)
        )

    def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A raw request to chat/completions and its raw reply: for probing what a server makes of anything.

        Raises: BackendError.
        """
        return self.wire.post({"model": self.name, **body})

    def ask_many(
        self,
        questions: Iterable[tuple[Sequence[Any], str]],
        *,
        system: str | None = None,
        **settings: Unpack[Settings],
    ) -> list[Answer]:
        """Answers to (media, question) pairs in their order, `max_concurrency` at a time; pairs are taken as room
        comes free. The first error is raised, after those under way have ended; the rest is not asked.
        """
        failed = threading.Event()
        room = threading.Semaphore(2 * self.wire.max_concurrency)

        def one(pair: tuple[Sequence[Any], str]) -> Answer:
            try:
                if failed.is_set():
                    raise _NotAsked
                return self.ask(pair[0], pair[1], system=system, **settings)
            except BaseException:
                failed.set()
                raise
            finally:
                room.release()

        futures = []
        with ThreadPoolExecutor(self.wire.max_concurrency) as pool:
            for pair in questions:
                room.acquire()
                if failed.is_set():
                    break
                futures.append(pool.submit(one, pair))
        for future in futures:
            error = future.exception()
            if error is not None and not isinstance(error, _NotAsked):
                raise error
        return [future.result() for future in futures]

    # Inside

    def _thinks(self, asked: _Asked) -> bool:
        return self._studio and thinks(self.name, asked.body)

    def _thinking(self, given: dict[str, Any]) -> dict[str, Any]:
        """The fields for `thinking` and `thinking_budget`, which are taken out of the settings."""
        on, budget = given.pop("thinking", None), given.pop("thinking_budget", None)
        if self._studio:
            fields = {"enable_thinking": on, "thinking_budget": budget}
            return {name: value for name, value in fields.items() if value is not None}
        if budget is not None:
            raise PromptError(
                "thinking_budget is a setting of Alibaba Model Studio; lower max_new_tokens here"
            )
        return {} if on is None else {"chat_template_kwargs": {"enable_thinking": on}}

    def _prepare(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> _Asked:
        """Raises: PromptError for an unknown setting, MediaError for what can't be read: nothing was sent then."""
        began = time.perf_counter()
        given = {name: value for name, value in settings.items() if value is not None}
        call = MediaSettings(**{name: given.pop(name) for name in MEDIA_SETTINGS if name in given})
        extra = given.pop("extra_body", {})
        body: dict[str, Any] = {"model": self.name, "messages": [], **self._thinking(given)}
        for name, value in given.items():
            if name not in FIELDS:
                raise PromptError(
                    f"{name} is not a setting of a served model; {nearest(name, [*FIELDS, *MEDIA_SETTINGS])} "
                    "(extra_body passes a server's own)"
                )
            body[FIELDS[name]] = list(value) if isinstance(value, tuple) else value
        if "logprobs" in body:
            body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        if self._high_resolution:
            body["vl_high_resolution_images"] = True
        taken = sorted(_OWN_FIELDS & set(extra))
        if taken:
            raise PromptError(f"extra_body can't set {', '.join(taken)}: qvl sets it")
        body |= extra

        clean, items = read_messages(messages)
        sent = [prepare(item, self.generation, self.limits, call) for item in items]
        parts = iter(sent)
        call_ids: list[str] = []  # of calls that no result has answered yet
        for message, original in zip(clean, messages, strict=True):
            if isinstance(message["content"], list):
                message["content"] = [
                    next(parts).part if part["type"] != "text" else part for part in message["content"]
                ]
            for tool_call, written in zip(
                message.get("tool_calls", ()), original.get("tool_calls") or (), strict=True
            ):
                tool_call["id"] = str(written.get("id") or f"call_{len(body['messages'])}_{len(call_ids)}")
                call_ids.append(tool_call["id"])
                tool_call["function"]["arguments"] = _json(tool_call["function"]["arguments"])
            if message["role"] == "tool" and call_ids:
                message.setdefault("tool_call_id", call_ids[0])
                call_ids = [i for i in call_ids if i != message["tool_call_id"]]
            body["messages"].append(message)
        sizes = tuple(s.size for s in sent if s.size is not None)
        return _Asked(
            body,
            sizes,
            all(i.kind == "image" for i in items),
            "thinking" in self.name.lower(),
            _most_tokens(body, sent),
            time.perf_counter() - began,
        )


def _settle_failed(hold: Hold | None, error: BaseException) -> None:
    """A request that was refused costs nothing; one that broke off may have been worked on, and counts whole."""
    if hold is None:
        return
    status = getattr(error, "status", None)
    hold.refused() if status not in (None, 200) else hold.end(None)


class _NotAsked(Exception):
    """An earlier question failed; never leaves ask_many."""


def _most_tokens(body: Mapping[str, Any], sent: Sequence[SentMedia]) -> int | None:
    """An upper bound of the prompt: a token has at least one byte, an image at most its own count."""
    if any(media.size is None or media.size.kind != "image" for media in sent):
        return None
    words = [part for message in body["messages"] for part in _texts(message)]
    words += [_json(body[key]) for key in ("tools", "response_format") if key in body]
    pictures = sum(media.size.visual_tokens + MARKS for media in sent if media.size is not None)
    return (
        sum(len(text.encode("utf-8", "replace")) for text in words)
        + pictures
        + FRAME * (len(body["messages"]) + 2)
    )


MARKS = 4  # tokens around an image, which providers count differently
FRAME = 32  # tokens around a message, and of the system prompt that a template adds


def _texts(message: Mapping[str, Any]) -> list[str]:
    content = message["content"]
    parts = [content] if isinstance(content, str) else [p["text"] for p in content if p["type"] == "text"]
    calls = [_json(call) for call in message.get("tool_calls", ())]
    return [*parts, *calls, message.get("reasoning_content", "")]


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class HttpStream(Stream):
    """An answer as a server sends it; releasing it hangs up. It is read the way its reply was opened."""

    def __init__(
        self, wire: Transport, asked: _Asked, reply: OpenReply, began: float, hold: Hold | None = None
    ):
        super().__init__()
        self.media = asked.media
        self._hold = hold
        self._wire = wire
        self._asked = asked
        self._reply = Reply()
        self._splitter = ThinkSplitter(asked.thinks)
        self._parted = False
        self._began = began
        self._first: float | None = None
        # Retries end here: once text was handed out, a second try could contradict it
        self._open = reply
        self._data = DataLines()
        self._lines: deque[str] = deque()
        self._chunks: Iterator[bytes] | None = None
        self._achunks: AsyncIterator[bytes] | None = None

    def fetch_more(self) -> bool:
        if self.answer is not None or self._closed:
            return False
        self._chunks = self._chunks or self._open.response.iter_bytes()
        try:
            with self._breaking():
                chunk = b"" if self._lines else next(self._chunks, None)
            self._take(chunk)
        except BackendError:
            self.close()
            raise
        if self.answer is not None:
            self._closed = True
            self._open.close()
        return True

    async def afetch_more(self) -> bool:
        if self.answer is not None or self._closed:
            return False
        self._achunks = self._achunks or self._open.response.aiter_bytes()
        try:
            with self._breaking():
                chunk = b"" if self._lines else await anext(self._achunks, None)
            self._take(chunk)
        except BackendError:
            await self.aclose()
            raise
        if self.answer is not None:
            await self.aclose()
        return True

    def release(self) -> None:
        self._open.close()
        if self._hold is not None:
            self._hold.end(None)  # does nothing after its end

    async def aclose(self) -> None:
        self._closed = True
        await self._open.aclose()
        if self._hold is not None:
            self._hold.end(None)

    @contextmanager
    def _breaking(self) -> Iterator[None]:
        try:
            yield
        except (httpx.TransportError, httpx.DecodingError, httpx.StreamError) as e:
            raise BackendError(self._broken(str(e) or type(e).__name__)) from e

    def _take(self, chunk: bytes | None) -> None:
        """One event of those that are there; without a chunk the reply has ended."""
        try:
            self._lines += self._data.end() if chunk is None else self._data.feed(chunk)
        except BackendError as e:
            raise BackendError(self._broken(str(e))) from None
        if self._lines:
            line = self._lines.popleft()
            if line != "[DONE]":
                self._event(line)
                return
        elif chunk is not None:
            return
        self._end()

    def _event(self, line: str) -> None:
        try:
            thought, text = read_chunk(line, self._reply, self._wire.url)
        except BackendError as e:
            raise BackendError(self._wire.hidden(str(e)), status=200) from None
        if thought or text:
            self._first = self._first or time.perf_counter()
        if thought:
            if not self._parted:  # the server parts them itself: what it calls text is the answer
                self._parted, self._splitter = True, ThinkSplitter(closed=True)
            self._pieces.append(Piece(thought, thought=True))
        self._pieces += self._splitter.push(text)

    def _end(self) -> None:
        if self._reply.finish_reason is None:
            raise BackendError(self._broken("the stream ended without a finish_reason"))
        now = time.perf_counter()
        first = self._first or now
        seconds = {"inputs": self._asked.inputs_s, "first": first - self._began, "decode": now - first}
        rate = (self._reply.completion_tokens - 1) / (now - first) if now > first else 0.0
        self.answer = answer_of(self._reply, self._asked, seconds, rate if rate > 0 else None, self._hold)
        if self._splitter.thinking and self.answer.text:
            self._pieces.append(Piece("".join(self._reply.text)))  # the server keeps the thoughts to itself
        else:
            self._pieces += self._splitter.finish()

    def _broken(self, why: str) -> str:
        count = sum(map(len, self._reply.text))
        return f"{self._wire.url}: the answer broke off after {count} characters ({why}); ask again"


def answer_of(
    reply: Reply,
    asked: _Asked,
    seconds: Mapping[str, float],
    rate: float | None = None,
    hold: Hold | None = None,
) -> Answer:
    """The same kind of answer that our own engine gives. Token counts are 0 where the server counts none."""
    assert reply.finish_reason is not None
    thought, text = assembled(reply, asked.thinks)
    cost = None
    if hold is not None and reply.prompt_tokens:
        cost = call_cost(hold.price, reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens)
    if hold is not None:
        hold.end(cost)
    expected = sum(size.visual_tokens for size in asked.media)
    counted = reply.image_tokens if reply.image_tokens is not None else expected
    return Answer(
        text=text,
        reasoning=thought,
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.prompt_tokens,
        visual_tokens=min(counted, reply.prompt_tokens) if reply.prompt_tokens else counted,
        completion_tokens=reply.completion_tokens,
        cached_tokens=reply.cached_tokens,
        seconds=seconds,
        decode_tokens_per_s=rate,
        media=asked.media,
        logprobs=tuple(reply.logprobs),
        cost=cost,
        notes=_doubts(reply, asked, expected),
    )


def _doubts(reply: Reply, asked: _Asked, expected: int) -> tuple[str, ...]:
    """What the server's own counts say against the sizes that boxes would be mapped with."""
    text = "".join(reply.text)
    if CLOSE in text and OPEN not in text and not reply.reasoning and not asked.thinks:
        parser = "the server leaves thoughts in the answer: start it with its reasoning parser"
        return (parser, *_size_doubts(reply, asked, expected))
    return _size_doubts(reply, asked, expected)


def _size_doubts(reply: Reply, asked: _Asked, expected: int) -> tuple[str, ...]:
    if not reply.prompt_tokens:
        return ("the server returns no token counts, so it is unknown whether it shrank the image",)
    if not asked.media or not asked.only_images:  # servers sample videos by rates of their own
        return ()
    advice = "boxes may be off: set max_pixels to what the server allows, and the image is scaled here"
    if reply.image_tokens is not None:
        marks = 2 * len(asked.media)  # some count the marks around an image too
        if not expected <= reply.image_tokens <= expected + marks:
            return (
                f"the server counts {reply.image_tokens} visual tokens, {expected} fit the images' sizes; {advice}",
            )
    elif reply.prompt_tokens < expected:
        return (
            f"the server counts {reply.prompt_tokens} prompt tokens, the images alone take {expected}; {advice}",
        )
    return ()
