"""Requests over HTTP: one key, so many at a time, again when that may help. Knows nothing of what is asked."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from qvl.backends.wire import error_text, read_json, retry_after_s
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
        self._timeout_s = client.timeout.read or 600.0

    def __repr__(self) -> str:
        return f"Transport({self.url!r})"

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
    ) -> OpenReply:
        """A reply of status 200, its body not read yet unless `whole`. Close it: it holds one of the slots.

        Raises: BackendError with the server's message.
        """
        if not self._slots.acquire(timeout=self._timeout_s):
            raise BackendError(
                f"{self.url}: {self.max_concurrency} requests are under way and none ended in {self._timeout_s:g} s: "
                "finish or close a stream, or raise max_concurrency"
            )
        try:
            return OpenReply(self._tried(method, path, body, whole), self._slots)
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


class OpenReply:
    """An open reply and the slot it holds."""

    def __init__(self, response: httpx.Response, slots: threading.BoundedSemaphore):
        self.response = response
        self._slots: threading.BoundedSemaphore | None = slots

    def __enter__(self) -> OpenReply:
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
