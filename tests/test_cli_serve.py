"""`qvl serve` as a process: one line says where, SIGTERM ends it with 0, and mistakes are one line before any load."""

import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest

from qvl.cli.main import main
from qvl.cli.serve import _name
from qvl.errors import ConfigError
from serve_live import asking, free_port, picture


class Process:
    """A running `qvl serve` and what it wrote to stderr so far."""

    def __init__(self, *words, **environment):
        self.port = free_port()
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qvl.cli.main", "serve", "--port", str(self.port), *map(str, words)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)

    def wait_ready(self, seconds=100):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, "".join(self.lines)
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/ready").status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise AssertionError("".join(self.lines))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)


@pytest.mark.parametrize(("more", "mapped"), [([], False), (["--mapped"], True)])
def test_weights_stay_in_their_files_when_asked_to(more, mapped, monkeypatch, tiny_checkpoint):
    given = {}

    def load(model, **options):
        given.update(options)
        raise ConfigError("far enough")

    monkeypatch.setattr("qvl.backends.native.load", load)
    assert main(["serve", "--model", str(tiny_checkpoint), "--port", str(free_port()), *more]) != 0
    assert given["mapped"] is mapped


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--mapped",)])
def test_the_process_serves_finishes_on_sigterm_and_exits_0(tiny_checkpoint, more):
    words = ("--model", tiny_checkpoint, "--served-model-name", "tiny", "--max-model-len", 2048, *more)
    with Process(*words, QVL_API_KEY="k") as served:
        served.wait_ready()
        assert f"tiny at http://127.0.0.1:{served.port}/v1\n" in served.lines
        assert any(line.startswith("memory: weights") for line in served.lines)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="k", max_retries=0)
        assert client.models.list().data[0].max_model_len == 2048
        stream = client.chat.completions.create(
            model="tiny",
            messages=asking("What?", picture()),
            max_tokens=400,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        served.process.send_signal(signal.SIGTERM)
        reasons = [c.choices[0].finish_reason for c in stream if c.choices]
        assert reasons[-1] == "length"
        assert served.process.wait(30) == 0
        assert served.process.stdout.read() == ""
        assert "Traceback" not in "".join(served.lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--allow-media-path", "nowhere"], "--allow-media-path nowhere: no such folder"),
        (["--allow-media-host", "http://a.b"], "media host 'http://a.b'"),
        (["--host", "no such host"], "--host no such host"),
        (["--port", "99999"], "--port"),
        (["--max-queue", "-1"], "--max-queue"),
        (["--model", "not a model", "--port", "0"], "not a model"),
    ],
)
def test_a_mistake_is_one_line(capsys, words, said):
    assert main(["serve", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_without_the_servers_packages_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "qvl.serve.media", None)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve"]) == 2
    assert "pip install 'qvl[serve]'" in capsys.readouterr().err


def test_an_open_door_is_told(capsys, monkeypatch, tiny_checkpoint):
    from qvl.serve import server

    monkeypatch.setattr(server.Server, "run", lambda *_, **__: None)
    monkeypatch.delenv("QVL_API_KEY", raising=False)
    words = ["serve", "--model", str(tiny_checkpoint), "--host", "0.0.0.0", "--port", "0"]
    assert main(words) == 0
    assert "may be reached by others, and no --api-key is set" in capsys.readouterr().err
    assert main([*words, "--api-key", "k"]) == 0
    assert "reached by others" not in capsys.readouterr().err


def test_a_model_is_called_as_its_folder_or_hub_name(tiny_checkpoint):
    assert _name(str(tiny_checkpoint)) == tiny_checkpoint.name
    assert _name("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert _name("mini") == "mini"


def test_the_access_log_stays_off_when_it_is_not_wanted():
    import logging

    import uvicorn

    from qvl.cli.serve import _log_to_stderr

    log, access = logging.getLogger("qvl.serve"), logging.getLogger("qvl.serve.access")
    before = [*log.handlers], log.level, log.propagate
    try:
        _log_to_stderr(False)
        uvicorn.Config(lambda: None)  # sets up logging too, and enables every logger there is
        assert not access.isEnabledFor(logging.INFO)
        assert log.isEnabledFor(logging.INFO)
    finally:
        log.handlers, log.propagate = before[0], before[2]
        log.setLevel(before[1])
        access.setLevel(logging.NOTSET)
