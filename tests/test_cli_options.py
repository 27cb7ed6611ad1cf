"""Options are defined once: every verb that asks a model takes the same set, and every option's help is a sentence."""

import ast
import importlib
import re
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from openai_server import openai_server
from qvl.cli.main import VERBS, main
from qvl.cli.options import SourceOptions
from studio_server import KEY, Studio

SOURCES = Path(__file__).parent.parent / "src" / "qvl"
ASKING = ("ask", "chat", "read", "find-moment", "doctor", "synth")
SHARED = (
    "--model", "--weights", "--device", "--endpoint", "--family", "--api-key-env", "--region", "--max-spend",
    "--prices", "--high-resolution",
)  # fmt: skip


def options(verb):
    app = typer.Typer()
    app.command()(importlib.import_module(VERBS[verb][0]).run)
    return [p for p in get_command(app).params if "--install-completion" not in p.opts]


@pytest.mark.parametrize("verb", ASKING)
def test_every_verb_that_asks_a_model_takes_the_whole_set(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in SHARED if not re.search(rf"{name}\b", text)] == []


def test_an_option_that_a_verb_takes_reaches_the_backend(monkeypatch):
    from qvl.tasks import open as door

    seen = {}
    monkeypatch.setattr(door, "open_backend", lambda model, **given: seen.update(model=model, **given))
    SourceOptions(model="m", endpoint="http://x", max_spend="$1", region="beijing").open(mapped=True)
    assert seen == {
        "model": "m", "endpoint": "http://x", "max_spend": "$1", "region": "beijing", "mapped": True,
    }  # fmt: skip


def test_a_device_for_a_server_is_refused(capsys):
    assert main(["ask", "--endpoint", "http://127.0.0.1:9", "--device", "cpu", "What?"]) == 2
    assert "device 'cpu': a server has loaded its weights already" in capsys.readouterr().err


def test_the_limit_on_the_cost_stops_the_doctor(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with openai_server() as server:
        studio = Studio()
        server.play(studio)
        words = [
            "--endpoint",
            f"{server.url}/compatible-mode/v1",
            "--model",
            "qwen-vl-max",
            "--region",
            "beijing",
        ]
        code = main(["doctor", *words, "--max-spend", "0.002", "--only", "text", "--only", "safety"])
        asked = len(studio.billed)
    err = capsys.readouterr().err
    assert code == 1
    assert re.search(r"note: stopped after \d+ of \d+ probes: this call could cost", err)
    assert 0 < asked < 60


def test_a_served_model_is_no_reference(capsys):
    assert main(["doctor", "--reference", "qwen-vl-max"]) == 2
    assert "loaded on this machine" in capsys.readouterr().err


# Options that do nothing unless they are set, so that there is no default to name.
UNSET = {
    "--baseline", "--config", "--draw", "--frames", "--out", "--plot", "--report", "--score", "--model",
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_option_is_a_sentence_that_names_the_default(verb, capsys):
    for parameter in options(verb):
        text = parameter.help or ""
        assert re.match(r"[A-Z0-9~]|--|vLLM|llama", text), (parameter.name, text)
        assert text.endswith("."), (parameter.name, text)
        is_option = parameter.param_type_name == "option" and not getattr(parameter, "is_flag", False)
        if is_option and not parameter.required and not UNSET & set(parameter.opts):
            shown = parameter.default not in (None, "") and not isinstance(parameter.default, list | tuple)
            assert shown or "default" in text, (parameter.name, text)


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_no_function_takes_more_than_twelve_parameters():
    kept = {  # what users call by keyword, and a kernel's pointers and strides
        "backends/native.py load", "engine/triton_decode.py _split_kernel", "inputs/processor.py __call__",
    }  # fmt: skip
    many = []
    for path in SOURCES.rglob("*.py"):
        for f in functions(path):
            count = len([*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs])
            if count > 12:
                many.append(f"{path.relative_to(SOURCES)} {f.name}")
    assert sorted(set(many) - kept) == []


def test_no_file_of_the_cli_is_over_400_lines():
    sizes = {p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in (SOURCES / "cli").glob("*.py")}
    assert {name: n for name, n in sizes.items() if n > 400} == {}
