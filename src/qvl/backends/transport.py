"""HTTP requests: one key, limited concurrency, retries where they can help. Knows nothing of their content."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

import httpx

from qvl.backends.wire import (
    LARGEST_ERROR,
    LARGEST_LIST,
    LARGEST_REPLY,
    Budget,
    check_encoding,
    error_text,
    read_json,
    retry_after_s,
)
from qvl.errors import BackendError

RETRIED = frozenset([408, 429, 500, 502, 503, 504])
LONGEST_WAIT_S = 60.0  # a server that asks for more is not waited for
FIRST_WAIT_S = 0.5


class Transport:
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
        # each event loop's own client and slots
        self._loops: dict[asyncio.AbstractEventLoop, tuple[httpx.AsyncClient, asyncio.Semaphore]] = {}
        self._timeout_s = client.timeout.read or 600.0

    def __repr__(self) -> str:
        return f"Transport({self.url!r})"

    def models(self) -> list[Mapping[str, Any]]:
        """What the server lists, each with its `id`."""
        with self.open("GET", "/models", whole=LARGEST_LIST) as reply:
            listed = self._json(reply).get("data")
        if not isinstance(listed, list):
            raise BackendError(f"{self.url}/models lists no models; choose one with --model", status=200)
        return [entry for entry in listed if isinstance(entry, Mapping) and "id" in entry]

    def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON reply to one body, read whole. A connection that breaks meanwhile is tried again."""
        with self.open("POST", "/chat/completions", body, whole=LARGEST_REPLY) as reply:
            return self._json(reply)

    async def apost(self, body: Mapping[str, Any]) -> dict[str, Any]:
        reply = await self.aopen("POST", "/chat/completions", body, whole=LARGEST_REPLY)
        try:
            return self._json(reply)
        finally:
            await reply.aclose()

    def _json(self, reply: OpenReply) -> dict[str, Any]:
        try:
            return read_json(reply.content, self.url)
        except BackendError as e:
            raise BackendError(self.hidden(str(e)), status=200) from None

    def open(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, whole: int = 0
    ) -> OpenReply:
        """A reply of status 200. Close it: it holds one of the slots.

        whole: read its body, of so many bytes at most.

        Raises: BackendError with the server's message.
        """
        if not self._slots.acquire(timeout=self._timeout_s):
            raise self._full()
        try:
            trying, result = self._trying(method, path, body), None
            try:
                step = next(trying)
                while True:
                    if isinstance(step, float):
                        self.sleep(step)
                        step = next(trying)
                        continue
                    try:
                        result = self.client.send(step, stream=True)
                        body_of = _Body(result, whole, self._timeout_s)
                        try:
                            check_encoding(result.headers)
                            for chunk in result.iter_bytes() if body_of.wanted else ():
                                body_of.take(chunk)
                        except BaseException:
                            result.close()
                            raise
                    except (httpx.HTTPError, BackendError) as e:
                        step = trying.throw(e)
                    else:
                        step = trying.send(body_of)
            except StopIteration as end:
                return OpenReply(end.value.response, self._slots, content=bytes(end.value.content))
        except BaseException:
            self._slots.release()
            raise

    async def aopen(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, whole: int = 0
    ) -> OpenReply:
        """As `open`, for callers in an event loop; it has its own connections, as many."""
        loop = asyncio.get_running_loop()
        client, slots = self._of_loop(loop)
        try:
            await asyncio.wait_for(slots.acquire(), self._timeout_s)
        except TimeoutError:
            raise self._full() from None
        try:
            trying = self._trying(method, path, body)
            try:
                step = next(trying)
                while True:
                    if isinstance(step, float):
                        await asyncio.sleep(step)
                        step = next(trying)
                        continue
                    try:
                        result = await client.send(step, stream=True)
                        body_of = _Body(result, whole, self._timeout_s)
                        try:
                            check_encoding(result.headers)
                            if body_of.wanted:
                                async for chunk in result.aiter_bytes():
                                    body_of.take(chunk)
                        except BaseException:
                            await result.aclose()
                            raise
                    except (httpx.HTTPError, BackendError) as e:
                        step = trying.throw(e)
                    else:
                        step = trying.send(body_of)
            except StopIteration as end:
                return OpenReply(end.value.response, slots, loop, content=bytes(end.value.content))
        except BaseException:
            slots.release()
            raise

    def _full(self) -> BackendError:
        return BackendError(
            f"{self.url}: {self.max_concurrency} requests are under way and none ended in {self._timeout_s:g} s: "
            "finish or close a stream, or raise max_concurrency"
        )

    def _of_loop(self, loop: asyncio.AbstractEventLoop) -> tuple[httpx.AsyncClient, asyncio.Semaphore]:
        if loop not in self._loops:
            self._loops = {known: made for known, made in self._loops.items() if not known.is_closed()}
            limits = httpx.Limits(max_connections=self.max_concurrency + 1)
            client = httpx.AsyncClient(timeout=self.client.timeout, limits=limits, follow_redirects=False)
            self._loops[loop] = client, asyncio.Semaphore(self.max_concurrency)
        return self._loops[loop]

    async def aclose(self) -> None:
        """Gives back the connections of this event loop, and those of threads."""
        client, _ = self._loops.pop(asyncio.get_running_loop(), (None, None))
        if client is not None:
            await client.aclose()
        self.client.close()

    def _trying(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Generator[httpx.Request | float, _Body, _Body]:
        """What has to be done, one after the other, for whoever does it: send a request, or wait so many seconds."""
        headers = {"Accept-Encoding": "identity"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        for attempt in range(self._max_retries + 1):
            error, wait_s = BackendError(""), None
            try:
                request = self.client.build_request(method, self.url + path, json=body, headers=headers)
                body_of = yield request
                if body_of.response.status_code == 200:
                    return body_of
                error, wait_s = self._refusal(body_of.response, bytes(body_of.content))
            except BackendError as e:
                error, wait_s = BackendError(f"{self.url}: {e}"), None
            except httpx.HTTPError as e:
                error, wait_s = self._breakdown(e)
            # 500 is a fault of the server's own, which the same request mostly finds again
            if wait_s is None or attempt == (
                min(1, self._max_retries) if error.status == 500 else self._max_retries
            ):
                if attempt:
                    raise BackendError(f"{error} (tried {attempt + 1} times)", status=error.status)
                raise error
            # half to all of the growing wait, so that clients refused together don't come back together
            backoff = FIRST_WAIT_S * 2**attempt * (0.5 + 0.5 * self.draw())
            yield max(wait_s, min(backoff, LONGEST_WAIT_S))
        raise AssertionError("the last attempt returns or raises")

    def _breakdown(self, e: httpx.HTTPError) -> tuple[BackendError, float | None]:
        """The error, and the least wait before another try; None: another try is no use."""
        if isinstance(e, httpx.TimeoutException):
            again = 0.0 if isinstance(e, httpx.ConnectTimeout) else None
            return BackendError(f"{self.url}: {_timeout(e)}"), again
        if isinstance(e, httpx.TransportError):
            refused = isinstance(e, httpx.ConnectError)
            what = "can't be reached" if refused else "broke off the connection"
            return BackendError(f"{self.url}: {what} ({self.hidden(str(e)) or type(e).__name__})"), 0.0
        return BackendError(f"{self.url}: sent a reply that can't be unpacked ({e})"), None

    def _refusal(self, response: httpx.Response, content: bytes) -> tuple[BackendError, float | None]:
        """As `_breakdown`, of a reply that isn't 200."""
        status = response.status_code
        said, code = error_text(content, response.headers)
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


class _Body:
    """What is read of a reply before it is handed on."""

    def __init__(self, response: httpx.Response, most: int, timeout_s: float):
        """most: bytes of a body that is wanted whole; 0 for one that is streamed, and read here when it isn't 200."""
        self.response = response
        self.content = bytearray()
        self.wanted = bool(most) or response.status_code != 200
        self._budget = Budget(most if response.status_code == 200 else LARGEST_ERROR, "the reply")
        self._until = time.monotonic() + timeout_s

    def take(self, chunk: bytes) -> None:
        """Raises: BackendError for one that is too large, or takes too long."""
        self._budget.take(len(chunk))
        if time.monotonic() > self._until:
            raise BackendError("the reply doesn't end in time; raise timeout_s, or ask for fewer tokens")
        self.content += chunk


class OpenReply:
    """An open reply and the slot it holds. loop: of the coroutine that opened it, which closes it with `aclose`."""

    def __init__(
        self,
        response: httpx.Response,
        slots: threading.BoundedSemaphore | asyncio.Semaphore,
        loop: asyncio.AbstractEventLoop | None = None,
        content: bytes = b"",
    ):
        self.response = response
        self.content = content  # of one that was wanted whole
        self._slots: threading.BoundedSemaphore | asyncio.Semaphore | None = slots
        self._loop = loop

    def __enter__(self) -> OpenReply:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """May be called again. From outside of its event loop, it is closed soon."""
        loop = self._loop
        if loop is not None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self.aclose(), loop=loop))
            return
        slots, self._slots = self._slots, None
        if slots is not None:
            self.response.close()
            slots.release()

    async def aclose(self) -> None:
        slots, self._slots = self._slots, None
        if slots is not None:
            try:
                await self.response.aclose()
            finally:
                slots.release()
