"""Typed fields after a schema: read, typed, checked, with page and box as evidence."""

import json

import pytest
from PIL import Image

from qvl.backends.base import Capabilities
from qvl.backends.fake import FakeModel
from qvl.cli.main import main
from qvl.errors import BackendError, PromptError
from qvl.tasks import open as door
from qvl.tasks.fields import extract_fields, read_schema

SCHEMA = {
    "type": "object",
    "required": ["total"],
    "properties": {
        "total": {"type": "number"},
        "paid": {"type": "boolean"},
        "count": {"type": "integer"},
        "kind": {"type": "string", "enum": ["Receipt", "Invoice"]},
        "items": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
        "note": {"type": ["string", "null"]},
    },
}
SAID = {
    "values": {
        "total": "$1,234.50",
        "paid": "yes",
        "count": "3",
        "kind": "receipt",
        "items": [{"name": "Tea"}],
        "note": None,
    },
    "evidence": {"total": {"page": 1, "bbox_2d": [100, 200, 300, 400]}},
}


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (1000, 500)).save(path)
    return str(path)


def ask(page, text, **more):
    return extract_fields(FakeModel(text, family="qwen3_vl"), [page], SCHEMA, **more)


def test_values_are_typed_and_evidence_lies_in_the_original(page):
    found = ask(page, f"```json\n{json.dumps(SAID)}\n```")
    assert found.values == {
        "total": 1234.5, "paid": True, "count": 3, "kind": "Receipt", "items": [{"name": "Tea"}], "note": None,
    }  # fmt: skip
    assert found.problems == ()
    assert found.evidence["total"].page == 1
    assert list(found.evidence["total"].box) == pytest.approx(
        [100, 100, 300, 200]
    )  # 0 to 1000 of 1000 by 500
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nothing", "no JSON object"),
        ('{"values": {"paid": true}}', "total: missing"),
        ('{"values": {"total": "much"}}', 'total: "much" is no number'),
        ('{"values": {"total": 1, "kind": "Letter"}}', "kind: 'Letter' is none of"),
        ('{"values": {"total": 1, "count": 2.5}}', "count: 2.5 is no integer"),
        ('{"values": {"total": 1, "other": 2}}', "other: not in the schema"),
        ('{"values": {"total": 1}, "evidence": {"total": {"page": 9}}}', "total: its evidence"),
        ('{"values": {"total": 1, "items": [{"name": [1]}]}}', "items[0].name: [1] is no string"),
    ],
)
def test_what_does_not_follow_the_schema_is_named(page, text, problem):
    assert any(problem in p for p in ask(page, text).problems)


def test_a_bare_object_of_values_will_do(page):
    found = ask(page, '{"total": 5}')
    assert (found.values["total"], found.problems) == (5, ())


class Served(FakeModel):
    can = Capabilities()

    def __init__(self, *args, status=None, **more):
        super().__init__(*args, **more)
        self.status = status

    def stream_chat(self, messages, **settings):
        if self.status and "response_format" in settings:
            raise BackendError("no schemas here", status=self.status)
        return super().stream_chat(messages, **settings)


def test_a_server_is_held_to_the_schema_where_it_can(page):
    model = Served(json.dumps(SAID))
    assert extract_fields(model, [page], SCHEMA).constrained
    assert (
        model.calls[0].settings["response_format"]["json_schema"]["schema"]["properties"]["values"] == SCHEMA
    )
    assert not extract_fields(Served(json.dumps(SAID), status=400), [page], SCHEMA).constrained
    with pytest.raises(BackendError):
        extract_fields(Served(json.dumps(SAID), status=500), [page], SCHEMA)


@pytest.mark.parametrize(
    "schema",
    [[], {"type": "array"}, {"type": "object"}, {"type": "object", "properties": {"a": {"typ": "string"}}},
     {"type": "object", "properties": {"a": {"type": "text"}}}],
)  # fmt: skip
def test_schemas_that_are_not_understood_are_refused(tmp_path, schema):
    (tmp_path / "s.json").write_text(json.dumps(schema))
    with pytest.raises(PromptError):
        read_schema(tmp_path / "s.json")


def test_ask_and_read_take_a_schema(page, tmp_path, monkeypatch, capsys):
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    model = FakeModel(json.dumps(SAID), family="qwen3_vl")
    monkeypatch.setattr(door, "open_backend", lambda *a, **k: door.Model(model))
    assert main(["ask", page, "--schema", str(tmp_path / "s.json")]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 1234.5
    assert (
        main(["ask", page, page, "These are one invoice.", "--schema", str(tmp_path / "s.json"), "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)["found"]
    assert found["evidence"]["total"] == {"page": 1, "box": pytest.approx([100, 100, 300, 200])}
    assert "pages 1 to 2" in model.calls[-1].question
    assert model.calls[-1].question.startswith("These are one invoice.")
    assert main(["ask", page, "--schema", str(tmp_path / "s.json"), "--boxes"]) == 2
    out = tmp_path / "out.json"
    assert main(["read", page, page, "--schema", str(tmp_path / "s.json"), "-o", str(out)]) == 0
    assert json.loads(out.read_text())["values"]["items"] == [{"name": "Tea"}]
    assert len(model.calls[-1].media) == 2
    assert main(["read", page, "--schema", str(tmp_path / "s.json"), "--to", "md"]) == 2
