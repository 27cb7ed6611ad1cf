"""What stands before every route: the key, the type and size of a body, and how long it may take to arrive.

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

from qvl.serve.problems import Problem
from qvl.serve.settings import ServeOptions
from qvl.units import format_bytes

# Say nothing of any request, and are asked by machines without a key.
OPEN_PATHS = frozenset(["/health", "/ready", "/metrics", "/ping", "/version"])
access = logging.getLogger("qvl.serve.access")
# Others could forge lines of the log or headers.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class Guard:
    """Plain ASGI: nothing of a body is kept that wasn't let through."""

    def __init__(self, app: ASGIApp, options: ServeOptions, refused: Callable[[int], None]):
        """refused: is told the status of each answer from 400 on."""
        self._app = app
        self._options = options
        self._refused = refused
        # digests have one length, so comparing them tells nothing of the key's
        self._key = None if options.api_key is None else _digest(options.api_key.encode())

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
        fault: Problem | None = None
        sent = False

        async def answer(problem: Problem) -> None:
            self._refused(problem.status)
            response = problem.response()
            response.headers["Connection"] = "close"  # the rest of the body is not read
            await response(scope, receive, send)

        async def watched(message: Message) -> None:
            nonlocal sent
            if fault is not None and not sent:
                return  # what a route makes of the half body it got
            if message["type"] == "http.response.start":
                sent = True
                if message["status"] >= 400:
                    self._refused(message["status"])
            await send(message)

        def failed(problem: Problem) -> Problem:
            nonlocal fault
            fault = problem
            return problem

        try:
            if scope["path"] not in OPEN_PATHS:
                self._check_key(headers.get(b"authorization", b""))
            if scope["method"] == "POST":
                self._check_head(headers)
        except Problem as e:
            await answer(e)
            return
        try:
            await self._app(scope, self._measured(receive, failed), watched)
        finally:
            if fault is not None and not sent:
                await answer(fault)

    def _check_key(self, authorization: bytes) -> None:
        if self._key is None:
            return
        scheme, _, given = authorization.partition(b" ")
        right = hmac.compare_digest(_digest(given.strip()), self._key)
        if scheme.lower() != b"bearer" or not right:
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

    def _measured(self, receive: Receive, failed: Callable[[Problem], Problem]) -> Receive:
        """Counts a body whose length wasn't told, and doesn't wait for one for ever."""
        count, whole = 0, False
        until = time.monotonic() + self._options.body_timeout_s

        async def measured() -> Message:
            nonlocal count, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except TimeoutError as e:
                seconds = self._options.body_timeout_s
                late = Problem(408, f"the body didn't arrive within {seconds:g} s", code="timeout")
                raise failed(late) from e
            if message["type"] == "http.request":
                count += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if count > self._options.max_body_bytes:
                    raise failed(self._too_large())
            return message

        return measured


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
