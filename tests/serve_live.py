"""A real uvicorn on a free loopback port around a tiny model, for the tests of the server."""

from __future__ import annotations

import base64
import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import openai
from PIL import Image

from qvl.serve.media import MediaReader
from qvl.serve.server import Server, bind
from qvl.serve.service import Service
from qvl.serve.settings import MediaPolicy, ServeOptions


@dataclass
class Live:
    service: Service
    server: Server
    port: int
    thread: threading.Thread
    client: httpx.Client  # one for all: making one takes longer than most requests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60} | options
        )

    def post(self, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
        return self.client.post(self.url + path, json=body)

    def chat(self, words: str = "What?", **body: Any) -> httpx.Response:
        return self.post(**{"model": "tiny", "messages": asking(words), "max_tokens": 6} | body)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(self.url + path)

    def metric(self, name: str) -> float:
        """Sum over the labels."""
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith(name + "{")]
        assert lines, name
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def wait_until_idle(self, seconds: float = 10) -> None:
        """Waits for the last cancel to be carried out, and asserts that nothing is left."""
        engine = self.service.model.engine
        until = time.monotonic() + seconds
        while time.monotonic() < until and (engine.has_work or self.service.in_flight):
            time.sleep(0.01)
        assert (engine.num_running, engine.num_waiting, self.service.in_flight) == (0, 0, 0)
        assert engine.num_used_blocks == 0
        assert self.service.held_bytes == 0


@contextlib.contextmanager
def live(
    model: Any, media: MediaReader | None = None, policy: MediaPolicy | None = None, **options: Any
) -> Iterator[Live]:
    chosen = ServeOptions(**{"model_name": "tiny", "media": policy or MediaPolicy()} | options)
    service = Service(model, chosen, media)
    server = Server(service, log_level="error")
    bound = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    running = Live(service, server, bound.getsockname()[1], thread, httpx.Client(timeout=60))
    until = time.monotonic() + 30
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    assert server.started
    try:
        yield running
    finally:
        running.client.close()
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
        service.model.engine.check()


def png(height: int = 84, width: int = 112, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(url: str | None = None, **beside: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url or data_url(png())}, **beside}


def asking(words: str = "What?", *items: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*items, {"type": "text", "text": words}]}]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
