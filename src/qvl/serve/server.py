"""Binds, serves and shuts down cleanly: after SIGTERM or Ctrl-C what runs is finished, what is new is refused."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from qvl.errors import ConfigError
from qvl.serve.app import create_app
from qvl.serve.problems import overloaded

if TYPE_CHECKING:
    from qvl.serve.service import Service
    from qvl.serve.settings import ServeOptions

log = logging.getLogger(__name__)


def bind(host: str, port: int) -> socket.socket:
    """A socket that is ours but doesn't listen yet, so that a taken port is told before a model is loaded.

    Raises: ConfigError.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as e:
        raise ConfigError(f"--host {host} --port {port}: not an address of this machine ({e})") from e
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as e:
        bound.close()
        reason = getattr(e, "strerror", None) or e
        raise ConfigError(
            f"--host {host} --port {port}: can't be had ({reason}); another --port may be free"
        ) from e
    return bound


SPARE_S = 5  # after the grace, to write ends


def end_process(code: int) -> None:
    """Leaves at once where a thread doesn't come back, for which Python would wait; else returns."""
    until = time.monotonic() + 1.0
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                log.warning("%s doesn't end; the process does", thread.name)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
    faulthandler.cancel_dump_traceback_later()


def _connection_limit(wanted: int) -> int:
    """Fewer than the files the process may still open, some of which are others'."""
    try:
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        now = len(os.listdir("/proc/self/fd"))
    except (ImportError, OSError):
        return wanted
    if most == resource.RLIM_INFINITY:
        return wanted
    return max(4, min(wanted, (most - now) * 3 // 4))


class _Rarely:
    """Whether a line is due that is said once a minute at most."""

    def __init__(self) -> None:
        self._last = -60.0

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < 60:
            return False
        self._last = now
        return True


class _Quiet:
    """asyncio's handler of exceptions, which says once a minute that no connection can be accepted."""

    def __init__(self) -> None:
        self._full = _Rarely()

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "socket.accept()" not in str(context.get("message")):
            loop.default_exception_handler(context)
        elif self._full.due():
            log.warning("no connection can be accepted: %s", context.get("exception"))


def _limited(limit: int, options: ServeOptions) -> type[asyncio.Protocol]:
    """uvicorn's protocol, for at most `limit` connections, each of which has to ask for something soon."""
    full = _Rarely()
    turned_away = overloaded(
        503, f"{limit} connections are open: come back later", options.retry_after_s
    ).response()
    lines = [b"HTTP/1.1 503 Service Unavailable", b"connection: close"]
    lines += [b"%s: %s" % header for header in turned_away.raw_headers]
    refusal = b"\r\n".join([*lines, b"", bytes(turned_away.body)])

    class Limited(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        _away = False

        def connection_made(self, transport: asyncio.Transport) -> None:
            if len(self.connections) >= limit:
                self._away = True
                if full.due():
                    log.warning("%d connections are open; more are turned away", limit)
                transport.write(refusal)
                transport.close()
                return
            super().connection_made(transport)
            asyncio.get_running_loop().call_later(options.idle_timeout_s, self._leave_idle)

        def _leave_idle(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

        def data_received(self, data: bytes) -> None:
            if not self._away:
                super().data_received(data)

        def eof_received(self) -> None:
            if not self._away:
                super().eof_received()

        def connection_lost(self, exc: Exception | None) -> None:
            if not self._away:
                super().connection_lost(exc)

    return Limited


class Server(uvicorn.Server):
    """uvicorn, with an end in three steps: refuse what is new, wait for `grace_s`, cancel what is left."""

    def __init__(self, service: Service, log_level: str = "warning", owns_process: bool = False):
        """owns_process: whether the process ends with the server, by force where it doesn't by itself."""
        self._service = service
        self._owns_process = owns_process
        limit = _connection_limit(service.options.max_connections)
        super().__init__(
            uvicorn.Config(
                create_app(service),
                http=_limited(limit, service.options),
                # asyncio accepts as many at once, and logs as many failures, without looking at their limit
                backlog=min(128, max(32, limit)),
                log_level=log_level,
                access_log=False,
                server_header=False,
                # beyond the grace there is only the time to write ends
                timeout_graceful_shutdown=int(service.options.grace_s) + SPARE_S,
                timeout_keep_alive=30,
                ws="none",
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.drain()
        if self._owns_process and not self.force_exit:  # more signals don't put it off
            # from a thread that needs nothing of Python: a call that never returns can't hold it up
            grace_s = 0 if self.should_exit else self._service.options.grace_s
            faulthandler.dump_traceback_later(grace_s + 2 * SPARE_S, exit=True, file=sys.__stderr__ or 2)
        if self.should_exit:  # asked twice: don't wait
            self._service.cancel_all()
            self.force_exit = self.force_exit or sig == signal.SIGINT
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_Quiet())
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.drain()
        ending = asyncio.create_task(self._end_after_grace())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_after_grace(self) -> None:
        await asyncio.sleep(self._service.options.grace_s)
        log.warning("%d answers still ran after the grace period", self._service.in_flight)
        self._service.cancel_all()
