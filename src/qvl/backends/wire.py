"""Parses what OpenAI-compatible servers send: replies, streams, errors and waits, none of it trusted. Opens nothing."""

from __future__ import annotations

import email.utils
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qvl.errors import BackendError
from qvl.outputs.thinking import CLOSE, OPEN, split_thinking
from qvl.records import parse_json
from qvl.units import MiB, format_bytes

# The longest answers of published models are 0.5 MB; log probabilities of 20 tokens at each place make 40 MB of one.
LARGEST_REPLY = 64 * MiB
LARGEST_LIST = 8 * MiB  # of /models
LARGEST_ERROR = 1 * MiB
LONGEST_EVENT = 16 * MiB
LARGEST_STREAM = 512 * MiB
MOST_EVENTS = 2_000_000


@dataclass
class Reply:
    """One answer, whole or still growing. Counts are 0 where the server gives none."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)  # by index: name and arguments, in pieces
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int | None = None  # Model Studio says how many of the prompt's are an image's
    logprobs: list[Any] = field(default_factory=list)


def assembled(reply: Reply, thinks: bool = False) -> tuple[str, str]:
    """(the thoughts, the text) of a reply, with tool calls that a server took out of it put back in their tags.

    thinks: a server that doesn't part the thoughts shows them without their opening tag, since the template wrote
    that. Text that ended by itself and has no closing tag either is the answer of a server that hides them.
    """
    text = "".join(reply.text)
    if reply.reasoning:
        thought, text = "".join(reply.reasoning).strip(), text.lstrip()
    else:
        unopened = OPEN not in text.partition(CLOSE)[0]
        closed = CLOSE in text
        cut = reply.finish_reason == "length"
        thought, text = split_thinking(text, unopened and (closed or (thinks and cut)))
    for call in reply.calls.values():
        try:
            arguments = json.dumps(parse_json(call["arguments"] or "{}"), ensure_ascii=False)
        except ValueError:
            arguments = call["arguments"]
        name = json.dumps(call["name"], ensure_ascii=False)
        text += f'\n<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'
    return thought, text.strip("\n") if reply.calls else text


def read_json(data: bytes, url: str) -> dict[str, Any]:
    """Raises: BackendError that shows how the reply begins."""
    try:
        value = parse_json(data)
    except ValueError as e:
        raise BackendError(f"{url}: answered with something that isn't JSON: {_shown(data)}") from e
    if not isinstance(value, dict):
        raise BackendError(f"{url}: answered with a {type(value).__name__}, not an object: {_shown(data)}")
    if value.get("error"):
        raise BackendError(f"{url}: {_message(value) or _shown(data)}")
    return value


def read_reply(value: Mapping[str, Any], url: str) -> Reply:
    """An answer that came whole. Raises: BackendError when it holds none."""
    reply = Reply()
    _read_usage(value, reply)
    choice = _choice(value)
    message = choice.get("message") if choice else None
    if choice is None or not isinstance(message, Mapping):
        raise BackendError(f"{url}: answered without a message: {_shown(json.dumps(value).encode())}")
    _read_message(message, reply)
    _read_choice(choice, reply)
    reply.finish_reason = reply.finish_reason or "stop"  # some servers say nothing of an answer that is whole
    return reply


def read_chunk(data: str, reply: Reply, url: str) -> tuple[str, str]:
    """Takes one event of a stream into the reply; returns its new (thoughts, text).

    Raises: BackendError for an error event.
    """
    value = read_json(data.encode("utf-8", "replace"), url)
    _read_usage(value, reply)
    choice = _choice(value)
    if choice is None:
        return "", ""  # the last event carries the counts and no choice
    delta = choice.get("delta") or choice.get("message")  # the latter from servers that can't stream
    pieces = _read_message(delta, reply) if isinstance(delta, Mapping) else ("", "")
    _read_choice(choice, reply)
    return pieces


def _choice(value: Mapping[str, Any]) -> Mapping[str, Any] | None:
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, Mapping) else None


def _read_message(message: Mapping[str, Any], reply: Reply) -> tuple[str, str]:
    content = message.get("content")
    if isinstance(content, list):  # a list of text items, as Model Studio writes for some models
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    piece = content if isinstance(content, str) else ""
    if piece:
        reply.text.append(piece)
    said = (message.get(key) for key in ("reasoning_content", "reasoning"))
    thought = next((text for text in said if isinstance(text, str) and text), "")
    if thought:
        reply.reasoning.append(thought)
    calls = message.get("tool_calls")
    for position, call in enumerate(calls if isinstance(calls, list) else ()):
        if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
            continue
        index = call.get("index")
        entry = reply.calls.setdefault(
            index if isinstance(index, int) else position, {"name": "", "arguments": ""}
        )
        for key in entry:
            part = call["function"].get(key)
            if part is not None:
                entry[key] += part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
    return thought, piece


def _read_choice(choice: Mapping[str, Any], reply: Reply) -> None:
    if isinstance(choice.get("finish_reason"), str):
        reply.finish_reason = choice["finish_reason"]
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, Mapping) and isinstance(logprobs.get("content"), list):
        reply.logprobs += logprobs["content"]


def _read_usage(value: Mapping[str, Any], reply: Reply) -> None:
    usage = value.get("usage")
    if not isinstance(usage, Mapping):
        return
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, Mapping) else {}
    reply.prompt_tokens = _count(usage.get("prompt_tokens")) or reply.prompt_tokens
    reply.completion_tokens = _count(usage.get("completion_tokens")) or reply.completion_tokens
    reply.cached_tokens = _count(details.get("cached_tokens")) or reply.cached_tokens
    if details.get("image_tokens") is not None:
        reply.image_tokens = _count(details["image_tokens"])


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


# ---------------------------------------------------------------------------------------------------- streams


class Budget:
    """How much of a reply is read, counted after it was unpacked: a server may send without end, or pack gigabytes
    into kilobytes.
    """

    def __init__(self, most: int, what: str):
        self.most = most
        self.what = what
        self.taken = 0

    def take(self, count: int) -> None:
        """Raises: BackendError beyond it."""
        self.taken += count
        if self.taken > self.most:
            raise BackendError(f"{self.what} is larger than {format_bytes(self.most)}: no more of it is read")


def check_encoding(headers: Mapping[str, str]) -> None:
    """Raises: BackendError for a packing whose unpacked size has no bound: those of gzip are 1000 : 1 at most."""
    packed = headers.get("content-encoding", "identity").strip().lower()
    if packed not in ("", "identity", "gzip", "deflate"):
        raise BackendError(f"the reply is packed as {packed[:40]!r}, which wasn't asked for")


class Lines:
    r"""Lines from bytes as they come, each of bounded length.

    They end at \\n, \\r or \\r\\n only: a JSON text may hold U+2028 and its like, where Python's splitlines tears it.
    """

    def __init__(self, longest: int = LONGEST_EVENT):
        self._longest = longest
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        # a lone \r at the end may be the first half of \r\n
        text = self._rest + chunk
        held = b"\r" if text.endswith(b"\r") else b""
        text = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *whole, rest = text.split(b"\n")
        self._rest = rest + held
        Budget(self._longest, "a line of the stream").take(len(rest))
        return whole

    def end(self) -> list[bytes]:
        rest, self._rest = self._rest.strip(b"\r"), b""
        return [rest] if rest else []


class DataLines:
    """The data of each server-sent event, from bytes as they come. Raises: BackendError past the bounds."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._total = Budget(LARGEST_STREAM, "the stream")
        self._data: list[str] = []
        self._size = Budget(LONGEST_EVENT, "an event of the stream")
        self._count = 0

    def feed(self, chunk: bytes) -> list[str]:
        self._total.take(len(chunk))
        return [data for line in self._lines.feed(chunk) for data in self._line(line)]

    def end(self) -> list[str]:
        return [data for line in (*self._lines.end(), b"") for data in self._line(line)]

    def _line(self, line: bytes) -> list[str]:
        if not line:
            data, self._data = self._data, []
            self._size.taken = 0
            return self._event("\n".join(data)) if data else []
        if line.startswith(b"data:"):
            self._size.take(len(line))
            self._data.append(line[5:].removeprefix(b" ").decode("utf-8", "replace"))
        elif line.startswith(b"{"):  # an error in the middle of a stream, without its frame
            return self._event(line.decode("utf-8", "replace"))
        return []

    def _event(self, data: str) -> list[str]:
        self._count += 1
        if self._count > MOST_EVENTS:
            raise BackendError(f"the stream has more than {MOST_EVENTS:,} events: no more of it is read")
        return [data]


def data_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    lines = DataLines()
    for chunk in chunks:
        yield from lines.feed(chunk)
    yield from lines.end()


# ----------------------------------------------------------------------------------------------------- errors


def error_text(data: bytes, headers: Mapping[str, str]) -> tuple[str, str]:
    """(the server's message, its code) of a reply that isn't 200."""
    if headers.get("location"):
        return f"go to {headers['location'][:200]}", ""
    try:
        value = parse_json(data)
    except ValueError:
        return _shown(data), ""
    if not isinstance(value, dict):
        return _shown(data), ""
    inner = value.get("error")
    if not isinstance(inner, Mapping):
        inner = value
    return _message(value) or _shown(data), str(inner.get("code") or inner.get("type") or "")


def _message(value: Mapping[str, Any]) -> str:
    """Servers write {"error": {"message"}}, {"error": text}, {"message"}, or FastAPI's {"detail"}."""
    inner = value.get("error")
    found = inner.get("message") if isinstance(inner, Mapping) else inner
    found = found or value.get("message") or value.get("detail")
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False) if found else ""
    return _clean(text)[:600]


def _shown(data: bytes) -> str:
    text = _clean(data[:2000].decode("utf-8", "replace"))
    return repr(text if len(text) <= 200 else text[:197] + "…") if text else "an empty reply"


def _clean(text: str) -> str:
    """One line without control characters: a server's words go to a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def retry_after_s(headers: Mapping[str, str], now: float) -> float:
    """Seconds that a server asks to wait: a number or a date; 0 when it doesn't say."""
    said = headers.get("retry-after", "").strip()
    if not said:
        return 0.0
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(said).timestamp() - now
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
