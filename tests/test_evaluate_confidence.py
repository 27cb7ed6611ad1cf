"""Confidence from log probabilities: of answers, of fields, calibrated, and put to use."""

import json
import math
import random

import numpy as np
import pytest

from qvl.backends.answer import Answer
from qvl.backends.fake import FakeModel
from qvl.cli.main import main
from qvl.errors import QvlError
from qvl.evaluate import confidence as sure
from qvl.evaluate.runner import run
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers import find_scorer


def said(text, share, answer=None):
    half = math.log(share) / 2
    pieces = [text[: len(text) // 2], text[len(text) // 2 :]]
    logprobs = tuple({"token": p, "logprob": half} for p in pieces)
    return Answer(text=answer or text, finish_reason="stop", prompt_tokens=3, visual_tokens=0, completion_tokens=2,
                  logprobs=logprobs)  # fmt: skip


def test_the_confidence_of_an_answer_leaves_its_thoughts_out():
    tokens = [("<think>", -5.0), ("hm</think>", -3.0), ("12", math.log(0.5)), (".50", math.log(0.8))]
    assert sure.answer_confidence(tokens, "12.50") == pytest.approx(0.4)
    assert sure.answer_confidence([], "x") is None
    assert sure.answer_confidence([("other", -1.0)], "not there") == pytest.approx(math.exp(-1))


def test_a_field_has_the_probability_of_its_value():
    tokens = [
        ('{"a": ', -9.0),
        ('"x', math.log(0.5)),
        ('y", ', math.log(0.6)),
        ('"b": ', -9.0),
        ("3", math.log(0.9)),
        ("}", -1),
    ]
    found = sure.field_confidence(tokens, '{"a": "xy", "b": 3}')
    assert found == pytest.approx({"a": 0.3, "b": 0.9})
    assert sure.field_confidence(tokens[2:3], "no JSON") == {}


def test_calibration_is_the_isotonic_fit_of_scipy():
    optimize = pytest.importorskip("scipy.optimize")
    draw = np.random.default_rng(0)
    for _ in range(50):
        x = np.unique(draw.random(20))
        y = (draw.random(len(x)) < x).astype(float)
        theirs = optimize.isotonic_regression(y).x
        fitted = sure.calibrate(x.tolist(), y.tolist())
        assert [fitted(c) for c in x] == pytest.approx(theirs.tolist())
    with pytest.raises(QvlError):
        sure.calibrate([0.5], [1])


def test_calibration_mends_a_model_that_is_too_sure():
    draw = random.Random(1)
    shares = [draw.random() for _ in range(1500)]
    scores = [float(draw.random() < s) for s in shares]
    boasting = [s**0.25 for s in shares]
    assert sure.calibration_error(shares, scores) < 0.05
    assert sure.calibration_error(boasting, scores) > 0.2
    assert sure.calibration_error(sure.cross_calibrated(boasting, scores), scores) < 0.05
    assert sure.ranking(boasting, scores) == pytest.approx(sure.ranking(shares, scores))
    assert math.isnan(sure.ranking([0.5], [1]))


def test_a_look_at_the_least_sure_catches_the_wrong_ones():
    scores = [0] * 5 + [1] * 95
    found = sure.review([i / 100 for i in range(100)], scores, 0.05)
    assert (found["wrong_caught"], found["score_of_rest"], found["score_of_all"]) == (1, 1, 1)
    found = sure.review([1 - i / 100 for i in range(100)], scores, 0.05)
    assert (found["wrong_caught"], found["score_of_rest"]) == (0, pytest.approx(90 / 95))


def lines(scores, confidences=None, tokens=10):
    return [
        {"id": str(i), "score": s, "error": None, "confidence": confidences[i] if confidences else None,
         "prompt_tokens": tokens, "completion_tokens": 0, "seconds": 1.0, "cost": None}
        for i, s in enumerate(scores)
    ]  # fmt: skip


def test_a_cascade_sends_on_what_the_small_model_is_unsure_of():
    rows = sure.cascade(lines([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]), lines([1, 1, 1, 0], tokens=100), steps=4)
    assert [r["score"] for r in rows] == [0.5, 0.75, 1, 1, 0.75]
    assert [r["tokens"] for r in rows] == [40, 140, 240, 340, 440]
    assert [r["sent_on"] for r in rows] == [0, 0.25, 0.5, 0.75, 1]
    with pytest.raises(QvlError, match="--confidence"):
        sure.cascade(lines([1]), lines([1]))


def test_runs_keep_confidence_and_the_verb_prints_it(tmp_path, capsys):
    shares = {f"Q{i}": (i + 1) / 21 for i in range(20)}
    model = FakeModel(lambda media, q: said("yes" if shares[q] > 0.5 else "no", shares[q]))
    samples = [Sample(id=q, question=q, answer="yes") for q in shares]
    result = run(model, samples, find_scorer("exact"), tmp_path / "small", settings={"logprobs": 1})
    assert result.lines[3]["confidence"] == pytest.approx(4 / 21)
    run(FakeModel("yes"), samples, find_scorer("exact"), tmp_path / "large")
    words = ["eval", "confidence", str(tmp_path / "small"), str(tmp_path / "large")]
    plot = tmp_path / "plot.png"
    assert main([*words, "--share", "25%", "--plot", str(plot)]) == 0
    assert "calibration error" in capsys.readouterr().out
    assert plot.stat().st_size > 5000
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ranking"] == 1
    assert found["cascade"][0]["score"] == 0.5
    assert found["cascade"][-1]["score"] == 1
    assert main(["eval", "confidence", str(tmp_path / "large")]) == 2
    assert "--confidence" in capsys.readouterr().err


def test_the_embedded_model_gives_confidence(tmp_path, monkeypatch, capsys):
    from pathlib import Path

    monkeypatch.chdir(Path(__file__).parent.parent)
    words = [
        "eval",
        "examples/eval/receipts.jsonl",
        "-n",
        "4",
        "--confidence",
        "-o",
        str(tmp_path / "run"),
        "--json",
    ]
    assert main(words) == 0
    from qvl.evaluate.journal import read_lines

    for line in read_lines(tmp_path / "run" / "samples.jsonl"):
        assert 0 < line["confidence"] <= 1
