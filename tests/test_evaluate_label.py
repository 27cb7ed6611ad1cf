"""`qvl eval label`: the least sure first, each label kept at once, and what comes out is what qvl eval takes."""

import io
import json
import math
from pathlib import Path

import pytest
from PIL import Image

from qvl.backends.answer import Answer
from qvl.backends.fake import FakeModel
from qvl.cli.main import main
from qvl.evaluate.samples import SampleError, read_samples
from qvl.tasks import open as door


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("scans").mkdir()
    for i in range(4):
        Image.new("RGB", (56, 56 + 28 * i)).save(f"scans/{i}.png")
    return "scans"


class Sure(FakeModel):
    can = FakeModel.can.__class__(logprobs=True)


def play(monkeypatch, typed):
    def answer(media, question):
        number = (media[0].original.height - 56) // 28
        share = (0.9, 0.2, 0.6, 0.4)[number]
        token = {"token": f"text {number}", "logprob": math.log(share)}
        counts = {"prompt_tokens": 1, "visual_tokens": 1, "completion_tokens": 1}
        return Answer(text=token["token"], finish_reason="stop", logprobs=(token,), **counts)

    model = Sure(answer)
    monkeypatch.setattr(door, "open_backend", lambda *a, **k: door.Model(model))
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return model


def test_a_person_confirms_corrects_skips_and_goes_on_later(folder, monkeypatch, capsys):
    model = play(monkeypatch, "right one\n\n?\n")  # 1 corrected, 3 confirmed, 2 skipped, then the input ends
    assert main(["eval", "label", folder, "-o", "out/labels.jsonl", "--question", "What?"]) == 0
    shown = capsys.readouterr()
    assert "1 confirmed, 1 corrected, 2 left" in shown.out
    assert (
        shown.err.index("confidence 20.0%") < shown.err.index("confidence 40.0%") < shown.err.index("60.0%")
    )
    asked = len(model.calls)
    monkeypatch.setattr("sys.stdin", io.StringIO('{"a": 1}\n\n'))
    assert main(["eval", "label", folder, "-o", "out/labels.jsonl", "--question", "What?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "confirmed": 1, "corrected": 1, "skipped": 0, "left": 0, "out": "out/labels.jsonl",
    }  # fmt: skip
    assert len(model.calls) == asked
    found = {s.id: s for s in read_samples("out/labels.jsonl")}
    assert {i: s.answer for i, s in found.items()} == {
        "1.png": "right one", "3.png": "text 3", "2.png": {"a": 1}, "0.png": "text 0",
    }  # fmt: skip
    assert Path(found["1.png"].media[0]).samefile("scans/1.png")
    assert found["1.png"].question == "What?"
    assert found["1.png"].meta["proposed"] == "text 1"


def test_a_broken_file_of_labels_is_named(folder, monkeypatch, capsys):
    play(monkeypatch, "")
    Path("labels.jsonl").write_text('{"id": "1"}\nnot\n')
    assert main(["eval", "label", folder]) == 2
    assert "labels.jsonl:2: no item" in capsys.readouterr().err
    with pytest.raises(SampleError, match="no truth beside it"):
        read_samples(folder)
