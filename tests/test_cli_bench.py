"""`qvl bench serve` against our real server with the embedded model, and against servers that are none."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import qvl
from openai_server import openai_server, reply
from qvl.cli.main import main
from serve_live import live


@pytest.fixture(scope="module")
def server():
    with live(qvl.load("mini", max_num_seqs=4), model_name="mini") as server:
        yield server


def bench(server, *words: object) -> list[str]:
    return ["bench", "serve", server.url, "-n", "4", "--answer-tokens", "6", *map(str, words)]


def test_the_table_says_what_was_sent_and_how_fast_it_was_answered(server, capsys):
    assert main(bench(server, "--image", "112x84", "--image", "84x84", "--concurrency", 2)) == 0
    out = capsys.readouterr().out
    said = " ".join(out.split())  # where lines break depends on the terminal
    assert "4 of 4 requests answered" in said
    assert "at most 2 at once; images: 112x84 or 84x84, each another" in said
    assert re.search(r"time to first token( +[\d,.]+){5} +\d", out)
    assert re.search(r"end to end( +[\d,.]+){5} +4", out)
    assert "error" not in out


def test_json_and_the_servers_own_counts_agree(server, capsys):
    before = server.service.model.engine.stats.num_encoded_visuals
    words = ("--image", "112x84", "--ignore-eos", "--json", "--warmup", 0, "--prompt-tokens", 8)
    assert main(bench(server, *words)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"]["answer"] == 4 * 6
    assert found["model"] == "mini"
    assert found["workload"]["images"] == ["112x84"]
    assert server.service.model.engine.stats.num_encoded_visuals == before + 4  # none was known already
    assert main(bench(server, *words, "--repeat-pictures")) == 0
    assert server.service.model.engine.stats.num_encoded_visuals <= before + 5
    assert found["latency_ms"]["end_to_end"]["p50"] > 0


def test_a_rate_and_a_plot(server, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "load.png"
    assert main(bench(server, "--rate", 50, "--plot", plot)) == 0
    assert "50 a second on average, as they come; images: none" in " ".join(capsys.readouterr().out.split())
    assert plot.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image", "big"], "--image big: write WIDTHxHEIGHT"),
        (["--rate", "0"], "rate 0.0"),
        (["--concurrency", "0"], "concurrency 0"),
        (["-n", "0"], "num_requests 0"),
        (["--plot", "p.txt"], "ends in .png"),
        (["--model", "other"], "no model 'other' here"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_2(server, capsys, words, said):
    assert main(bench(server, *words)) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("qvl bench: ")
    assert err.count("\n") == 1


def test_another_benchmark_and_no_server_are_told(capsys):
    assert main(["bench", "disk", "localhost:1"]) == 2
    assert "no benchmark 'disk'; known: serve" in capsys.readouterr().err
    assert main(["bench", "serve", "localhost:1"]) == 2
    assert "can't be reached" in capsys.readouterr().err
    with openai_server() as server:
        server.play(reply(200, b"hello"))
        assert main(["bench", "serve", server.url]) == 2
        assert "lists no models: give --model" in capsys.readouterr().err
        server.play(reply(200, {"data": [{"id": "a"}, {"id": "b"}]}))
        assert main(["bench", "serve", server.url]) == 2
        assert "serves 2 models: choose one with --model (a, b)" in capsys.readouterr().err


def test_errors_are_shown_by_kind_and_none_answered_is_1(capsys):
    with openai_server() as server:
        server.play(reply(503, {"error": {"message": "[busy] today"}}))
        words = ["bench", "serve", server.url, "--model", "m", "-n", "5", "--warmup", "0"]
        assert main(words) == 1
        out = capsys.readouterr().out
        assert "0 of 5 requests answered" in out
        assert re.search(r"status 503 +5 +\[busy\] today", out)
        assert main([*words, "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["errors"] == {
            "status 503": {"count": 5, "example": "[busy] today"}
        }


@pytest.mark.slow
def test_ctrl_c_shows_what_was_measured_so_far():
    good = b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'

    def then_hang(handler, seen):
        time.sleep(60)

    with openai_server() as server:
        server.play(reply(200, good), reply(200, good), reply(200, good), then_hang)
        words = ["bench", "serve", server.url, "--model", "m", "-n", "9", "--concurrency", "1"]
        process = subprocess.Popen(
            [sys.executable, "-m", "qvl.cli.main", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
            # a shell's background jobs ignore Ctrl-C, and so would all that they start
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        end = time.monotonic() + 60
        while len(server.seen) < 4:
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "2 of 9 requests answered" in out
    assert "(interrupted)" in out
    assert "Traceback" not in err
