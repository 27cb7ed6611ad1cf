"""The arithmetic beneath the doctor: gaps between answers, paired statistics, scores."""

import pytest

from qvl.backends.answer import Answer
from qvl.doctor.compare import MOST, Reply, Step, gap, reply_of
from qvl.doctor.sets import similarity
from qvl.doctor.verdicts import one_sided
from qvl.evaluate.statistics import mcnemar, sign_flip


def reply(text, *steps):
    return Reply(text, tuple(Step(token, top) for token, top in steps))


def answer(text, logprobs=()):
    return Answer(
        text=text,
        finish_reason="stop",
        prompt_tokens=3,
        visual_tokens=0,
        completion_tokens=2,
        logprobs=tuple(logprobs),
    )


A = reply("ab", ("a", {"a": -0.1, "x": -2.5}), ("b", {"b": -0.2, "y": -2.0}))


def test_an_answer_is_no_distance_from_itself():
    found = gap(A, A)
    assert (found.nats, found.mean_nats, found.any_nats) == (0, 0, 0)
    assert found.agree
    assert not found.differ(0.0)


def test_nats_are_the_largest_move_of_a_likely_token_and_the_mean_over_steps():
    other = reply("ab", ("a", {"a": -0.4, "x": -2.5}), ("b", {"b": -0.3, "y": -2.0}))
    found = gap(A, other)
    assert found.nats == pytest.approx(0.3)
    assert found.mean_nats == pytest.approx(0.2)
    assert gap(other, A) == found


def test_unlikely_tokens_count_for_telling_apart_alone():
    other = reply("ab", ("a", {"a": -0.1, "x": -9.0}), A.steps[1])
    base = reply("ab", ("a", {"a": -0.1, "x": -5.0}), A.steps[1])
    found = gap(base, other)
    assert found.nats == 0
    assert found.any_nats == pytest.approx(4.0)
    assert found.agree
    assert found.differ(0.0)


def test_steps_after_the_texts_part_are_not_compared():
    other = reply("xq", ("x", {"a": -0.4, "x": -0.3}), ("q", {"b": -50.0, "q": -0.1}))
    base = reply("ab", ("a", {"a": -0.3, "x": -0.4}), ("b", {"b": -0.1, "q": -50.0}))
    found = gap(base, other)
    assert found.nats == pytest.approx(0.1)
    assert not found.parted  # a and x were nearly as likely
    assert found.agree


def test_parting_at_a_clear_choice_is_no_tie():
    other = reply("xb", ("x", {"x": -0.1, "a": -3.0}), A.steps[1])
    assert gap(A, other).parted
    assert not gap(A, other).agree


def test_a_lost_piece_at_equal_probabilities_is_parted():
    assert gap(A, Reply("b", A.steps)).parted


def test_without_logprobs_only_the_text_tells():
    found = gap(Reply("a"), Reply("b"))
    assert found.parted
    assert found.nats is None
    assert found.differ(0.0)
    assert gap(Reply("a"), Reply("a")).agree
    assert not gap(Reply("a"), Reply("a")).differ(0.0)


def test_no_token_in_common_is_the_largest_gap():
    found = gap(reply("a", ("a", {"a": -0.1})), reply("b", ("b", {"b": -0.1})))
    assert found.nats == found.any_nats == MOST


def test_noise_has_to_be_exceeded_twice():
    other = reply("ab", ("a", {"a": -0.3, "x": -2.5}), A.steps[1])
    assert gap(A, other).differ(0.05)
    assert not gap(A, other).differ(0.15)


def test_a_servers_logprobs_and_our_own_give_the_same_steps():
    from qvl.engine.sampling import Logprob

    entry = {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "\ufffd", "logprob": -1.5, "bytes": [200]},
        ],
    }
    served = reply_of(answer("a", [entry]))
    own = reply_of(answer("a", [Logprob(7, -0.5, ((7, -0.5), (9, -1.5)))]), {7: b"a", 9: b"\xc8"}.__getitem__)
    assert served == own


def test_a_server_that_gives_no_bytes_is_read_by_its_tokens():
    entry = {"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": None}
    assert reply_of(answer("a", [entry])).steps == (Step(b"a", {b"a": -0.5}),)


def test_a_stored_reply_compares_as_the_fresh_one():
    fresh = reply("aÿ", (b"a", {b"a": -0.123456789}), (b"\xff", {b"\xff": -0.2}))
    stored = Reply.of_dict(fresh.to_dict())
    assert gap(fresh.readable(), stored).nats == pytest.approx(0, abs=1e-6)
    assert stored.steps[1].token == "\ufffd"


# ---------------------------------------------------------------------------------------------------- statistics


def test_a_loss_counts_one_sided():
    assert one_sided(sign_flip([-1, -1, -1]), True) == 1 / 8
    assert one_sided(mcnemar(5, 0).exact, True) == 1 / 32
    assert one_sided(mcnemar(0, 3).exact, False) == 1
    assert one_sided(sign_flip([]), False) == 1


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [("abc", "abc", 1), ("", "", 1), ("abc", "", 0), ("abcd", "abxd", 0.75), (" a  b ", "a b", 1)],
)
def test_similarity_is_one_minus_the_edit_distance(a, b, wanted):
    assert similarity(a, b) == similarity(b, a) == wanted
