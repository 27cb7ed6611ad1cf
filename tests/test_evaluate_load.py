"""The load test: what it sends, what it makes of good and bad streams, and how it counts."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
import time
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from openai_server import openai_server, reply
from qvl.evaluate.load_plot import check_plot, save_plot
from qvl.evaluate.load_requests import LoadError, Workload, parse_size, request_bodies
from qvl.evaluate.load_test import Arrivals, LoadResult, Outcome, percentile, put_under_load, summary
from qvl.geometry import Size

# what is sent


def bodies(**settings) -> list[dict]:
    workload = Workload(**{"num_requests": 6, "images": (Size(60, 90), Size(56, 56))} | settings)
    return [json.loads(body) for body in request_bodies(workload, "m")]


def picture_of(body: dict) -> str:
    return body["messages"][0]["content"][0]["image_url"]["url"]


def opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_no_picture_is_sent_twice_even_when_it_is_small():
    urls = [picture_of(body) for body in bodies(num_requests=300, images=(Size(14, 28),))]
    assert len({opened(url).tobytes() for url in urls}) == 300


def test_repeated_pictures_are_one_for_each_size():
    found = {opened(url).size for url in map(picture_of, bodies(num_requests=20))}
    assert found == {(90, 60), (56, 56)}
    assert len(set(map(picture_of, bodies(num_requests=20, repeat_pictures=True)))) == 2


def test_pictures_have_the_sizes_asked_for():
    assert {opened(picture_of(body)).size for body in bodies(images=(Size(448, 672),))} == {(672, 448)}


def test_no_two_requests_have_the_same_text():
    texts = [body["messages"][0]["content"][-1]["text"] for body in bodies(num_requests=50, prompt_tokens=1)]
    assert len(set(texts)) == 50


def test_the_same_seed_sends_the_same_and_another_seed_does_not():
    assert bodies(seed=1) == bodies(seed=1)
    assert bodies(seed=1) != bodies(seed=2)


def test_answers_have_the_length_asked_for_and_vllms_field_only_when_asked():
    body, *_ = bodies(answer_tokens=7)
    assert (body["max_tokens"], body["stream"], "ignore_eos" in body) == (7, True, False)
    assert bodies(ignore_eos=True)[0]["ignore_eos"] is True


def test_without_sizes_requests_are_text_alone():
    assert [part["type"] for part in bodies(images=())[0]["messages"][0]["content"]] == ["text"]


def test_a_size_is_width_by_height():
    assert parse_size("672x448") == Size(height=448, width=672)


@pytest.mark.parametrize("text", ["672", "0x5", "ax5", "5x", "-5x5", "5x20000"])
def test_a_size_that_cannot_be_is_refused_by_name(text):
    with pytest.raises(LoadError, match=f"--image {text}"):
        parse_size(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Workload(num_requests=0),
        lambda: Workload(num_requests=1, answer_tokens=0),
        lambda: Arrivals(concurrency=0),
        lambda: Arrivals(rate=0),
        lambda: Arrivals(rate=-1),
        lambda: Arrivals(concurrency=None),
    ],
)
def test_a_load_that_cannot_be_is_refused(make):
    with pytest.raises(LoadError):
        make()


def test_random_arrivals_keep_their_rate_and_their_seed():
    times = Arrivals(rate=20, concurrency=None, seed=3).times(4000)
    assert times == sorted(times) == Arrivals(rate=20, concurrency=None, seed=3).times(4000)
    assert times[-1] / 4000 == pytest.approx(1 / 20, rel=0.06)  # 4 standard errors of a mean of 4,000
    assert times != Arrivals(rate=20, concurrency=None, seed=4).times(4000)


# what comes back


def events(*pieces: object, done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(piece)}\n\n" for piece in pieces] + ["data: [DONE]\n\n"] * done
    return "".join(lines).encode()


def piece(text: str | None = None, finish: str | None = None, **beside) -> dict:
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish}], **beside}


COUNTS = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 5, "details": {"x_tokens": 1}}}
GOOD = events(piece(""), piece("a"), piece("b"), piece(None, "stop"), COUNTS)


def load(server_url: str, count: int = 1, timeout_s: float = 20, **arrivals) -> list[Outcome]:
    async def measure():
        async with httpx.AsyncClient() as client:
            pattern = [b"{}"] * count
            return await put_under_load(
                client, server_url, pattern, Arrivals(**arrivals), timeout_s=timeout_s
            )

    found, interrupted = asyncio.run(measure())
    assert not interrupted
    return found


def one(turn, **settings) -> Outcome:
    with openai_server() as server:
        server.play(turn)
        (outcome,) = load(f"{server.url}/v1/chat/completions", **settings)
    return outcome


def test_a_good_stream_is_timed_and_counted():
    outcome = one(reply(200, GOOD))
    assert outcome.error is None
    assert len(outcome.pieces) == 2  # the first piece of a stream, without text, is none
    assert (outcome.prompt_tokens, outcome.completion_tokens, outcome.tokens) == (11, 5, 5)
    assert 0 < outcome.ttft <= outcome.pieces[1] <= outcome.ended


def test_pieces_are_counted_where_the_server_counts_nothing():
    assert one(reply(200, events(piece("a"), piece("b"), piece("c", "length")))).tokens == 3


def test_thinking_and_calls_are_pieces_too():
    thinking = {"choices": [{"delta": {"reasoning_content": "hm"}}]}
    call = {"choices": [{"delta": {"tool_calls": [{"index": 0}]}, "finish_reason": "tool_calls"}]}
    assert len(one(reply(200, events(thinking, call))).pieces) == 2


@pytest.mark.parametrize(
    ("turn", "kind", "said"),
    [
        (reply(429, {"error": {"message": "come back later"}}), "status 429", "come back later"),
        (reply(500, b"<h1>oops</h1>"), "status 500", "oops"),
        (reply(200, events(piece("a"), {"error": {"message": "gone"}})), "error in the stream", "gone"),
        (reply(200, events(piece("a"), done=False)), "cut short", "finish_reason"),
        (reply(200, b""), "cut short", "finish_reason"),
        (reply(200, b"data: {nonsense\n\n"), "not understood", "nonsense"),
        (reply(200, b"<html>hello</html>\n"), "not understood", "hello"),
        (reply(200, events([1, 2])), "not understood", "1, 2"),
        (reply(200, events({"choices": ["x"]})), "not understood", "choices"),
        (reply(200, events({"choices": [], "usage": 5})), "not understood", "usage"),
    ],
)
def test_what_is_no_answer_is_an_error_of_its_kind(turn, kind, said):
    outcome = one(turn)
    assert outcome.error == kind
    assert said in outcome.message


def test_a_server_that_hangs_is_a_timeout():
    def hang(handler, seen):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(events(piece("a"), done=False))
        handler.wfile.flush()
        time.sleep(2)

    began = time.monotonic()
    outcome = one(hang, timeout_s=0.3)
    assert (outcome.error, len(outcome.pieces)) == ("timeout", 1)
    assert time.monotonic() - began < 10


def test_a_server_that_breaks_off_is_an_error():
    def broken(handler, seen):
        handler.send_response(200)
        handler.send_header("content-length", "100000")
        handler.end_headers()
        handler.wfile.write(events(piece("a"), done=False))

    assert one(broken).error == "connection broke"


def test_nobody_at_the_address_is_an_error_of_each_request():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1/chat/completions"
        assert [o.error for o in load(url, 3)] == ["can't connect"] * 3


def test_never_more_than_the_concurrency_are_under_way_and_all_are_sent():
    def slow(handler, seen):
        time.sleep(0.02)
        reply(200, GOOD)(handler, seen)

    with openai_server() as server:
        server.play(slow)
        found = load(f"{server.url}/v1/chat/completions", 12, concurrency=3)
        assert server.most_at_once == 3
        assert len(found) == len(server.seen) == 12
    assert all(outcome.error is None for outcome in found)


def test_with_a_rate_requests_go_out_when_they_are_due_however_slow_the_server():
    def slow(handler, seen):
        time.sleep(0.5)
        reply(200, GOOD)(handler, seen)

    with openai_server() as server:
        server.play(slow)
        found = load(f"{server.url}/v1/chat/completions", 8, concurrency=None, rate=100, seed=1)
    due = Arrivals(concurrency=None, rate=100, seed=1).times(8)
    assert all(o.sent >= at for o, at in zip(sorted(found, key=lambda o: o.sent), due))
    assert server.most_at_once > 3


def test_an_interrupted_test_keeps_what_has_ended():
    with openai_server() as server:
        hold = threading.Event()

        def then_hang(handler, seen):
            hold.wait(20)

        server.play(reply(200, GOOD), reply(200, GOOD), then_hang)

        async def measure():
            ended = asyncio.Event()
            count = []

            def note(outcome):
                count.append(outcome)
                if len(count) == 2:
                    ended.set()

            async with httpx.AsyncClient() as client:
                task = asyncio.ensure_future(
                    put_under_load(
                        client,
                        f"{server.url}/v1/chat/completions",
                        [b"{}"] * 5,
                        Arrivals(concurrency=1),
                        timeout_s=20,
                        ended=note,
                    )
                )
                await ended.wait()
                await asyncio.sleep(0.05)
                task.cancel()
                return await task

        found, interrupted = asyncio.run(measure())
        hold.set()
    assert interrupted
    assert [outcome.error for outcome in found] == [None, None]


# the account


def outcome(sent=0.0, pieces=(1.0, 2.0), ended=3.0, tokens=5, error=None) -> Outcome:
    return Outcome(sent, ended, pieces, 10, tokens, error, "why" if error else "")


def result(*outcomes: Outcome) -> LoadResult:
    return LoadResult(url="u", model="m", outcomes=outcomes, planned=len(outcomes))


def test_percentiles_of_known_numbers():
    assert percentile([1, 2, 3, 4, 5], 50) == 3
    assert percentile([1, 2, 3, 4, 5], 90) == pytest.approx(4.6)
    assert percentile([7], 99) == 7


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_lies_between_the_least_and_the_most(values, p):
    assert min(values) <= percentile(sorted(values), p) <= max(values)


def test_nothing_measured_is_no_number():
    assert summary([]) == {"n": 0, "mean": None, "p50": None, "p90": None, "p99": None, "max": None}
    assert result().as_dict()["throughput_per_s"] == {"requests": 0, "answer_tokens": 0, "prompt_tokens": 0}


def test_rates_are_of_the_time_from_the_first_sent_to_the_last_end():
    found = result(outcome(sent=1.0), outcome(sent=3.0, ended=7.0)).as_dict()
    assert found["wall_s"] == 9
    assert found["throughput_per_s"]["answer_tokens"] == pytest.approx(10 / 9)
    assert found["tokens"] == {"prompt": 20, "answer": 10}


def test_the_time_of_a_token_counts_those_without_text():
    assert outcome().token_s == (3.0 - 1.0) / 4
    assert outcome(tokens=1).token_s is None
    assert outcome(pieces=()).token_s is None


def test_failed_requests_are_counted_by_kind_and_not_timed():
    found = result(outcome(), outcome(error="timeout"), outcome(error="timeout"), outcome(error="status 500"))
    assert list(found.errors) == ["timeout", "status 500"]
    assert found.errors["timeout"] == (2, "why")
    data = found.as_dict()
    assert (data["requests"], data["answered"]) == (4, 1)
    assert data["latency_ms"]["end_to_end"]["n"] == 1
    json.dumps(data)


# the plot


@pytest.mark.parametrize("outcomes", [(), (outcome(),), (outcome(), outcome(sent=1.0, error="timeout"))])
def test_a_plot_is_written_whatever_was_measured(tmp_path, outcomes):
    pytest.importorskip("matplotlib")
    save_plot(result(*outcomes), tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").size == (1320, 480)


def test_a_plot_that_cannot_be_is_refused_before_the_test(tmp_path, monkeypatch):
    with pytest.raises(LoadError, match=r"\.png"):
        check_plot(tmp_path / "p.txt")
    with pytest.raises(LoadError, match="no such folder"):
        check_plot(tmp_path / "none" / "p.png")
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(LoadError, match=r"pip install 'qvl\[plot\]'"):
        check_plot(tmp_path / "p.png")


def test_an_interrupted_test_ends_though_a_client_loses_cancellations():
    class Stubborn:
        @asynccontextmanager
        async def stream(self, *_, **__):
            for _ in range(2):
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
            await asyncio.sleep(60)
            yield

    async def interrupted():
        arrivals = Arrivals(concurrency=2)
        test = asyncio.ensure_future(put_under_load(Stubborn(), "/", [b"{}"] * 3, arrivals, timeout_s=600))
        await asyncio.sleep(0.05)
        test.cancel()
        return await asyncio.wait_for(test, 20)

    assert asyncio.run(interrupted()) == ([], True)


class StubbornClient:
    """Its first request loses the first cancellation, as a client that is opening a connection may."""

    def __init__(self) -> None:
        self.lost = False

    @asynccontextmanager
    async def stream(self, *_, **__):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if self.lost:
                raise
            self.lost = True
            await asyncio.sleep(3600)
        yield None


def test_an_interrupted_test_ends_even_when_a_request_loses_its_cancellation():
    async def interrupted_one() -> tuple[list[Outcome], bool]:
        client = StubbornClient()
        task = asyncio.ensure_future(
            put_under_load(client, "/", [b"{}"], Arrivals(concurrency=1), timeout_s=3600)
        )
        await asyncio.sleep(0.05)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=20)
        task.cancel()
        assert done
        assert client.lost
        return task.result()

    assert asyncio.run(interrupted_one()) == ([], True)
