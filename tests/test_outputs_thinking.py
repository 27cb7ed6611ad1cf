"""Thoughts and answers are told apart, however the stream is cut."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvl.outputs.thinking import Piece, ThinkSplitter, joined, opens_thinking, split_thinking

# words that nearly are tags, so that cuts fall into the middle of one
FRAGMENTS = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<",
        "</",
        "</th",
        "think>",
        ">",
        "\n",
        "  ",
        "\n\n",
        "a",
        "dog",
        "<b>",
        "</think",
    ]
)
TEXTS = st.lists(FRAGMENTS, max_size=12).map("".join)


def streamed(text: str, cuts: list[int], opened: bool) -> list[Piece]:
    splitter = ThinkSplitter(opened)
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    pieces, at = [], 0
    for end in ends:
        pieces += splitter.push(text[at:end])
        at = end
    return pieces + splitter.finish()


@given(TEXTS, st.lists(st.integers(0, 60), max_size=20), st.booleans())
def test_the_cuts_of_a_stream_change_nothing(text, cuts, opened):
    assert joined(streamed(text, cuts, opened)) == split_thinking(text, opened)


@given(TEXTS, st.booleans())
def test_one_character_at_a_time_is_the_same(text, opened):
    assert joined(streamed(text, list(range(len(text))), opened)) == split_thinking(text, opened)


@given(TEXTS)
def test_a_reply_that_does_not_begin_with_the_tag_passes_as_it_is(text):
    if not text.lstrip().startswith("<think>"):
        assert split_thinking(text) == ("", text)


@given(TEXTS)
def test_an_opened_reply_is_the_one_that_opens_itself(text):
    if not text.lstrip().startswith("<think>"):
        assert split_thinking(text, opened=True) == split_thinking("<think>" + text)


@given(TEXTS, st.booleans())
def test_no_word_is_lost_or_invented(text, opened):
    thought, answer = split_thinking(text, opened)
    if opened or text.lstrip().startswith("<think>"):  # then one tag of each kind goes
        text = text.lstrip().removeprefix("<think>").replace("</think>", "", 1)
    assert "".join((thought + answer).split()) == "".join(text.split())


@given(TEXTS, st.booleans())
def test_thoughts_hold_no_closing_tag_and_no_space_around_them(text, opened):
    thought, _ = split_thinking(text, opened)
    assert "</think>" not in thought
    assert thought == thought.strip()


@given(TEXTS, st.lists(st.integers(0, 60), max_size=20), st.booleans())
def test_all_thoughts_come_before_the_answer(text, cuts, opened):
    kinds = [piece.thought for piece in streamed(text, cuts, opened)]
    assert kinds == sorted(kinds, reverse=True)


@given(TEXTS, st.lists(st.integers(0, 60), max_size=20), st.booleans())
def test_no_piece_is_empty(text, cuts, opened):
    assert all(piece.text for piece in streamed(text, cuts, opened))


@pytest.mark.parametrize(
    ("text", "opened", "thought", "answer"),
    [
        ("<think>\nhm\n</think>\n\nyes", False, "hm", "yes"),
        ("\nhm\n</think>\n\nyes", True, "hm", "yes"),
        ("<think>\nhm\n</think>\n\nyes", True, "hm", "yes"),
        ("<think>\n\n</think>\n\nyes", False, "", "yes"),
        ("</think>yes", True, "", "yes"),
        ("hm, cut o", True, "hm, cut o", ""),
        ("<think>hm </thi", False, "hm </thi", ""),
        ("<thin", False, "", "<thin"),
        ("<thin", True, "<thin", ""),
        ("<think>", False, "", ""),
        ("", True, "", ""),
        (" yes ", False, "", " yes "),
        ("yes <think>no</think>", False, "", "yes <think>no</think>"),
        ("<think>a</think>b</think>c", False, "a", "b</think>c"),
        ("<think>a\n\n b</think>c", False, "a\n\n b", "c"),
    ],
)
def test_what_is_thought_and_what_is_answered(text, opened, thought, answer):
    assert split_thinking(text, opened) == (thought, answer)


def test_thoughts_come_out_before_their_end_is_known():
    splitter = ThinkSplitter(opened=True)
    assert splitter.push("\nfirst ") == [Piece("first", thought=True)]
    assert splitter.push("second</") == [Piece(" second", thought=True)]
    assert splitter.push("b>") == [Piece("</b>", thought=True)]


def test_an_answer_comes_out_at_once():
    splitter = ThinkSplitter()
    assert splitter.push("<b") == [Piece("<b")]
    assert splitter.push(" <think>") == [Piece(" <think>")]


@pytest.mark.parametrize("text", ["<|im_start|>assistant\n<think>\n", "<think>"])
def test_a_prompt_that_ends_in_the_tag_opens_thinking(text):
    assert opens_thinking(text)


@pytest.mark.parametrize("text", ["<|im_start|>assistant\n", "<think>\n\n</think>\n\n", "<think> so"])
def test_other_prompts_do_not_open_it(text):
    assert not opens_thinking(text)


def test_a_megabyte_of_half_tags_takes_linear_time():
    began = time.perf_counter()
    split_thinking("</think" * 150_000, opened=True)
    splitter = ThinkSplitter(opened=True)
    for _ in range(100_000):
        splitter.push(" ")
    splitter.finish()
    assert time.perf_counter() - began < 5
