"""`qvl chat` by its lines: pictures by path, commands, a stopped answer, and nothing lost by a mistake."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import qvl
from qvl.cli.chat import Talk, content_of
from qvl.cli.main import main
from qvl.errors import PromptError


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return qvl.load(tiny_checkpoint)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (84, 112, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def talk(model):
    console = Console(file=io.StringIO(), width=200, highlight=False)
    return Talk(model, console, None, {"max_new_tokens": 8, "ignore_eos": True})


def written(talk) -> str:
    return talk._console.file.getvalue()


def test_an_answer_is_written_with_its_figures_and_remembered(talk, model, picture):
    assert talk.hear(f"What is in {picture} please")
    user, assistant = talk.messages
    assert user["content"] == [
        {"type": "image", "image": picture},
        {"type": "text", "text": "What is in please"},
    ]
    alone = model.ask([picture], "What is in please", max_new_tokens=8, ignore_eos=True)
    assert assistant == {"role": "assistant", "content": alone.text}
    assert "(12 visual" in written(talk)
    assert "8 tokens" in written(talk)
    assert talk.hear("And then?")
    assert len(talk.messages) == 4


def test_ctrl_c_stops_the_answer_and_frees_it(talk, model, monkeypatch):
    whole = talk._console.print
    calls = iter([None, None])

    def interrupted(*words, **options):
        if options.get("soft_wrap") and next(calls, 1) == 1:
            raise KeyboardInterrupt
        return whole(*words, **options)

    monkeypatch.setattr(talk._console, "print", interrupted)
    talk._settings["max_new_tokens"] = 2000
    assert talk.hear("Tell me everything")
    assert "stopped" in written(talk)
    assert len(talk.messages) == 2
    assert model.engine.num_used_blocks == 0


def test_reset_forgets_all_but_the_system_text(model):
    talk = Talk(model, Console(file=io.StringIO()), "Be brief.", {"max_new_tokens": 2})
    talk.hear("x")
    talk.hear("/reset")
    assert talk.messages == [{"role": "system", "content": "Be brief."}]


def test_save_writes_the_conversation(talk, tmp_path):
    talk.hear("x")
    talk.hear(f"/save {tmp_path / 'c.json'}")
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8")) == talk.messages
    talk.hear(f"/save {tmp_path / 'no' / 'c.json'}")
    assert "can't be written" in written(talk)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("what is none.png", "none.png: no such file"),
        ("/rest", "no command /rest"),
        ("/save", "/save needs the name"),
        ("/help", "Ctrl-D"),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(talk, line, words):
    assert talk.hear(line)
    assert words in written(talk)
    assert talk.messages == []


def test_quit_leaves_and_an_empty_line_does_nothing(talk):
    assert not talk.hear("/quit")
    assert talk.hear("   ")
    assert talk.messages == []


def test_names_with_spaces_stand_in_quotes_and_an_apostrophe_is_none(tmp_path, picture):
    import shutil

    spaced = tmp_path / "my picture.png"
    shutil.copy(picture, spaced)
    items = content_of(f"'{spaced}' what?")
    assert items == [{"type": "image", "image": str(spaced)}, {"type": "text", "text": "what?"}]
    assert content_of("what's this?") == [{"type": "text", "text": "what's this?"}]
    assert content_of(picture)[1]["text"]
    with pytest.raises(PromptError, match="no such file"):
        content_of("look at gone.jpg")


def test_the_verb_reads_lines_until_their_end(tiny_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/reset\n"))
    assert main(["chat", "--model", str(tiny_checkpoint), "--max-new-tokens", "3"]) == 0
    out, err = capsys.readouterr()
    assert "prompt tokens" in out
    assert "forgotten" in out
    assert err == ""
