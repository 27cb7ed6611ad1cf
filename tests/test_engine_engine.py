"""The engine on a tiny random model: however requests are cut, mixed, cached or thrown out, the tokens are the same."""

import random

import numpy as np
import pytest
import torch

from qvl.backends.answer import conversation
from qvl.catalog.config import read_config
from qvl.checkpoint.generation_config import GenerationDefaults
from qvl.engine.engine import Engine, EngineOptions, Event
from qvl.engine.memory import plan_memory
from qvl.errors import CapacityError, ConfigError
from qvl.inputs.processor import ModelInputs, Processor
from qvl.inputs.sampling import SamplingParams
from qvl.models.attention import CausalAttention
from qvl.models.checkpoint import load_model
from qvl.models.fused_decode import FusedDecode
from qvl.models.kernels import ops
from qvl.units import GiB

KIB = 1024


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    return load_model(tiny_checkpoint), Processor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def make_engine(tiny, tiny_checkpoint):
    model, processor = tiny

    def make(
        num_tokens=2048, max_model_len=None, kv_dtype="fp32", feature_bytes=256 * KIB, eos=(), **options
    ):
        memory = plan_memory(
            model.config,
            precision="fp32",
            kv_dtype=kv_dtype,
            available_bytes=GiB,
            block_size=4,
            kv_bytes=num_tokens * 2 * 2 * 2 * 8 * (1 if kv_dtype == "fp8" else 4),
            max_model_len=max_model_len or num_tokens,
            feature_bytes=feature_bytes,
        )
        return Engine(
            model,
            processor.tokenizer,
            memory,
            options=EngineOptions(**options),
            defaults=GenerationDefaults(SamplingParams(), eos),
        )

    return make


def picture(seed: int, height=56, width=84) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def prompts(tiny) -> list[ModelInputs]:
    """Text alone, one picture, two pictures, a clip with a picture: lengths 30 to 130 tokens."""
    _, processor = tiny
    frames = np.stack([picture(9)] * 2 + [picture(8)] * 2)
    clip = {"type": "video", "video": frames, "max_pixels": 56 * 84}
    return [
        processor(conversation(media, question))
        for media, question in (
            ([], "the system in the inn"),
            ([picture(1)], "What is the total?"),
            ([picture(2, 112, 84), picture(1)], "Which?"),
            ([clip, picture(3)], "When does it change, and what is in the other?"),
        )
    ]


GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)


def run(engine: Engine, requests, params=GREEDY, at_once=True) -> list[list[Event]]:
    """Events of each request."""
    events: dict[int, list[Event]] = {}
    ids = []
    settings = params if isinstance(params, list) else [params] * len(requests)
    for inputs, one in zip(requests, settings):
        ids.append(engine.submit(inputs, one))
        while engine.has_work and not at_once:
            collect(engine, events)
    while engine.has_work:
        collect(engine, events)
    return [events[i] for i in ids]


def collect(engine: Engine, events: dict[int, list[Event]]) -> None:
    for event in engine.step():
        assert not any(e.finish_reason for e in events.get(event.request_id, [])), "an event after the end"
        events.setdefault(event.request_id, []).append(event)
    engine.check()


def tokens(events: list[Event]) -> list[int]:
    return [token for event in events for token in event.token_ids]


@pytest.fixture(scope="module")
def reference(tiny, prompts) -> list[list[int]]:
    """Greedy tokens by recomputing everything for each token, with no cache of any kind."""
    model, processor = tiny
    answers = []
    with torch.inference_mode():
        for inputs in prompts:
            ids, answer = torch.from_numpy(inputs.input_ids), []
            features = [
                model.encode_media(torch.from_numpy(span.patches), [span.grid]) for span in inputs.media
            ]
            for _ in range(12):
                more = torch.arange(len(answer)) + len(inputs.input_ids) + inputs.rope_delta
                positions = torch.cat([torch.from_numpy(inputs.positions), more.expand(3, -1)], dim=1)
                hidden = model.embed(ids)
                if features:
                    hidden = model.merge_features(hidden, ids, torch.cat(features))
                hidden = model.decode(hidden, positions, CausalAttention([len(ids)]))
                best = int(model.logits(hidden[-1:])[0, : len(processor.tokenizer)].argmax())
                answer.append(best)
                ids = torch.cat([ids, torch.tensor([best])])
            answers.append(answer)
    return answers


def test_paged_and_batched_equals_recomputing_everything(make_engine, prompts, reference):
    assert [tokens(events) for events in run(make_engine(), prompts)] == reference
    assert len({tuple(answer) for answer in reference}) == len(reference)


@pytest.mark.parametrize("step", [1, 3, 7, 32])
def test_chunked_equals_full(make_engine, prompts, reference, step):
    engine = make_engine(max_num_batched_tokens=step)
    assert [tokens(events) for events in run(engine, prompts)] == reference
    assert engine.stats.num_encoded_visuals == 4  # a picture cut into chunks, or asked about twice, once


def test_a_batch_equals_its_requests_one_by_one(make_engine, prompts, reference):
    assert [tokens(events) for events in run(make_engine(), prompts, at_once=False)] == reference
    assert [tokens(events) for events in run(make_engine(max_num_seqs=2), prompts)] == reference


def test_sampled_tokens_do_not_depend_on_the_batch(make_engine, prompts):
    params = [
        SamplingParams(
            max_new_tokens=16, ignore_eos=True, temperature=1.5, top_p=0.95, seed=i, repetition_penalty=1.1
        )
        for i in range(len(prompts))
    ]
    together = [tokens(events) for events in run(make_engine(), prompts, params)]
    apart = [tokens(events) for events in run(make_engine(), prompts, params, at_once=False)]
    assert together == apart


def test_cached_equals_uncached(make_engine, prompts, reference):
    engine = make_engine()
    run(engine, prompts)
    again = run(engine, prompts)
    assert [tokens(events) for events in again] == reference
    for events, inputs in zip(again, prompts):
        assert events[-1].usage.cached_tokens >= inputs.num_tokens - 4
    plain = make_engine(prefix_caching=False)
    run(plain, prompts)
    assert [tokens(events) for events in run(plain, prompts)] == reference
    assert plain.stats.num_cached_tokens == 0


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_preempted_equals_undisturbed(make_engine, prompts, reference, prefix_caching):
    # three prompts of 67 tokens: two fit, or all when they share; neither holds once answers have grown
    engine = make_engine(num_tokens=160, prefix_caching=prefix_caching)
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    events = run(engine, [prompts[0], prompts[0], prompts[0]], params)
    assert sum(e[-1].usage.num_preemptions for e in events) > 0
    undisturbed = tokens(run(make_engine(), [prompts[0]], params)[0])
    assert [tokens(e) for e in events] == [undisturbed] * 3
    assert [tokens(e) for e in run(engine, prompts[:3])] == reference[:3]


def test_two_images_with_equal_text_do_not_share_prefix_blocks(make_engine, tiny):
    _, processor = tiny
    engine = make_engine()
    one, other = (processor(conversation([picture(seed)], "What is this?")) for seed in (1, 2))
    assert one.input_ids.tolist() == other.input_ids.tolist()
    run(engine, [one])
    (events,) = run(engine, [other])
    assert (
        events[-1].usage.cached_tokens == one.media[0].start // 4 * 4
    )  # what lies before the picture, and no more
    assert tokens(events) == tokens(run(make_engine(), [other])[0])


def test_the_same_picture_twice_is_encoded_once(make_engine, tiny):
    _, processor = tiny
    engine = make_engine()
    run(engine, [processor(conversation([picture(1)], question)) for question in ("a?", "b?")])
    run(engine, [processor(conversation([picture(5), picture(1)], "c?"))])
    assert engine.stats.num_encoded_visuals == 2


def test_features_beyond_the_byte_budget_are_encoded_again(make_engine, tiny):
    _, processor = tiny
    engine = make_engine(feature_bytes=0, prefix_caching=False)
    for _ in range(2):
        run(engine, [processor(conversation([picture(1)], "a?"))])
    assert engine.stats.num_encoded_visuals == 2


def test_text_pieces_join_to_the_decoded_answer(make_engine, tiny, prompts, reference):
    _, processor = tiny
    for events, answer in zip(run(make_engine(), prompts), reference):
        assert "".join(event.text for event in events) == processor.tokenizer.decode(answer)


def test_a_stop_string_ends_the_answer_and_is_not_shown(make_engine, tiny, prompts):
    whole = "".join(event.text for event in run(make_engine(), prompts[:1])[0])
    stop = whole[4:7]
    (events,) = run(
        make_engine(), prompts[:1], SamplingParams(max_new_tokens=12, ignore_eos=True, stop=(stop,))
    )
    assert "".join(event.text for event in events) == whole[: whole.index(stop)]
    assert events[-1].finish_reason == "stop"


def test_an_end_token_ends_the_answer_without_being_shown(make_engine, prompts, reference):
    end = next(t for i, t in enumerate(reference[1]) if i > 2 and t not in reference[1][:i])
    at = reference[1].index(end)
    for engine, params in (
        (make_engine(eos=(end,)), SamplingParams(max_new_tokens=12)),
        (make_engine(), SamplingParams(max_new_tokens=12, ignore_eos=True, stop_token_ids=(end,))),
    ):
        (events,) = run(engine, prompts[1:2], params)
        assert events[-1].finish_reason == "stop"
        assert tokens(events) == reference[1][: at + 1]
        assert events[-1].text == "" or at == 0
    (events,) = run(make_engine(eos=(end,)), prompts[1:2], GREEDY)  # which ignores end tokens
    assert tokens(events) == reference[1]


def test_the_length_limit_is_exact_and_said(make_engine, prompts):
    (events,) = run(make_engine(), prompts[:1], SamplingParams(max_new_tokens=5, ignore_eos=True))
    assert len(tokens(events)) == 5
    assert events[-1].finish_reason == "length"
    assert events[-1].usage.completion_tokens == 5


def test_without_a_limit_an_answer_ends_at_max_model_len(make_engine, prompts):
    room = prompts[0].num_tokens + 9
    (events,) = run(make_engine(max_model_len=room), prompts[:1], SamplingParams(ignore_eos=True))
    assert len(tokens(events)) == 9
    assert events[-1].finish_reason == "length"


def test_a_request_that_can_never_fit_is_refused_with_the_numbers(make_engine, prompts):
    engine = make_engine(max_model_len=100)
    length = prompts[0].num_tokens
    with pytest.raises(
        CapacityError, match=rf"{length} tokens .* may take 50.* 100 fit .* at most {100 - length}"
    ):
        engine.submit(prompts[0], SamplingParams(max_new_tokens=50))
    with pytest.raises(CapacityError, match=rf"{prompts[3].num_tokens} tokens .* 100 fit .*max_pixels"):
        engine.submit(prompts[3])
    assert not engine.has_work
    engine.check()


def test_padding_rows_of_the_vocabulary_are_never_drawn(make_engine, tiny, prompts):
    model, processor = tiny
    assert model.config.text.vocab_size > len(processor.tokenizer)
    params = SamplingParams(max_new_tokens=300, ignore_eos=True, temperature=100.0, seed=3)
    (events,) = run(make_engine(), prompts[:1], params)
    assert max(tokens(events)) < len(processor.tokenizer)


def test_logprobs_are_those_of_the_model(make_engine, tiny, prompts):
    params = SamplingParams(max_new_tokens=4, ignore_eos=True, logprobs=2)
    (events,) = run(make_engine(), prompts[1:2], params)
    for event in events:
        (logprob,) = event.logprobs
        assert logprob.token_id == event.token_ids[0] == logprob.top[0][0]  # greedy: the best is taken
        assert logprob.logprob == logprob.top[0][1] > logprob.top[1][1]


def test_eight_bit_kv_answers_with_half_the_bytes_of_sixteen(make_engine, prompts):
    engine = make_engine(kv_dtype="fp8")
    assert engine.memory.kv_bytes * 4 == make_engine().memory.kv_bytes
    assert [len(tokens(events)) for events in run(engine, prompts)] == [12] * 4


def test_in_bf16_decoding_steps_go_to_the_kernel_and_prompts_do_not(
    tiny, tiny_checkpoint, prompts, monkeypatch
):
    """The second token of each answer is drawn after a step by the kernel, here of two sequences at once."""
    if ops.functions() is None:
        pytest.skip("no compiler here, or QVL_KERNELS=off")
    model, processor = load_model(tiny_checkpoint, dtype=torch.bfloat16), tiny[1]
    memory = plan_memory(
        model.config, precision="bf16", kv_dtype="bf16", available_bytes=GiB, block_size=4,
        kv_bytes=2048 * 2 * 2 * 2 * 8 * 2, max_model_len=2048, feature_bytes=256 * KIB,
    )  # fmt: skip
    step, taken = FusedDecode.__call__, []

    def answers(by_kernel: bool) -> list[list[Event]]:
        def call(self, hidden_TD, positions_3T, attend):
            found = step(self, hidden_TD, positions_3T, attend) if by_kernel else None
            taken.append((len(hidden_TD), found is not None))
            return found

        taken.clear()
        monkeypatch.setattr(FusedDecode, "__call__", call)
        engine = Engine(model, processor.tokenizer, memory, defaults=GenerationDefaults(SamplingParams(), ()))
        # text alone: pictures would come in when they are ready
        return run(engine, [prompts[0]] * 2, SamplingParams(max_new_tokens=2, ignore_eos=True, logprobs=1))

    got = answers(by_kernel=True)
    assert (
        1 <= sum(rows for rows, by_kernel in taken if by_kernel) <= 4
    )  # some may share a step with a prompt
    assert not taken[0][1]
    want = answers(by_kernel=False)
    assert not any(by_kernel for _, by_kernel in taken)
    for mine, theirs in zip(got, want):
        assert mine[0].logprobs == theirs[0].logprobs
        assert mine[1].logprobs[0].logprob == pytest.approx(theirs[1].logprobs[0].logprob, abs=0.05)


def test_cancelling_ends_a_request_once_and_frees_it_at_once(make_engine, prompts):
    engine = make_engine(max_num_batched_tokens=16)
    ids = [engine.submit(inputs, GREEDY) for inputs in prompts]
    engine.step()
    assert engine.cancel(ids[0])
    assert engine.cancel(ids[3])  # still waiting
    assert not engine.cancel(ids[0])
    engine.check()
    events: dict[int, list[Event]] = {}
    while engine.has_work:
        collect(engine, events)
    ends = {i: [e.finish_reason for e in events[i] if e.finish_reason] for i in ids}
    assert ends == {ids[0]: ["cancelled"], ids[1]: ["length"], ids[2]: ["length"], ids[3]: ["cancelled"]}


def test_a_failing_step_ends_its_requests_with_the_reason_and_the_engine_goes_on(
    make_engine, prompts, reference
):
    engine = make_engine()
    ids = [engine.submit(inputs, GREEDY) for inputs in (prompts[0], prompts[0], prompts[1])]
    working = engine._runner.logits

    def broken(step, inputs):
        raise RuntimeError("out of memory\nmore lines")

    engine._runner.logits = broken
    events = engine.step()
    assert [(e.request_id, e.finish_reason, e.error) for e in events] == [
        (i, "error", "out of memory") for i in ids[:2]
    ]
    engine.check()
    assert engine.has_work  # the third waits for its picture, so it wasn't in the step
    engine._runner.logits = working
    ended: dict[int, list[Event]] = {}
    while engine.has_work:
        collect(engine, ended)
    assert tokens(ended[ids[2]]) == reference[1]
    assert [tokens(e) for e in run(engine, prompts)] == reference


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("settings", [{}, {"logprobs": 2}, {"repetition_penalty": 1.1}, {"temperature": 1.0}])
def test_logits_that_are_no_numbers_end_their_request_and_no_other(
    make_engine, prompts, reference, bad, settings
):
    engine = make_engine()
    params = SamplingParams(max_new_tokens=8, **{"temperature": 0.0, **settings})
    ids = [engine.submit(prompts[0], params), engine.submit(prompts[0], GREEDY)]
    working = engine._runner.logits

    def spoilt(step, inputs):
        logits = working(step, inputs).clone()
        logits[0] = bad
        return logits

    engine._runner.logits = spoilt
    first, second = engine.step()
    assert (first.request_id, first.finish_reason) == (ids[0], "error")
    assert "not finite" in first.error
    assert second.finish_reason is None
    engine.check()
    engine._runner.logits = working
    ended = {ids[1]: [second]}
    while engine.has_work:
        collect(engine, ended)
    assert tokens(ended[ids[1]]) == reference[0]
    assert engine.num_used_blocks == 0


def test_random_submissions_and_cancels_on_the_model_lose_nothing(make_engine, prompts):
    rng = random.Random(1)
    engine = make_engine(num_tokens=320, max_num_seqs=4, max_num_batched_tokens=48, feature_bytes=4 * KIB)
    events: dict[int, list[Event]] = {}
    accepted = []
    for _ in range(250):
        action = rng.random()
        if action < 0.25:
            params = SamplingParams(
                max_new_tokens=rng.randrange(1, 24), temperature=1.0, seed=rng.randrange(99)
            )
            accepted.append(engine.submit(rng.choice(prompts), params))
        elif action < 0.35 and accepted:
            engine.cancel(rng.choice(accepted))
        else:
            collect(engine, events)
    while engine.has_work:
        collect(engine, events)
    assert sorted(events) == accepted
    assert all(sum(e.finish_reason is not None for e in events[i]) == 1 for i in accepted)
    assert engine._pool.num_used == 0
    assert engine._features.num_pinned_bytes == 0


def test_seconds_and_counts_come_from_the_clock_given(tiny, make_engine, prompts):
    engine = make_engine()
    ticks = iter(range(10_000))
    engine._clock = lambda: float(next(ticks))
    (events,) = run(engine, prompts[1:2], SamplingParams(max_new_tokens=4, ignore_eos=True))
    usage = events[-1].usage
    assert usage.prompt_tokens == prompts[1].num_tokens
    assert usage.visual_tokens == prompts[1].num_visual_tokens
    assert usage.queue_s == 1.0
    assert usage.vision_s == 1.0  # nothing else looks at the clock while all wait for the picture
    assert usage.decode_tokens_per_s == 3 / usage.decode_s


# memory plan


@pytest.fixture(scope="module")
def config(tiny_checkpoint):
    return read_config(tiny_checkpoint)


def planned(config, **settings):
    return plan_memory(
        config, **({"precision": "fp32", "kv_dtype": "fp32", "available_bytes": GiB} | settings)
    )


def test_the_plan_is_what_the_store_takes(make_engine):
    for kv_dtype in ("fp32", "bf16", "fp8"):
        engine = make_engine(kv_dtype=kv_dtype)
        assert engine._runner.store.num_bytes == engine.memory.kv_bytes


def test_the_planned_weights_are_what_the_model_takes(config, tiny):
    held = sum(p.numel() * p.element_size() for p in tiny[0].parameters())
    assert planned(config).weights_bytes == held


def test_a_sequence_length_that_does_not_fit_is_refused_with_what_would(config):
    with pytest.raises(
        CapacityError, match=r"32768 tokens needs 8\.0 MiB of KV, 1\.0 MiB .* max_model_len to 4096"
    ):
        planned(config, kv_bytes=1 << 20, max_model_len=32768)


def test_weights_that_do_not_fit_are_refused_with_the_numbers(config):
    with pytest.raises(CapacityError, match=r"weights need 451\.4 KiB, 400\.0 KiB free"):
        planned(config, available_bytes=400 * KIB, feature_bytes=0)


def test_kv_that_does_not_fit_beside_the_weights_is_refused(config):
    with pytest.raises(CapacityError, match="give at most"):
        planned(config, kv_bytes=2 * GiB)


def test_the_longest_sequence_defaults_to_what_fits(config):
    assert planned(config, kv_bytes=100 * 16 * 256).max_model_len == 1600
    assert planned(config).max_model_len == 32768


def test_no_more_kv_is_taken_than_all_requests_can_use(config):
    assert planned(config, max_num_seqs=2, max_model_len=1000).num_kv_tokens == 2 * 1008


@pytest.mark.parametrize("length", [1, 40_000])
def test_an_impossible_max_model_len_is_named_with_the_limit(config, length):
    with pytest.raises(ConfigError, match=f"max_model_len {length}: must be from 2 to 32768"):
        planned(config, max_model_len=length)
