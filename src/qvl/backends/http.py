"""Any OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, Alibaba Model Studio, ours.

model = connect("http://localhost:8000", "Qwen/Qwen2.5-VL-7B-Instruct")
print(model.ask(["receipt.png"], "What is the total?"))

Keys come from the environment and go into one header: never into logs, errors or a repr, and no redirect is
followed with them. What a refused or broken request looked like on the wire is wire's; here are waiting and asking.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx

from qvl.backends.answer import Answer, MediaSize, conversation
from qvl.backends.media import image_limits, prepare
from qvl.backends.wire import (
    Reply,
    assembled_text,
    data_lines,
    error_text,
    read_chunk,
    read_json,
    read_reply,
    retry_after_s,
)
from qvl.catalog.config import Family
from qvl.errors import BackendError, CatalogError, MediaError, PromptError, nearest
from qvl.inputs.chat import read_messages
from qvl.inputs.geometry import PixelLimits
from qvl.inputs.processor import MediaSettings
from qvl.outputs.mapping import DEFAULT_LIMITS, check_family

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
_MEDIA_SETTINGS = (
    "min_pixels",
    "max_pixels",
    "total_pixels",
    "fps",
    "num_frames",
    "min_frames",
    "max_frames",
)
_OWN_FIELDS = frozenset(
    ["model", "messages", "stream", "stream_options", "n"]
)  # extra_body may not change them

RETRIED = frozenset([408, 429, 500, 502, 503, 504])
LONGEST_WAIT_S = 60.0  # a server that asks for more is not waited for
FIRST_WAIT_S = 0.5


@dataclass(frozen=True)
class _Asked:
    """A request ready to go, and what is known of it before the answer."""

    body: dict[str, Any]
    media: tuple[MediaSize, ...]
    only_images: bool
    inputs_s: float


def connect(
    endpoint: str,
    model: str | None = None,
    *,
    family: str | None = None,
    limits: PixelLimits | None = None,
    api_key_env: str | None = None,
    high_resolution: bool = False,
    timeout_s: float = 600.0,
    max_retries: int = 4,
    max_concurrency: int = 8,
) -> HttpModel:
    """A model behind a URL. Without a name the server is asked, which must serve exactly one.

    family: told, or read from the model's name (`find_family`). limits: the server's pixel limits where they are not
    the published ones. api_key_env: the variable that holds the key; by default DASHSCOPE_API_KEY for Alibaba Cloud
    and OPENAI_API_KEY elsewhere, either of which may be unset for a server without keys. high_resolution: Model
    Studio's switch, which lifts its bound on pictures.
    Raises: BackendError for an address that can't be one, a missing key, or a server that can't be reached.
    """
    if max_retries < 0 or max_concurrency < 1 or not timeout_s > 0:
        raise BackendError(
            f"max_retries {max_retries}, max_concurrency {max_concurrency}, timeout_s {timeout_s:g}: must be at least "
            "0, at least 1, and above 0"
        )
    url = base_url(endpoint)
    studio = is_model_studio(url)
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
    key = _read_key(api_key_env, studio)
    wire = _Wire(client, url, key, max_retries, max_concurrency)
    listed = _only_model(wire) if model is None else {"id": model}
    name = str(listed["id"])
    known = check_family(family) if family is not None else find_family(name)
    if known is None and not studio:
        listed = _entry(wire, name) if model is not None else listed
        known = _said_family(listed)
    if limits is None:
        limits = (
            model_studio_limits(name, known, high_resolution)
            if studio
            else _said_limits(listed) or image_limits(known)
        )
    return HttpModel(wire, name, known, limits, high_resolution)


def base_url(endpoint: str) -> str:
    """`localhost:8000` and `http://host/v1/chat/completions` → the address that paths are added to, without a slash.

    Raises: BackendError when it isn't an http address, or holds a password.
    """
    text = endpoint.strip()
    if "://" not in text:
        text = f"http://{text}"
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as e:
        raise BackendError(f"endpoint {endpoint!r}: is no address ({e})") from e
    if url.userinfo:
        raise BackendError(
            f"endpoint at {url.host}: holds a user or password; keys belong into the environment, see --api-key-env"
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise BackendError(f"endpoint {endpoint!r}: is no http address, such as http://localhost:8000/v1")
    if url.query or url.fragment:
        raise BackendError(f"endpoint at {url.host}: its address goes on after a ? or #; leave that out")
    path = url.path.rstrip("/").removesuffix("/chat/completions").rstrip("/") or "/v1"
    return str(url.copy_with(path=path))


def is_model_studio(url: str) -> bool:
    """Alibaba Cloud's hosted models, in any region."""
    host = httpx.URL(url).host
    return host == "aliyuncs.com" or host.endswith(".aliyuncs.com")


def _read_key(variable: str | None, studio: bool) -> str | None:
    name = variable or ("DASHSCOPE_API_KEY" if studio else "OPENAI_API_KEY")
    key = os.environ.get(name, "").strip()
    if not key and (variable or studio):
        raise BackendError(f"no key: set the environment variable {name}")
    if not key.isascii() or any(c.isspace() for c in key):
        raise BackendError(f"the key in {name} holds characters that no key has; set it again")
    return key or None


def find_family(model: str) -> Family | None:
    """The family that a model's name tells, by the catalogue or by the part that all of a generation share."""
    from qvl.catalog.models import find_model

    try:
        return check_family(find_model(model).family)
    except CatalogError:
        pass
    name = model.lower().replace("_", "-").rpartition("/")[2]
    name = name.replace("qwen-2", "qwen2").replace("qwen-3", "qwen3").replace("vision", "vl")
    for part, family in _NAME_PARTS:
        if part in name:
            moe = family == "qwen3_vl" and any(f"-{size}" in name for size in ("30b-a3b", "235b-a22b"))
            return "qwen3_vl_moe" if moe else family
    return None


# tried in this order; the dot of a version is written in many ways
_NAME_PARTS: tuple[tuple[str, Family], ...] = (
    ("qwen2.5-vl", "qwen2_5_vl"),
    ("qwen2-5-vl", "qwen2_5_vl"),
    ("qwen2.5vl", "qwen2_5_vl"),
    ("qwen25-vl", "qwen2_5_vl"),
    ("qwen25vl", "qwen2_5_vl"),
    ("qwen3-vl", "qwen3_vl"),
    ("qwen3vl", "qwen3_vl"),
    ("qwen3.5", "qwen3_5"),
    ("qwen2-vl", "qwen2_vl"),
    ("qwen2vl", "qwen2_vl"),
    ("qwen-vl-chat", "qwen_vl"),
)


def model_studio_limits(model: str, family: Family | None, high_resolution: bool) -> PixelLimits | None:
    """The pixel limits of the hosted service, which are lower than the model's own unless the switch is on.

    Source: the provider's rule for counting pictures, catalog/data/prices.json; its default bound is recalled.
    """
    from qvl.catalog.prices import price_book

    rules = {price.image_rule.key: price.image_rule for price in price_book().api.values()}
    listed = price_book().api.get(model.lower())
    if listed is not None:
        rule = listed.image_rule
    elif family in (None, "qwen_vl"):
        return None
    else:
        rule = rules["qwen-32" if str(family).startswith("qwen3") else "qwen-28"]
    bound = rule.high_resolution_max_tokens if high_resolution else rule.default_max_tokens
    square = rule.factor**2
    return PixelLimits(rule.min_tokens * square, bound * square, patch_size=rule.factor // 2)


def _only_model(wire: _Wire) -> Mapping[str, Any]:
    entries = wire.models()
    if len(entries) != 1:
        names = ", ".join(str(entry["id"]) for entry in entries[:8]) or "none"
        raise BackendError(f"{wire.url} serves {len(entries)} models: {names}; say which with --model")
    return entries[0]


def _entry(wire: _Wire, name: str) -> Mapping[str, Any]:
    """What a server lists of a model; nothing when it lists none. Raises: BackendError when it can't be reached."""
    try:
        return next((entry for entry in wire.models() if entry["id"] == name), {})
    except BackendError as e:
        if e.status is None:
            raise
        return {}


def _said_family(listed: Mapping[str, Any]) -> Family | None:
    """Ours says its family; vLLM says under `root` which checkpoint stands behind an alias."""
    said = str(listed.get("family", ""))
    if said in DEFAULT_LIMITS:
        return check_family(said)
    return find_family(str(listed.get("root") or ""))


def _said_limits(listed: Mapping[str, Any]) -> PixelLimits | None:
    """Our server lists its pixel limits."""
    said = listed.get("pixel_limits")
    try:
        return PixelLimits(**said) if isinstance(said, Mapping) else None
    except (TypeError, MediaError):
        return None


class _Wire:
    """Sends requests: one key, so many at a time, again when that may help."""

    def __init__(
        self, client: httpx.Client, url: str, key: str | None, max_retries: int, max_concurrency: int
    ):
        self.client = client
        self.url = url
        self.max_concurrency = max_concurrency
        self.sleep: Callable[[float], object] = time.sleep
        self.draw: Callable[[], float] = random.random
        self._key = key
        self._max_retries = max_retries
        self._slots = threading.BoundedSemaphore(max_concurrency)
        self._timeout_s = client.timeout.read or 600.0

    def __repr__(self) -> str:
        return f"_Wire({self.url!r})"

    def models(self) -> list[Mapping[str, Any]]:
        """What the server lists, each with its `id`."""
        with self.open("GET", "/models", whole=True) as reply:
            try:
                listed = read_json(reply.read(), self.url).get("data")
            except BackendError as e:
                raise BackendError(self.hidden(str(e)), status=200) from None
        if not isinstance(listed, list):
            raise BackendError(f"{self.url}/models lists no models; say which with --model", status=200)
        return [entry for entry in listed if isinstance(entry, Mapping) and "id" in entry]

    def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON reply to one body, read whole. A connection that breaks meanwhile is tried again."""
        with self.open("POST", "/chat/completions", body, whole=True) as reply:
            try:
                return read_json(reply.read(), self.url)
            except BackendError as e:
                raise BackendError(self.hidden(str(e)), status=200) from None

    def open(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, whole: bool = False
    ) -> _Open:
        """A reply of status 200, its body not read yet unless `whole`. Close it: it holds one of the slots.

        Raises: BackendError with the server's message.
        """
        if not self._slots.acquire(timeout=self._timeout_s):
            raise BackendError(
                f"{self.url}: {self.max_concurrency} requests are under way and none ended in {self._timeout_s:g} s: "
                "finish or close a stream, or raise max_concurrency"
            )
        try:
            return _Open(self._tried(method, path, body, whole), self._slots)
        except BaseException:
            self._slots.release()
            raise

    def _tried(self, method: str, path: str, body: Mapping[str, Any] | None, whole: bool) -> httpx.Response:
        for attempt in range(self._max_retries + 1):
            error, wait_s = self._once(method, path, body, whole)
            if isinstance(error, httpx.Response):
                return error
            if wait_s is None or attempt == self._max_retries:
                if attempt:
                    raise BackendError(f"{error} (tried {attempt + 1} times)", status=error.status)
                raise error
            # half to all of the growing wait, so that clients refused together don't come back together
            backoff = FIRST_WAIT_S * 2**attempt * (0.5 + 0.5 * self.draw())
            self.sleep(max(wait_s, min(backoff, LONGEST_WAIT_S)))
        raise AssertionError("the last attempt returns or raises")

    def _once(
        self, method: str, path: str, body: Mapping[str, Any] | None, whole: bool
    ) -> tuple[httpx.Response, None] | tuple[BackendError, float | None]:
        """A good reply, or the error and the least wait before another try; None: another try is no use."""
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        request = self.client.build_request(method, self.url + path, json=body, headers=headers)
        try:
            response = self.client.send(request, stream=True)
            if whole or response.status_code != 200:
                response.read()
        except httpx.TimeoutException as e:
            return BackendError(f"{self.url}: {_timeout(e)}"), 0.0 if isinstance(
                e, httpx.ConnectTimeout
            ) else None
        except httpx.TransportError as e:
            refused = isinstance(e, httpx.ConnectError)
            what = "can't be reached" if refused else "broke off the connection"
            return BackendError(f"{self.url}: {what} ({self.hidden(str(e)) or type(e).__name__})"), 0.0
        except httpx.DecodingError as e:
            return BackendError(f"{self.url}: sent a reply that can't be unpacked ({e})"), None
        status = response.status_code
        if status == 200:
            return response, None
        said, code = error_text(response.content, response.headers)
        error = BackendError(
            self.hidden(f"{self.url} answered {status}: {said}{_hint(status)}"), status=status
        )
        if status not in RETRIED or code == "insufficient_quota":
            return error, None
        wait_s = retry_after_s(response.headers, time.time())
        if wait_s > LONGEST_WAIT_S:
            return BackendError(f"{error} (it asks to wait {wait_s:.0f} s)", status=status), None
        return error, wait_s

    def hidden(self, text: str) -> str:
        """Servers quote the key that they refuse."""
        return text.replace(self._key, "<key>") if self._key else text


def _timeout(error: httpx.TimeoutException) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return "no connection in time; is the server up?"
    return "no answer in time; raise timeout_s, or ask for fewer tokens"


def _hint(status: int) -> str:
    return {
        301: "; give the address it names as the endpoint",
        302: "; give the address it names as the endpoint",
        307: "; give the address it names as the endpoint",
        308: "; give the address it names as the endpoint",
        401: "; check the key: --api-key-env names the variable that holds it",
        403: "; check the key: --api-key-env names the variable that holds it",
        404: "; check the model's name and that the endpoint ends in /v1",
        413: "; lower max_pixels",
    }.get(status, "")


class _Open:
    """An open reply and the slot it holds."""

    def __init__(self, response: httpx.Response, slots: threading.BoundedSemaphore):
        self.response = response
        self._slots: threading.BoundedSemaphore | None = slots

    def __enter__(self) -> _Open:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self) -> bytes:
        return self.response.read()

    def close(self) -> None:
        """May be called again."""
        slots, self._slots = self._slots, None
        if slots is not None:
            self.response.close()
            slots.release()


class HttpModel:
    """A served model. Threads may ask it together; at most `max_concurrency` requests are under way."""

    def __init__(
        self, wire: _Wire, name: str, family: Family | None, limits: PixelLimits | None, high_resolution: bool
    ):
        self.name = name
        self.family = family
        self.limits = limits
        self.wire = wire
        self._high_resolution = high_resolution

    def __repr__(self) -> str:
        return f"HttpModel({self.wire.url!r}, {self.name!r}, {self.family})"

    def __enter__(self) -> HttpModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the connections back."""
        self.wire.client.close()

    @cached_property
    def max_model_len(self) -> int | None:
        """Prompt and answer together, in tokens; ours and vLLM's servers say it, None where it isn't said."""
        said = _entry(self.wire, self.name).get("max_model_len")
        return said if isinstance(said, int) and not isinstance(said, bool) and said > 0 else None

    # One question

    def ask(
        self, media: Sequence[Any], question: str, *, system: str | None = None, **settings: Any
    ) -> Answer:
        """The answer to a question about pictures and videos, in the order given; see `Backend`.

        Settings beside those: tools, response_format, and extra_body, whose fields go to the server as they are.
        """
        return self.chat(conversation(_as_list(media), question, system), **settings)

    def stream(
        self, media: Sequence[Any], question: str, *, system: str | None = None, **settings: Any
    ) -> HttpStream:
        """As `ask`, in pieces of text as they come; `.answer` after the last one. Leaving early hangs up."""
        return self.stream_chat(conversation(_as_list(media), question, system), **settings)

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Answer:
        """The next turn of a conversation, waited for whole."""
        asked = self._prepare(messages, settings)
        began = time.perf_counter()
        reply = read_reply(self.wire.post(asked.body), self.wire.url)
        return answer_of(reply, asked, {"inputs": asked.inputs_s, "total": time.perf_counter() - began})

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> HttpStream:
        asked = self._prepare(messages, settings)
        asked.body["stream"] = True
        asked.body["stream_options"] = {"include_usage": True}
        return HttpStream(self.wire, asked)

    def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A raw request to chat/completions and its raw reply: for probing what a server makes of anything.

        Raises: BackendError.
        """
        return self.wire.post({"model": self.name, **body})

    # Many questions

    def ask_many(
        self,
        questions: Iterable[tuple[Sequence[Any], str]],
        *,
        system: str | None = None,
        **settings: Any,
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

    def _prepare(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> _Asked:
        """Raises: PromptError for an unknown setting, MediaError for what can't be read: nothing was sent then."""
        began = time.perf_counter()
        given = {name: value for name, value in settings.items() if value is not None}
        call = MediaSettings(**{name: given.pop(name) for name in _MEDIA_SETTINGS if name in given})
        extra = given.pop("extra_body", {})
        body: dict[str, Any] = {"model": self.name, "messages": []}
        for name, value in given.items():
            if name not in FIELDS:
                raise PromptError(
                    f"{name} is no setting of a served model; {nearest(name, [*FIELDS, *_MEDIA_SETTINGS])} "
                    "(extra_body passes a server's own)"
                )
            body[FIELDS[name]] = list(value) if isinstance(value, tuple) else value
        if "logprobs" in body:
            body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        if self._high_resolution:
            body["vl_high_resolution_images"] = True
        taken = sorted(_OWN_FIELDS & set(extra))
        if taken:
            raise PromptError(f"extra_body can't set {', '.join(taken)}: that is made here")
        body |= extra

        clean, items = read_messages(messages)
        sent = [prepare(item, self.family, self.limits, call) for item in items]
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
        return _Asked(body, sizes, all(i.kind == "image" for i in items), time.perf_counter() - began)


class _NotAsked(Exception):
    """An earlier question failed; never leaves ask_many."""


def _json(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class HttpStream(Iterator[str]):
    """Pieces of text as they come. `answer` is None until the last piece; `close` or leaving early hangs up."""

    def __init__(self, wire: _Wire, asked: _Asked):
        self.answer: Answer | None = None
        self.media = asked.media
        self._wire = wire
        self._asked = asked
        self._reply = Reply()
        self._began = time.perf_counter()
        self._first: float | None = None
        self._closed = False
        # Retries end here: once text was handed out, a second try could contradict it
        self._open = wire.open("POST", "/chat/completions", asked.body)
        self._lines = data_lines(self._open.response.iter_bytes())

    def __enter__(self) -> HttpStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def __next__(self) -> str:
        while self.answer is None and not self._closed:
            try:
                line = next(self._lines, None)
            except (httpx.TransportError, httpx.DecodingError, httpx.StreamError) as e:
                self.close()
                raise BackendError(self._broken(str(e) or type(e).__name__)) from e
            if line is None or line == "[DONE]":
                self._end()
                continue
            try:
                piece = read_chunk(line, self._reply, self._wire.url)
            except BackendError as e:
                self.close()
                raise BackendError(self._wire.hidden(str(e)), status=200) from None
            if piece:
                self._first = self._first or time.perf_counter()
                return piece
        raise StopIteration

    def finish(self) -> Answer:
        for _ in self:
            pass
        if self.answer is None:
            raise PromptError("the answer was closed before its end")
        return self.answer

    def close(self) -> None:
        self._closed = True
        if hasattr(self, "_open"):
            self._open.close()

    def _end(self) -> None:
        self.close()
        if self._reply.finish_reason is None:
            raise BackendError(self._broken("the stream ended without a finish_reason"))
        now = time.perf_counter()
        first = self._first or now
        seconds = {"inputs": self._asked.inputs_s, "first": first - self._began, "decode": now - first}
        rate = (self._reply.completion_tokens - 1) / (now - first) if now > first else 0.0
        self.answer = answer_of(self._reply, self._asked, seconds, rate if rate > 0 else None)

    def _broken(self, why: str) -> str:
        count = sum(map(len, self._reply.text))
        return f"{self._wire.url}: the answer broke off after {count} characters ({why}); ask again"


def answer_of(reply: Reply, asked: _Asked, seconds: Mapping[str, float], rate: float | None = None) -> Answer:
    """The same kind of answer that our own engine gives. Token counts are 0 where the server counts none."""
    assert reply.finish_reason is not None
    expected = sum(size.visual_tokens for size in asked.media)
    counted = reply.image_tokens if reply.image_tokens is not None else expected
    return Answer(
        text=assembled_text(reply),
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.prompt_tokens,
        visual_tokens=min(counted, reply.prompt_tokens) if reply.prompt_tokens else counted,
        completion_tokens=reply.completion_tokens,
        cached_tokens=reply.cached_tokens,
        seconds=seconds,
        decode_tokens_per_s=rate,
        media=asked.media,
        logprobs=tuple(reply.logprobs),
        notes=_doubts(reply, asked, expected),
    )


def _doubts(reply: Reply, asked: _Asked, expected: int) -> tuple[str, ...]:
    """What the server's own counts say against the sizes that boxes would be mapped with."""
    if not reply.prompt_tokens:
        return ("the server counts no tokens, so whether it shrank the picture can't be told",)
    if not asked.media or not asked.only_images:  # servers sample clips by rates of their own
        return ()
    advice = "boxes may be off: set max_pixels to what the server allows, and the picture is scaled here"
    if reply.image_tokens is not None:
        marks = 2 * len(asked.media)  # some count the marks around a picture too
        if not expected <= reply.image_tokens <= expected + marks:
            return (
                f"the server counts {reply.image_tokens} visual tokens, {expected} fit the pictures' sizes; {advice}",
            )
    elif reply.prompt_tokens < expected:
        return (
            f"the server counts {reply.prompt_tokens} prompt tokens, the pictures alone take {expected}; {advice}",
        )
    return ()


def _as_list(media: Any) -> list[Any]:
    return list(media) if isinstance(media, (list, tuple)) else [media]
