"""What strangers send can't stop or fill the server: sizes and shapes at the door, memory, lanes, turns, ends."""

import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

import qvl
from qvl.errors import ConfigError
from qvl.inputs import tokenizer as tokenizers
from qvl.inputs.image import load_image
from qvl.serve.door import Shape, check_shape
from qvl.serve.problems import Problem
from qvl.serve.settings import MediaPolicy, read_api_keys
from serve_live import asking, data_url, live, picture, png


@pytest.fixture(scope="module")
def server(tiny_checkpoint):
    model = qvl.load(tiny_checkpoint, max_num_seqs=2, max_model_len=512)
    with live(model) as running:
        yield running


MIB = 1 << 20
LONG = "a" * (MIB + 1)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": LONG}),
        ("/v1/chat/completions", {"messages": asking(LONG)}),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "reasoning_content": LONG}]}),
        (
            "/v1/chat/completions",
            {
                "messages": [
                    *asking(),
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"id": "a", "function": {"name": "f", "arguments": json.dumps({"x": LONG})}}
                        ],
                    },
                ]
            },
        ),
        (
            "/v1/chat/completions",
            {
                "messages": asking(),
                "tools": [{"type": "function", "function": {"name": "f", "description": LONG}}],
            },
        ),
        (
            "/v1/chat/completions",
            {
                "messages": asking(),
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"url": "data:" + LONG}}}
                ],
            },
        ),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": ""}] * 100_000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "x"}] * 100_000}]}),
    ],
    ids=["tokenize", "text", "reasoning", "arguments", "tool", "url-in-tool", "messages", "parts"],
)
def test_more_text_or_values_than_any_prompt_holds_are_refused_before_they_are_read(server, path, body):
    answer = server.post(path, **{"model": "tiny"} | body)
    assert answer.status_code == 413, answer.text[:300]
    server.wait_until_idle()


def test_a_body_nested_too_deep_is_refused_and_others_are_answered(server):
    schema: dict = {"type": "string"}
    for _ in range(300):
        schema = {"type": "object", "properties": {"a": schema}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = server.chat(response_format=wanted)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "body_too_deep"
    assert server.chat().status_code == 200


def shape_of(body: bytes, **limits) -> str | None:
    try:
        for _ in check_shape(body, Shape(**limits)):
            pass
    except Problem as e:
        return e.code
    return None


def test_the_door_counts_what_json_means_and_not_what_a_string_holds():
    text = json.dumps({"messages": asking('[[[[{{{{ "quoted" \\ \\\\" ,,,,,,', picture())}).encode()
    assert shape_of(text, max_depth=7, max_values=40, max_text_bytes=400) is None
    assert shape_of(b'{"url":"data:' + b"a" * 1000 + b'"}', max_text_bytes=100) is None
    assert shape_of(b'{"url":"url","x":"' + b"a" * 1000 + b'"}', max_text_bytes=100) == "text_too_long"
    assert shape_of(b'{"uri":"data:' + b"a" * 1000 + b'"}', max_text_bytes=100) == "text_too_long"
    assert shape_of(b"[" * 65) == "body_too_deep"
    assert shape_of(b"[" + b"1," * 50_001) == "body_too_large"
    # a string without an end would be looked for again from each of its quotes
    assert shape_of(b'"' + b'\\"' * MIB, max_text_bytes=3 * MIB) is None


def test_bodies_are_held_up_to_a_limit_and_the_next_one_comes_back_later(tiny_checkpoint):
    model = qvl.load(tiny_checkpoint, max_num_seqs=2)
    with live(model, max_held_body_bytes=100_000) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(
                b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100000\r\n\r\n" + b" " * 90_000
            )
            until = time.monotonic() + 10
            while (answer := server.chat("x" * 20_000)).status_code != 429:
                assert time.monotonic() < until
            assert answer.headers["Retry-After"] == "2"
        while server.post("/tokenize", prompt="hello").status_code != 200:
            assert time.monotonic() < until


def test_a_long_text_is_cut_into_tokens_in_pieces_that_are_those_of_the_whole(tiny_checkpoint, monkeypatch):
    for folder in (tiny_checkpoint, Path(qvl.__file__).parent / "mini"):
        tokenizer = tokenizers.Tokenizer.from_pretrained(folder)
        text = (
            "the sys in  the\n\nthen 12 3,\n the!\n \nin the Sys\r\nits'the  \n" * 40
            + "é\u0301 the ́a \n\u0301x"
        )
        whole = tokenizer.encode(text)
        monkeypatch.setattr(tokenizers, "_PIECE", 7)
        assert len(list(tokenizers._pieces(text))) > 40
        assert tokenizer.encode(text) == whole
        monkeypatch.undo()


def test_no_memory_is_503_and_no_fault_of_the_image(server, monkeypatch):
    from PIL import ImageFile

    def load(_):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(MemoryError):
        load_image(png())
    answer = server.chat(messages=asking("x", picture()))
    assert answer.status_code == 503, answer.text
    assert "memory" in answer.json()["error"]["message"]
    assert answer.headers["Retry-After"] == "2"
    monkeypatch.undo()
    assert server.chat(messages=asking("x", picture())).status_code == 200


def black(side: int) -> bytes:
    """A page of one bit a pixel: small as a file, large when unpacked."""
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, "PNG")
    return out.getvalue()


def test_the_pixels_of_a_request_are_counted_before_any_is_unpacked(tiny_checkpoint):
    media = MediaPolicy(max_request_pixels=3_000_000)
    with live(qvl.load(tiny_checkpoint), policy=media) as server:
        pages = [picture(data_url(black(1200)), max_pixels=3136) for _ in range(3)]
        answer = server.chat(messages=asking("x", *pages))
        assert answer.status_code == 400
        assert "4,320,000 pixels together; 3,000,000 are read" in answer.json()["error"]["message"]
        assert server.chat(messages=asking("x", *pages[:2])).status_code == 200


def test_text_is_answered_while_all_lanes_of_media_are_taken_and_more_media_come_back_later(
    tiny_checkpoint, monkeypatch
):
    model = qvl.load(tiny_checkpoint, max_num_seqs=8)
    media = MediaPolicy(max_held_pixels=4 * 84 * 112)
    with live(model, policy=media, decode_timeout_s=20) as server:
        opened, process = threading.Event(), server.service._process

        def held(conversation):
            if any(isinstance(m["content"], list) and len(m["content"]) > 1 for m in conversation.messages):
                assert opened.wait(30)
            return process(conversation)

        monkeypatch.setattr(server.service, "_process", held)
        ask = {"messages": asking("x", picture()), "max_tokens": 2}
        got: list = []
        threads = [threading.Thread(target=lambda: got.append(server.chat(**ask))) for _ in range(4)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 20
        while server.service._held_pixels < 4 * 84 * 112:
            assert time.monotonic() < until
            time.sleep(0.01)
        began = time.monotonic()
        assert server.chat("words", max_tokens=2).status_code == 200
        assert server.post("/tokenize", prompt="words").status_code == 200
        more = server.chat(**ask)
        assert (more.status_code, more.headers["Retry-After"]) == (429, "2")
        assert time.monotonic() - began < 10  # they would wait for 30 s otherwise
        opened.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in got] == [200] * 4
        assert server.service._held_pixels == 0


ENDLESS = {
    "type": "object",
    "properties": {"a": {"type": "integer", "multipleOf": 99_999_999}},
    "required": ["a"],
}


def as_format(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def resident(pid: int | str = "self") -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read and limited as Linux does")
def test_a_schema_that_takes_all_memory_to_compile_is_refused_and_others_are_answered(server, caplog):
    pytest.importorskip("llguidance")
    fine = as_format({"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]})
    assert server.chat(response_format=fine, max_tokens=40).status_code == 200
    before = resident()
    with pytest.raises(httpx.ReadTimeout):  # the client that is gone
        server.client.post(
            server.url + "/v1/chat/completions",
            json={"model": "tiny", "messages": asking(), "response_format": as_format(ENDLESS)},
            timeout=0.3,
        )
    assert server.chat(messages=asking("x", picture()), max_tokens=2).status_code == 200
    answer = server.chat(response_format=as_format(ENDLESS))
    assert answer.status_code == 400, answer.text
    assert "takes more to compile" in answer.json()["error"]["message"]
    assert resident() - before < 150 * MIB
    assert server.chat(response_format=fine, max_tokens=40, n=2).status_code == 200
    assert server.service._num_grammars == 0
    assert "never retrieved" not in caplog.text  # of the one who left


def test_connections_over_the_limit_are_turned_away_with_one_line_and_idle_ones_are_closed(
    tiny_checkpoint, caplog
):
    with live(qvl.load(tiny_checkpoint), max_connections=4, idle_timeout_s=6.0) as server:
        address = ("127.0.0.1", server.port)
        idle = [socket.create_connection(address, timeout=20) for _ in range(4)]
        more = [socket.create_connection(address, timeout=20) for _ in range(8)]
        for connection in more:
            got = connection.recv(4096)
            assert got.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 2" in got.lower()
            connection.close()
        for connection in idle:
            assert connection.recv(1) == b""  # after their time
            connection.close()
        assert server.chat().status_code == 200
    lines = [record for record in caplog.records if "turned away" in record.message]
    assert len(lines) == 1


def test_without_descriptors_the_log_gets_a_line_and_not_a_thousand(caplog):
    from qvl.serve.server import _Quiet

    handler = _Quiet()
    for _ in range(1000):
        handler(None, {"message": "socket.accept() out of system resource", "exception": OSError(24, "x")})
    assert len(caplog.records) == 1


STUCK = """
import sys, threading, time
import qvl
from qvl.serve.server import Server, bind, end_process
from qvl.serve.service import Service
from qvl.serve.settings import ServeOptions
service = Service(qvl.load(sys.argv[1]).backend, ServeOptions(model_name="tiny", grace_s=1.0))
service._process = lambda _: (print("stuck", flush=True), time.sleep(1000))
server = Server(service, owns_process=True)
bound = bind("127.0.0.1", 0)
print(bound.getsockname()[1], flush=True)
server.run(sockets=[bound])
end_process(0)
"""


@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["term", "ctrl-c"]
)
def test_a_thread_that_never_returns_doesnt_keep_the_process(tiny_checkpoint, signals):
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tiny_checkpoint)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        port = int(process.stdout.readline())
        until = time.monotonic() + 60
        body = json.dumps({"model": "tiny", "messages": asking()}).encode()
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=20)
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.1)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert process.stdout.readline() == b"stuck\n"
        for one in signals:
            process.send_signal(one)
            time.sleep(0.3)
        process.wait(25)
        connection.close()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_clients_take_turns_and_a_key_has_its_limit(tiny_checkpoint, tmp_path):
    path = tmp_path / "keys"
    path.write_text("# who\nmany one\nfew two 1\n")
    model = qvl.load(tiny_checkpoint, max_num_seqs=1)
    ended: list[str] = []
    with live(model, api_keys=read_api_keys(path)) as server:

        def ask(key: str) -> httpx.Response:
            body = {"model": "tiny", "messages": asking(), "max_tokens": 60, "ignore_eos": True}
            headers = {"Authorization": f"Bearer {key}"}
            answer = httpx.post(server.url + "/v1/chat/completions", json=body, headers=headers, timeout=60)
            ended.append(key)
            return answer

        assert ask("three").status_code == 401
        ended.clear()
        threads = [threading.Thread(target=ask, args=("one",)) for _ in range(16)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 30
        while server.service.in_flight < 16 and not ended:
            assert time.monotonic() < until
            time.sleep(0.001)
        already = len(ended)
        threads.append(threading.Thread(target=ask, args=("two",)))
        threads[-1].start()
        while server.service.in_flight + len(ended) < 17:
            time.sleep(0.001)
        if "two" not in ended:
            limited = ask("two")
            assert limited.status_code == 429
            assert "1 are taken on" in limited.json()["error"]["message"]
            ended.remove("two")
        for thread in threads:
            thread.join()
        assert server.service._of_client == {}
    # two of the other's in the engine, one whose turn it was, and what ended while this was asked
    assert ended.index("two") - already <= 8


@pytest.mark.parametrize("text", ["", "a", "a b c", "a b\na c"])
def test_a_file_of_keys_is_read_whole_or_not_at_all(text, tmp_path):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match="--api-key-file"):
        read_api_keys(tmp_path / "keys")
