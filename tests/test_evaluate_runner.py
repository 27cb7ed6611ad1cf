"""The runner of qvl eval: every item once, whatever happens to the process, the backend or the settings."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from qvl.backends.fake import FakeModel
from qvl.backends.spend import Meter
from qvl.errors import BackendError, MediaError, PlanError, PromptError
from qvl.evaluate import runner
from qvl.evaluate.journal import RunError, read_lines
from qvl.evaluate.runner import read_result, rescore, run
from qvl.evaluate.samples import Sample, SampleError
from qvl.evaluate.scorers import find_scorer

EXACT = find_scorer("exact")


def items(num, **fields):
    return [Sample(id=str(i), question=f"Q{i}", answer=str(i), **fields) for i in range(num)]


def right_for(*wrong):
    def answer(media, question):
        number = question.removeprefix("Q")
        return "no" if number in map(str, wrong) else number

    return answer


def lines_of(folder):
    return read_lines(Path(folder) / "samples.jsonl")


def test_a_run_holds_what_the_issue_promises(tmp_path):
    Image.new("RGB", (56, 84), "white").save(tmp_path / "a.png")
    samples = items(10, media=(str(tmp_path / "a.png"),), stratum="x", cluster="")
    samples += [Sample(id="last", question="Q10", answer="10", stratum="y")]
    model = FakeModel(right_for(3, 4))
    result = run(model, samples, EXACT, tmp_path / "run", settings={"max_new_tokens": 5, "max_pixels": None})
    assert result.status == "complete"
    assert result.score == pytest.approx(9 / 11)
    lines = lines_of(tmp_path / "run")
    assert [r["id"] for r in lines] == [s.id for s in samples]
    first = lines[0]
    assert {"id", "score", "answer", "parsed", "error", "prompt", "settings", "seconds", "cost"} <= set(first)
    assert (first["score"], first["answer"], first["parsed"], first["error"]) == (1, "0", "0", None)
    assert first["settings"] == {"max_new_tokens": 5}
    assert first["media"] == [{"kind": "image", "original": [84, 56], "seen": [84, 56]}]
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["scorer"] == {"name": "exact", "version": 1, "options": {"case": False}}
    assert about["settings"] == {"max_new_tokens": 5}
    assert len(about["data"]["digest"]) == 64
    assert about["summary"]["strata"]["stratum"]["x"]["num"] == 10
    assert about["summary"]["visual_tokens"] > 0
    assert about["summary"]["low"] < result.score < about["summary"]["high"]
    assert read_result(tmp_path / "run").summary == result.summary


def test_the_same_call_asks_nothing_again(tmp_path):
    model = FakeModel(right_for())
    run(model, items(5), EXACT, tmp_path)
    before = (tmp_path / "samples.jsonl").read_bytes()
    again = run(model, items(5), EXACT, tmp_path)
    assert len(model.calls) == 5
    assert (tmp_path / "samples.jsonl").read_bytes() == before
    assert again.score == 1
    run(model, items(5), EXACT, tmp_path, fresh=True)
    assert len(model.calls) == 10


def test_a_torn_last_line_is_dropped_and_its_item_asked_again(tmp_path):
    model = FakeModel(right_for())
    run(model, items(5), EXACT, tmp_path)
    path = tmp_path / "samples.jsonl"
    whole = path.read_bytes()
    for cut in (1, 20, len(whole.splitlines(keepends=True)[-1]) - 1):
        path.write_bytes(whole[:-cut])
        assert run(model, items(5), EXACT, tmp_path).status == "complete"
        assert sorted(r["id"] for r in lines_of(tmp_path)) == list("01234")
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(RunError, match=r"samples.jsonl:1: no line of a run"):
        run(model, items(5), EXACT, tmp_path)


def test_changed_settings_are_refused_and_named(tmp_path):
    model = FakeModel(right_for())
    run(model, items(5), EXACT, tmp_path, settings={"max_pixels": 100_000})
    with pytest.raises(RunError, match=r"settings.max_pixels was 100000, is 200000"):
        run(model, items(5), EXACT, tmp_path, settings={"max_pixels": 200_000})
    with pytest.raises(RunError, match=r"settings.temperature was not set, is 0.5"):
        run(model, items(5), EXACT, tmp_path, settings={"max_pixels": 100_000, "temperature": 0.5})
    with pytest.raises(RunError, match=r"data.num was 5, is 4"):
        run(model, items(4), EXACT, tmp_path, settings={"max_pixels": 100_000})
    with pytest.raises(RunError, match=r"model\.name"):
        run(FakeModel("", name="other"), items(5), EXACT, tmp_path, settings={"max_pixels": 100_000})
    with pytest.raises(RunError, match=r"prompt.template.*-o FOLDER keeps both"):
        run(model, items(5), EXACT, tmp_path, prompt="Say: {question}", settings={"max_pixels": 100_000})
    with pytest.raises(RunError, match="--rescore scores the stored answers again"):
        run(model, items(5), find_scorer("anls"), tmp_path, settings={"max_pixels": 100_000})
    assert len(model.calls) == 5


def test_an_error_is_its_items_counts_as_0_and_is_asked_again(tmp_path):
    away = [True]

    def answer(media, question):
        return BackendError("away") if away[0] and question in ("Q1", "Q3") else right_for()(media, question)

    result = run(FakeModel(answer), items(5), EXACT, tmp_path)
    assert result.status == "complete"
    assert result.summary["num_errors"] == 2
    assert result.score == pytest.approx(3 / 5)
    assert lines_of(tmp_path)[1]["error"] == "BackendError: away"
    away[0] = False
    model = FakeModel(answer)
    assert run(model, items(5), EXACT, tmp_path).score == 1
    assert [c.question for c in model.calls] == ["Q1", "Q3"]
    assert sorted(r["id"] for r in lines_of(tmp_path)) == list("01234")


def test_twenty_errors_in_a_row_stop_the_run_which_goes_on_later(tmp_path):
    def answer(media, question):
        return BackendError("gone") if int(question[1:]) >= 10 else question[1:]

    result = run(FakeModel(answer), items(50), EXACT, tmp_path)
    assert result.status == "stopped"
    assert "20 items failed one after the other, the last with BackendError: gone" in result.reason
    assert len(result.lines) == 30
    model = FakeModel(right_for())
    assert run(model, items(50), EXACT, tmp_path).score == 1
    assert len(model.calls) == 40


def test_a_missing_medium_and_a_failing_scorer_are_errors_of_their_item(tmp_path):
    def broken():
        raise MediaError("no such image")

    samples = [Sample(id="a", question="Q0", answer="0", media=(broken,)), *items(3)]
    result = run(FakeModel(right_for()), samples, EXACT, tmp_path)
    assert [bool(r["error"]) for r in result.lines] == [True, False, False, False]
    (tmp_path / "mine.py").write_text("def f(answer, sample):\n    return 1 / int(answer)\n")
    result = run(FakeModel(right_for()), items(3), find_scorer(f"{tmp_path}/mine.py:f"))
    assert result.lines[0]["error"] == "ZeroDivisionError: division by zero"
    assert result.score == pytest.approx((0 + 1 + 0.5) / 3)


def test_everything_is_checked_before_the_first_question(tmp_path):
    model = FakeModel("x")
    with pytest.raises(SampleError, match="answer"):
        run(model, items(2), find_scorer("choice"), tmp_path)
    with pytest.raises(PromptError, match="empty"):
        run(model, [], EXACT, tmp_path)
    with pytest.raises(PromptError, match="no question"):
        run(model, [Sample(id="1", answer="x")], EXACT, tmp_path)
    with pytest.raises(PromptError, match="family"):
        run(
            FakeModel("x", family=None),
            [Sample(id="1", answer=[0, 0, 1, 1], question="Q")],
            find_scorer("iou"),
        )
    with pytest.raises(PromptError, match="only"):
        run(model, items(2), EXACT, prompt="{qestion}")
    with pytest.raises(PlanError, match="no price"):
        run(model, items(2), EXACT, tmp_path, limit_cost=1)
    assert model.calls == []


def test_rescoring_asks_nothing_and_is_marked(tmp_path):
    samples = [Sample(id=str(i), question="Q", answer="hello") for i in range(4)]
    model = FakeModel(["hello", "hallo", "xxxxx", BackendError("away")])
    run(model, samples, EXACT, tmp_path)
    result = rescore(tmp_path, samples, find_scorer("anls"))
    assert [r["score"] for r in result.lines] == pytest.approx([1, 0.8, 0, 0])
    assert result.lines[3]["error"]
    assert read_result(tmp_path).about["scorer"]["name"] == "anls"
    assert read_result(tmp_path).about["status"] == "complete"
    assert len(model.calls) == 4
    with pytest.raises(RunError, match="'3'"):
        rescore(tmp_path, samples[:3], EXACT)


def test_an_interrupted_rescoring_is_told_and_can_be_repeated(tmp_path, monkeypatch):
    run(FakeModel(right_for()), items(4), EXACT, tmp_path)

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "summarize", fail)
    with pytest.raises(KeyboardInterrupt):
        rescore(tmp_path, items(4), find_scorer("anls"))
    monkeypatch.undo()
    with pytest.raises(RunError, match="a rescoring was interrupted"):
        run(FakeModel(right_for()), items(4), find_scorer("anls"), tmp_path)
    assert rescore(tmp_path, items(4), find_scorer("anls")).status == "complete"
    assert run(FakeModel(""), items(4), find_scorer("anls"), tmp_path).score == 1


def test_the_cost_limit_counts_earlier_sessions(tmp_path):
    from qvl.backends.answer import Answer
    from qvl.backends.spend import Cost
    from qvl.catalog.prices import price_book

    price = next(iter(price_book(None).api.values()))

    class Paid(FakeModel):
        meter = None

        def stream_chat(self, messages, **settings):
            hold = self.meter.hold(10, 1)
            hold.end(Cost(1.0, price.currency, ""))
            return super().stream_chat(messages, **settings)

    def answer(media, question):
        return Answer(text=question[1:], finish_reason="stop", prompt_tokens=1, visual_tokens=0, completion_tokens=1,
                      cost=Cost(1.0, price.currency, ""))  # fmt: skip

    def paid():
        model = Paid(answer)
        model.meter = Meter(price)
        return model

    first = run(paid(), items(10), EXACT, tmp_path, limit_cost=3.5)
    assert first.status == "stopped"
    assert "cost limit" in first.reason
    assert len(first.lines) == 4  # the fourth could begin at 3.0 of 3.5
    assert len(run(paid(), items(10), EXACT, tmp_path, limit_cost=3.5).lines) == 4
    last = run(paid(), items(10), EXACT, tmp_path, limit_cost=100)
    assert last.status == "complete"
    assert last.summary["cost"] == {"amount": pytest.approx(10), "currency": price.currency}


def test_calls_that_hold_the_whole_limit_make_others_wait_and_stop_nothing(tmp_path):
    from qvl.backends.spend import Cost
    from qvl.catalog.prices import price_book

    price = next(iter(price_book(None).api.values()))
    worst = Meter(price).hold(1000, 1000)._amount

    class Wide(FakeModel):
        max_concurrency = 4
        meter = Meter(price)

        def stream_chat(self, messages, **settings):
            hold = self.meter.hold(1000, 1000)
            time.sleep(0.01)
            hold.end(Cost(worst / 1000, price.currency, ""))
            return super().stream_chat(messages, **settings)

    result = run(Wide(right_for()), items(12), EXACT, tmp_path, limit_cost=worst * 1.5)
    assert (result.status, result.score) == ("complete", 1)


def test_as_many_are_asked_at_once_as_the_backend_takes(tmp_path):
    import threading

    state = {"now": 0, "most": 0}
    lock = threading.Lock()

    def answer(media, question):
        return question[1:]

    class Wide(FakeModel):
        max_concurrency = 4

        def stream_chat(self, messages, **settings):
            with lock:
                state["now"] += 1
                state["most"] = max(state["most"], state["now"])
            time.sleep(0.02)
            with lock:
                state["now"] -= 1
            return super().stream_chat(messages, **settings)

    assert run(Wide(answer), items(24), EXACT, tmp_path).score == 1
    assert state["most"] == 4
    assert sorted(int(r["id"]) for r in lines_of(tmp_path)) == list(range(24))
    state["most"] = 0
    run(Wide(answer), items(6), EXACT, concurrency=2)
    assert state["most"] == 2


def test_text_that_json_or_utf8_cannot_hold_is_kept(tmp_path):
    text = 'a\u2028b \udc80 \x00\n"end'
    run(FakeModel(text), items(1), EXACT, tmp_path)
    assert len((tmp_path / "samples.jsonl").read_bytes().split(b"\n")) == 2
    assert lines_of(tmp_path)[0]["answer"] == text


def test_two_processes_do_not_write_one_folder(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with open(tmp_path / "run.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process"):
            run(FakeModel("x"), items(1), EXACT, tmp_path)
    run(FakeModel("x"), items(1), EXACT, tmp_path)


SCRIPT = """
import os, random, sys, time
from qvl.backends.fake import FakeModel
from qvl.evaluate.runner import run
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers import find_scorer

log = open(sys.argv[2], "a", buffering=1)

class Wide(FakeModel):
    max_concurrency = 3

def answer(media, question):
    log.write(question[1:] + "\\n")
    time.sleep(random.random() * 0.02)
    return question[1:] * 400

samples = [Sample(id=str(i), question=f"Q{i}", answer=str(i) * 400) for i in range(300)]
print("ready", flush=True)
result = run(Wide(answer), samples, find_scorer("exact"), sys.argv[1])
print(result.status, result.score)
"""


def test_killed_anywhere_nothing_is_lost_and_nothing_twice(tmp_path):
    """kill -9 at random moments; what stood in the file before stands there after, each item once."""
    script, folder, log = tmp_path / "go.py", tmp_path / "run", tmp_path / "log"
    script.write_text(SCRIPT)
    draw = random.Random(5)
    kept: dict[str, str] = {}
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder), str(log)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline().strip() == "ready"
        time.sleep(draw.random() * 0.15)
        if kills < 8:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
            process.communicate()
            if not (folder / "samples.jsonl").exists():
                continue
            now = {r["id"]: r["answer"] for r in read_lines(folder / "samples.jsonl")}
            assert kept.items() <= now.items()
            kept = now
            continue
        out, _ = process.communicate(timeout=60)
        assert out.strip() == "complete 1.0"
        break
    ids = [r["id"] for r in lines_of(folder)]
    assert sorted(ids, key=int) == [str(i) for i in range(300)]
    asked = log.read_text().split()
    assert len(asked) <= 300 + 3 * kills  # at most what was under way at each kill is asked again
    assert 0 < len(kept) < 300
