"""An endpoint under load: requests at a given concurrency or arrival rate, each watched token by token.

Works against any OpenAI-compatible server. A request ends in exactly one `Outcome`, whatever the server does;
an interrupted test reports those that have ended.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from qvl.backends.wire import LARGEST_ERROR, LARGEST_STREAM, Budget, Lines, check_encoding
from qvl.errors import BackendError
from qvl.evaluate.load_requests import LoadError
from qvl.records import parse_json, pick

PERCENTILES = (50, 90, 99)
LONGEST_MESSAGE = 160


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """When requests are sent: as soon as one of `concurrency` places is free, and no earlier than `rate` says.

    rate: requests a second on average, at random times of their own (a Poisson process); None sends at once.
    concurrency: None sets no limit, so that a server that falls behind is not waited for.
    """

    concurrency: int | None = 8
    rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.concurrency < 1:
            raise LoadError(f"concurrency {self.concurrency}: needs at least 1")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise LoadError(f"rate {self.rate}: needs to be above 0 requests a second")
        if self.concurrency is None and self.rate is None:
            raise LoadError("give a concurrency or a rate")

    def times(self, count: int) -> list[float]:
        """Seconds after the start at which each request is due."""
        if self.rate is None:
            return [0.0] * count
        rng, now, due = random.Random(self.seed), 0.0, []
        for _ in range(count):
            due.append(now)
            now += rng.expovariate(self.rate)
        return due


@dataclass(frozen=True)
class Outcome:
    """How one request went. Times are seconds since it was sent, but `sent`, which is since the test began."""

    sent: float
    ended: float
    pieces: tuple[float, ...] = ()  # when each piece of the answer came
    prompt_tokens: int | None = None  # as the server counts
    completion_tokens: int | None = None
    error: str | None = None  # its kind: "status 429", "timeout", ...
    message: str = ""  # of the error

    @property
    def ttft(self) -> float | None:
        """Time to the first piece of text."""
        return self.pieces[0] if self.pieces else None

    @property
    def gaps(self) -> list[float]:
        """Between pieces that follow each other; a piece is a token on most servers."""
        return [b - a for a, b in zip(self.pieces, self.pieces[1:])]

    @property
    def tokens(self) -> int:
        """Of the answer: as the server counts, else its pieces."""
        return len(self.pieces) if self.completion_tokens is None else self.completion_tokens

    @property
    def token_s(self) -> float | None:
        """Mean time of a token after the first: (end - first piece) / (tokens - 1).

        The end, not the last piece: the last tokens of an answer may be without text.
        """
        if self.tokens < 2 or self.ttft is None:
            return None
        return (self.ended - self.ttft) / (self.tokens - 1)


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """What a test measured. `wall_s`: from the first request sent to the last end."""

    url: str
    model: str
    outcomes: tuple[Outcome, ...]
    planned: int
    interrupted: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error is None]

    @property
    def errors(self) -> dict[str, tuple[int, str]]:
        """Kind → how often, and one of the messages; the most frequent first."""
        counts = Counter(o.error for o in self.outcomes if o.error is not None)
        said = {o.error: o.message for o in reversed(self.outcomes) if o.error is not None}
        return {kind: (count, said[kind]) for kind, count in counts.most_common()}

    @property
    def wall_s(self) -> float:
        if not self.outcomes:
            return 0.0
        return max(o.sent + o.ended for o in self.outcomes) - min(o.sent for o in self.outcomes)

    @property
    def series(self) -> dict[str, list[float]]:
        """Seconds, of the requests that were answered."""
        good = self.good
        return {
            "time to first token": [o.ttft for o in good if o.ttft is not None],
            "between pieces": [gap for o in good for gap in o.gaps],
            "per token after the first": [o.token_s for o in good if o.token_s is not None],
            "end to end": [o.ended for o in good],
        }

    @property
    def throughput(self) -> dict[str, float]:
        """Per second of the whole test."""
        wall = self.wall_s or float("inf")
        return {
            "requests": len(self.good) / wall,
            "answer tokens": sum(o.tokens for o in self.good) / wall,
            "prompt tokens": sum(o.prompt_tokens or 0 for o in self.good) / wall,
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Milliseconds in `latency_ms`."""
        return pick(
            self,
            "url", "model", "planned", "interrupted", "wall_s",
            **self.details,
            requests=len(self.outcomes),
            answered=len(self.good),
            errors={kind: {"count": n, "example": said} for kind, (n, said) in self.errors.items()},
            throughput_per_s={name.replace(" ", "_"): v for name, v in self.throughput.items()},
            tokens={
                "prompt": sum(o.prompt_tokens or 0 for o in self.good),
                "answer": sum(o.tokens for o in self.good),
            },
            latency_ms={name.replace(" ", "_"): summary(values) for name, values in self.series.items()},
        )  # fmt: skip


def summary(seconds: Sequence[float]) -> dict[str, float | int | None]:
    """Count, mean, p50, p90, p99 and the largest, in milliseconds; None where there is nothing to tell of."""
    values = sorted(seconds)
    found: dict[str, float | int | None] = {"n": len(values)}
    found["mean"] = 1e3 * sum(values) / len(values) if values else None
    for p in PERCENTILES:
        found[f"p{p}"] = 1e3 * percentile(values, p) if values else None
    found["max"] = 1e3 * values[-1] if values else None
    return found


def percentile(ordered: Sequence[float], p: float) -> float:
    """Of n values in order, that at place (n - 1) * p / 100, between two neighbours in proportion."""
    assert ordered
    place = (len(ordered) - 1) * p / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


async def put_under_load(
    client: httpx.AsyncClient,
    path: str,
    bodies: Sequence[bytes],
    arrivals: Arrivals,
    *,
    timeout_s: float,
    ended: Callable[[Outcome], None] = lambda _: None,
) -> tuple[list[Outcome], bool]:
    """Sends the bodies and watches each answer. `ended` is called with each outcome.

    Returns: outcomes in the order of their ends, and whether the test was interrupted (its task cancelled): then
    those that hadn't ended are left out.
    """
    places = None if arrivals.concurrency is None else asyncio.Semaphore(arrivals.concurrency)
    outcomes: list[Outcome] = []
    began = time.perf_counter()

    async def one(body: bytes, due: float) -> None:
        await asyncio.sleep(max(0.0, due - (time.perf_counter() - began)))
        if places is not None:
            await places.acquire()
        try:
            sent = time.perf_counter() - began
            outcome = replace(await watch(client, path, body, timeout_s), sent=sent)
        finally:
            if places is not None:
                places.release()
        outcomes.append(outcome)
        ended(outcome)

    tasks = [asyncio.ensure_future(one(b, due)) for b, due in zip(bodies, arrivals.times(len(bodies)))]
    try:
        # not gather: cancelled, that comes back only when all have ended, and one may have lost its cancellation
        if tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    except asyncio.CancelledError:
        pending = set(tasks)
        while pending:  # again and again: a client that is opening a connection may lose one
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=0.2)
        await asyncio.gather(*tasks, return_exceptions=True)
        return outcomes, True
    return outcomes, False


async def watch(client: httpx.AsyncClient, path: str, body: bytes, timeout_s: float) -> Outcome:
    """One request to its end, good or bad. `timeout_s` is for all of it."""
    began = time.perf_counter()
    reading = _Reading()

    def now() -> float:
        return time.perf_counter() - began

    try:
        async with asyncio.timeout(timeout_s):
            headers = {"Content-Type": "application/json"}
            async with client.stream("POST", path, content=body, headers=headers) as reply:
                check_encoding(reply.headers)
                if reply.status_code != 200:
                    text = (await read_body(reply, LARGEST_ERROR)).decode("utf-8", "replace")
                    reading.fail(f"status {reply.status_code}", _said(text))
                else:
                    await reading.read(_events(reply), now)
    except (TimeoutError, httpx.TimeoutException):
        reading.fail("timeout", f"no end within {timeout_s:g} s")
    except httpx.ConnectError as e:
        reading.fail("can't connect", str(e))
    except httpx.HTTPError as e:
        reading.fail("connection broke", f"{type(e).__name__} {e}")
    except BackendError as e:
        reading.fail("too large", str(e))
    except httpx.InvalidURL as e:
        raise LoadError(f"{path}: is not an address ({e})") from e
    return Outcome(
        0.0,
        now(),
        tuple(reading.pieces),
        reading.usage.get("prompt_tokens"),
        reading.usage.get("completion_tokens"),
        reading.error,
        reading.message,
    )


class _Reading:
    """What a stream has said so far."""

    def __init__(self) -> None:
        self.pieces: list[float] = []
        self.usage: dict[str, int] = {}
        self.error: str | None = None
        self.message = ""

    def fail(self, kind: str, message: str) -> None:
        self.error, self.message = kind, " ".join(message.split())[:LONGEST_MESSAGE]

    async def read(self, events: AsyncIterator[str], now: Callable[[], float]) -> None:
        finished = False
        async for data in events:
            if data == "[DONE]":
                finished = True
                break
            try:
                event = parse_json(data)
                choices = event.get("choices") or []
                delta = choices[0].get("delta") or {} if choices else {}
                usage = event.get("usage") or {}
                said = any(delta.get(name) for name in ("content", "reasoning_content", "tool_calls"))
                counted = {k: v for k, v in usage.items() if k.endswith("_tokens") and isinstance(v, int)}
                finished = finished or bool(choices and choices[0].get("finish_reason"))
            except (ValueError, AttributeError, TypeError, KeyError, IndexError):
                self.fail("not understood", f"a piece of the stream is {data[:80]!r}")
                return
            if event.get("error") is not None:
                self.fail("error in the stream", _said(data))
                return
            self.usage |= counted
            if said:
                self.pieces.append(now())
        if not finished:
            self.fail("cut short", "the stream ended without a finish_reason")


async def _events(reply: httpx.Response) -> AsyncIterator[str]:
    """The data of server-sent events. What is no event is handed on as it is, to be named."""
    lines, total = Lines(), Budget(LARGEST_STREAM, "the stream")
    ended = False
    chunks = reply.aiter_bytes()
    while not ended:
        chunk = await anext(chunks, None)
        ended = chunk is None
        total.take(len(chunk or b""))
        for line in lines.end() if chunk is None else lines.feed(chunk):
            text = line.decode("utf-8", "replace")
            if text.startswith("data:"):
                yield text[5:].strip()
            elif text.strip() and not text.startswith((":", "event:", "id:", "retry:")):
                yield text


async def read_body(reply: httpx.Response, most: int) -> bytes:
    """Raises: BackendError for a larger one."""
    check_encoding(reply.headers)
    content, budget = bytearray(), Budget(most, "the reply")
    async for chunk in reply.aiter_bytes():
        budget.take(len(chunk))
        content += chunk
    return bytes(content)


def _said(text: str) -> str:
    """The message in an error's body, or the body."""
    try:
        error = parse_json(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, TypeError, KeyError):
        return text
