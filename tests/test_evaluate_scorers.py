"""The scorers of the user's own items: their rules on ordinary and odd answers."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvl.errors import OutputError, QvlError
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers import SCORERS, Reply, find_scorer, fit_scorer
from qvl.evaluate.scorers.base import levenshtein
from qvl.evaluate.scorers.structure import tree_distance
from qvl.geometry import Size


def score(name, truth, text, *, choices=(), **options):
    sample = Sample(id="1", answer=truth, choices=choices)
    sizes = ((Size(480, 640), Size(480, 640)),)
    reply = Reply(text=text, family="qwen3_vl", sizes=sizes)  # numbers of 0 to 1000
    return find_scorer(name, options).grade(reply, sample).score


def slow_levenshtein(a, b):
    above = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
        above = row
    return above[-1]


@given(st.text("abc ", max_size=90), st.text("abc ", max_size=90))
def test_levenshtein_is_the_table_of_the_textbook(a, b):
    assert levenshtein(a, b) == slow_levenshtein(a, b)


RULES = [
    ("exact", "Total", " total ", 1), ("exact", ["a", "b"], "B", 1), ("exact", "Ab", "ab", 1), ("exact", "a", "a b", 0),
    ("exact", 12, "12", 1), ("exact", "a", "", 0),
    ("contains", "42", "It is 42.", 1), ("contains", ["x", "y"], "no", 0),
    ("anls", "hello", "hello", 1), ("anls", "42", "42%", 2 / 3), ("anls", "ab", "ac", 0.5), ("anls", "ab", "xy", 0),
    ("anls", "ab", "  AC    ", 0.5),
    ("number", 100, "105", 1), ("number", 100, "105.1", 0), ("number", 0, "0.0", 1), ("number", 0, "0.01", 0),
    ("number", "1,234.5", "about $1,234.50 in all", 1), ("number", 10, "10%", 1), ("number", 2015, "2010", 0),
    ("number", 2015, "In 2015.", 1), ("number", -3, "−3", 1), ("number", 5, "none", 0), ("number", [1, 2], "2", 1),
    ("regex", r"\b\d{4}\b", "in 2024", 1), ("regex", "^x$", "y", 0),
    ("wer", "the cat sat", "the cat", 2 / 3), ("wer", "a b", "a b c d e f", 0), ("cer", "abcd", "abce", 0.75),
    ("cer", "가나다", "가나", 2 / 3),
    ("blocks", "one\n\ntwo two", "one\n\ntwo two", 1), ("blocks", "abc\n\ndefg", "defg", 4 / 7), ("blocks", "a", "", 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "truth", "text", "wanted"), RULES)
def test_rules_of_text(name, truth, text, wanted):
    assert score(name, truth, text) == pytest.approx(wanted)


CHOICES = [
    ("B", 1), ("b", 1), ("(B)", 1), ("**B**", 1), (r"\boxed{B}", 1), ("B. blue", 1), ("B\nbecause", 1),
    ("(A) is wrong, so it is (B)", 1),
    ("The answer is B", 1), ("Answer: (B).", 1), ("Based on the picture, the answer is B.", 1), ("blue", 1),
    ("It is blue.", 1), ("red or blue", 0), ("A", 0), ("E", 0), ("", 0), ("A red car; the answer is B", 1),
    ("정답: B", 1), ("答案是B", 1),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), CHOICES)
def test_a_choice_is_read_and_never_guessed(text, wanted):
    assert score("choice", "blue", text, choices=("red", "blue", "green")) == wanted
    assert score("choice", "B", text, choices=("red", "blue", "green")) == wanted
    assert score("choice", 1, text, choices=("red", "blue", "green")) == wanted


def test_swapping_options_and_letter_leaves_a_choice_as_it_is():
    draw = random.Random(0)
    for _ in range(50):
        options = ["red", "blue", "green", "grey"]
        draw.shuffle(options)
        letter = "ABCD"[options.index("blue")]
        assert score("choice", "blue", f"The answer is {letter}.", choices=tuple(options)) == 1


def test_options_are_read_as_the_kind_of_their_default_and_unknown_ones_refused():
    assert score("exact", "Ab", "ab", case="true") == 0
    assert score("anls", "42", "42%", threshold="0.7") == 0
    for options in ({"treshold": 0.5}, {"threshold": "much"}):
        with pytest.raises(QvlError):
            find_scorer("anls", options)
    with pytest.raises(QvlError, match="no scorer 'ansl'; did you mean anls"):
        find_scorer("ansl")


def box(*numbers):
    return json.dumps([{"bbox_2d": list(numbers), "label": "x"}])


def test_boxes_are_mapped_by_family_and_met_at_an_iou():
    truth = [64, 48, 320, 240]  # a tenth to a half of the image each way
    assert score("iou", truth, box(100, 100, 500, 500)) == 1
    assert score("iou", truth, box(100, 100, 500, 320)) == 1  # IoU 0.55
    assert score("iou", truth, box(100, 100, 500, 280)) == 0
    assert score("iou", truth, box(100, 100, 500, 280), at=0) == pytest.approx(0.45)
    assert score("iou", [truth, [400, 300, 500, 400]], box(100, 100, 500, 500)) == pytest.approx(2 / 3)
    assert score("iou", truth, "no box") == 0
    assert score("point", truth, box(100, 100, 500, 500)) == 1
    assert score("point", truth, box(600, 100, 900, 500)) == 0
    with pytest.raises(OutputError):
        find_scorer("iou").grade(Reply(text="x"), Sample(id="1", answer=truth))


FIELDS = {
    "total": 12.5,
    "paid": True,
    "date": "2026-01-02",
    "note": None,
    "items": [{"name": "Tea", "price": 3}],
}


def test_fields_have_the_type_of_their_truth():
    items = '"items": [{"name": "tea", "price": "3"}]'
    perfect = f'```json\n{{"total": "$12.50", "paid": "yes", "date": "2026-01-02", {items}}}\n```'
    assert score("fields", FIELDS, perfect) == 1
    assert score("fields", FIELDS, '{"total": 12.5}') == pytest.approx(2 / (5 + 1))
    assert score("fields", FIELDS, '{"total": 12.6}') == 0
    assert score("fields", FIELDS, '{"total": 12.6}', tolerance=0.01) == pytest.approx(2 / 6)
    assert score("fields", {"a": "x"}, '{"a": "x", "b": "y"}') == pytest.approx(2 / 3)
    assert score("fields", {"a": ["x", "y"]}, '{"a": ["y", "x"]}') == 1
    assert score("fields", {"a": "x"}, "none") == 0
    assert score("fields", {"a": True}, '{"a": 1}') == 0


def test_each_field_is_counted_by_itself():
    from qvl.evaluate.scorers.structure import field_scores

    truth = {"total": 5, "items": [{"a": "x"}], "none": None}
    pairs = [
        (truth, {"total": "5", "items": [{"a": "x"}]}),
        (truth, {"total": 6, "none": "y"}),
        (truth, None),
    ]
    found = field_scores(pairs)
    assert {k: v["right"] for k, v in found.items()} == pytest.approx(
        {"total": 1 / 3, "items": 1 / 3, "none": 2 / 3}
    )


def test_teds_of_tables_in_three_syntaxes():
    rows = [["a", "b"], ["c", "d"]]
    html = "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>"
    assert score("teds", rows, html) == 1
    assert score("teds", html, "| a | b |\n|---|---|\n| c | d |") == 1
    assert score("teds", html, html.replace("d", "x", 0).replace(">d<", ">x<")) == pytest.approx(1 - 1 / 7)
    assert score("teds", html, html.replace(">d<", ">x<"), structure=True) == 1
    assert score("teds", html, "<table><tr><td>a</td><td>b</td></tr></table>") == pytest.approx(1 - 3 / 7)
    assert score("teds", html, "no table") == 0


def slow_tree_distance(a, b, change):
    """By the recursion on forests that defines it."""
    from functools import cache

    def freeze(tree):
        return (tree[0], tuple(map(freeze, tree[1])))

    @cache
    def forest(x, y):
        if not x and not y:
            return 0
        if not x:
            return 1 + forest(x, y[:-1] + y[-1][1])
        if not y:
            return 1 + forest(x[:-1] + x[-1][1], y)
        return min(
            1 + forest(x[:-1] + x[-1][1], y),
            1 + forest(x, y[:-1] + y[-1][1]),
            change(x[-1][0], y[-1][0]) + forest(x[-1][1], y[-1][1]) + forest(x[:-1], y[:-1]),
        )

    return forest((freeze(a),), (freeze(b),))


def test_tree_distance_is_its_definition():
    draw = random.Random(1)

    def tree(nodes):
        children = []
        left = nodes - 1
        while left:
            part = draw.randint(1, left)
            children.append(tree(part))
            left -= part
        return (draw.choice("xyz"), children)

    def change(x, y):
        return float(x != y) * 0.7

    for _ in range(200):
        a, b = tree(draw.randint(1, 7)), tree(draw.randint(1, 7))
        assert tree_distance(a, b, change) == pytest.approx(slow_tree_distance(a, b, change))


PERFECT = {
    "exact": "x", "contains": "x", "anls": "x", "number": 3, "choice": "B", "regex": "x", "wer": "x y", "cer": "x y",
    "iou": [64, 48, 320, 240], "point": [64, 48, 320, 240], "fields": {"a": 1}, "teds": [["x"]], "blocks": "x y",
}  # fmt: skip
SAID = {
    "number": "3", "choice": "B", "iou": box(100, 100, 500, 500), "point": box(100, 100, 500, 500),
    "fields": '{"a": 1}', "teds": "<table><tr><td>x</td></tr></table>",
}  # fmt: skip


@pytest.mark.parametrize("name", SCORERS)
def test_perfect_is_one_empty_is_nothing_and_each_rule_says_what_it_is(name):
    choices = ("red", "blue")
    said = SAID.get(name, PERFECT[name])
    assert score(name, PERFECT[name], said, choices=choices) == 1
    assert score(name, PERFECT[name], "  " + said + " \n", choices=choices) == 1
    empty = find_scorer(name).grade(
        Reply(text="", family="qwen3_vl", sizes=((Size(9, 9), Size(9, 9)),)),
        Sample(id="1", answer=PERFECT[name], choices=choices),
    )
    assert empty.score == 0
    assert len(SCORERS[name].about) > 20
    json.dumps(SCORERS[name].identity())


@given(st.text(max_size=60), st.sampled_from(sorted(SCORERS)))
def test_no_answer_breaks_a_scorer(text, name):
    found = score(name, PERFECT[name], text, choices=("red", "blue"))
    assert 0 <= found <= 1
    assert math.isfinite(found)


def test_a_function_of_the_users_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        'def half(answer, sample):\n    """Half for anything."""\n    return 0.5, answer.upper()\n'
    )
    scorer = find_scorer(f"{path}:half")
    assert scorer.grade(Reply(text="a"), Sample(id="1", answer="b")) == (0.5, "A")
    assert scorer.about == "Half for anything."
    assert len(scorer.identity()["digest"]) == 64
    for wrong in (f"{path}:none", f"{tmp_path}/no.py:half"):
        with pytest.raises(QvlError):
            find_scorer(wrong)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [("x", "exact"), (3, "number"), ({"a": 1}, "fields"), ([1, 2, 3, 4], "iou"), ([[1, 2, 3, 4]], "iou"),
     (["a", "b"], "exact"), ("long " * 30, "anls")],
)  # fmt: skip
def test_a_scorer_that_fits_the_truth(answer, wanted):
    assert fit_scorer(Sample(id="1", answer=answer)) == wanted
    assert fit_scorer(Sample(id="1", answer=answer, choices=("a", "b"))) == "choice"
