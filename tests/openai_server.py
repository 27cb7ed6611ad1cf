"""A real server on this machine that plays OpenAI-compatible replies, right and wrong ones, in a given order."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


Turn = Callable[[BaseHTTPRequestHandler, Seen], None]


@dataclass
class Server:
    """`turns` are taken in order; the last one stays. `most_at_once` is how many requests ever waited together
    for the first byte of their reply."""

    url: str = ""
    turns: list[Turn] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    running: int = 0
    most_at_once: int = 0
    hung_up: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def play(self, *turns: Turn) -> None:
        self.turns = list(turns)


@contextmanager
def openai_server() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        counted = False

        def send_response(self, *words: Any) -> None:
            self.answered()  # once a client has its reply it may send the next request before this one's thread ends
            super().send_response(*words)

        def answered(self) -> None:
            with server.lock:
                server.running -= self.counted
            self.counted = False

        def handle_any(self) -> None:
            data = self.rfile.read(int(self.headers.get("content-length") or 0))
            seen = Seen(
                self.command,
                self.path,
                {k.lower(): v for k, v in self.headers.items()},
                json.loads(data) if data else None,
            )
            with server.lock:
                server.seen.append(seen)
                server.running += 1
                self.counted = True
                server.most_at_once = max(server.most_at_once, server.running)
                turn = server.turns.pop(0) if len(server.turns) > 1 else server.turns[0]
            try:
                turn(self, seen)
            except (BrokenPipeError, ConnectionResetError):
                server.hung_up.set()
            finally:
                self.answered()

        do_POST = do_GET = handle_any

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


# ---------------------------------------------------------------------------------------------------- replies


def reply(status: int, data: bytes | dict[str, Any], **headers: str) -> Turn:
    raw = json.dumps(data).encode() if isinstance(data, dict) else data

    def turn(handler: BaseHTTPRequestHandler, seen: Seen) -> None:
        handler.send_response(status)
        handler.send_header("content-length", str(len(raw)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(raw)

    return turn


def usage(prompt: int = 50, completion: int = 3, **details: int) -> dict[str, Any]:
    counted: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    return counted | ({"prompt_tokens_details": details} if details else {})


def says(
    text: str, finish_reason: str = "stop", counts: dict[str, Any] | None = None, **message: Any
) -> Turn:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish_reason,
    }
    return reply(200, {"choices": [choice], "usage": usage() if counts is None else counts})


def refuses(status: int, message: str, code: str = "", **headers: str) -> Turn:
    return reply(status, {"error": {"message": message, "code": code}}, **headers)


def delta(text: str | None = None, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    made = more if text is None else {"content": text, **more}
    return {"choices": [{"index": 0, "delta": made, "finish_reason": finish_reason}]}


def streams(*events: dict[str, Any] | str, done: bool = True, cut: bool = False, newline: str = "\n") -> Turn:
    """Server-sent events. cut: the connection breaks in the middle of a chunk."""

    def turn(handler: BaseHTTPRequestHandler, seen: Seen) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("transfer-encoding", "chunked")
        # said, not only done: else the client may send its next request into the closing connection
        handler.send_header("connection", "close")
        handler.end_headers()

        def chunk(data: bytes) -> None:
            handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            handler.wfile.flush()

        for event in [*events, *(["[DONE]"] if done else [])]:
            text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
            data = f"data: {text}{newline}{newline}".encode()
            chunk(data[:7])  # cut through the middle, as networks do
            chunk(data[7:])
        if cut:
            handler.wfile.write(b"ff\r\ndata: {")
            handler.wfile.flush()
        else:
            handler.wfile.write(b"0\r\n\r\n")

    return turn


def hangs_up(handler: BaseHTTPRequestHandler, seen: Seen) -> None:
    """Closes without a word."""
    handler.close_connection = True
    handler.connection.close()
