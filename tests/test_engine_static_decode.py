"""Decoding in fixed buffers gives what ordinary steps give: same tokens, same keys and values, same ends."""

import numpy as np
import pytest
import torch

from qvl.backends.answer import conversation
from qvl.checkpoint.generation_config import GenerationDefaults
from qvl.engine.engine import Engine, EngineOptions
from qvl.engine.kv import KVStore
from qvl.engine.memory import plan_memory
from qvl.engine.runner import Runner
from qvl.engine.scheduler import Chunk, Sequence, Step
from qvl.engine.static_decode import StaticDecode, batch_sizes, can_be_static, static_decode
from qvl.inputs.processor import ModelInputs, Processor
from qvl.inputs.sampling import SamplingParams
from qvl.models.checkpoint import load_model
from qvl.units import GiB

SIZE = 4


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    return load_model(tiny_checkpoint), Processor.from_pretrained(tiny_checkpoint)


def make_engine(tiny, num_tokens=512, kv_dtype="fp32", **options) -> Engine:
    model, processor = tiny
    memory = plan_memory(
        model.config,
        precision="fp32",
        kv_dtype=kv_dtype,
        available_bytes=GiB,
        block_size=SIZE,
        kv_bytes=num_tokens * 2 * 2 * 2 * 8 * (1 if kv_dtype == "fp8" else 4),
        max_model_len=min(num_tokens, 128),
        feature_bytes=256 * 1024,
    )
    defaults = GenerationDefaults(SamplingParams(), ())
    return Engine(model, processor.tokenizer, memory, options=EngineOptions(**options), defaults=defaults)


def prompts(tiny, num: int) -> list[ModelInputs]:
    """Every other one with a picture of its own, of a height and width that move the positions behind it."""
    made = []
    for i in range(num):
        pixels = np.random.default_rng(i).integers(0, 255, (56, 28 * (2 + i % 3), 3), dtype=np.uint8)
        media = [pixels] if i % 2 else []
        made.append(tiny[1](conversation(media, f"the system {'x' * i}")))
    return made


def answers(engine: Engine, inputs: list[ModelInputs], params: list[SamplingParams]) -> list[list[int]]:
    found = {engine.submit(x, p): [] for x, p in zip(inputs, params)}
    while engine.has_work:
        for event in engine.step():
            assert event.error is None, event.error
            found[event.request_id] += event.token_ids
    engine.check()
    return list(found.values())


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_new_tokens=num_tokens, ignore_eos=True)


def count_static(engine: Engine) -> list[int]:
    """How many sequences each static step of the engine had, from here on."""
    static, seen = engine._runner.static, []
    honest = static.logits

    def logits(chunks, inputs):
        seen.append(len(chunks))
        return honest(chunks, inputs)

    static.logits = logits
    return seen


@pytest.mark.parametrize("num", [1, 2, 3, 5, 7])
def test_static_steps_draw_the_tokens_of_ordinary_steps(tiny, num):
    inputs, params = prompts(tiny, num), [greedy(6 + 3 * i) for i in range(num)]  # sequences leave one by one
    static = make_engine(
        tiny, static_decode=True, interleave=False
    )  # all begin in one step, whatever the clock says
    seen = count_static(static)
    assert answers(static, inputs, params) == answers(make_engine(tiny, static_decode=False), inputs, params)
    assert max(seen) == num
    assert min(seen) == 1


def test_static_steps_draw_the_same_with_8_bit_keys(tiny):
    inputs, params = prompts(tiny, 3), [greedy(8)] * 3
    ordinary = answers(make_engine(tiny, kv_dtype="fp8", static_decode=False), inputs, params)
    assert answers(make_engine(tiny, kv_dtype="fp8", static_decode=True), inputs, params) == ordinary


def test_preempted_sequences_find_their_new_blocks_in_static_steps(tiny):
    inputs, params = prompts(tiny, 4), [greedy(24)] * 4
    small = make_engine(tiny, num_tokens=128, static_decode=True, prefix_caching=False)
    seen = count_static(small)
    ordinary = answers(make_engine(tiny, static_decode=False), inputs, params)
    assert answers(small, inputs, params) == ordinary
    assert seen


def test_seeded_draws_with_penalties_are_the_same_in_static_steps(tiny):
    inputs = prompts(tiny, 3)
    params = [
        SamplingParams(
            temperature=0.8, top_p=0.9, seed=i, repetition_penalty=1.2, max_new_tokens=10, ignore_eos=True
        )
        for i in range(3)
    ]
    ordinary = answers(make_engine(tiny, static_decode=False), inputs, params)
    assert answers(make_engine(tiny, static_decode=True), inputs, params) == ordinary


def test_a_cpu_decodes_statically_only_when_told(tiny):
    assert not make_engine(tiny).static_decode
    assert make_engine(tiny, static_decode=True).static_decode
    assert not make_engine(tiny, static_decode=False).static_decode


def scene(tiny, lengths: list[int]) -> tuple[Runner, StaticDecode, list[Chunk], dict[int, ModelInputs]]:
    """Sequences that have all but their last token in the store, blocks scattered."""
    model, _ = tiny
    text = model.config.text
    store = KVStore(range(2), 40, SIZE, text.num_key_value_heads, text.head_dim, dtype=torch.float32)
    static = StaticDecode(model, store, text.vocab_size, max_num_seqs=6, max_model_len=64, capture=False)
    runner = Runner(model, store, None, text.vocab_size)  # no media here
    order = iter(np.random.default_rng(0).permutation(40).tolist())
    inputs, chunks = {}, []
    for i, length in enumerate(lengths):
        tokens = np.random.default_rng(i).integers(0, 256, length).tolist()
        blocks = [next(order) for _ in range(-(-length // SIZE))]
        sequence = Sequence(i, tokens, length - 1, blocks=blocks)
        positions = np.broadcast_to(np.arange(length - 1), (3, length - 1)).copy()
        inputs[i] = ModelInputs(input_ids=np.array(tokens[:-1]), positions=positions, rope_delta=0, media=())
        runner.logits(Step((Chunk(sequence, 0, length - 1, False),)), inputs)
        chunks.append(Chunk(sequence, length - 1, 1, True))
    return runner, static, chunks, inputs


@pytest.mark.parametrize("num", [1, 3, 5, 6])
def test_static_logits_equal_the_runners(tiny, num):
    runner, static, chunks, inputs = scene(tiny, [5, 17, 2, 9, 4, 13][:num])
    expected = runner.logits(Step(tuple(chunks)), inputs)
    torch.testing.assert_close(static.logits(chunks, inputs), expected, atol=1e-4, rtol=1e-4)


def test_left_over_rows_change_nothing_in_the_store(tiny):
    runner, static, chunks, inputs = scene(tiny, [5, 17, 2])  # three sequences in a step for four
    runner.logits(Step(tuple(chunks)), inputs)
    before = [t.clone() for layer in range(2) for t in runner.store.held(layer)]
    static.logits(chunks, inputs)
    after = [t for layer in range(2) for t in runner.store.held(layer)]
    for a, b in zip(before, after):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_rows_past_the_vocabulary_are_never_drawn(tiny):
    _, static, chunks, inputs = scene(tiny, [5, 6])
    static.num_words = 100
    logits = static.logits(chunks, inputs)
    assert (logits[:, 100:] == -torch.inf).all()
    assert torch.isfinite(logits[:, :100]).all()


def test_buffers_stay_where_they_are(tiny):
    _, static, chunks, inputs = scene(tiny, [5, 17, 2])
    places = [static._rows_6B.data_ptr(), static._tables_BM.data_ptr()]
    static.logits(chunks, inputs)
    static.logits(chunks[:1], inputs)
    assert [static._rows_6B.data_ptr(), static._tables_BM.data_ptr()] == places


def test_a_row_that_gets_another_sequence_gets_its_blocks(tiny):
    runner, static, chunks, inputs = scene(tiny, [5, 17, 2])
    static.logits(chunks, inputs)
    turned = chunks[::-1]
    expected = runner.logits(Step(tuple(turned)), inputs)
    torch.testing.assert_close(static.logits(turned, inputs), expected, atol=1e-4, rtol=1e-4)


def test_steps_with_a_prompt_in_them_are_left_alone(tiny):
    _, static, chunks, _ = scene(tiny, [5, 6])
    prompt = Sequence(9, [1, 2, 3], 3, blocks=[0])
    assert static.takes(chunks)
    assert not static.takes([*chunks, Chunk(prompt, 0, 2, False)])
    assert not static.takes([*chunks, Chunk(prompt, 2, 1, True)])  # a prompt's last token
    assert not static.takes([])
    assert not static.takes(chunks * 4)  # more than there are rows


def test_batch_sizes_reach_exactly_the_largest():
    assert batch_sizes(1) == [1]
    assert batch_sizes(6) == [1, 2, 4, 6]
    assert batch_sizes(64) == [1, 2, 4, 8, 16, 32, 48, 64]


def test_mixtures_and_linear_attention_run_ordinary_steps(tiny):
    from dataclasses import replace

    model, _ = tiny
    assert can_be_static(model)
    honest = model.config
    try:
        model.config = replace(honest, text=replace(honest.text, num_experts=4))
        assert not can_be_static(model)
        model.config = replace(
            honest, text=replace(honest.text, layer_types=("linear_attention", "full_attention"))
        )
        assert not can_be_static(model)
    finally:
        model.config = honest


def test_a_capture_that_fails_leaves_ordinary_steps_and_says_so(tiny, monkeypatch, caplog):
    model, _ = tiny
    store = KVStore([0, 1], 4, SIZE, 2, 8, dtype=torch.float32)
    monkeypatch.setattr("qvl.engine.static_decode.has_kernel", lambda device, held: True)

    def fails(self):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(StaticDecode, "_capture", fails)
    made = static_decode(model, store, 100, wanted=None, max_num_seqs=2, max_model_len=16)
    assert made is None
    assert "not permitted when stream is capturing" in caplog.text
