"""`await model.aask(...)`, `async for`: the same answers as without, for every backend; a cancelled wait cancels."""

import asyncio

import pytest

import qvl
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
