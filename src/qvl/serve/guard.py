"""Checks before every route: the key, the type and size of a body, and how long it may take to arrive.

Every answer carries x-request-id, the client's own where it sent one, and every request is a line of the access log.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qvl.serve.door import Shape, check_shape
from qvl.serve.problems import Problem, overloaded
from qvl.serve.settings import ServeOptions
from qvl.serve.turns import client_of_request
from qvl.units import format_bytes

# Say nothing of any request, and are asked by machines without a key.
OPEN_PATHS = frozenset(["/health", "/ready", "/metrics", "/ping", "/version"])
access = logging.getLogger("qvl.serve.access")
# Others could forge lines of the log or headers.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class Guard:
    """Plain ASGI: nothing of a body is kept that wasn't let through, and no route sees one that isn't whole."""

    def __init__(self, app: ASGIApp, options: ServeOptions, refused: Callable[[int], None], shape: Shape):
        """refused: is told the status of each answer from 400 on. shape: what a body may hold."""
        self._app = app
        self._shape = shape
        self._held_bytes = 0  # of all bodies that are here
        self._options = options
        self._refused = refused
        # digests have one length, so comparing them tells nothing of the key's
        self._keys = [(key.name, _digest(key.key.encode())) for key in options.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value for name, value in reversed(scope["headers"])}
        sent_id = headers.get(b"x-request-id", b"")
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else secrets.token_hex(16).encode()
        bodiless = scope["method"] == "HEAD"
        began, status = time.perf_counter(), 499  # unless an answer begins, the client left

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", request_id)]}
            elif bodiless:
                message = {**message, "body": b""}
            await send(message)

        try:
            # what may be read may be asked for without its body
            inner = {**scope, "method": "GET"} if bodiless else scope
            await self._guarded(inner, headers, receive, labelled)
        finally:
            client = (scope.get("client") or ("-",))[0]
            seconds = time.perf_counter() - began
            path = ascii(scope["path"])[1:-1]
            access.info(
                "%s %s %s %d %.3fs %s", client, scope["method"], path, status, seconds, request_id.decode()
            )

    async def _guarded(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        taken = 0

        async def answer(problem: Problem) -> None:
            self._refused(problem.status)
            response = problem.response()
            response.headers["Connection"] = "close"  # the rest of the body is not read
            await response(scope, receive, send)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self._refused(message["status"])
            await send(message)

        def take(count: int) -> None:
            nonlocal taken
            options = self._options
            if self._held_bytes > taken and self._held_bytes + count > options.max_held_body_bytes:
                raise overloaded(
                    429,
                    f"bodies of other requests take {self._held_bytes - taken:,} bytes, "
                    f"{options.max_held_body_bytes:,} are kept at once: come back later",
                    options.retry_after_s,
                )
            taken += count
            self._held_bytes += count

        try:
            try:
                client_of_request.set((scope.get("client") or ("",))[0])
                if scope["path"] not in OPEN_PATHS:
                    self._check_key(headers.get(b"authorization", b""))
                replayed = receive
                if scope["method"] == "POST":
                    self._check_head(headers)
                    replayed = await self._whole(receive, take)
            except Problem as e:
                await answer(e)
                return
            await self._app(scope, replayed, watched)
        finally:
            self._held_bytes -= taken

    def _check_key(self, authorization: bytes) -> None:
        if not self._keys:
            return
        scheme, _, given = authorization.partition(b" ")
        digest = _digest(given.strip())
        right = [name for name, key in self._keys if hmac.compare_digest(digest, key)]
        if scheme.lower() == b"bearer" and right:
            client_of_request.set(right[0])
        else:
            raise Problem(
                401,
                "the API key is missing or wrong: send Authorization: Bearer KEY",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_head(self, headers: dict[bytes, bytes]) -> None:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        # a web page may send other types to us without asking the browser's permission first
        if kind != b"application/json":
            raise Problem(
                415, "the body must be JSON, with Content-Type: application/json", code="invalid_content_type"
            )
        length = headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > self._options.max_body_bytes):
            raise self._too_large()

    def _too_large(self) -> Problem:
        return Problem(
            413,
            f"the body is larger than the limit of {format_bytes(self._options.max_body_bytes)}",
            code="body_too_large",
        )

    async def _whole(self, receive: Receive, take: Callable[[int], None]) -> Receive:
        """Waits for a body, but not for ever, counts what is in it, and gives what hands it on."""
        options = self._options
        pieces, count = [], 0
        try:
            async with asyncio.timeout(options.body_timeout_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] != "http.request":  # the client has gone; the route is told the same
                        return _replay([message], receive)
                    piece = message.get("body", b"")
                    count += len(piece)
                    if count > options.max_body_bytes:
                        raise self._too_large()
                    take(len(piece))
                    pieces.append(piece)
                    more = message.get("more_body", False)
        except TimeoutError as e:
            seconds = options.body_timeout_s
            raise Problem(408, f"the body didn't arrive within {seconds:g} s", code="timeout") from e
        body = b"".join(pieces)
        pieces.clear()
        for _ in check_shape(body, self._shape):
            await asyncio.sleep(0)
        return _replay([{"type": "http.request", "body": body, "more_body": False}], receive)


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """What gives `messages`, each once, and then what comes."""
    left = messages[::-1]

    async def replayed() -> Message:
        return left.pop() if left else await receive()

    return replayed


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
