"""`qvl read`'s journal of pages: what it takes up again, and what it says of journals that it can't go on with."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qvl.backends.fake import FakeModel
from qvl.cli.main import main
from qvl.errors import BackendError, MediaError
from qvl.inputs.pages import list_pages
from qvl.tasks import open as door
from qvl.tasks.journal import Journal
from qvl.tasks.pages import read_pages

PAGE = '<html><body>\n<h1 data-bbox="10 10 100 30">Title</h1>\n</body></html>'
MADE = {"files": {"a.png": "00"}, "dpi": 144.0}
PART = {"original": [280, 140], "seen": [280, 140], "crop": None, "text": PAGE}


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        Image.new("RGB", (140, 280), "white").save(path)
    return [str(path) for path in paths]


def journal_of(path, *records, made=MADE):
    path.write_text("".join(json.dumps(r) + "\n" for r in (made, *records)))
    return path


def read(capsys, monkeypatch, pictures, out, answers) -> tuple[int, str, FakeModel]:
    model = FakeModel(answers)
    monkeypatch.setattr(door, "open_backend", lambda *a, **k: model)
    code = main(["read", *pictures, "-o", str(out)])
    return code, capsys.readouterr().err, model


def in_the_older_form(path) -> None:
    """The journal as the first version of `qvl read` wrote its pages: one reply a page, never in parts."""
    made, *records = map(json.loads, path.read_text().splitlines())
    older = []
    for record in records:
        (part,) = record["parts"]
        older.append({"page": record["page"], **{k: part[k] for k in ("original", "seen", "text")}})
    journal_of(path, *older, made=made)


def test_a_journal_of_the_older_form_ends_in_one_line_that_says_to_delete_it(
    capsys, monkeypatch, pictures, tmp_path
):
    out = tmp_path / "out.md"
    read(capsys, monkeypatch, pictures, out, [PAGE, BackendError("away")])
    partial = tmp_path / "out.md.partial"
    in_the_older_form(partial)
    kept = partial.read_bytes()
    code, err, model = read(capsys, monkeypatch, pictures, out, PAGE)
    assert code == 2
    assert err.count("\n") == 1
    assert f"{partial}: line 2" in err
    assert "delete the file" in err
    assert model.calls == []
    assert partial.read_bytes() == kept  # nobody's pages are thrown away unasked


def test_deleted_as_it_says_the_same_command_reads_all_pages(capsys, monkeypatch, pictures, tmp_path):
    out = tmp_path / "out.md"
    read(capsys, monkeypatch, pictures, out, [PAGE, BackendError("away")])
    partial = tmp_path / "out.md.partial"
    in_the_older_form(partial)
    read(capsys, monkeypatch, pictures, out, PAGE)
    partial.unlink()
    code, _, model = read(capsys, monkeypatch, pictures, out, PAGE)
    assert (code, len(model.calls)) == (0, 2)
    assert out.read_text().count("# Title") == 2


def test_a_journal_with_the_older_settings_line_is_read_anew_with_a_note(
    capsys, monkeypatch, pictures, tmp_path
):
    out = tmp_path / "out.md"
    read(capsys, monkeypatch, pictures, out, [PAGE, BackendError("away")])
    partial = tmp_path / "out.md.partial"
    in_the_older_form(partial)
    made, *records = map(json.loads, partial.read_text().splitlines())
    del made["region"]  # came with the parts
    journal_of(partial, *records, made=made)
    code, err, model = read(capsys, monkeypatch, pictures, out, PAGE)
    assert (code, len(model.calls)) == (0, 2)
    assert "starting from scratch" in err


@pytest.mark.parametrize(
    "record",
    [
        None,
        7,
        [],
        "page",
        {},
        {"page": 3, "parts": [PART]},
        {"page": "a.png"},
        {"page": "a.png", "parts": []},
        {"page": "a.png", "parts": {"0": PART}},
        {"page": "a.png", "parts": ["text"]},
        {"page": "a.png", "parts": [PART | {"text": None}]},
        {"page": "a.png", "parts": [PART | {"seen": [280]}]},
        {"page": "a.png", "parts": [PART | {"seen": [280, 0]}]},
        {"page": "a.png", "parts": [PART | {"original": ["280", 140]}]},
        {"page": "a.png", "parts": [PART | {"original": [True, 140]}]},
        {"page": "a.png", "parts": [PART | {"crop": [0, 0, 10]}]},
        {"page": "a.png", "parts": [PART | {"crop": [0, 0, 10, float("inf")]}]},
        {"page": "a.png", "parts": [{k: v for k, v in PART.items() if k != "crop"}]},
    ],
)
def test_a_line_that_is_no_page_is_refused_with_its_number(tmp_path, record):
    path = journal_of(tmp_path / "j", {"page": "b.png", "parts": [PART]}, record)
    with pytest.raises(
        MediaError, match=r"j: line 3 is not a page .* delete the file to read its 2 pages again"
    ):
        Journal(path, MADE)


def test_a_page_as_it_is_kept_is_taken_up_again(tmp_path, pictures):
    whole = {"page": pictures[0], "parts": [PART]}
    halves = {
        "page": pictures[1],
        "parts": [PART | {"crop": [0, 0, 140, 150]}, PART | {"crop": [0, 130, 140, 280]}],
    }
    journal = Journal(journal_of(tmp_path / "j", whole, halves), MADE)
    pages = list(read_pages(FakeModel([]), list_pages(pictures), journal))
    assert [p.resumed for p in pages] == [True, True]
    assert [len(p.page.blocks) for p in pages] == [1, 2]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@given(records=st.lists(JSON, min_size=1, max_size=3))
def test_whatever_its_lines_hold_a_journal_opens_or_says_why_not(tmp_path_factory, records):
    path = journal_of(tmp_path_factory.mktemp("j") / "j", *records)
    with pytest.raises(MediaError, match="delete the file"):
        Journal(path, MADE)


@given(raw=st.binary(max_size=60))
def test_whatever_its_bytes_are_a_journal_opens_or_says_why_not(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("j") / "j"
    path.write_bytes(raw)
    try:
        raw.decode()
    except UnicodeDecodeError:
        with pytest.raises(MediaError, match="remove it"):
            Journal(path, MADE)
    else:
        assert len(Journal(path, MADE)) == 0


def test_a_line_nested_without_end_is_taken_for_a_broken_end(tmp_path):
    path = tmp_path / "j"
    path.write_text(json.dumps(MADE) + "\n" + "[" * 200_000)
    assert len(Journal(path, MADE)) == 0
