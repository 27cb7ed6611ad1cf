"""A Qwen3.5 folder from the command line and the server: pictures, thoughts, several clients, one line at start."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qvl
import qwen3_5_tiny as tiny
from qvl.cli.main import main
from serve_live import live


@pytest.fixture(scope="module", params=list(tiny.SHAPES))
def folder(request, tmp_path_factory, tiny_checkpoint: Path) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("whole") / request.param, request.param, tiny_checkpoint)


@pytest.fixture(scope="module")
def thinking(tmp_path_factory, tiny_checkpoint: Path) -> Path:
    """Its template opens the thinking in the prompt, as Qwen3.5's does unless told otherwise."""
    return tiny.write_folder(tmp_path_factory.mktemp("think") / "t", "dense", tiny_checkpoint, thinking=True)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    return str(tmp_path / "p.png")


def test_ask_answers_about_a_picture(folder, picture, capsys):
    words = ["ask", "--model", str(folder), picture, "What is it?", "--max-new-tokens", "6", "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["completion_tokens"] == 6
    assert said["visual_tokens"] == 12  # 96 x 128 pixels are 6 x 8 patches, four to a token


def test_the_server_answers_several_clients_as_one_by_one(folder, picture):
    with live(qvl.load(folder, max_num_seqs=4)) as running:
        alone = [running.chat(f"Word {i}?", max_tokens=6, ignore_eos=True).json() for i in range(3)]
        assert running.get("/v1/models").json()["data"][0]["id"] == "tiny"
        with_openai = running.openai()
        again = [
            with_openai.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": f"Word {i}?"}],
                max_tokens=6,
                extra_body={"ignore_eos": True},
            )
            for i in range(3)
        ]
        running.wait_until_idle()
        slots = running.service.model.engine._scheduler.slots
        assert slots.num_used == 0
        assert slots.num_slots == 4
    texts = [body["choices"][0]["message"]["content"] for body in alone]
    assert [answer.choices[0].message.content for answer in again] == texts


def test_serve_tells_at_start_when_prefixes_are_computed_again(folder, capsys, monkeypatch):
    from qvl.serve import server

    monkeypatch.setattr(server.Server, "run", lambda *_, **__: None)
    assert main(["serve", "--model", str(folder), "--port", "0"]) == 0
    said = capsys.readouterr().err
    assert "(16 sequences)" in said  # the states, in the line of the memory plan
    assert "note:" not in said
    assert main(["serve", "--model", str(folder), "--port", "0", "--max-num-seqs", "1"]) == 0
    assert "note: prompts that begin alike are computed each from its start" in capsys.readouterr().err


def test_thoughts_are_parted_from_the_answer_unless_the_template_closes_them(thinking):
    with live(qvl.load(thinking, max_num_seqs=2)) as running:
        thought = running.chat(max_tokens=5, ignore_eos=True).json()["choices"][0]["message"]
        plain = running.chat(
            max_tokens=5, ignore_eos=True, chat_template_kwargs={"enable_thinking": False}
        ).json()["choices"][0]["message"]
    assert thought["reasoning_content"]
    assert thought["content"] == ""
    assert plain["content"]
    assert not plain.get("reasoning_content")


def test_ask_says_that_the_model_still_thought(thinking, capsys):
    assert main(["ask", "--model", str(thinking), "Why?", "--max-new-tokens", "5"]) == 0
    said = capsys.readouterr()
    assert "still thought" in said.err
