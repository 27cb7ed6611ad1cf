"""A large picture stalls nobody: the tower runs beside the steps, prompts in chunks, and the tokens are the same."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qvl
from qvl.backends.answer import conversation
from qvl.engine.encoder import Abandoned, Encoder, before_each_block
from qvl.engine.engine import Engine, EngineOptions, Event
from qvl.engine.loop import EngineLoop
from qvl.engine.pace import FEWEST_TOKENS, Pace
from qvl.inputs.sampling import SamplingParams

GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)


@pytest.fixture
def model(tiny_checkpoint):
    return qvl.load(tiny_checkpoint, kv_bytes=1 << 20, block_size=4, max_num_seqs=8)


def with_options(model, **options) -> Engine:
    return Engine(model.model, model.processor.tokenizer, model.memory, options=EngineOptions(**options))


def picture(seed: int, height: int = 84, width: int = 112) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def asking(model, words: str, *pictures: np.ndarray):
    return model.processor(conversation(list(pictures), words))


class Gate:
    """Stands before each block of the tower: counts who comes, and lets through when it is open."""

    def __init__(self, model):
        self.blocks = 0
        self.reached = threading.Event()
        self.open = threading.Event()
        for block in model.model.visual.blocks:
            block.register_forward_pre_hook(self._pass)

    def _pass(self, *_):
        self.blocks += 1
        self.reached.set()
        assert self.open.wait(20)


@pytest.fixture
def gate(model):
    gate = Gate(model)
    yield gate
    gate.open.set()


def tokens(events: list[Event], request_id: int) -> list[int]:
    return [token for event in events if event.request_id == request_id for token in event.token_ids]


def ends(events: list[Event]) -> dict[int, str]:
    found = [(event.request_id, event.finish_reason) for event in events if event.finish_reason]
    assert len(dict(found)) == len(found), "a request ended twice"
    return dict(found)


def drain(engine: Engine, events: list[Event] | None = None, steps: int = 5000) -> list[Event]:
    events = [] if events is None else events
    while engine.has_work and steps:
        events += engine.step()
        engine.check()
        steps -= 1
    return events


def alone(model, inputs, params=GREEDY) -> list[int]:
    engine = with_options(model, interleave=False)
    request = engine.submit(inputs, params)
    return tokens(drain(engine), request)


def test_a_stream_goes_on_while_a_picture_is_in_the_tower(model, gate):
    engine = with_options(model)
    stream = engine.submit(asking(model, "the system"), SamplingParams(max_new_tokens=200, ignore_eos=True))
    events = engine.step()
    late = engine.submit(asking(model, "What?", picture(1)), GREEDY)
    for _ in range(50):
        events += engine.step()
    assert gate.reached.wait(20)
    assert gate.blocks == 1  # the tower stands before its first block
    assert len(tokens(events, stream)) == 51
    assert tokens(events, late) == []
    gate.open.set()
    drain(engine, events)
    assert ends(events) == {stream: "length", late: "length"}


def test_tokens_are_the_same_with_and_without_interleaving(model):
    prompts = [
        asking(model, "the system in the inn"),
        asking(model, "What is it?", picture(1)),
        asking(model, "Which of the two?", picture(2, 140, 84), picture(1)),
        asking(model, "the same again?", picture(2, 140, 84)),
    ]
    wanted = [alone(model, inputs) for inputs in prompts]
    assert len({tuple(answer) for answer in wanted}) == len(wanted)
    for options in ({}, {"max_num_batched_tokens": 7}, {"max_num_seqs": 2}, {"prefix_caching": False}):
        engine = with_options(model, **options)
        events: list[Event] = []
        ids = []
        for inputs in prompts:  # each comes while those before it answer
            ids.append(engine.submit(inputs, GREEDY))
            for _ in range(3):
                events += engine.step()
        drain(engine, events)
        assert [tokens(events, i) for i in ids] == wanted, options


def test_cancelling_during_the_encoding_frees_blocks_at_once_and_the_rest_with_the_next_block(model, gate):
    engine = with_options(model)
    request = engine.submit(asking(model, "What?", picture(1)), GREEDY)
    engine.step()
    assert gate.reached.wait(20)
    assert engine.num_used_blocks > 0
    engine.cancel(request)
    assert engine.num_used_blocks == 0
    engine.check()
    gate.open.set()
    events = drain(engine)
    assert ends(events) == {request: "cancelled"}
    assert gate.blocks == 1  # of the two blocks that the tower has
    assert (engine._features.num_bytes, engine._features.num_pinned_bytes) == (0, 0)
    assert engine.stats.num_encoded_visuals == 0
    again = engine.submit(asking(model, "What?", picture(1)), GREEDY)
    assert tokens(drain(engine), again) == alone(model, asking(model, "What?", picture(1)))


def test_cancelling_one_of_two_who_wait_for_a_picture_leaves_it_to_the_other(model, gate):
    engine = with_options(model)
    first, second = (engine.submit(asking(model, words, picture(1)), GREEDY) for words in ("a?", "b?"))
    engine.step()
    assert gate.reached.wait(20)
    engine.cancel(first)
    gate.open.set()
    events = drain(engine)
    assert ends(events) == {first: "cancelled", second: "length"}
    assert engine.stats.num_encoded_visuals == 1
    assert tokens(events, second) == alone(model, asking(model, "b?", picture(1)))


def test_a_tower_that_fails_ends_those_who_wait_for_it_and_nobody_else(model, monkeypatch):
    engine = with_options(model)
    stream = engine.submit(asking(model, "the system"), GREEDY)
    events = engine.step()

    def broken(*_):
        raise RuntimeError("out of memory\nmore lines")

    with monkeypatch.context() as patch:
        patch.setattr(model.model, "encode_media", broken)
        asked = [engine.submit(asking(model, words, picture(1)), GREEDY) for words in ("a?", "b?")]
        drain(engine, events)
    assert ends(events) == {stream: "length", asked[0]: "error", asked[1]: "error"}
    assert {e.error for e in events if e.finish_reason == "error"} == {"out of memory"}
    assert engine.num_used_blocks == 0
    assert engine._features.num_bytes == 0
    fine = engine.submit(asking(model, "a?", picture(1)), GREEDY)
    assert ends(drain(engine)) == {fine: "length"}


def test_a_request_that_comes_while_a_picture_is_encoded_alone_is_answered_first(model, gate):
    loop = EngineLoop(with_options(model))
    loop.start()
    order: list[str] = []
    done = threading.Event()

    def deliver(name):
        def take(event):
            if getattr(event, "finish_reason", None):
                order.append(name)
                if len(order) == 2:
                    done.set()
                gate.open.set()

        return take

    loop.submit(asking(model, "What?", picture(1)), GREEDY, deliver("picture"))
    assert gate.reached.wait(20)
    loop.submit(asking(model, "the"), GREEDY, deliver("text"))
    assert done.wait(20)
    loop.stop()
    assert order == ["text", "picture"]


def test_stopping_the_loop_during_the_encoding_does_not_wait_for_the_whole_tower(model, gate):
    loop = EngineLoop(with_options(model))
    loop.start()
    said: list[Event] = []
    loop.submit(asking(model, "What?", picture(1)), GREEDY, said.append)
    assert gate.reached.wait(20)
    threading.Timer(0.05, gate.open.set).start()
    loop.stop()
    assert [e.finish_reason for e in said if e.finish_reason] == ["cancelled"]
    assert gate.blocks == 1


def test_without_interleaving_the_tower_runs_within_the_step(model):
    engine = with_options(model, interleave=False)
    seen = []
    model.model.visual.blocks[0].register_forward_pre_hook(lambda *_: seen.append(threading.get_ident()))
    engine.submit(asking(model, "What?", picture(1)), GREEDY)
    drain(engine)
    assert seen == [threading.get_ident()]


def test_interleaving_runs_the_tower_on_a_thread_of_its_own(model):
    seen = []
    model.model.visual.blocks[0].register_forward_pre_hook(lambda *_: seen.append(threading.get_ident()))
    engine = with_options(model)
    engine.submit(asking(model, "What?", picture(1)), GREEDY)
    drain(engine)
    assert len(seen) == 1
    assert seen != [threading.get_ident()]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_step_beside_the_tower_takes_its_half_of_the_cores_and_gives_them_back(model, gate, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        encoder = Encoder(model.model)
        with encoder.sharing():
            assert torch.get_num_threads() == threads  # nothing to share with
        encoder.start(asking(model, "What?", picture(1)).media)
        assert gate.reached.wait(20)
        with encoder.sharing():
            assert torch.get_num_threads() == max(1, threads - threads // 2)
        assert torch.get_num_threads() == threads
        gate.open.set()
        encoder.result()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_an_abandoned_job_says_so(model, gate):
    encoder = Encoder(model.model)
    encoder.start(asking(model, "What?", picture(1)).media)
    assert gate.reached.wait(20)
    encoder.abandon()
    gate.open.set()
    with pytest.raises(Abandoned):
        encoder.result()
    assert not encoder.busy


def test_features_of_packed_media_are_theirs_alone(model):
    media = asking(model, "Which?", picture(1), picture(2, 56, 84)).media
    encoder = Encoder(model.model)
    encoder.start(media)
    together = encoder.result()
    for span, features in zip(media, together):
        encoder.start([span])
        (single,) = encoder.result()
        torch.testing.assert_close(features, single)
        assert features.untyped_storage().nbytes() == features.numel() * features.element_size()


def test_only_the_thread_that_asked_is_called_before_a_block(model):
    calls, tower = [], model.model.visual
    grid = asking(model, "What?", picture(1)).media[0]
    patches = torch.from_numpy(grid.patches)
    with before_each_block(tower, lambda: calls.append(1)):
        tower(patches, [grid.grid])
        other = threading.Thread(target=tower, args=(patches, [grid.grid]))
        other.start()
        other.join()
    assert len(calls) == len(tower.blocks)
    tower(patches, [grid.grid])
    assert len(calls) == len(tower.blocks)


def test_random_arrivals_and_cancels_with_a_slow_tower_end_each_once_and_lose_nothing(model):
    rng = np.random.default_rng(0)
    for block in model.model.visual.blocks:
        block.register_forward_pre_hook(lambda *_: time.sleep(0.002))
    engine = with_options(model, max_num_seqs=4, max_num_batched_tokens=24, max_encoded_tokens=20)
    events: list[Event] = []
    asked = []
    for _ in range(150):
        action = rng.random()
        if action < 0.3:
            pictures = [picture(int(rng.integers(8))) for _ in range(rng.integers(3))]
            params = SamplingParams(max_new_tokens=int(rng.integers(1, 20)), ignore_eos=True)
            asked.append(engine.submit(asking(model, "Which?", *pictures), params))
        elif action < 0.4 and asked:
            engine.cancel(asked[rng.integers(len(asked))])
        else:
            events += engine.step()
            engine.check()
        assert engine._pool.num_free + engine._pool.num_used == engine._pool.num_blocks
    drain(engine, events)
    assert sorted(ends(events)) == asked
    assert engine.num_used_blocks == 0
    assert engine._features.num_pinned_bytes == 0


# pace


def test_before_a_prompt_was_timed_a_chunk_is_small():
    assert Pace(2048).prefill_tokens == FEWEST_TOKENS
    assert Pace(5).prefill_tokens == 5


def test_a_chunk_takes_about_as_long_as_the_answers_own_tokens():
    pace = Pace(2048, floor_s=0.03)
    pace.observe(0, 400, 8.0)  # 20 ms a prompt token
    pace.observe(3, 0, 1.0)
    assert pace.prefill_tokens == 50
    pace.observe(3, 50, 2.0)
    assert pace.prefill_tokens == 50  # as expected: nothing to correct


def test_a_fast_machine_takes_whole_steps():
    pace = Pace(2048)
    pace.observe(0, 2048, 0.02)
    pace.observe(8, 0, 0.005)
    assert pace.prefill_tokens == 2048


def test_a_short_wait_is_allowed_however_fast_tokens_come():
    pace = Pace(2048, floor_s=0.03)
    pace.observe(0, 1000, 1.0)
    pace.observe(1, 0, 0.001)
    assert pace.prefill_tokens == 30


def test_a_prefix_hit_of_a_few_tokens_teaches_nothing_about_prompts():
    pace = Pace(2048)
    pace.observe(0, 1000, 1.0)
    known = pace.token_s
    pace.observe(0, 3, 0.5)
    assert pace.token_s == known


@given(
    st.lists(st.tuples(st.integers(0, 16), st.integers(0, 2048), st.floats(0, 100)), max_size=30),
    st.integers(1, 4096),
)
def test_a_chunk_is_never_empty_and_never_larger_than_a_step(steps, most):
    pace = Pace(most)
    for decoding, prefill, seconds in steps:
        if decoding or prefill:
            pace.observe(decoding, prefill, seconds)
        assert min(FEWEST_TOKENS, most) <= pace.prefill_tokens <= most
