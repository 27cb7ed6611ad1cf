"""States of linear-attention layers in the engine: whatever a request shares its steps with, its tokens are the same,
and every slot is free again when it ends. The model is a tiny random Qwen3.5, dense and mixture.
"""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen3_5_tiny as tiny_models
from qvl.backends.answer import conversation
from qvl.catalog.config import read_config
from qvl.catalog.models import config_of
from qvl.engine.block_pool import SlotPool
from qvl.engine.engine import Engine, EngineOptions
from qvl.engine.memory import plan_memory
from qvl.engine.state import StateStore
from qvl.errors import CapacityError
from qvl.inputs.processor import ModelInputs, Processor
from qvl.inputs.sampling import SamplingParams
from qvl.models.attention import CausalAttention, State
from qvl.models.base import VisionLanguageModel
from qvl.models.checkpoint import load_model
from qvl.plan.memory import kv_bytes_per_token, state_bytes
from qvl.units import GiB

NUM_TOKENS = 10
GREEDY = SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True)
BLOCK = 4


@pytest.fixture(scope="module", params=list(tiny_models.SHAPES))
def tiny(request, tmp_path_factory, tiny_checkpoint: Path) -> tuple[VisionLanguageModel, Processor]:
    folder = tiny_models.write_folder(tmp_path_factory.mktemp("hybrid"), request.param, tiny_checkpoint)
    return load_model(folder), Processor.from_pretrained(folder)


def make_engine(tiny, num_tokens: int = 2048, max_num_seqs: int = 16, **options) -> Engine:
    model, processor = tiny
    memory = plan_memory(
        model.config,
        precision="fp32",
        kv_dtype="fp32",
        available_bytes=GiB,
        block_size=BLOCK,
        kv_bytes=num_tokens * kv_bytes_per_token(model.config, "fp32"),
        max_model_len=num_tokens,
        max_num_seqs=max_num_seqs,
        feature_bytes=1 << 20,
    )
    return Engine(
        model, processor.tokenizer, memory, options=EngineOptions(max_num_seqs=max_num_seqs, **options)
    )


def picture(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def prompts(tiny) -> list[ModelInputs]:
    """Text alone, one picture, two pictures, a clip of two moments with a picture, more than a chunk of text."""
    _, processor = tiny
    frames = np.stack([picture(9, 64, 96)] * 2 + [picture(8, 64, 96)] * 2)
    clip = {"type": "video", "video": frames, "sample_fps": 2.0}
    return [
        processor(conversation(media, question))
        for media, question in (
            ([], "the system in the inn"),
            ([picture(1)], "What is the total?"),
            ([picture(2, 128, 64), picture(1)], "Which?"),
            ([clip, picture(3)], "When?"),
            ([], "the system in the inn " * 5),
        )
    ]


@pytest.fixture(scope="module")
def reference(tiny, prompts) -> list[list[int]]:
    """Greedy tokens by full forwards, one for each token, with no cache and no state kept."""
    model, processor = tiny
    answers = []
    with torch.inference_mode():
        for inputs in prompts:
            answer: list[int] = []
            features = [model.encode_media(torch.from_numpy(m.patches), [m.grid]) for m in inputs.media]
            for _ in range(NUM_TOKENS):
                ids = torch.tensor([*inputs.input_ids.tolist(), *answer])
                more = torch.arange(len(answer)) + len(inputs.input_ids) + inputs.rope_delta
                positions = torch.cat([torch.from_numpy(inputs.positions), more.expand(3, -1)], dim=1)
                hidden = model.embed(ids)
                if features:
                    hidden = model.merge_features(hidden, ids, torch.cat(features))
                hidden = model.decode(hidden, positions, CausalAttention([len(ids)]))
                answer.append(int(model.logits(hidden[-1:])[0, : len(processor.tokenizer)].argmax()))
            answers.append(answer)
    return answers


def run(engine: Engine, requests: list[ModelInputs], params: SamplingParams = GREEDY) -> list[list[int]]:
    """Tokens of requests that are submitted together."""
    tokens: dict[int, list[int]] = {engine.submit(inputs, params): [] for inputs in requests}
    while engine.has_work:
        for event in engine.step():
            assert event.finish_reason in (None, "length"), event.error
            tokens[event.request_id] += event.token_ids
        engine.check()
    return list(tokens.values())


def used_slots(engine: Engine) -> int:
    return engine._scheduler.slots.num_used


# --- the same tokens, however requests are cut, mixed and thrown out


def test_each_request_alone_equals_the_full_forward(tiny, prompts, reference):
    for inputs, wanted in zip(prompts, reference):
        assert run(make_engine(tiny), [inputs]) == [wanted]
    assert len({tuple(answer) for answer in reference}) == len(reference)


def test_a_batch_equals_its_requests_one_by_one(tiny, prompts, reference):
    assert run(make_engine(tiny), prompts) == reference


@pytest.mark.parametrize("step", [5, 17, 70])
def test_chunked_prefill_carries_the_state_from_chunk_to_chunk(tiny, prompts, reference, step):
    assert run(make_engine(tiny, max_num_batched_tokens=step), prompts) == reference


@pytest.mark.parametrize("step", [1, 2])
def test_chunks_shorter_than_the_convolutions_kernel_carry_it_too(tiny, prompts, reference, step):
    assert run(make_engine(tiny, max_num_batched_tokens=step), prompts[:2]) == reference[:2]


def test_preempted_equals_undisturbed(tiny, prompts, reference):
    engine = make_engine(tiny, num_tokens=160)
    ids = [engine.submit(inputs, GREEDY) for inputs in prompts[:2] * 3]
    tokens: dict[int, list[int]] = {i: [] for i in ids}
    preempted = 0
    while engine.has_work:
        for event in engine.step():
            tokens[event.request_id] += event.token_ids
            if event.usage is not None:
                preempted += event.usage.num_preemptions
        engine.check()
        assert used_slots(engine) == engine.num_running
    assert preempted > 0
    assert list(tokens.values()) == reference[:2] * 3


def test_a_slot_of_one_request_tells_the_next_nothing(tiny, prompts, reference):
    """One slot alone, used by all in turn."""
    engine = make_engine(tiny, max_num_seqs=1)
    assert run(engine, prompts * 2) == reference * 2
    assert used_slots(engine) == 0


def test_requests_that_end_at_different_times_leave_the_others_states_alone(tiny, prompts, reference):
    engine = make_engine(tiny)
    wanted, tokens = {}, {}
    for i, (inputs, answer) in enumerate(zip(prompts * 3, reference * 3)):
        limit = 2 + 3 * i % 8
        at = engine.submit(inputs, SamplingParams(max_new_tokens=limit, ignore_eos=True))
        wanted[at], tokens[at] = answer[:limit], []
        for event in engine.step():
            tokens[event.request_id] += event.token_ids
    while engine.has_work:
        for event in engine.step():
            tokens[event.request_id] += event.token_ids
        engine.check()
    assert tokens == wanted


# --- slots are conserved


@pytest.mark.parametrize("when", [0, 1, 3])
def test_cancelling_frees_the_slot_at_once(tiny, prompts, when):
    engine = make_engine(tiny, max_num_batched_tokens=16)
    ids = [engine.submit(inputs, GREEDY) for inputs in prompts]
    for _ in range(when):
        engine.step()
    for at in ids:
        engine.cancel(at)
        engine.check()
    assert used_slots(engine) == 0


def test_a_failing_step_frees_its_slots_and_the_next_answers_are_right(
    tiny, prompts, reference, monkeypatch, caplog
):
    engine = make_engine(tiny)
    with monkeypatch.context() as patch:
        patch.setattr(StateStore, "write", lambda *_: (_ for _ in ()).throw(RuntimeError("device is gone")))
        engine.submit(prompts[0], GREEDY)
        ends = [event for _ in range(3) for event in engine.step() if event.finish_reason]
    assert [event.error for event in ends] == ["device is gone"]
    assert used_slots(engine) == 0
    assert run(engine, prompts[:1]) == reference[:1]


def test_random_submissions_and_cancels_lose_no_slot(tiny, prompts):
    engine, random_ = (
        make_engine(tiny, num_tokens=200, max_num_seqs=3, max_num_batched_tokens=32),
        random.Random(5),
    )
    alive: list[int] = []
    for _ in range(120):
        roll = random_.random()
        if roll < 0.3:
            alive.append(engine.submit(random_.choice(prompts), GREEDY))
        elif roll < 0.45 and alive:
            engine.cancel(alive.pop(random_.randrange(len(alive))))
        engine.step()
        engine.check()
        slots = engine._scheduler.slots
        assert slots.num_free + slots.num_used == slots.num_slots == 3
        assert slots.num_used == engine.num_running
    while engine.has_work:
        engine.step()
    assert used_slots(engine) == 0


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_slot_pool_hands_out_the_lowest_free_slot_and_loses_none(moves: list[bool], num_slots: int) -> None:
    pool, owned = SlotPool(num_slots), []
    for take in moves:
        if take and pool.num_free:
            slot = pool.allocate()
            assert slot == min(set(range(num_slots)) - set(owned))
            owned.append(slot)
        elif not take and owned:
            pool.free(owned.pop(0))
        pool.check(owned)
        assert pool.num_used == len(owned)


def test_a_slot_freed_twice_is_caught():
    pool = SlotPool(2)
    pool.free(pool.allocate())
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(0)


# --- the store


@pytest.fixture
def store() -> StateStore:
    return StateStore(read_config(tiny_models.config_json("dense")).text, 4, dtype=torch.float32)


def test_a_state_takes_only_the_token_after_its_last(store):
    store.take(1, 0, 5)
    store.take(1, 5, 1)
    with pytest.raises(AssertionError, match="slot 1 has taken 6 tokens, token 4 can't be next"):
        store.take(1, 4, 1)


def test_beginning_clears_the_slot_and_no_other(store):
    ones = State(*(torch.ones_like(t) for t in store.read(0, slice(0, 4))))
    store.write(0, slice(0, 4), ones)
    store.begin(2)
    for held in store.read(0, slice(0, 4)):
        assert held[2].abs().max() == 0
        assert all(bool((held[slot] == 1).all()) for slot in (0, 1, 3))


def test_scattered_slots_are_read_and_written_as_neighbours_are(store):
    places = torch.tensor([3, 0])
    new = State(*(torch.randn_like(t) for t in store.read(2, places)))
    store.write(2, places, new)
    for slot, row in ((3, 0), (0, 1)):
        for held, wrote in zip(store.read(2, slice(slot, slot + 1)), new):
            assert torch.equal(held[0], wrote[row])


# --- memory


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_store_takes_the_planned_bytes(precision):
    config = read_config(tiny_models.config_json("moe"))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    store = StateStore(config.text, 5, dtype=dtype)
    memory = plan_memory(
        config, precision=precision, kv_dtype="bf16", available_bytes=GiB, max_num_seqs=5, feature_bytes=0
    )
    assert store.num_bytes == memory.states_bytes == 5 * state_bytes(config, precision)


def test_kv_is_counted_for_full_attention_layers_alone(tiny):
    engine = make_engine(tiny)
    text = tiny[0].config.text
    full = sum(kind == "full_attention" for kind in text.layer_types)
    per_token = 2 * full * text.num_key_value_heads * text.head_dim * 4
    assert engine.memory.kv_bytes == engine.memory.num_kv_tokens * per_token
    assert engine._runner.store.num_bytes == engine.memory.kv_bytes


def test_the_state_of_the_9b_is_what_its_shape_says():
    """24 of 32 layers: 32 heads of 128 x 128 in fp32, and 3 inputs of 8192 channels in bf16."""
    per_sequence = 24 * (32 * 128 * 128 * 4 + 3 * 8192 * 2)
    config = config_of("Qwen3.5-9B")
    assert state_bytes(config, "bf16") == per_sequence == 51_511_296
    memory = plan_memory(config, precision="bf16", kv_dtype="bf16", available_bytes=40 * GiB, max_num_seqs=8)
    assert memory.states_bytes == 8 * per_sequence
    assert memory.total_bytes <= memory.available_bytes


def test_states_and_kv_share_what_the_weights_leave():
    config = config_of("Qwen3.5-0.8B")
    few, many = (
        plan_memory(
            config,
            precision="bf16",
            kv_dtype="bf16",
            available_bytes=6 * GiB,
            max_model_len=32768,
            max_num_seqs=num,
        )
        for num in (16, 64)
    )
    assert many.states_bytes == 4 * few.states_bytes
    assert many.total_bytes <= 6 * GiB
    assert "states 1.2 GiB (64 sequences)" in str(many)


def test_states_that_do_not_fit_are_refused_with_the_number_that_would():
    config = config_of("Qwen3.5-0.8B")
    plan = dict(precision="bf16", kv_dtype="bf16", available_bytes=int(2.5 * GiB), feature_bytes=0)
    with pytest.raises(
        CapacityError, match=r"64 sequences at once need 1\.2 GiB of state.*lower max_num_seqs to"
    ) as e:
        plan_memory(config, max_num_seqs=64, **plan)
    fits = int(str(e.value).rpartition(" ")[2])
    assert plan_memory(config, max_num_seqs=fits, **plan).num_states == fits


def test_a_model_without_such_layers_plans_no_states():
    memory = plan_memory(
        config_of("Qwen2.5-VL-3B"), precision="bf16", kv_dtype="bf16", available_bytes=20 * GiB
    )
    assert (memory.num_states, memory.states_bytes) == (0, 0)
    assert "states" not in str(memory)


# --- prefixes


def begin_alike(tiny, count: int, words: int = 30) -> list[ModelInputs]:
    """One picture and the same words first, then words of their own: the prompts part in the middle of a block."""
    _, processor = tiny
    alike = "the system in the inn " * (words // 5)
    return [processor(conversation([picture(1)], f"{alike}{i} {'abc'[i % 3] * 9}")) for i in range(count)]


def cached(engine: Engine, requests: list[ModelInputs]) -> int:
    """Prompt tokens that these requests, run one after another, did not compute; their answers are checked."""
    before = engine.stats.num_cached_tokens
    for inputs in requests:
        alone = make_engine((engine.model, SimpleNamespace(tokenizer=engine.tokenizer)), prefix_caching=False)
        assert run(engine, [inputs]) == run(alone, [inputs])
    return engine.stats.num_cached_tokens - before


def last_block(inputs: ModelInputs) -> int:
    return (len(inputs.input_ids) - 1) // BLOCK * BLOCK


def test_a_prompt_asked_again_goes_on_from_the_state_at_its_last_whole_block(tiny, prompts):
    for inputs in prompts:
        engine = make_engine(tiny)
        assert cached(engine, [inputs]) == 0
        assert cached(engine, [inputs]) == last_block(inputs)
        assert engine.notes == ()


def test_the_next_turn_of_a_conversation_goes_on_from_the_one_before(tiny):
    _, processor = tiny
    first = conversation([picture(1)], "What is the total?")
    then = [*first, {"role": "assistant", "content": "12"}, {"role": "user", "content": "And the tax?"}]
    first, then = processor(first), processor(then)
    begins_alike = first.input_ids.tolist() == then.input_ids[: len(first.input_ids)].tolist()
    assert begins_alike
    engine = make_engine(tiny)
    assert cached(engine, [first, then]) == last_block(first)


def test_another_question_about_a_picture_goes_on_behind_the_picture(tiny):
    engine = make_engine(tiny)
    first, second, *_ = begin_alike(tiny, 2)
    behind = first.media[0].start + first.media[0].num_tokens
    assert cached(engine, [first, second]) == behind // BLOCK * BLOCK


def test_where_two_prompts_parted_the_third_goes_on(tiny):
    engine = make_engine(tiny)
    requests = begin_alike(tiny, 3)
    ids = [inputs.input_ids.tolist() for inputs in requests]
    alike = next(i for i, tokens in enumerate(zip(*ids)) if len(set(tokens)) > 1)
    cached(engine, requests[:2])
    assert cached(engine, requests[2:]) == alike // BLOCK * BLOCK


def test_another_picture_under_the_same_words_goes_on_from_nothing_of_it(tiny):
    _, processor = tiny
    engine = make_engine(tiny)
    one, other = (processor(conversation([picture(i)], "What is the total?")) for i in (1, 2))
    assert cached(engine, [one]) == 0
    assert cached(engine, [other]) <= one.media[0].start


@pytest.mark.parametrize("step", [3, 9, 64])
def test_prefixes_are_found_whatever_the_chunks_and_the_company(tiny, prompts, reference, step):
    engine = make_engine(tiny, max_num_batched_tokens=step)
    assert run(engine, prompts * 3) == reference * 3
    assert run(engine, prompts[::-1]) == reference[::-1]
    assert engine.stats.num_cached_tokens >= sum(map(last_block, prompts))


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_with_few_slots_running_sequences_come_before_kept_states(tiny, prompts, reference, num_slots):
    engine = make_engine(tiny, max_num_seqs=num_slots)
    for _ in range(2):
        assert run(engine, prompts) == reference
    assert used_slots(engine) == 0
    again = cached(engine, [prompts[0]] * 2)
    assert again == (last_block(prompts[0]) if num_slots > 1 else 0)


def test_with_one_slot_there_is_none_to_keep_a_state_in_and_that_is_told(tiny):
    assert any("no slot to keep one in" in note for note in make_engine(tiny, max_num_seqs=1).notes)


def test_who_asked_for_no_prefix_caching_gets_none_and_no_note(tiny, prompts):
    engine = make_engine(tiny, prefix_caching=False, max_num_seqs=1)
    assert run(engine, prompts[:1] * 2)
    assert (engine.stats.num_cached_tokens, engine.notes) == (0, ())


def test_a_step_that_fails_keeps_no_state(tiny, prompts, reference, monkeypatch, caplog):
    engine = make_engine(tiny)
    with monkeypatch.context() as patch:
        patch.setattr(StateStore, "write", lambda *_: (_ for _ in ()).throw(RuntimeError("device is gone")))
        run_to_end = [
            event for event in [engine.submit(prompts[0], GREEDY)] for _ in range(3) if engine.step()
        ]
    assert run_to_end
    assert run(engine, prompts[:1] * 2) == reference[:1] * 2
    assert engine.stats.num_cached_tokens == 0


def test_a_prefix_is_known_no_longer_than_its_blocks(tiny, prompts):
    """The state alone would not do: full-attention layers read the keys and values."""
    engine = make_engine(tiny)
    cached(engine, prompts[:1])
    engine._pool.forget_all()
    assert cached(engine, prompts[:1]) == 0


@given(
    st.lists(st.tuples(st.sampled_from("akf"), st.integers(0, 4)), max_size=80),
    st.integers(1, 5),
)
@settings(max_examples=80, deadline=None)
def test_kept_slots_are_found_until_they_are_needed_oldest_first(moves, num_slots: int) -> None:
    pool, owned, kept = SlotPool(num_slots), list[int](), dict[bytes, int]()  # kept: oldest first
    for move, i in moves:
        key = bytes([i])
        if move == "f" and owned:
            pool.free(owned.pop(0))
        elif move == "k":
            full = len(owned) == num_slots
            slot = pool.keep(key)
            assert (slot is None) == (key in kept or full)
            if slot is None and key in kept:
                kept[key] = kept.pop(key)
            if slot is not None:
                if len(owned) + len(kept) == num_slots:
                    assert slot == kept.pop(next(iter(kept)))
                kept[key] = slot
        elif move == "a" and len(owned) < num_slots:
            oldest = next(iter(kept), None)
            slot = pool.allocate()
            if oldest is not None and slot == kept[oldest]:
                assert len(owned) + len(kept) == num_slots
                del kept[oldest]
            owned.append(slot)
        pool.check(owned)
        assert pool.num_used == len(owned)
        for known, slot in list(kept.items()):
            assert pool.find(known) == slot


def test_copied_states_are_the_source_at_its_place(store):
    new = State(*(torch.randn_like(t) for t in store.read(0, slice(1, 2))))
    store.write(0, slice(1, 2), new)
    store.take(1, 0, 7)
    store.copy(1, 3)
    store.begin(1)
    for held, wrote in zip(store.read(0, slice(3, 4)), new):
        assert torch.equal(held, wrote)
    store.take(3, 7, 1)


def test_pictures_are_still_encoded_once(tiny, prompts):
    engine = make_engine(tiny)
    run(engine, [prompts[1], prompts[1]])
    assert engine.stats.num_encoded_visuals == 1
