"""Beginning and end of requests and of the server: leaving frees, overload is told, SIGTERM finishes what runs."""

import json
import socket
import threading
import time

import httpx
import pytest

import qvl
from qvl.engine.engine import Event
from qvl.engine.loop import EngineLoop
from qvl.errors import BackendError, CapacityError, ConfigError
from qvl.inputs.sampling import SamplingParams
from qvl.serve.server import bind
from serve_live import asking, data_url, live, picture, png

LONG = {"max_tokens": 4000, "ignore_eos": True}


@pytest.fixture
def model(tiny_checkpoint):
    return qvl.load(tiny_checkpoint, max_num_seqs=2)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def request_bytes(server, **body) -> bytes:
    content = json.dumps({"model": "tiny", "messages": asking("x", picture())} | body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_blocks_at_once(model, stream):
    with live(model) as server:
        engine = model.engine
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(request_bytes(server, stream=stream, **LONG))
            until(lambda: engine.num_running == 1 and engine.stats.num_generated_tokens > 2)
            assert engine.num_used_blocks > 0
        began = time.monotonic()
        until(lambda: engine.num_used_blocks == 0)
        assert time.monotonic() - began < 5  # 4,000 tokens would take far longer
        assert engine.stats.num_generated_tokens < 4000
        server.wait_until_idle()
        assert server.metric("vllm:request_success_total") >= 1


class Gate:
    """Holds the vision tower before its first block until it is opened."""

    def __init__(self, model):
        self.reached, self.opened = threading.Event(), threading.Event()
        model.model.visual.blocks[0].register_forward_pre_hook(self._wait)

    def _wait(self, *_):
        self.reached.set()
        assert self.opened.wait(30)


def test_a_client_that_leaves_while_its_picture_is_in_the_tower_frees_its_blocks_at_once(model):
    gate = Gate(model)
    with live(model) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(request_bytes(server, **LONG))
            assert gate.reached.wait(20)
            assert model.engine.num_used_blocks > 0
        until(lambda: model.engine.num_used_blocks == 0)
        assert not gate.opened.is_set()
        gate.opened.set()
        server.wait_until_idle()
        assert model.engine.stats.num_encoded_visuals == 0
        assert server.chat(messages=asking("x", picture())).status_code == 200


def test_others_are_answered_while_a_picture_is_in_the_tower(model):
    gate, got = Gate(model), {}
    with live(model) as server:
        body = {"messages": asking("x", picture()), "max_tokens": 3}
        late = threading.Thread(target=lambda: got.update(answer=server.chat(**body)))
        late.start()
        assert gate.reached.wait(20)
        assert server.chat(max_tokens=5, ignore_eos=True).json()["usage"]["completion_tokens"] == 5
        streamed = server.chat(max_tokens=5, stream=True).text
        assert streamed.endswith("data: [DONE]\n\n")
        assert "answer" not in got
        gate.opened.set()
        late.join()
        assert got["answer"].status_code == 200
        server.wait_until_idle()


def test_sigterm_with_a_picture_in_the_tower_ends_in_time(model):
    gate = Gate(model)
    with live(model, grace_s=0.3) as server:
        got = {}
        body = {"messages": asking("x", picture()), "max_tokens": 3}
        late = threading.Thread(target=lambda: got.update(answer=server.chat(**body)))
        late.start()
        assert gate.reached.wait(20)
        server.server.handle_exit(15, None)
        late.join(20)  # told after the grace, though the tower still stands
        assert got["answer"].status_code == 503
        gate.opened.set()


def test_a_client_that_leaves_while_it_waits_never_runs(model):
    with live(model) as server, httpx.Client(timeout=60) as client:
        busy = [threading.Thread(target=server.chat, kwargs=LONG | {"max_tokens": 300}) for _ in range(2)]
        for thread in busy:
            thread.start()
        until(lambda: model.engine.num_running == 2)
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(request_bytes(server, stream=True, **LONG))
            until(lambda: model.engine.num_waiting == 1)
        until(lambda: model.engine.num_waiting == 0)
        for thread in busy:
            thread.join()
        server.wait_until_idle()
        assert client.get(server.url + "/health").status_code == 200


def test_leaving_a_stream_in_the_openai_package_frees_it(model):
    with live(model) as server:
        stream = server.openai().chat.completions.create(
            model="tiny", messages=asking(), stream=True, max_tokens=4000, extra_body={"ignore_eos": True}
        )
        for _, _ in zip(range(4), stream):
            pass
        stream.close()
        until(lambda: model.engine.num_used_blocks == 0, 5)


def test_overload_is_429_with_retry_after_and_passes(model):
    with live(model, max_queue=1, retry_after_s=3) as server:
        long = [threading.Thread(target=server.chat, kwargs=LONG | {"max_tokens": 400}) for _ in range(3)]
        for thread in long:
            thread.start()
        until(lambda: server.service.in_flight == 3)
        answer = server.chat()
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "3"
        assert "3 answers run or wait, 1 more" in answer.json()["error"]["message"]
        assert server.chat(n=16).status_code == 429
        for thread in long:
            thread.join()
        assert server.chat().status_code == 200
        server.wait_until_idle()


def test_pictures_of_waiting_requests_are_bounded(model):
    with live(model, max_held_bytes=1000) as server:
        first = threading.Thread(
            target=server.chat, kwargs={"messages": asking("x", picture())} | LONG | {"max_tokens": 400}
        )
        first.start()
        until(lambda: model.engine.num_running == 1)
        answer = server.chat(messages=asking("y", picture(data_url(png(seed=1)))))
        assert answer.status_code == 429
        assert "1,000 are kept" in answer.json()["error"]["message"]
        assert server.chat().status_code == 200  # without pictures there is room
        first.join()
        server.wait_until_idle()


def test_a_body_that_never_arrives_is_left(model):
    with live(model, body_timeout_s=0.3) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(request_bytes(server)[:-20])
            # to the end: head and body may come in pieces
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"within 0.3 s" in answer
        server.wait_until_idle()


def test_pictures_that_take_too_long_are_left(model, monkeypatch):
    with live(model, decode_timeout_s=0.2) as server:
        held = threading.Event()
        monkeypatch.setattr(server.service, "_process", lambda _: held.wait(20))
        answer = server.chat(messages=asking("x", picture()))
        held.set()
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")  # is no fault of the request
        assert "within 0.2 s" in answer.json()["error"]["message"]
        server.wait_until_idle()


# the end


def stop_while_running(model, grace_s, **body):
    """Asks, tells the server to end once the answer runs, and gives (answer, what a late client gets, seconds)."""
    got = {}
    with live(model, grace_s=grace_s) as server:
        late = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        late.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in late.recv(4096)

        def ask():
            got["answer"] = httpx.post(
                server.url + "/v1/chat/completions",
                json={"model": "tiny", "messages": asking()} | LONG | body,
                timeout=60,
            )

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: model.engine.num_running == 1)
        began = time.monotonic()
        server.server.handle_exit(15, None)
        while is_listening(server):  # a short while, in which it says 503
            time.sleep(0.02)
        thread.join()
        server.thread.join(30)
        late.close()
        assert not server.thread.is_alive()
        return got["answer"], time.monotonic() - began


def is_listening(server) -> bool:
    """Asks for an answer, and asserts that it is refused in one of two ways."""
    try:
        assert httpx.get(server.url + "/ready").status_code == 503
        refused = server.chat()
    except httpx.HTTPError:
        return False
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    return True


def test_sigterm_finishes_what_runs_and_refuses_the_rest(model):
    answer, _ = stop_while_running(model, 60, max_tokens=200)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 200
    model.engine.check()
    assert model.engine.num_used_blocks == 0


def test_after_the_grace_period_what_runs_is_ended_and_told(model):
    answer, seconds = stop_while_running(model, 0.3)
    assert answer.status_code == 503
    assert "shutting down" in answer.json()["error"]["message"]
    assert seconds < 20
    assert model.engine.num_used_blocks == 0


def test_a_stream_cut_by_the_grace_period_says_so(model):
    answer, _ = stop_while_running(model, 0.3, stream=True)
    last = answer.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "overloaded"


def test_a_taken_port_and_a_host_of_elsewhere_are_told_before_anything_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="can't be had"):
            bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="--host no such host"):
        bind("no such host", 0)


# faults


def test_a_failing_device_is_a_500_for_those_in_the_step_and_the_server_lives(model, monkeypatch):
    with live(model) as server:

        def broken(*_):
            raise RuntimeError("no kernel image")

        with monkeypatch.context() as patch:
            patch.setattr(model.engine._runner, "logits", broken)
            answer = server.chat()
            assert answer.status_code == 500
            assert answer.json()["error"]["message"] == "the device failed: no kernel image"
            streamed = server.chat(stream=True).text
            assert "no kernel image" in streamed
            assert "[DONE]" not in streamed
        assert server.chat().status_code == 200
        server.wait_until_idle()


def test_a_dead_engine_is_seen_by_health_and_nobody_waits_for_ever(model, monkeypatch):
    with live(model) as server:

        def fault(*_):
            raise AssertionError("impossible")

        with monkeypatch.context() as patch:
            patch.setattr(model.engine._scheduler, "schedule", fault)
            answer = server.chat()
        assert answer.status_code == 500
        assert "AssertionError: impossible" in answer.json()["error"]["message"]
        assert server.get("/health").status_code == 503
        assert server.get("/ready").status_code == 503
        assert server.chat().status_code == 503
        model.engine.step()  # what the fault left behind, for the check at the end


def test_after_one_fault_the_engine_goes_on_when_its_books_are_right(model, monkeypatch):
    with live(model) as server:
        whole, faults = model.engine._draw, iter([1])

        def draw(*words):
            if next(faults, None):
                raise AssertionError("impossible")
            return whole(*words)

        monkeypatch.setattr(model.engine, "_draw", draw)
        answer = server.chat()
        assert answer.status_code == 500
        assert "AssertionError: impossible" in answer.json()["error"]["message"]
        assert server.chat().status_code == 200
        assert server.get("/health").status_code == 200
        server.wait_until_idle()


def test_a_fault_at_admission_is_told_to_that_one_and_the_others_have_their_turn(model, inputs, monkeypatch):
    whole, loop = model.engine.submit, EngineLoop(model.engine)

    def submit(inputs, params, constraint=None):
        if params.max_new_tokens == 3:
            raise AssertionError("impossible")
        return whole(inputs, params, constraint)

    monkeypatch.setattr(model.engine, "submit", submit)
    loop.start()
    waiting = [submitted(loop, inputs, max_new_tokens=n, ignore_eos=True) for n in (3, 4, 3, 4)]
    assert all(ended.wait(20) for _, _, ended in waiting)
    loop.stop()
    for n, (_, events, _) in zip((3, 4, 3, 4), waiting):
        # one that was taken on beside a fault is ended with it
        refused = [e for e in events if isinstance(e, BackendError)]
        finished = [e for e in events if isinstance(e, Event) and e.finish_reason]
        assert len(refused) + len(finished) == 1
        assert n == 4 or refused
    model.engine.check()


def test_logits_that_are_no_numbers_end_the_answer_and_not_the_server(model, monkeypatch):
    import torch

    with live(model) as server:
        with monkeypatch.context() as patch:
            patch.setattr(model.engine._runner, "logits", lambda *_: torch.full((1, 320), torch.nan))
            answer = server.chat(temperature=1)
        assert answer.status_code == 500
        assert "not finite" in answer.json()["error"]["message"]
        assert server.chat(temperature=1).status_code == 200
        refused = server.chat(repetition_penalty=5e-324)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "repetition_penalty"


# the loop alone


def submitted(loop, inputs, **settings):
    events, ended = [], threading.Event()

    def deliver(event):
        events.append(event)
        if not isinstance(event, Event) or event.finish_reason is not None:
            ended.set()

    return loop.submit(inputs, SamplingParams(**settings), deliver), events, ended


@pytest.fixture
def inputs(model):
    return model.processor([{"role": "user", "content": "x"}])


def test_the_loop_delivers_an_acceptance_then_events_then_one_end(model, inputs):
    loop = EngineLoop(model.engine)
    loop.start()
    _, events, ended = submitted(loop, inputs, max_new_tokens=4, ignore_eos=True)
    assert ended.wait(20)
    loop.stop()
    assert events[0] == Event(events[0].request_id)
    assert [e.finish_reason for e in events] == [None] * 4 + ["length"]
    assert sum(len(e.token_ids) for e in events) == 4


def test_the_loop_delivers_a_refusal_alone(model, inputs):
    loop = EngineLoop(model.engine)
    loop.start()
    _, events, ended = submitted(loop, inputs, max_new_tokens=10**6)
    assert ended.wait(20)
    loop.stop()
    (refusal,) = events
    assert isinstance(refusal, CapacityError)


def test_stopping_the_loop_ends_everybody_once_and_takes_nothing_new(model, inputs):
    loop = EngineLoop(model.engine)
    loop.start()
    waiting = [submitted(loop, inputs, max_new_tokens=4000, ignore_eos=True) for _ in range(5)]
    loop.stop()
    for _, events, ended in waiting:
        assert ended.is_set()
        assert [e.finish_reason for e in events if e.finish_reason] == ["cancelled"]
    assert not model.engine.has_work
    with pytest.raises(BackendError, match="is not running"):
        submitted(loop, inputs)


def test_cancelling_twice_or_after_the_end_does_nothing(model, inputs):
    loop = EngineLoop(model.engine)
    loop.start()
    ticket, events, ended = submitted(loop, inputs, max_new_tokens=4000, ignore_eos=True)
    loop.cancel(ticket)
    loop.cancel(ticket)
    assert ended.wait(20)
    loop.cancel(ticket)
    loop.stop()
    assert [e.finish_reason for e in events if e.finish_reason] == ["cancelled"]
    model.engine.check()


def test_a_receiver_that_is_gone_is_cancelled_and_disturbs_nobody(model, inputs):
    loop = EngineLoop(model.engine)
    loop.start()

    def gone(_):
        raise RuntimeError("Event loop is closed")

    loop.submit(inputs, SamplingParams(max_new_tokens=4000, ignore_eos=True), gone)
    _, _, ended = submitted(loop, inputs, max_new_tokens=4)
    assert ended.wait(20)
    until(lambda: not model.engine.has_work)
    loop.stop()
    assert model.engine.num_used_blocks == 0
