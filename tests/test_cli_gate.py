"""What strangers write reaches no terminal raw: names of a server's models, its errors, tensors, files, answers."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from openai_server import openai_server
from qvl.cli.gate import Gate, gated, gated_console, own
from qvl.cli.main import main
from qvl.cli.tables import table
from qvl.outputs.blocks import Block, Page, Run
from qvl.outputs.export import to_html, to_json, to_markdown
from qvl.records import json_text, printable

EVIL = "a\x1b]0;owned\x07\x1b[2J\x9b31mb\u202ec\u2066d\x7f\x08"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def json_reply(handler, status, value):
    data = json.dumps(value).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


@pytest.fixture
def server():
    """Names, errors and answers with control sequences."""
    with openai_server() as running:
        yield running


def both(capsys) -> str:
    shown = capsys.readouterr()
    assert not RAW.search(shown.out), repr(shown.out)
    assert not RAW.search(shown.err), repr(shown.err)
    return shown.out + shown.err


@pytest.mark.parametrize("verb", [["ask", "hi"], ["doctor"], ["bench", "serve"], ["chat"], ["read", "x.png"]])
@pytest.mark.parametrize("status", [200, 400])
def test_names_and_errors_of_a_server_are_printed_harmless(server, verb, status, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    listed = {"data": [{"id": EVIL}, {"id": f"{EVIL}2"}]}
    server.play(
        lambda h, seen: json_reply(h, status, listed if status == 200 else {"error": {"message": EVIL}})
    )
    where = [server.url] if verb[0] == "bench" else ["--endpoint", server.url]
    assert main([*verb, *where]) != 0
    assert both(capsys)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_answer_is_printed_harmless_and_json_keeps_what_it_says(server, options, capsys):
    reply = {"choices": [{"message": {"content": EVIL}, "finish_reason": "stop"}]}
    server.play(lambda h, seen: json_reply(h, 200, reply))
    asked = ["ask", "hi", "--endpoint", server.url, "--model", "m", "--family", "qwen2_5_vl", *options]
    main(asked)
    shown = both(capsys)
    if options:
        assert EVIL in json.loads(shown.splitlines()[0])["answer"]


def test_names_of_tensors_and_files_are_printed_harmless(tiny_checkpoint, tmp_path, capsys):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "a\x1b[2J"))
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.{EVIL}"] = tensors["model.norm.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    for options in ([], ["--json"]):
        assert main(["check", str(folder), *options]) == 1
        assert both(capsys)
    assert main(["check", str(tmp_path / f"no{EVIL}")]) == 2
    assert main([f"no{EVIL}"]) == 2
    assert both(capsys)


def test_tables_and_own_colours_pass_a_console_and_nothing_else(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    with gated():
        assert isinstance(sys.stdout, Gate)
        assert own(sys.stdout) is out
        console = gated_console(force_terminal=True, width=80)
        console.print("red", style="red", markup=False)
        console.print(table(["name"], [[EVIL]]))
    assert sys.stdout is out
    text = out.getvalue()
    assert "\x1b[31mred" in text
    assert not RAW.search(re.sub(r"\x1b\[[0-9;]*m", "", text))


def test_pages_as_markdown_html_and_json_hold_no_control_sequences():
    page = Page(blocks=(Block(kind="paragraph", runs=(Run(EVIL),)),))
    for text in (to_markdown([page]), to_html([page]), to_json([page])):
        assert not RAW.search(text)
    assert EVIL in json.loads(to_json([page]))["pages"][0]["blocks"][0]["text"]


def test_letters_of_all_scripts_stay_as_they_are():
    text = "한국어 日本語 العربية עברית 🙂 é\té\n\u200f\u200d"
    assert printable(text) == text
    assert json.loads(json_text({"a": text + EVIL})) == {"a": text + EVIL}
