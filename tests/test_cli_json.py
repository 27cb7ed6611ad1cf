"""The keys of every --json answer stay what they are: tests/golden/json_keys.json holds them with their types.

Programs read these. A key that is added goes into the file on purpose:
`QVL_WRITE_GOLDEN=1 pytest tests/test_cli_json.py`.
"""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openai_server import delta, openai_server, reply, says, streams, usage
from qvl.cli.main import main
from studio_server import KEY, Studio

GOLDEN = Path(__file__).parent / "golden" / "json_keys.json"
BOX = '[{"bbox_2d": [50, 60, 150, 160], "label": "red"}, {"point_2d": [5, 6], "label": "dot"}]'
PAGE = (
    '<html><body><h1 data-bbox="10 10 100 30">Title</h1><p data-bbox="10 40 200 60">Some <b>words</b>.</p>'
    '<table data-bbox="10 70 200 120"><tr><th>City</th></tr><tr><td>Paris</td></tr></table></body></html>'
)
EVENTS = '[{"start": "00:00.50", "end": "00:01.50", "event": "it turns grey"}]'
MOMENT = "From 00:00.50 to 00:01.50."
CLICK = (
    '<tool_call>\n{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [140, 70]}}\n'
    "</tool_call>"
)
SIZES = ("--image", "1240x1754", "--prompt-tokens", "64")
COST = ("cost", "--model", "qwen-vl-max", "--requests", "200k", "--today", "2026-12-01", "--max-age", "9999")


def shape(value):
    """Keys and types in place of values; the elements of a list are laid over one another, "?" is not in all."""
    if isinstance(value, dict):
        return {key: shape(v) for key, v in value.items()}
    if isinstance(value, list):
        merged = None
        for element in value:
            merged = shape(element) if merged is None else union(merged, shape(element))
        return [] if merged is None else [merged]
    if isinstance(value, bool) or value is None:
        return "null" if value is None else "bool"
    return "str" if isinstance(value, str) else "number"


def union(a, b):
    if isinstance(a, dict) and isinstance(b, dict):
        plain = {k.removesuffix("?") for d in (a, b) for k in d}
        out = {}
        for key in sorted(plain, key=[*(k.removesuffix("?") for k in (*a, *b))].index):
            sides = [d.get(key, d.get(f"{key}?")) for d in (a, b)]
            sure = all(key in d for d in (a, b))
            found = [s for s in sides if s is not None]
            out[key if sure else f"{key}?"] = found[0] if len(found) == 1 else union(*found)
        return out
    if isinstance(a, list) and isinstance(b, list):
        return [union(a[0], b[0])] if a and b else a or b
    if a == b:
        return a
    if "null" in (a, b) and not (isinstance(a, str) and isinstance(b, str)):
        other = b if a == "null" else a
        return {**other, "(or null)": "null"} if isinstance(other, dict) else other
    kinds = {k for s in (a, b) for k in (s.split("|") if isinstance(s, str) else [json.dumps(s)])}
    return "|".join(sorted(kinds))


@pytest.fixture(scope="module")
def server():
    with openai_server() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """a.png, ball.mp4 and config.json."""
    import av

    where = tmp_path_factory.mktemp("json")
    Image.new("RGB", (280, 280), "white").save(where / "a.png")
    with av.open(str(where / "ball.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for grey in range(0, 240, 20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return where


def spoken(words):
    """(exit status, stdout)"""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([str(w) for w in words])
    return code, out.getvalue()


def keys(*words, lines=False, code=0):
    """The shape of what a command prints; with lines: of all its lines together."""
    ended, out = spoken(words)
    assert ended == code, (words, out)
    return shape([json.loads(line) for line in out.splitlines()] if lines else json.loads(out))


def planned():
    own = ("--gpu", "2xl40s", "--self-model", "qwen2.5-vl-7b")
    return {
        "models one": keys("models", "qwen2.5-vl-7b", "--gpu", "l40s", "--json"),
        "models hosted": keys("models", "qwen-vl-max", "--json"),
        "models mixture of experts": keys("models", "qwen3-vl-30b-a3b", "--gpu", "l40s", "--json"),
        "models compared": keys("models", "--compare", "qwen2.5-vl-7b", "qwen-vl-max", "--gpu", "l40s", "--json"),
        "fit": keys("fit", "qwen2.5-vl-7b", "--gpu", "l40s", *SIZES, "--json"),
        "fit without a gpu": keys("fit", "qwen2.5-vl-7b", *SIZES, "--json"),
        "fit too small": keys("fit", "qwen2.5-vl-7b", "--gpu", "rtx3060", *SIZES, "--json"),
        "fit training": keys("fit", "qwen2.5-vl-3b", "--engine", "train-lora", "--gpu", "l40s", *SIZES, "--json"),
        "cost": keys(*COST, *SIZES, "--json"),
        "cost of a server": keys(*COST, *SIZES, *own, "--json"),
        "cost of a measured server": keys(*COST, *SIZES, "--gpu", "l40s", "--rate", "3", "--json"),
        "choose": keys("choose", "--task", "documents", "--gpu", "2xl40s", "--json"),
        "choose api": keys("choose", "--task", "documents", "--where", "api,rent", "--allow-stale", "--json"),
        "choose nothing": keys(
            "choose", "--task", "documents", "--gpu", "rtx3060", "--min-quality", "99", "--json", code=1
        ),
        "launch": keys("launch", "qwen2.5-vl-7b", "--gpu", "l40s", *SIZES, "--json"),
        "launch llama.cpp": keys(
            "launch", "qwen2.5-vl-7b", "--gpu", "l40s", "--engine", "llama.cpp", *SIZES, "--json"
        ),
    }  # fmt: skip


def asked(server, folder, tiny):
    picture, clip = folder / "a.png", folder / "ball.mp4"
    at = ("--endpoint", server.url, "--model", "m", "--family", "qwen2_5_vl")

    def answered(text, *words, **options):
        server.play(says(text, **options))
        return keys(*words, *at, "--json")

    found = {
        "ask": keys("ask", picture, "What?", "--model", tiny, "--max-new-tokens", 4, "--json"),
        "ask clip": keys("ask", clip, "What?", "--model", tiny, "--max-new-tokens", 4, "--fps", 2, "--json"),
        "ask boxes": answered(BOX, "ask", picture, "Locate it", "--boxes"),
        "ask document": answered(PAGE, "ask", picture, "--document"),
        "ask events": answered(EVENTS, "ask", clip, "When?", "--events"),
        "ask actions": answered(CLICK, "ask", picture, "Press OK", "--actions"),
        "find-moment": answered(MOMENT, "find-moment", clip, "it turns grey"),
        "ask retried": answered("yes", "ask", picture, "Is it?", "--retry", "seed"),
    }
    streamed = streams(delta(reasoning_content="hm"), delta("yes", "stop"), {"choices": [], "usage": usage()})
    server.play(streamed)
    found["ask thinking"] = keys("ask", picture, "Is it?", "--stats", *at, "--json")
    server.play(says(PAGE))
    for form in ("json", "layout"):
        found[f"read {form}"] = keys("read", picture, "--to", form, *at)
    return found


def paid(server, folder, monkeypatch):
    monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
    server.play(Studio())
    at = ("--endpoint", f"{server.url}/compatible-mode/v1", "--model", "qwen-vl-max", "--region", "beijing")
    return {"ask for money": keys("ask", folder / "a.png", "What?", *at, "--json")}


def measured(server, tiny):
    server.play(streams(delta("yes"), delta("", "stop"), {"choices": [], "usage": usage()}))
    load = ("bench", "serve", server.url, "--model", "m", "-n", 2, "--warmup", 0)
    found = {"bench serve": keys(*load, "--image", "56x56", "--json")}
    server.play(reply(500, {"error": {"message": "broken"}}))
    found["bench serve failing"] = keys(*load, "--json", code=1)
    score = ("--kind", "read", "--kind", "count", "-n", 1, "--json")
    found["synth score"] = keys("synth", "--score", tiny, *score)
    return found


def examined(home, tiny):
    probes = ("stop", "stream", "tokens-small", "same-words")
    words = ("--model", tiny, "--json", *(w for p in probes for w in ("--only", p)))
    ended = spoken(("doctor", *words))
    return {
        "doctor": shape(json.loads(ended[1])),
        "doctor --list": keys("doctor", "--list", "--json"),
        "check": keys("check", tiny, "--json"),
        "check with findings": checked_with_findings(home, tiny),
        "convert": keys("convert", tiny, home / "new", "--layout", "new", "--json"),
        "synth": keys("synth", "--kind", "read", "--kind", "find", "--out", home / "drawn", lines=True),
    }


def checked_with_findings(home, tiny):
    import shutil

    broken = shutil.copytree(tiny, home / "broken")
    (broken / "preprocessor_config.json").unlink()
    ended = spoken(("check", broken, "--json"))
    found = shape(json.loads(ended[1]))
    assert found["findings"], "the fault must be found"
    return found


def test_the_keys_of_every_json_answer_are_those_of_the_golden_file(
    server, folder, tiny_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = planned() | asked(server, folder, tiny_checkpoint) | examined(tmp_path, tiny_checkpoint)
    found |= measured(server, tiny_checkpoint) | paid(server, folder, monkeypatch)
    if os.environ.get("QVL_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert list(found) == list(golden)
    for name in golden:
        assert found[name] == golden[name], name
