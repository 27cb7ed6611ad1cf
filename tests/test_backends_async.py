"""`await model.aask(...)`, `async for`: the same answers as without, for every backend; a cancelled wait cancels."""

import asyncio
import gc
import time

import pytest

import qvl
from openai_server import delta, hangs_up, openai_server, refuses, says, streams, usage
from qvl.backends.fake import FakeModel
from qvl.errors import BackendError, PromptError


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return qvl.load(tiny_checkpoint, max_num_seqs=4)


def until_idle(model):
    async def wait():
        for _ in range(500):
            if not model.engine.num_running and not model.engine.num_waiting:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("still running")

    return wait()


SETTINGS = {"max_new_tokens": 8, "ignore_eos": True}


def test_our_engine_gives_the_same_answer_as_without(model):
    assert asyncio.run(model.aask([], "What?", **SETTINGS)).text == model.ask([], "What?", **SETTINGS).text


def test_pieces_come_one_after_the_other_and_then_the_answer(model):
    async def ask():
        stream = model.astream([], "What?", **SETTINGS)
        return [piece async for piece in stream], stream.answer

    pieces, answer = asyncio.run(ask())
    assert "".join(pieces) == answer.text == model.ask([], "What?", **SETTINGS).text


def test_many_coroutines_share_steps(model):
    async def ask():
        before = model.engine.stats.num_steps
        await asyncio.gather(*(model.aask([], f"What {i}?", **SETTINGS) for i in range(4)))
        return model.engine.stats.num_steps - before

    assert asyncio.run(ask()) < 4 * 8


def test_ask_many_keeps_the_order_of_the_questions(model):
    questions = [([], f"What {i}?") for i in range(9)]
    texts = [a.text for a in asyncio.run(model.aask_many(questions, **SETTINGS))]
    assert texts == [a.text for a in model.ask_many(questions, **SETTINGS)]


def test_a_cancelled_coroutine_cancels_its_request(model):
    async def ask():
        task = asyncio.create_task(model.aask([], "What?", max_new_tokens=1000, ignore_eos=True))
        while not model.engine.num_running:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert model.engine.num_running == 0

    asyncio.run(ask())
    model.engine.check()


def test_leaving_a_stream_early_cancels_it(model):
    async def ask():
        async with model.astream([], "What?", max_new_tokens=1000, ignore_eos=True) as stream:
            async for _ in stream:
                break
        assert model.engine.num_running == 0
        with pytest.raises(PromptError, match="closed before its end"):
            await stream.finish()

    asyncio.run(ask())


def test_the_first_error_of_many_is_raised_and_the_rest_cancelled(model):
    async def ask():
        questions = [([], "What?"), (["nowhere.png"], "What?"), ([], "What else?")]
        with pytest.raises(qvl.errors.MediaError, match="nowhere"):
            await model.aask_many(questions, max_new_tokens=1000, ignore_eos=True)
        await until_idle(model)

    asyncio.run(ask())


def test_the_event_loop_goes_on_while_a_step_runs(model):
    async def ask():
        task, turns = asyncio.create_task(model.aask([], "What?", **SETTINGS)), 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(ask()) > 8


def test_the_fake_answers_too():
    model = qvl.load(FakeModel(["one\ntwo\n", "three", BackendError("out")]))

    async def ask():
        assert [piece async for piece in model.astream([], "?")] == ["one\n", "two\n"]
        assert (await model.aask([], "?")).text == "three"
        with pytest.raises(BackendError, match="out"):
            await model.aask([], "?")

    asyncio.run(ask())


# over HTTP

NAME = "Qwen/Qwen2.5-VL-7B-Instruct"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with openai_server() as running:
        yield running


def endless(handler, seen):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(2000):
        handler.wfile.write(b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n')
        handler.wfile.flush()
        time.sleep(0.002)


def silent(handler, seen):
    """Says nothing until the client is gone."""
    while handler.connection.recv(1):
        pass
    raise ConnectionResetError


def test_a_server_gives_the_same_answer_whole_and_in_pieces(server):
    server.play(says("hello"), streams(delta("hel"), delta("lo", "stop"), {"choices": [], "usage": usage()}))

    async def ask():
        async with qvl.connect(server.url, NAME) as model:
            whole = await model.aask([], "?", temperature=0)
            stream = model.astream([], "?", temperature=0)
            return whole, [piece async for piece in stream], stream.answer

    whole, pieces, answer = asyncio.run(ask())
    assert whole.text == answer.text == "hello"
    assert pieces == ["hel", "lo"]
    assert [seen.body.get("stream") for seen in server.seen] == [None, True]
    assert whole.prompt_tokens == answer.prompt_tokens == 50


def test_an_overloaded_server_is_asked_again(server):
    server.play(refuses(503, "busy"), hangs_up, says("ok"))
    model = qvl.connect(server.url, NAME)
    model.wire.draw = lambda: -0.99  # a wait of next to nothing
    assert asyncio.run(model.aask([], "?")).text == "ok"
    assert len(server.seen) == 3


def test_a_refusal_says_what_the_server_said(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.play(refuses(401, "Incorrect API key: sk-secret"))
    with pytest.raises(BackendError, match="check the key") as caught:
        asyncio.run(qvl.connect(server.url, NAME).aask([], "?"))
    assert "sk-secret" not in str(caught.value)
    assert server.seen[0].headers["authorization"] == "Bearer sk-secret"


def test_no_more_are_under_way_than_were_allowed(server):
    def slow(handler, seen):
        time.sleep(0.02)
        says("ok")(handler, seen)

    server.play(slow)
    model = qvl.connect(server.url, NAME, max_concurrency=3)
    answers = asyncio.run(model.aask_many(([], f"q{i}") for i in range(9)))
    assert len(answers) == 9
    assert server.most_at_once <= 3
    assert sorted(seen.body["messages"][-1]["content"][0]["text"] for seen in server.seen) == [
        f"q{i}" for i in range(9)
    ]


@pytest.mark.parametrize("turn", [endless, silent])
def test_a_cancelled_coroutine_hangs_up_and_frees_its_slot(server, turn):
    server.play(turn, says("after"))

    async def ask():
        model = qvl.connect(server.url, NAME, max_concurrency=1)
        task = asyncio.create_task(model.astream([], "?").finish())
        while not server.seen:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await asyncio.wait_for(model.aask([], "?"), 5)).text == "after"

    asyncio.run(ask())
    assert server.hung_up.wait(5)


def test_a_stream_that_is_dropped_hangs_up(server):
    server.play(endless, says("after"))

    async def ask():
        model = qvl.connect(server.url, NAME, max_concurrency=1)
        async for _ in model.astream([], "?"):
            break
        gc.collect()
        assert (await asyncio.wait_for(model.aask([], "?"), 5)).text == "after"

    asyncio.run(ask())
    assert server.hung_up.wait(5)


def test_a_model_serves_one_event_loop_after_the_other(server):
    server.play(says("ok"))
    model = qvl.connect(server.url, NAME)
    assert [asyncio.run(model.aask([], "?")).text for _ in range(3)] == ["ok"] * 3


def test_an_answer_that_breaks_off_is_told(server):
    server.play(streams(delta("hel"), cut=True))

    async def ask():
        with pytest.raises(BackendError, match="broke off after 3 characters"):
            await qvl.connect(server.url, NAME).astream([], "?").finish()

    asyncio.run(ask())
