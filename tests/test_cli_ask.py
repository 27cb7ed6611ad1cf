"""`qvl ask` as a person or a script sees it: the answer on stdout alone, one line for each mistake."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from qvl.cli.main import main
from qvl.cli.media import split_words
from qvl.cli.show import terminal_safe
from qvl.errors import PromptError
from qvl.records import printable


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (84, 112, 3), dtype=np.uint8)).save(path)
    return str(path)


def ask(capsys, *words) -> tuple[int, str, str]:
    code = main(["ask", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_answer_goes_to_stdout_and_nothing_else_does(capsys, tiny_checkpoint, picture):
    import qvl

    code, out, err = ask(capsys, "--model", tiny_checkpoint, "--max-new-tokens", 12, picture, "What is it?")
    whole = qvl.load(tiny_checkpoint).ask([picture], "What is it?", max_new_tokens=12)
    assert code == 0
    assert out == printable(whole.text) + "\n"
    assert err == ("(cut after 12 tokens; --max-new-tokens)\n" if whole.finish_reason == "length" else "")


def test_json_is_one_object_with_every_field(capsys, tiny_checkpoint, picture):
    code, out, _ = ask(capsys, "--model", tiny_checkpoint, "--max-new-tokens", 5, "--json", picture, "What?")
    said = json.loads(out)
    assert code == 0
    assert out.count("\n") == 1
    assert said["model"] == str(tiny_checkpoint)
    assert said["visual_tokens"] == 12
    assert 0 < said["completion_tokens"] <= 5
    assert said["prompt_tokens"] > 12
    assert said["finish_reason"] in ("stop", "length")
    assert isinstance(said["answer"], str)
    assert set(said["seconds"]) == {"load", "inputs", "queue", "vision", "prefill", "decode"}
    assert said["media"] == [{"kind": "image", "original": [84, 112], "seen": [84, 112], "visual_tokens": 12}]
    assert said["peak_memory_bytes"] > 1 << 20


def test_stats_go_to_stderr(capsys, tiny_checkpoint, picture):
    _, out, err = ask(capsys, "--model", tiny_checkpoint, "--stats", "--max-new-tokens", 5, picture, "What?")
    assert "tok/s" not in out
    for words in ("12 visual", "prompt tokens", "vision", "prefill", "tok/s", "peak memory"):
        assert words in err


def test_options_reach_the_model(capsys, tiny_checkpoint, picture):
    def said(*options):
        words = ["--model", tiny_checkpoint, "--json", "--max-new-tokens", 8, *options, picture, "What?"]
        return json.loads(ask(capsys, *words)[1])

    plain = said()
    assert said("--max-pixels", 56 * 56)["visual_tokens"] < plain["visual_tokens"]
    assert (
        said("--system", "Answer in one word, with no explanation at all.")["prompt_tokens"]
        > plain["prompt_tokens"]
    )
    drawn = [said("--temperature", 2, "--seed", seed)["answer"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def mistakes(tmp_path, picture, tiny_checkpoint):
    text = tmp_path / "text.png"
    text.write_text("no picture at all")
    return [
        (["nowhere.png", "What?"], "nowhere.png: no such file"),
        (["nowhere.mp4", "What?"], "nowhere.mp4: no such file"),
        ([text, "What?"], "text.png"),
        ([], "no question"),
        ([picture], "no question after"),
        ([picture, "other.jpg"], "no question after other.jpg"),
        ([picture, "   "], "no question"),
        (["--model", "no such model", picture, "What?"], "no such folder"),
        (["--model", tiny_checkpoint, "--max-new-tokens", "0", picture, "What?"], "max_new_tokens 0"),
        (["--model", tiny_checkpoint, "--temperature", "-1", picture, "What?"], "temperature -1"),
        (["--model", tiny_checkpoint, "--max-new-tokens", "99999", picture, "What?"], "32768 fit"),
        (["--max-new-tokens", "many", picture, "What?"], "--max-new-tokens"),
        (["--beams", "4", picture, "What?"], "--beams"),
    ]


def test_every_mistake_is_one_line_and_exit_2(capsys, tmp_path, picture, tiny_checkpoint):
    for words, part in mistakes(tmp_path, picture, tiny_checkpoint):
        code, out, err = ask(capsys, *words)
        assert (code, out) == (2, ""), words
        assert err.count("\n") == 1, err
        assert part in err


def test_a_too_large_picture_is_refused_before_it_is_decoded(capsys, tmp_path, recwarn):
    huge = tmp_path / "huge.png"
    Image.new("1", (10_000, 9_500)).save(huge)
    code, out, err = ask(capsys, huge, "What?")
    assert (code, out) == (2, "")
    assert "huge.png" in err
    assert err.count("\n") == 1
    assert not recwarn.list  # which a terminal would show as two more lines


def test_a_bad_file_is_told_without_importing_torch(tmp_path):
    script = (
        "import sys; from qvl.cli.main import main; code = main(['ask', 'nowhere.png', 'What?']);"
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["2", "False"]


def test_help_needs_neither_torch_nor_numpy():  # which makes it quick: benchmarks/cold_start.py has the seconds
    script = (
        "import sys; from qvl.cli.main import main; code = main(['ask', '--help']);"
        "print(code, [m for m in ('torch', 'numpy', 'pydantic', 'transformers') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "0 []"
    assert "QUESTION" in done.stdout
    assert "--max-pixels" in done.stdout


def test_the_last_word_is_the_question():
    assert split_words(["a.png", "b.mp4", "What is in b.mp4?"]) == (["a.png", "b.mp4"], "What is in b.mp4?")
    assert split_words(["What is two and two?"]) == ([], "What is two and two?")
    with pytest.raises(PromptError, match="no question"):
        split_words(["a.png", "b.mp4"])


def test_an_answer_cannot_steer_the_terminal():
    assert terminal_safe("a\x1b[2Jb\x9bc\r\nd\te\u3000é한") == "a�[2Jb�c�\nd\te\u3000é한"
