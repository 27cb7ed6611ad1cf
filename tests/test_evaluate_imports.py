"""Logs of other harnesses become runs of ours."""

import json

import pytest

from qvl.cli.main import main
from qvl.evaluate.imports import import_run
from qvl.evaluate.runner import read_result, rescore
from qvl.evaluate.samples import Sample, SampleError
from qvl.evaluate.scorers import find_scorer


def log(path, *answers, **more):
    rows = [
        {"doc_id": i, "target": "12.50", "filtered_resps": [a], "resps": [[a]], "input": "Total?",
         "doc": {"question": "Total?", "answers": ["12.50", "12.5"]}, "doc_hash": "x", **more}
        for i, a in enumerate(answers)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_an_lmms_eval_log_is_scored_and_compared(tmp_path, capsys):
    a, b = log(tmp_path / "a.jsonl", "12.5", "12.50", "9"), log(tmp_path / "b.jsonl", "12.5", "8", "9")
    assert main(["eval", "import", str(a), "-o", str(tmp_path / "A"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["summary"]["score"] == pytest.approx(2 / 3)
    assert main(["eval", "import", str(b), "-o", str(tmp_path / "B")]) == 0
    assert main(["eval", "compare", str(tmp_path / "A"), str(tmp_path / "B")]) == 0
    assert "1 worse, 0 better" in capsys.readouterr().out
    samples = [Sample(id=str(i), question="Total?", answer="12.50") for i in range(3)]
    assert rescore(tmp_path / "A", samples, find_scorer("number")).score == pytest.approx(2 / 3)
    assert read_result(tmp_path / "A").about["scorer"]["name"] == "number"


def test_the_log_as_it_is_written_has_a_list_as_text_and_no_doc(tmp_path):
    row = {
        "doc_id": 3,
        "target": "['12.50', '12.5']",
        "filtered_resps": ["12.5"],
        "doc_hash": "x",
        "input": "Total?",
    }
    (tmp_path / "s.jsonl").write_text(json.dumps(row) + "\n")
    line = import_run(tmp_path / "s.jsonl", None).lines[0]
    assert (line["truth"], line["score"], line["prompt"]) == (["12.50", "12.5"], 1, "Total?")


def test_numbers_of_a_log_become_our_ids(tmp_path):
    items = [Sample(id=f"r{i}", question="Q", answer=str(i)) for i in range(3)]
    rows = [{"doc_id": i, "target": "x", "filtered_resps": [str(i)]} for i in range(3)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = import_run(tmp_path / "s.jsonl", None, items=items)
    assert [(r["id"], r["truth"], r["score"]) for r in result.lines] == [
        ("r0", "0", 1),
        ("r1", "1", 1),
        ("r2", "2", 1),
    ]
    with pytest.raises(SampleError, match="no number of the 2 items"):
        import_run(tmp_path / "s.jsonl", None, items=items[:2])


def test_a_vlmevalkit_tsv_with_choices_and_lists(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_text(
        "index\tquestion\tanswer\tA\tB\tcategory\tprediction\n7\tWhich?\tB\tred\tblue\tx\tThe answer is B\n"
    )
    result = import_run(path, None)
    assert (result.score, result.lines[0]["id"], result.lines[0]["stratum"]) == (1, "7", {"stratum": "x"})
    path.write_text("index\tquestion\tanswer\tprediction\n1\tQ\t['a', 'b']\tB\n2\tQ\t__import__('os')\tx\n")
    assert [r["score"] for r in import_run(path, None).lines] == [1, 0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", '{"doc_id": 1}\n', "x.jsonl:1: neither"),
        ("x.jsonl", '{"resps": [["a"]]}\n', "x.jsonl:1: no line"),
        ("x.jsonl", '{"doc_id": 1, "resps": [["a"]]}\n', "x.jsonl:1: no target"),
        ("x.jsonl", '{"doc_id": 1, "resps": [["a"]], "target": "a"}\n' * 2, "x.jsonl:2: id '1'"),
        ("x.jsonl", "", "nothing in it"),
        ("x.tsv", "index\tanswer\n1\ta\n", "x.tsv:1: no column prediction"),
        ("x.tsv", "index\tanswer\tprediction\n1\ta\n", "x.tsv:2: its cells"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(SampleError) as caught:
        import_run(tmp_path / name, None)
    assert message in str(caught.value)
