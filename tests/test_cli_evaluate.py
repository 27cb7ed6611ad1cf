"""`qvl eval` and its sub-verbs as a user runs them."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qvl.backends.fake import FakeModel
from qvl.cli.main import main
from qvl.evaluate.journal import read_lines
from qvl.tasks import open as door

ROOT = Path(__file__).parent.parent
RECEIPTS = "examples/eval/receipts.jsonl"


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": str(i), "question": f"Q{i}", "answer": str(i), "stratum": "ab"[i % 2]} for i in range(10)]
    Path("items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return "items.jsonl"


@pytest.fixture
def says(monkeypatch):
    def use(*wrong, **more):
        model = FakeModel(lambda media, q: "no" if q[1:] in wrong else q[1:], **more)
        monkeypatch.setattr(door, "open_backend", lambda *a, **k: door.Model(model))
        return model

    return use


def test_the_embedded_model_on_the_shipped_receipts_in_bf16_and_int4(tmp_path, monkeypatch, capsys):
    """What the issue asks of a fresh clone."""
    monkeypatch.chdir(ROOT)
    a, b = str(tmp_path / "bf16"), str(tmp_path / "int4")
    assert main(["eval", RECEIPTS, "-o", a]) == 0
    out = capsys.readouterr().out
    assert "24 items" in out
    assert "95% interval" in out
    assert "receipt" in out
    assert (
        main(["eval", RECEIPTS, "--weights", "int4", "-o", b, "--report", str(tmp_path / "worst.html")]) == 0
    )
    assert "data:image/jpeg;base64," in (tmp_path / "worst.html").read_text()
    capsys.readouterr()
    code = main(["eval", "compare", a, b, "--max-drop", "1pt", "--report", str(tmp_path / "flips.html")])
    out = capsys.readouterr().out
    assert code == 1  # 24 items can't exclude a drop of a point
    assert "24 items on both sides" in out
    assert "McNemar exact" in out
    assert "not excluded" in out
    assert 'model.weights was not set, is "int4"' in out
    about = json.loads((tmp_path / "bf16" / "run.json").read_text())
    assert len(about["model"]["digest"]) == 64
    assert about["summary"]["score"] > 0.6


def test_the_same_command_resumes_and_resume_is_accepted_from_the_start(data, says, capsys):
    model = says("3")
    assert main(["eval", data, "--resume", "-o", "run"]) == 0
    assert main(["eval", data, "-o", "run"]) == 0
    assert main(["eval", data, "-o", "run", "--resume"]) == 0
    assert len(model.calls) == 10
    assert main(["eval", data, "-o", "run", "--max-pixels", "50000"]) == 2
    assert "settings.max_pixels was not set, is 50000" in capsys.readouterr().err
    assert main(["eval", data, "-o", "run", "--max-pixels", "50000", "--fresh"]) == 0
    assert len(model.calls) == 20
    assert model.calls[-1].settings == {"max_pixels": 50000}
    assert main(["eval", data, "-o", "run", "--fresh", "--resume"]) == 2


def test_json_holds_unrounded_numbers_and_the_default_folder_is_named(data, says, capsys):
    says("1", "2", "4")
    assert main(["eval", data, "--json", "--seed", "3", "-n", "7"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == "runs/items-mini"
    assert found["summary"]["num"] == 7
    scores = [r["score"] for r in read_lines(Path("runs/items-mini/samples.jsonl"))]
    assert found["summary"]["score"] == sum(scores) / 7
    assert found["data"]["seed"] == 3
    assert found["settings"] == {"seed": 3}


def test_errors_in_the_data_come_before_the_model_is_opened(data, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise AssertionError("opened")

    monkeypatch.setattr(door, "open_backend", fail)
    Path("bad.jsonl").write_text('{"id": "1", "imag": "x.png", "answer": "y"}\n')
    assert main(["eval", "bad.jsonl"]) == 2
    assert "bad.jsonl:1: unknown field 'imag'" in capsys.readouterr().err
    assert main(["eval", data, "--scorer", "number", "--scorer-option", "tolerance"]) == 2
    assert main(["eval", data, "--scorer", "nmber"]) == 2
    assert "did you mean number" in capsys.readouterr().err


def test_rescoring_and_options_of_a_scorer(data, says, capsys):
    model = says("3")
    assert main(["eval", data, "-o", "run"]) == 0
    assert main(["eval", data, "-o", "run", "--scorer", "anls"]) == 2
    assert "--rescore" in capsys.readouterr().err
    words = ["--rescore", "--scorer", "anls", "--scorer-option", "threshold=0.2", "--json"]
    assert main(["eval", data, "-o", "run", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scorer"]["options"] == {"threshold": 0.2}
    assert len(model.calls) == 10


def test_a_run_that_stops_says_so_and_exits_1(data, says, capsys, monkeypatch):
    from qvl.errors import BackendError

    broken = FakeModel(lambda media, q: BackendError("away"))
    monkeypatch.setattr(door, "open_backend", lambda *a, **k: door.Model(broken))
    rows = [{"id": str(i), "question": "Q", "answer": "x"} for i in range(40)]
    Path("many.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main(["eval", "many.jsonl", "-o", "run"]) == 1
    err = capsys.readouterr().err
    assert "stopped: 20 items failed one after the other" in err
    assert "the same command goes on" in err


def test_compare_prints_flips_and_json(data, says, capsys):
    says()
    assert main(["eval", data, "-o", "a"]) == 0
    says("1", "2", "3", name="worse")
    assert main(["eval", data, "-o", "b"]) == 0
    says("5", name="other")
    assert main(["eval", data, "-o", "c"]) == 0
    capsys.readouterr()
    assert main(["eval", "compare", "a", "b", "c", "--json", "--detect", "5pt"]) == 0
    found = json.loads(capsys.readouterr().out)["comparisons"]
    assert found[0]["lost"] == ["1", "2", "3"]
    assert found[0]["p"] == 0.25
    assert found[0]["adjusted_p"] == 0.5
    assert found[0]["difference"] == pytest.approx(-0.3)
    assert found[0]["needed"] > 10
    assert main(["eval", "compare", "a", "b"]) == 0
    assert "p = 0.25 (McNemar, exact)" in capsys.readouterr().out
    assert main(["eval", "compare", "a"]) == 2
    assert main(["eval", "compare", "a", "none"]) == 2
    assert "no run in it" in capsys.readouterr().err


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)


def test_a_page_is_safe_against_what_a_model_says(data, says, monkeypatch):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'{{ 7 * 7 }}"
    monkeypatch.setattr(door, "open_backend", lambda *a, **k: door.Model(FakeModel(evil)))
    assert main(["eval", data, "-o", "a", "--report", "run.html"]) == 0
    says(name="right")
    assert main(["eval", data, "-o", "b"]) == 0
    assert main(["eval", "compare", "a", "b", "--report", "compare.html"]) == 0
    for name in ("run.html", "compare.html"):
        text = Path(name).read_text()
        parser = Tags()
        parser.feed(text)
        assert "script" not in parser.tags
        assert "img" not in parser.tags
        assert "&lt;script&gt;" in text
        assert "{{ 7 * 7 }}" in text


def test_plan_answers_both_ways(capsys):
    assert main(["eval", "plan", "--discordant", "10%", "--detect", "1pt"]) == 0
    assert "7,847 items" in capsys.readouterr().out
    assert main(["eval", "plan", "--discordant", "0.1", "-n", "900", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["detectable"] == pytest.approx(0.0295, abs=1e-4)
    for words in ([], ["--detect", "x"], ["--detect", "0"], ["--detect", "20pt"], ["--detect", "1"]):
        assert main(["eval", "plan", *words]) == 2


def test_published_scores_stand_beside_measured_ones_without_a_verdict(data, says, capsys):
    assert main(["eval", "published", "qwen2.5-vl-7b"]) == 0
    assert "DocVQA" in capsys.readouterr().out
    says("1")
    assert main(["eval", data, "-o", "run"]) == 0
    about = json.loads(Path("run/run.json").read_text())
    about["data"]["benchmark"] = "docvqa"
    Path("run/run.json").write_text(json.dumps(about))
    capsys.readouterr()
    assert main(["eval", "published", "qwen2.5-vl-7b", "--run", "run", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["scores"]
    beside = next(r for r in rows if r["benchmark"] == "DocVQA")
    assert beside["measured"]["score"] == 0.9
    assert beside["measured"]["setting"]["data"]["num"] == 10
    assert {r["benchmark"] for r in rows if r["measured"]} == {"DocVQA"}
    assert main(["eval", "published", "nothing"]) == 2


def test_a_folder_named_like_a_subverb_is_reached_by_its_path(data, says, tmp_path):
    from PIL import Image

    Path("plan").mkdir()
    Image.new("RGB", (56, 56)).save("plan/a.png")
    Path("plan/a.txt").write_text("hello")
    says()
    assert main(["eval", "./plan", "--question", "Q1", "-o", "run"]) == 0


def test_a_benchmark_runs_on_its_official_layout(tmp_path, monkeypatch, capsys, says):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("doc/documents").mkdir(parents=True)
    rows = []
    for i in range(5):
        Image.new("RGB", (56, 56)).save(f"doc/documents/{i}.png")
        rows.append(
            {
                "questionId": i,
                "question": f"Q{i}",
                "image": f"documents/{i}.png",
                "answers": [str(i)],
                "docId": i,
            }
        )
    Path("doc/val_v1.0_withQT.json").write_text(json.dumps({"dataset_name": "docvqa", "data": rows}))
    model = FakeModel(lambda media, q: q[1])
    monkeypatch.setattr(door, "open_backend", lambda *a, **k: door.Model(model))
    words = ["eval", "docvqa", "--data", "doc/val_v1.0_withQT.json", "-o", "run"]
    assert main([*words, "--json", "-n", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"]["benchmark"] == "docvqa"
    assert found["summary"]["score"] == found["figures"]["mean"] == 1
    assert found["settings"]["temperature"] == 0
    assert main([*words, "-n", "4", "--max-pixels", "99999"]) == 2  # the user's own go over the benchmark's
    assert "max_pixels was" in capsys.readouterr().err
    assert main([*words, "-n", "4", "--rescore", "--official"]) == 0
    assert json.loads(Path("run/run.json").read_text())["scorer"]["options"]["official"] is True
    assert len(model.calls) == 4
    assert main(["eval", "docvqa"]) == 2
    assert "--how says where" in capsys.readouterr().err
    assert main(["eval", "docvqa", "--how"]) == 0
    assert "Licence" in capsys.readouterr().out
    assert main(["eval", "run", "--official"]) == 2
