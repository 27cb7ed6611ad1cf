"""Scheduling without a model: a simulated run appends tokens as a model would."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.engine.block_pool import BlockPool
from qvl.engine.feature_cache import FeatureCache
from qvl.engine.prefix import Visual
from qvl.engine.scheduler import Scheduler, Sequence, Step


class Run:
    """A scheduler whose model is a counter: the next token of a sequence is its length.

    encode_steps: how many steps a job of the encoder takes; a callable is asked anew for each.
    """

    def __init__(self, num_blocks=64, block_size=4, feature_budget=10_000, encode_steps=0, **options):
        settings = dict(
            max_num_batched_tokens=32, max_num_seqs=8, max_encoded_tokens=64, feature_bytes_per_token=1
        )
        self.pool = BlockPool(num_blocks, block_size)
        self.features = FeatureCache(feature_budget)
        self.scheduler = Scheduler(self.pool, self.features, **(settings | options))
        self.prefill_tokens: int | None = None
        self.limits: dict[int, int] = {}
        self.encoded: list[str] = []
        self.ended: list[int] = []
        self.encode_steps = encode_steps if callable(encode_steps) else lambda: encode_steps
        self.job: list[str] = []
        self.job_steps_left = 0

    def add(self, prompt, max_new=4, visuals=()) -> Sequence:
        tokens = list(range(prompt)) if isinstance(prompt, int) else list(prompt)
        sequence = Sequence(len(self.limits), tokens, len(tokens), tuple(visuals))
        self.limits[sequence.request_id] = len(tokens) + max_new
        self.scheduler.add(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.ended.append(sequence.request_id)

    def step(self) -> Step:
        self._encode_on()
        step = self.scheduler.schedule(self.prefill_tokens)
        if step.encode:
            assert not self.job, "a job was begun while another ran"
            self.job = [visual.features for _, visual in step.encode]
            self.job_steps_left = self.encode_steps()
        for chunk in step.chunks:
            for visual in chunk.sequence.visuals:
                if visual.start < chunk.end and chunk.start < visual.end:
                    self.features.value(visual.features)  # asserts that it was encoded
        self.scheduler.advance(step)
        for chunk in step.chunks:
            if chunk.samples:
                chunk.sequence.append(len(chunk.sequence.tokens))
                if len(chunk.sequence.tokens) >= self.limits[chunk.sequence.request_id]:
                    self.scheduler.remove(chunk.sequence)
                    self.ended.append(chunk.sequence.request_id)
        self.scheduler.check()
        return step

    def _encode_on(self) -> None:
        if not self.job:
            return
        if self.job_steps_left > 0:
            self.job_steps_left -= 1
            return
        for name in self.job:
            self.encoded.append(name)
            self.features.store(name, object())
        self.job = []
        self.scheduler.encoded()

    def drain(self) -> None:
        """Lets a job end that outlived those who asked for it."""
        while self.job:
            self._encode_on()
        self.scheduler.schedule()

    def finish(self) -> list[Step]:
        steps = []
        while self.scheduler.has_work:
            steps.append(self.step())
            assert len(steps) < 5000
        return steps


def test_a_prompt_longer_than_a_step_is_computed_in_chunks_and_samples_once():
    run = Run(max_num_batched_tokens=10)
    run.add(25, max_new=1)
    steps = run.finish()
    assert [chunk.count for step in steps for chunk in step.chunks] == [10, 10, 5]
    assert [chunk.samples for step in steps for chunk in step.chunks] == [False, False, True]


def test_a_step_never_exceeds_its_token_budget():
    run = Run(max_num_batched_tokens=7)
    for length in (3, 20, 5, 11):
        run.add(length)
    assert all(0 < step.num_tokens <= 7 for step in run.finish())


def test_running_answers_get_their_token_while_a_long_prompt_prefills():
    run = Run(max_num_batched_tokens=8)
    long_one = run.add(60, max_new=1)
    young = run.add([100, 101, 102], max_new=6)
    while young.num_generated == 0:  # the older prompt goes first
        run.step()
    later = run.add(range(200, 260), max_new=1)
    before = young.num_generated
    for _ in range(3):
        run.step()
    assert young.num_generated == before + 3
    assert long_one.request_id in run.ended
    assert 0 < later.num_computed < 60


def test_requests_are_admitted_in_order_of_arrival():
    run = Run(max_num_seqs=2)
    sequences = [run.add(4, max_new=2) for _ in range(5)]
    run.finish()
    assert run.ended == [sequence.request_id for sequence in sequences]


def test_a_big_request_is_not_overtaken_by_small_ones_forever():
    run = Run(num_blocks=8)
    run.add(16, max_new=4)
    big = run.add([100 + i for i in range(24)], max_new=4)
    for i in range(10):
        run.add([500 + i, 501 + i, 502 + i], max_new=4)
    run.finish()
    assert run.ended.index(big.request_id) == 1


def test_pressure_preempts_the_youngest_and_everybody_still_finishes():
    run = Run(num_blocks=10, prefix_caching=False)
    sequences = [run.add(8, max_new=20) for _ in range(4)]
    run.finish()
    assert sorted(run.ended) == [0, 1, 2, 3]
    assert sequences[0].num_preemptions == 0
    assert sum(sequence.num_preemptions for sequence in sequences) > 0
    assert all(len(sequence.tokens) == 28 for sequence in sequences)
    assert run.pool.num_used == 0


def test_a_preempted_sequence_finds_its_own_blocks_again():
    run = Run(num_blocks=12, max_num_batched_tokens=64)
    first = run.add(list(range(16)), max_new=24)
    second = run.add(list(range(100, 116)), max_new=12)
    recomputed = []
    while run.scheduler.has_work:
        before = second.num_preemptions
        step = run.step()
        if second.num_preemptions == before and before:
            recomputed += [
                chunk.count for chunk in step.chunks if chunk.sequence is second and chunk.count > 1
            ]
    assert second.num_preemptions >= 1
    assert first.num_preemptions == 0


def test_a_known_prompt_is_computed_only_from_its_last_block_on():
    run = Run()
    run.add(19, max_new=1)
    run.finish()
    again = run.add(19, max_new=1)
    (step,) = run.finish()
    assert again.num_cached_tokens == 16
    assert step.num_tokens == 3


def test_the_last_token_is_computed_even_when_all_blocks_are_known():
    run = Run()
    run.add(16, max_new=1)
    run.finish()
    again = run.add(16, max_new=1)
    (step,) = run.finish()
    assert again.num_cached_tokens == 12
    assert step.chunks[0].samples


def test_an_answer_is_known_to_the_next_turn_of_the_conversation():
    run = Run()
    first = run.add(8, max_new=9)
    run.finish()
    turn = run.add([*first.tokens, 7, 7, 7], max_new=1)
    run.finish()
    assert turn.num_cached_tokens == 16  # the 17th token was sampled, and its KV never written


def test_without_prefix_caching_nothing_is_shared():
    run = Run(prefix_caching=False)
    run.add(16, max_new=1)
    run.finish()
    again = run.add(16, max_new=1)
    run.finish()
    assert again.num_cached_tokens == 0
    assert run.pool.num_cached == 0


def picture(start, name="p", num_tokens=8) -> Visual:
    return Visual(start, num_tokens, name, name)


def test_the_same_picture_twice_is_encoded_once():
    run = Run(max_num_batched_tokens=64)
    run.add([1, 2] + [9] * 8 + [3], visuals=[picture(2)])
    run.add([1, 2] + [9] * 8 + [4], visuals=[picture(2)])  # beside the first, in the same step
    run.finish()
    run.add([5] + [9] * 8 + [9] * 8 + [4], visuals=[picture(1), picture(9)])
    run.finish()
    assert run.encoded == ["p"]


def test_a_chunk_that_cuts_through_a_picture_keeps_its_features_until_the_end():
    run = Run(max_num_batched_tokens=5, feature_budget=0)
    run.add([1] + [9] * 8 + [2], visuals=[picture(1)], max_new=1)
    run.finish()
    assert run.encoded == ["p"]
    assert len(run.features) == 0  # a budget of nothing keeps nothing


def test_pictures_beyond_the_encoding_budget_wait_for_the_next_step():
    run = Run(max_num_batched_tokens=100, max_encoded_tokens=8)
    run.add([1] + [9] * 16 + [2], visuals=[picture(1, "a"), picture(9, "b")], max_new=1)
    steps = run.finish()
    assert [[visual.features for _, visual in step.encode] for step in steps] == [["a"], [], ["b"], []]
    assert [step.num_tokens for step in steps] == [0, 9, 0, 9]


def test_a_picture_larger_than_every_budget_is_still_served():
    run = Run(max_num_batched_tokens=16, max_encoded_tokens=4, feature_budget=4)
    run.add([1] + [9] * 40 + [2], visuals=[picture(1, "big", 40)], max_new=1)
    run.finish()
    assert run.ended == [0]
    assert run.encoded == ["big"]


def test_a_picture_between_two_sights_of_another_does_not_lock_up():
    run = Run(max_num_batched_tokens=64, feature_budget=8)
    visuals = [picture(0, "a"), picture(8, "b"), picture(16, "a")]
    run.add([9] * 24 + [1], visuals=visuals, max_new=1)
    run.finish()
    assert run.ended == [0]


def test_cancelling_frees_blocks_and_features_at_once():
    run = Run(max_num_batched_tokens=6)
    sequence = run.add([1] + [9] * 8 + [2] * 20, visuals=[picture(1)])
    run.step()
    run.step()
    assert run.pool.num_used > 0
    assert run.features.num_pinned_bytes > 0
    run.cancel(sequence)
    assert run.pool.num_used == 0
    run.drain()
    assert run.features.num_pinned_bytes == 0
    assert not run.scheduler.has_work


def test_answers_go_on_while_a_picture_is_encoded():
    run = Run(encode_steps=6)
    young = run.add([100, 101, 102], max_new=20)
    run.step()
    late = run.add([1, 2] + [9] * 8 + [3], visuals=[picture(2)], max_new=1)
    for _ in range(6):
        before = young.num_generated
        run.step()
        assert young.num_generated == before + 1
        assert late.num_computed == 0
    run.finish()
    assert sorted(run.ended) == [0, 1]


def test_text_before_a_picture_waits_for_it_and_runs_in_one_chunk_with_it():
    run = Run(encode_steps=3)
    run.add([1, 2] + [9] * 8 + [3], visuals=[picture(2)], max_new=1)
    assert [step.num_tokens for step in run.finish()] == [0, 0, 0, 0, 11]


def test_text_longer_than_a_step_does_not_wait_for_the_picture_behind_it():
    run = Run(encode_steps=9, max_num_batched_tokens=4)
    run.add(list(range(100, 109)) + [9] * 8 + [3], visuals=[picture(9)], max_new=1)
    assert [run.step().num_tokens for _ in range(3)] == [4, 4, 0]


def test_both_pictures_of_a_prompt_are_encoded_in_one_job():
    run = Run(max_num_batched_tokens=64)
    run.add([1] + [9] * 16 + [2], visuals=[picture(1, "a"), picture(9, "b")], max_new=1)
    steps = run.finish()
    assert [[visual.features for _, visual in step.encode] for step in steps] == [["a", "b"], []]


def test_while_anybody_decodes_a_prompt_takes_no_more_tokens_than_it_may():
    run = Run(max_num_batched_tokens=32)
    run.prefill_tokens = 5
    run.add(40, max_new=8)
    assert [run.step().num_tokens for _ in range(2)] == [32, 8]  # nobody to wait for it
    run.add(range(100, 123), max_new=1)
    assert [step.num_tokens for step in run.finish()[:5]] == [6, 6, 6, 6, 4]


def test_a_younger_picture_does_not_take_the_room_an_older_one_waits_for():
    run = Run(max_num_batched_tokens=8, feature_budget=12, encode_steps=1)
    run.add([9] * 10 + [1], visuals=[picture(0, "a", 10)], max_new=1)
    run.step()
    run.add([9] * 11 + [2], visuals=[picture(0, "b", 11)], max_new=1)
    run.add([9] * 2 + [3], visuals=[picture(0, "c", 2)], max_new=1)
    run.finish()
    assert run.encoded == ["a", "b", "c"]


def test_a_job_nobody_waits_for_any_more_leaves_nothing_behind():
    run = Run(encode_steps=4, feature_budget=0)
    sequence = run.add([1] + [9] * 8 + [2], visuals=[picture(1)])
    run.step()
    run.cancel(sequence)
    assert run.pool.num_used == 0
    assert run.features.num_pinned_bytes > 0  # the tower has it still
    other = run.add([5, 6, 7], max_new=9)
    run.finish()
    assert run.ended == [sequence.request_id, other.request_id]
    assert (run.features.num_bytes, run.features.num_pinned_bytes) == (0, 0)


@pytest.mark.parametrize("most_encode_steps", [0, 3])
def test_ten_thousand_random_submissions_cancels_and_finishes_lose_nothing(most_encode_steps):
    rng = random.Random(0)
    run = Run(
        num_blocks=40,
        feature_budget=30,
        max_num_seqs=5,
        max_num_batched_tokens=24,
        max_encoded_tokens=12,
        encode_steps=lambda: rng.randint(0, most_encode_steps),
    )
    alive: list[Sequence] = []
    accepted = 0
    for _ in range(10_000):
        action = rng.random()
        alive = [sequence for sequence in alive if sequence.request_id not in run.ended[-64:]]
        if action < 0.3 and len(alive) < 20:
            head = rng.choice([0, 100, 200])
            length = rng.randrange(1, 60)
            visuals, tokens = [], [head + i for i in range(length)]
            if rng.random() < 0.5:
                size = rng.randrange(1, 20)
                at = rng.randrange(length + 1)
                tokens[at:at] = [9] * size
                visuals = [picture(at, f"v{rng.randrange(6)}:{size}", size)]
            alive.append(run.add(tokens, max_new=rng.randrange(1, 30), visuals=visuals))
            accepted += 1
        elif action < 0.4 and alive:
            victim = alive.pop(rng.randrange(len(alive)))
            run.cancel(victim)
        elif run.scheduler.has_work:
            run.prefill_tokens = rng.choice([None, 1, 7])
            run.step()
        assert run.pool.num_free + run.pool.num_used == run.pool.num_blocks
    run.finish()
    assert accepted > 1000
    assert sorted(run.ended) == list(range(accepted))  # each exactly once
    assert run.pool.num_used == 0
    run.drain()
    assert run.features.num_pinned_bytes == 0


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(0, 12), st.integers(0, 3)),
        min_size=1,
        max_size=12,
    ),
    budget=st.integers(1, 40),
    seqs=st.integers(1, 5),
    feature_budget=st.integers(0, 30),
    cancels=st.sets(st.integers(0, 11), max_size=4),
    blocks=st.integers(19, 40),
    encode_steps=st.integers(0, 5),
    prefill_tokens=st.none() | st.integers(1, 20),
)
def test_any_mix_of_requests_ends_each_exactly_once(
    requests, budget, seqs, feature_budget, cancels, blocks, encode_steps, prefill_tokens
):
    run = Run(
        encode_steps=encode_steps,
        num_blocks=blocks,
        max_num_batched_tokens=budget,
        max_num_seqs=seqs,
        feature_budget=feature_budget,
        max_encoded_tokens=10,
    )
    run.prefill_tokens = prefill_tokens
    sequences = []
    for prompt, max_new, visual, name in requests:
        tokens = list(range(prompt)) + [9] * visual + [1]
        visuals = [picture(prompt, f"v{name}:{visual}", visual)] if visual else []
        sequences.append(run.add(tokens, max_new, visuals))
        run.step()
    for index in cancels:
        if index < len(sequences) and index not in run.ended:
            run.cancel(sequences[index])
    run.finish()
    assert sorted(run.ended) == list(range(len(requests)))
    assert run.pool.num_used == 0


# feature cache


def test_the_feature_cache_evicts_the_least_recently_read():
    cache = FeatureCache(20)
    for name in ("a", "b"):
        assert cache.reserve(name, 10)
        cache.store(name, name.upper())
        cache.unpin(name)
    cache.pin("a")
    cache.unpin("a")
    assert cache.reserve("c", 10)
    assert cache.holds("a")
    assert not cache.holds("b")
    cache.check()


def test_the_feature_cache_stays_within_its_budget_while_anything_is_pinned():
    cache = FeatureCache(20)
    assert cache.reserve("a", 15)
    assert not cache.reserve("b", 10)
    cache.store("a", 1)
    cache.unpin("a")
    assert cache.reserve("b", 10)
    assert cache.num_bytes == 10


def test_features_read_before_they_are_encoded_are_an_error_not_a_guess():
    cache = FeatureCache(20)
    cache.reserve("a", 1)
    with pytest.raises(AssertionError, match="read before"):
        cache.value("a")


def test_a_promise_nobody_waits_for_is_dropped():
    cache = FeatureCache(20)
    cache.reserve("a", 1)
    cache.unpin("a")
    assert not cache.holds("a")
    cache.check()
