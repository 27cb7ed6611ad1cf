"""A server that never ends, or sends far more than it seems to: one error, and little of it in memory."""

from __future__ import annotations

import asyncio
import tracemalloc
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from openai_server import Seen, openai_server
from qvl.backends import wire
from qvl.backends.http import connect
from qvl.backends.wire import DataLines, read_json, read_reply
from qvl.cli.main import main
from qvl.errors import BackendError
from qvl.units import MiB

ASKED: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]


@pytest.fixture
def server() -> Iterator[Any]:
    with openai_server() as running:
        yield running


def without_end(piece: bytes, status: int = 200, encoding: str | None = None, first: bytes = b"") -> Any:
    def turn(handler: BaseHTTPRequestHandler, seen: Seen) -> None:
        handler.send_response(status)
        if encoding:
            handler.send_header("Content-Encoding", encoding)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        handler.wfile.write(first)
        while True:
            handler.wfile.write(piece)

    return turn


def bomb(handler: BaseHTTPRequestHandler, seen: Seen) -> None:
    """A thousand times as much as is sent."""
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()
    handler.wfile.write(PACKED)


def packed(size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(MiB)) for _ in range(size // MiB)) + packer.flush()


PACKED = packed(300 * MiB)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LARGEST_LIST", "LARGEST_REPLY", "LARGEST_ERROR", "LARGEST_STREAM", "LONGEST_EVENT"):
        for module in ("wire", "transport"):
            monkeypatch.setattr(f"qvl.backends.{module}.{name}", MiB, raising=False)


def in_little_memory(call: Any) -> BackendError:
    tracemalloc.start()
    try:
        with pytest.raises(BackendError) as caught:
            call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 250 * MiB, f"{peak / MiB:.0f} MiB"
    return caught.value


TURNS = {
    "a list without end": without_end(b" " * 65536),
    "an error without end": without_end(b" " * 65536, status=500),
    "a small gzip of gigabytes": bomb,
    "an error in another packing": without_end(b"x" * 1000, status=400, encoding="br"),
    "a packing that wasn't asked for": without_end(b"x" * 1000, encoding="zstd"),
}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("ask", ["models", "chat", "async"])
def test_a_reply_without_end_is_one_error(server, turn, ask):
    server.play(turn)

    def call() -> None:
        if ask == "models":
            connect(server.url, max_retries=0)
        elif ask == "chat":
            connect(server.url, "m", family="qwen2_5_vl", max_retries=0).chat(ASKED)
        else:

            async def chat() -> None:
                await connect(server.url, "m", family="qwen2_5_vl", max_retries=0).achat(ASKED)

            asyncio.run(chat())

    error = in_little_memory(call)
    assert "larger than" in str(error) or "packed as" in str(error)


STREAMS = {
    "a line without end": b"x" * 65536,
    "an event without end": b"data: " + b"x" * 65536 + b"\n",
    "comments without end": b": still here\n\n" * 5000,
    "pieces without end": b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n' * 1000,
}


@pytest.mark.parametrize("piece", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("sync", [True, False])
def test_a_stream_without_end_is_one_error(server, small, piece, sync):
    server.play(without_end(piece))
    model = connect(server.url, "m", family="qwen2_5_vl", max_retries=0)

    def call() -> None:
        if sync:
            for _ in model.stream_chat(ASKED):
                pass
            return

        async def read() -> None:
            async for _ in model.astream_chat(ASKED):
                pass

        asyncio.run(read())

    assert "larger than" in str(in_little_memory(call))


def test_more_events_than_any_answer_has_are_an_error(monkeypatch):
    monkeypatch.setattr(wire, "MOST_EVENTS", 10)
    lines = DataLines()
    assert lines.feed(b"data: 1\n\n" * 10) == ["1"] * 10
    with pytest.raises(BackendError, match="more than 10 events"):
        lines.feed(b"data: 1\n\n")


@pytest.mark.parametrize("turn", [TURNS["a list without end"], bomb], ids=["without end", "gzip"])
def test_bench_stops_at_a_list_without_end(server, turn, capsys):
    server.play(turn)
    assert main(["bench", "serve", server.url, "--requests", "1"]) == 2
    assert "larger than" in capsys.readouterr().err


@pytest.mark.parametrize("piece", STREAMS.values(), ids=STREAMS)
def test_bench_counts_a_stream_without_end_as_a_failure(server, small, monkeypatch, piece, capsys):
    monkeypatch.setattr("qvl.evaluate.load_test.LARGEST_STREAM", MiB)
    server.play(without_end(piece))
    main(["bench", "serve", server.url, "--model", "m", "--requests", "1", "--warmup", "0", "--json"])
    shown = capsys.readouterr()
    assert "too large" in shown.out or "not understood" in shown.out


@pytest.mark.parametrize("deep", [b"[" * 500 + b"]" * 500, b'{"a":' * 100_000 + b"1" + b"}" * 100_000])
def test_a_reply_nested_without_end_is_no_json(deep):
    with pytest.raises(BackendError, match="isn't JSON"):
        read_json(b'{"choices": ' + deep + b"}", "u")


def test_arguments_nested_without_end_stay_text():
    call = {"function": {"name": "f", "arguments": "[" * 100_000}}
    reply = read_reply({"choices": [{"message": {"tool_calls": [call]}}]}, "u")
    assert "[[[[" in wire.assembled(reply)[1]
