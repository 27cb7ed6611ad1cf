"""Binds, serves and shuts down cleanly: after SIGTERM or Ctrl-C what runs is finished, what is new is refused."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from qvl.errors import ConfigError
from qvl.serve.app import create_app

if TYPE_CHECKING:
    from qvl.serve.service import Service

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


class Server(uvicorn.Server):
    """uvicorn, with an end in three steps: refuse what is new, wait for `grace_s`, cancel what is left."""

    def __init__(self, service: Service, log_level: str = "warning"):
        self._service = service
        super().__init__(
            uvicorn.Config(
                create_app(service),
                log_level=log_level,
                access_log=False,
                server_header=False,
                # beyond the grace there is only the time to write ends
                timeout_graceful_shutdown=int(service.options.grace_s) + 10,
                timeout_keep_alive=30,
                ws="none",
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.drain()
        if self.should_exit:  # asked twice: don't wait
            self._service.loop.cancel_all()
            self.force_exit = self.force_exit or sig == signal.SIGINT
        self.should_exit = True

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
        self._service.loop.cancel_all()
