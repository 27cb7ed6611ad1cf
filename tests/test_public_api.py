"""What `import qvl` gives: each name is there, documented and typed as what the backends really take."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import qvl
from openai_server import openai_server, says
from qvl.backends import http, native
from qvl.backends.settings import ConnectOptions, LoadOptions, Settings
from qvl.errors import PromptError

DOCS = Path(__file__).parent.parent / "docs"
# None: not every template and clip takes it
TRIED = {
    "stop": "x", "stop_token_ids": [1], "ignore_eos": True, "logprobs": 1, "tools": [], "thinking": None,
    "response_format": {"type": "text"}, "extra_body": {}, "add_vision_id": None, "temperature": 0.5, "top_p": 0.5,
    "continue_final_message": None,
    "seed": 1, "min_frames": 4, "max_frames": 8, "fps": 1.0, "num_frames": None, "min_p": 0.1,
    "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", qvl.__all__)
def test_each_public_name_is_there_and_documented(name):
    assert hasattr(qvl, name)
    assert any(f"qvl.{name}" in page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))


def test_an_invented_name_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'qvl' has no attribute 'laod'"):
        qvl.laod  # noqa: B018


def test_importing_qvl_imports_no_backend():
    code = "import sys, qvl; print([m for m in ('numpy', 'httpx', 'torch', 'qvl.tasks') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def keyword_names(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_the_typed_options_are_those_that_opening_takes():
    assert set(ConnectOptions.__annotations__) == keyword_names(http.connect)
    ours = keyword_names(native.load) | keyword_names(http.connect) | {"endpoint"}
    assert set(LoadOptions.__annotations__) == ours


def test_the_typed_settings_are_those_that_backends_take():
    kinds = (native.NativeModel, http.HttpModel, qvl.FakeModel)
    assert set().union(*(kind.can.settings for kind in kinds)) == set(Settings.__annotations__)
    for method in (
        "ask",
        "stream",
        "chat",
        "stream_chat",
        "ask_many",
        "aask",
        "astream",
        "achat",
        "aask_many",
    ):
        (settings,) = [
            p
            for p in inspect.signature(getattr(qvl.Backend, method)).parameters.values()
            if p.kind is p.VAR_KEYWORD
        ]
        assert settings.annotation == "Unpack[Settings]", method


@pytest.mark.parametrize("kind", ["native", "http", "fake"])
def test_a_backend_takes_its_settings_and_refuses_the_others_by_name(kind, tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-none")
    with openai_server() as server:
        server.play(says("hello"))
        studio = {"endpoint": server.url, "region": "beijing"}
        model = {
            "native": lambda: qvl.load(tiny_checkpoint),
            "http": lambda: qvl.load("qwen3-vl-plus", **studio),
            "fake": lambda: qvl.load("fake:hello"),
        }[kind]()
        for name in Settings.__annotations__:
            value = TRIED.get(name, 100)
            settings = {"max_new_tokens": 1} | ({} if value is None else {name: value})
            if name in model.can.settings:
                model.ask([], "What?", **settings)
            elif value is not None:
                with pytest.raises(PromptError, match=name):
                    model.ask([], "What?", **settings)
        with pytest.raises(PromptError, match="beam_width"):
            model.ask([], "What?", beam_width=4)
