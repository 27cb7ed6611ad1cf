"""Stop strings: never shown, not in part either, however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvl.engine.stopping import StopText


def run(pieces, stops) -> tuple[str, str | None]:
    text = StopText(stops)
    out = "".join(text.push(piece) for piece in pieces)
    return out + text.finish(), text.stopped_by


def test_without_stops_text_passes_at_once():
    assert StopText([]).push("abc") == "abc"


def test_a_stop_string_across_pieces_is_found_and_not_shown():
    assert run(["one EN", "D two"], ["END"]) == ("one ", "END")
    assert run(list("one END two"), ["END"]) == ("one ", "END")


def test_a_part_of_a_stop_string_is_held_only_while_it_may_become_one():
    text = StopText(["END"])
    assert text.push("an E") == "an "
    assert text.push("N") == ""
    assert text.push("T") == "ENT"


def test_what_looked_like_a_stop_comes_out_at_the_end():
    assert run(["say EN"], ["END"]) == ("say EN", None)


def test_the_earliest_of_several_stops_wins():
    assert run(["a b c"], ["c", "b"]) == ("a ", "b")


def test_nothing_comes_out_after_a_stop():
    text = StopText(["."])
    assert text.push("a.b") == "a"
    assert text.push("c") == ""
    assert text.finish() == ""


@given(
    st.text("abE", max_size=20),
    st.lists(st.text("abE", min_size=1, max_size=4), min_size=1, max_size=3),
    st.data(),
)
def test_any_cutting_gives_what_the_whole_text_gives(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    # pieces may end inside a longer stop that begins earlier, which is found later but lies before
    out, stopped = run(pieces, stops)
    if not places:
        assert (out, stopped) == (text, None)
    else:
        assert stopped is not None
        assert text.startswith(out)
        assert text[len(out) :].startswith(stopped)
        assert not any(stop in out for stop in stops)


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_stop_that_begins_inside_another_is_not_lost(cut):
    text = "xxaab aabb"
    out, stopped = run([text[:cut], text[cut:]], ["aabb", "ab "])
    assert (out, stopped) == ("xxa", "ab ")
