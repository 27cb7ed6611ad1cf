"""From logits to tokens: cuts, penalties, seeds, and settings that are refused by name."""

import json
import random
from collections import Counter

import pytest
import torch

from qvl.checkpoint.generation_config import read_generation_config
from qvl.engine.sampling import Sampler
from qvl.errors import ConfigError, PromptError
from qvl.inputs.sampling import SamplingParams

LOGITS = torch.tensor([0.0, 3.0, 2.0, 1.0, -1.0, float("-inf")])


def sampler(prompt=(), **settings) -> Sampler:
    return Sampler(SamplingParams(**settings).resolved(SamplingParams()), prompt)


def drawn(count=400, logits=LOGITS, **settings) -> Counter[int]:
    one = sampler(**({"seed": 1} | settings))
    return Counter(one.draw(logits)[0] for _ in range(count))


def test_nothing_asked_and_nothing_given_is_greedy():
    assert drawn() == {1: 400}


@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"temperature": 1e-6}, {"temperature": 1, "top_k": 1}]
)
def test_the_familys_ways_to_say_greedy_are_greedy(settings):
    assert SamplingParams(**settings).is_greedy
    assert drawn(**settings) == {1: 400}


def test_sampling_follows_the_models_probabilities():
    counts = drawn(20_000, temperature=1.0)
    probs = LOGITS.softmax(-1)
    for token in range(5):
        assert counts[token] / 20_000 == pytest.approx(float(probs[token]), abs=0.015)  # 4 standard errors


def test_padding_rows_are_never_drawn():
    assert 5 not in drawn(5000, temperature=100.0)


def test_top_k_keeps_the_k_likeliest():
    assert set(drawn(2000, temperature=2.0, top_k=2)) == {1, 2}


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    # probabilities: 0.63, 0.23, 0.085, 0.031, 0.012
    assert set(drawn(2000, temperature=1.0, top_p=0.6)) == {1}
    assert set(drawn(2000, temperature=1.0, top_p=0.7)) == {1, 2}
    assert set(drawn(2000, temperature=1.0, top_p=0.0)) == {1}


def test_min_p_cuts_what_is_unlikely_against_the_best():
    assert set(drawn(4000, temperature=1.0, min_p=0.1)) == {1, 2, 3}
    assert set(drawn(4000, temperature=1.0, min_p=0.3)) == {1, 2}


def test_the_cuts_agree_with_transformers():
    from transformers.generation.logits_process import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = torch.randn(50, generator=generator) * 3
        k, p, m = rng.randrange(1, 50), rng.random(), rng.random() / 5
        theirs = logits[None]
        for warp in (TopKLogitsWarper(k), TopPLogitsWarper(p), MinPLogitsWarper(m)):
            theirs = warp(None, theirs)
        allowed = set(theirs[0].isfinite().nonzero()[:, 0].tolist())
        seen = drawn(3000, logits, temperature=1.0, top_k=max(k, 2), top_p=p, min_p=m)
        if k >= 2:
            assert set(seen) <= allowed
    prompt = [3, 7, 7, 11]
    ours = sampler(prompt, repetition_penalty=1.3)._penalized(logits)
    reference = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([prompt]), logits[None].clone())[0]
    torch.testing.assert_close(ours, reference)


def test_repetition_penalty_counts_prompt_and_answer():
    one = sampler([1], repetition_penalty=2.0)
    assert one.draw(LOGITS)[0] == 2  # 3.0 / 2 < 2.0
    one.accept(2)
    assert one.draw(LOGITS)[0] == 1


def test_presence_penalty_is_once_and_frequency_penalty_grows():
    presence, frequency = sampler(presence_penalty=0.9), sampler(frequency_penalty=0.6)
    for one in (presence, frequency):
        one.accept(1)
        assert one.draw(LOGITS)[0] == 1
        one.accept(1)
    assert presence.draw(LOGITS)[0] == 1  # 3 - 0.9
    assert frequency.draw(LOGITS)[0] == 2  # 3 - 1.2 < 2


def test_presence_penalty_leaves_the_prompt_alone():
    assert sampler([1], presence_penalty=2.0).draw(LOGITS)[0] == 1


def test_equal_seeds_draw_equal_tokens_and_others_do_not():
    def tokens(seed):
        one = sampler(temperature=2.0, seed=seed)
        return [one.draw(LOGITS)[0] for _ in range(30)]

    assert tokens(5) == tokens(5)
    assert tokens(5) != tokens(6)


def test_no_seed_draws_a_new_one_each_time():
    def tokens():
        one = sampler(temperature=2.0)
        return [one.draw(LOGITS)[0] for _ in range(60)]

    assert tokens() != tokens()


def test_logprobs_are_of_the_raw_distribution_and_sorted():
    token, logprob = sampler([1], repetition_penalty=2.0, logprobs=3).draw(LOGITS)
    reference = LOGITS.log_softmax(-1)
    assert token == 2
    assert logprob.token_id == 2
    assert logprob.logprob == pytest.approx(float(reference[2]))
    assert [i for i, _ in logprob.top] == [1, 2, 3]
    assert logprob.top[0][1] == pytest.approx(float(reference[1]))


def test_drawing_leaves_the_logits_as_they_are():
    logits = LOGITS.clone()
    sampler([1, 2], repetition_penalty=1.5, temperature=1.0, top_p=0.5).draw(logits)
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -1}, "temperature -1: must be a number from 0 to 100"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": True}, "temperature True"),
        ({"top_p": 1.5}, "top_p 1.5: must be a number from 0 to 1"),
        ({"top_k": 2.5}, "top_k 2.5: must be a whole number"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty 0: must be above 0"),
        ({"presence_penalty": 3}, "presence_penalty 3: must be a number from -2 to 2"),
        ({"max_new_tokens": 0}, "max_new_tokens 0: must be a whole number of at least 1"),
        ({"stop": [""]}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logprobs": -1}, "logprobs"),
    ],
)
def test_impossible_settings_are_named_with_their_range(settings, words):
    with pytest.raises(PromptError, match=words.replace("(", r"\(")):
        SamplingParams(**settings)


def test_an_unknown_setting_is_named_and_the_nearest_offered():
    with pytest.raises(PromptError, match="temprature is not a sampling setting; did you mean temperature"):
        SamplingParams.of({"temprature": 1})


def test_one_stop_string_may_be_given_bare():
    assert SamplingParams(stop="END").stop == ("END",)


# generation_config.json


def defaults(tmp_path, **content):
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    return read_generation_config(tmp_path, (9,))


def test_a_checkpoint_without_the_file_is_greedy_and_ends_as_its_config_says(tmp_path):
    read = read_generation_config(tmp_path, (9,))
    assert read.sampling.is_greedy
    assert read.eos_token_ids == (9,)


def test_a_files_settings_are_honoured_and_can_be_printed(tmp_path):
    read = defaults(
        tmp_path,
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        repetition_penalty=1.05,
        eos_token_id=[1, 2],
    )
    resolved = SamplingParams().resolved(read.sampling)
    assert (resolved.temperature, resolved.top_p, resolved.top_k, resolved.repetition_penalty) == (
        0.7,
        0.8,
        20,
        1.05,
    )
    assert read.eos_token_ids == (1, 2)
    assert (
        str(read) == "sampling (temperature 0.7, top_p 0.8, top_k 20, repetition_penalty 1.05), ends at 1, 2"
    )


def test_what_the_user_says_wins_over_the_file(tmp_path):
    read = defaults(tmp_path, do_sample=True, temperature=0.7, top_k=20)
    resolved = SamplingParams(temperature=0.2, top_k=0).resolved(read.sampling)
    assert (resolved.temperature, resolved.top_k) == (0.2, 0)


def test_a_file_without_do_sample_is_greedy_as_in_transformers(tmp_path):
    assert SamplingParams().resolved(defaults(tmp_path, temperature=0.7).sampling).is_greedy


@pytest.mark.parametrize(
    "file", [{"temperature": 0.01, "top_p": 0.001, "top_k": 1}, {"temperature": 1e-6, "top_k": 1}]
)
def test_a_temperature_asked_for_is_not_undone_by_a_greedy_file(tmp_path, file):
    read = defaults(tmp_path, do_sample=True, **file)
    assert SamplingParams().resolved(read.sampling).is_greedy
    asked = SamplingParams(temperature=0.9).resolved(read.sampling)
    assert not asked.is_greedy
    assert asked.top_k == 0
    assert asked.top_p == 1
    assert len(drawn(temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p)) > 1


def test_settings_that_are_not_honoured_are_named(tmp_path, caplog):
    read = defaults(tmp_path, num_beams=4, novel_knob=7, no_repeat_ngram_size=0, pad_token_id=3)
    assert read.not_honoured == {"num_beams": 4, "novel_knob": 7}
    assert "num_beams=4" in str(read)
    assert "novel_knob=7" in caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "holds a list"),
        ('{"top_p": 7}', "top_p 7"),
        ('{"eos_token_id": "x"}', "eos_token_id"),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path, content, words):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_generation_config(tmp_path)
