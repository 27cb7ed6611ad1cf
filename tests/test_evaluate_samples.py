"""The user's own items: what is read, and that everything wrong is named with its file and line before asking."""

import json

import pytest
from PIL import Image

from qvl.evaluate.samples import SampleError, check_truths, choose, digest, read_samples
from qvl.evaluate.scorers import find_scorer


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (56, 56), "white").save(tmp_path / name)
    return tmp_path


def lines(folder, *rows, name="items.jsonl"):
    path = folder / name
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8"
    )
    return path


GOOD = {"id": "1", "image": "a.png", "question": "Total?", "answer": "12.50", "stratum": "ko"}


def test_jsonl_with_every_field(folder):
    rows = [
        GOOD,
        {"id": 2, "images": ["a.png", "b.png"], "question": "Which?", "answer": "B", "choices": ["red", "blue"]},
        {"id": "3", "question": "2 + 2?", "answer": [4, "four"], "cluster": "sums", "system": "Be brief.",
         "meta": {"level": 1}},
    ]  # fmt: skip
    first, second, third = read_samples(lines(folder, *rows))
    assert first.media == (str(folder / "a.png"),)
    assert first.stratum == "ko"
    assert second.id == "2"
    assert second.choices == ("red", "blue")
    assert third.answer == [4, "four"]
    assert (third.cluster, third.system, third.meta) == ("sums", "Be brief.", {"level": 1})
    assert first.cluster != second.cluster


def test_csv_reads_lists_and_leaves_empty_cells_out(folder):
    path = folder / "items.csv"
    path.write_text(
        'id,image,question,answer,choices\n1,a.png,"Total, in all?","[""4"", ""four""]",\n2,b.png,Q,B,"[""x"",""y""]"\n'
    )
    first, second = read_samples(path)
    assert first.question == "Total, in all?"
    assert first.answer == ["4", "four"]
    assert second.choices == ("x", "y")


def test_folder_of_images_with_truths_beside_them(folder):
    (folder / "a.txt").write_text("Hello\nWorld\n")
    (folder / "b.json").write_text(json.dumps({"total": 12.5, "date": "2026-01-02"}))
    first, second = read_samples(folder)
    assert (first.id, first.answer) == ("a.png", "Hello\nWorld")
    assert second.answer == {"total": 12.5, "date": "2026-01-02"}
    (folder / "b.json").write_text(json.dumps({"question": "Total?", "answer": "12.5"}))
    assert read_samples(folder)[1].question == "Total?"


FAULTS = [
    ('{"id": "x"', "items.jsonl:2: no JSON"),
    ("[1]", "items.jsonl:2: no JSON object"),
    ({**GOOD, "id": "2", "anwser": "x"}, "items.jsonl:2: unknown field 'anwser'; did you mean answer"),
    (GOOD, "items.jsonl:2: id '1' is that of"),
    ({**GOOD, "id": "2", "image": "c.png"}, "items.jsonl:2: image: there is no file"),
    ({"id": "2", "question": "Q"}, "items.jsonl:2: no answer"),
    ({"question": "Q", "answer": "A"}, "items.jsonl:2: no id"),
    ({**GOOD, "id": "2", "images": ["a.png"]}, "items.jsonl:2: both image and images"),
    ({**GOOD, "id": "2", "choices": "A"}, "items.jsonl:2: choices is no list"),
    ({**GOOD, "id": "2", "image": 5}, "items.jsonl:2: image is no path"),
]


@pytest.mark.parametrize(("row", "message"), FAULTS)
def test_what_is_wrong_is_named_with_file_and_line(folder, row, message):
    with pytest.raises(SampleError) as caught:
        read_samples(lines(folder, GOOD, row))
    assert message in str(caught.value)


def test_all_faults_are_told_at_once_and_counted(folder):
    rows = [{"id": str(i), "image": "none.png", "answer": "x"} for i in range(30)]
    with pytest.raises(SampleError) as caught:
        read_samples(lines(folder, *rows))
    assert len(str(caught.value).splitlines()) == 21
    assert "10 more" in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("e.jsonl", ""), ("e.csv", "id,answer\n"), ("e.txt", "x")])
def test_an_empty_or_foreign_file_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(SampleError):
        read_samples(tmp_path / name)
    (tmp_path / "empty").mkdir(exist_ok=True)
    with pytest.raises(SampleError, match="nothing in it"):
        read_samples(tmp_path / "empty")
    with pytest.raises(SampleError, match="no such file"):
        read_samples(tmp_path / "none.jsonl")


def test_csv_with_too_many_cells_and_an_image_without_truth(folder):
    (folder / "x.csv").write_text("id,answer\n1,a,b\n")
    with pytest.raises(SampleError, match=r"x.csv:2: more cells"):
        read_samples(folder / "x.csv")
    with pytest.raises(SampleError, match="no truth beside it"):
        read_samples(folder)


@pytest.mark.parametrize(
    ("scorer", "answer"),
    [("number", "many"), ("choice", "E"), ("iou", [5, 5, 1, 1]), ("regex", "("), ("fields", "x"), ("teds", "x"),
     ("wer", " "), ("exact", {"a": 1})],
)  # fmt: skip
def test_a_truth_that_cannot_be_parsed_is_named_before_asking(folder, scorer, answer):
    samples = read_samples(lines(folder, {**GOOD, "answer": answer, "choices": ["x", "y"]}))
    with pytest.raises(SampleError, match=r"items.jsonl:1: answer: "):
        check_truths(samples, find_scorer(scorer).read_truth)


def test_a_larger_choice_holds_the_smaller_one(folder):
    samples = read_samples(lines(folder, *({"id": i, "question": "Q", "answer": "A"} for i in range(100))))
    small, large = choose(samples, 10, seed=1), choose(samples, 30, seed=1)
    assert {s.id for s in small} < {s.id for s in large}
    assert {s.id for s in choose(samples, 10, seed=2)} != {s.id for s in small}
    assert choose(samples, None) == samples
    assert digest(samples) == digest(samples[::-1]) != digest(large)
    with pytest.raises(SampleError):
        choose(samples, 0)
