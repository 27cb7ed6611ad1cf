"""Baselines: kept, found by name, refused when they belong to something else."""

import json

import pytest

from qvl.doctor.baseline import Baseline, BaselineError, baseline_path, embedded_weights, name_of
from qvl.doctor.compare import Question, Reply, Step


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "qvl" / "doctor"


def made(**changes):
    reply = Reply("5", (Step("5", {"5": -0.25, "6": -1.5}),))
    fields = dict(model="m", family="qwen2_5_vl", seed=3, made="2026-11-24", replies={"read-0": reply})
    return Baseline(**(fields | changes))


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "new" / "b.json"
    made(weights="ab").write(path)
    assert Baseline.read(path) == made(weights="ab")


def test_a_question_that_was_not_asked_has_no_reply():
    kept = made()
    assert kept.reply(Question("read-0", (), "", 4)).text == "5"
    assert kept.reply(Question("read-1", (), "", 4)) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "can't be read"),
        ("[]", "format 1"),
        ('{"format": 9}', "format 1"),
        ('{"format": 1}', "damaged"),
        ('{"format": 1, "replies": {"a": {"text": "x"}}}', "damaged"),
        ('{"format": 1, "replies": {}, "colour": 1}', "damaged"),
        ('{"format": 1, "replies": {"a": {"text": "x", "steps": [["a", {"a": "no number"}]]}}}', "damaged"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused_with_its_name(tmp_path, text, said):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(BaselineError, match=said) as error:
        Baseline.read(path)
    assert str(path) in str(error.value)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(BaselineError, match="--baseline save"):
        Baseline.read(tmp_path / "none.json")


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BaselineError, match="can't be written"):
        made().write(tmp_path / "file" / "b.json")


def test_files_are_taken_as_they_are_and_names_lie_with_the_user(home, tmp_path):
    assert baseline_path("x/y.json") == type(tmp_path)("x/y.json")
    assert baseline_path("before.json").name == "before.json"
    assert baseline_path("before") == home / "before.json"


def test_a_name_cannot_leave_its_folder(home):
    assert baseline_path("..").parent == home
    assert baseline_path(r"a b:c") == home / "a-b-c.json"


def test_the_users_own_goes_before_the_shipped_one(home, tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    monkeypatch.setattr("qvl.doctor.baseline.SHIPPED", shipped)
    made().write(shipped / "m.json")
    assert baseline_path("m") == shipped / "m.json"
    assert baseline_path("m", writing=True) == home / "m.json"
    made().write(home / "m.json")
    assert baseline_path("m") == home / "m.json"


def test_a_models_baseline_is_named_by_its_last_part():
    assert name_of("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen2.5-VL-7B-Instruct"
    assert name_of("./runs/tuned/") == "tuned"
    assert name_of("///") == "model"


def test_weights_are_told_by_their_bytes(tmp_path, monkeypatch):
    import qvl

    folder = tmp_path / "mini"
    folder.mkdir()
    monkeypatch.setattr(qvl, "__file__", str(tmp_path / "__init__.py"))
    assert embedded_weights() is None
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"one")
    first = embedded_weights()
    (folder / "model.safetensors").write_bytes(b"two")
    assert first is not None
    assert embedded_weights() != first


def test_the_file_is_plain_json(tmp_path):
    made().write(tmp_path / "b.json")
    raw = json.loads((tmp_path / "b.json").read_text())
    assert raw["replies"]["read-0"] == {"text": "5", "steps": [["5", {"5": -0.25, "6": -1.5}]]}
    assert (raw["format"], raw["seed"], raw["weights"]) == (1, 3, None)
