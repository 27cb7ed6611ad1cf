"""`qvl choose`: flags, questions, output for people and programs, refusals in one line."""

import json
import subprocess
import sys
from datetime import date

import pytest

from qvl.catalog.prices import price_book
from qvl.cli.choose import ask
from qvl.cli.main import main


@pytest.fixture
def qvl(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    def call(*args):
        code = main(["choose", *args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_best_comes_first_with_its_reasons(qvl):
    code, out, err = qvl("--task", "documents", "--gpu", "rtx4090", "--commercial")
    assert (code, err) == (0, "")
    first = out.splitlines()[0]
    assert first.startswith("Qwen3-VL-8B-Instruct on rtx4090, vllm")
    for text in ("DocVQA", "ruled out", "licence", "memory decides", "No other beats these"):
        assert text in out


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_line_is_wider_than_the_terminal(qvl, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = qvl("--task", "documents", "--gpu", "rtx4090", "--all")
    assert max(map(len, out.splitlines())) <= width


def test_json_is_one_object_with_the_requirement_and_the_ranking(qvl):
    code, out, _ = qvl("--task", "docs,charts", "--gpu", "2xl40s", "--languages", "ko,en", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["requirement"]["tasks"] == ["documents", "charts"]
    assert data["requirement"]["gpu"] == "2xl40s"
    assert data["ranked"][0]["memory"]["max_concurrency"] >= 1
    assert {r["requirement"] for r in data["ruled_out"]} <= {
        "memory",
        "languages",
        "place",
        "engine",
        "context",
    }


def test_old_prices_are_left_out_unless_accepted(qvl, tmp_path):
    _, out, _ = qvl("--task", "charts", "--where", "api", "--max-age", "1", "--json")
    assert json.loads(out)["ranked"] == []
    code, out, _ = qvl("--task", "charts", "--where", "api", "--max-age", "1", "--allow-stale", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["ranked"]
    assert any("older than 1 days" in w for w in data["warnings"])


def test_the_age_of_a_price_that_is_not_used_stops_no_budget(qvl):
    """Lists of 2025 are kept beside today's; choose never uses them."""
    book, today = price_book(), date.today()
    used = [*(p for p in book.api.values() if not p.variant), *(r for r in book.rent if r.used)]
    oldest = max(p.age_days(today) for p in [*used, *book.exchange.values()])
    work = ("--task", "charts", "--volume", "10k/month", "--budget", "500")
    assert qvl(*work, "--max-age", "1")[0] == 2
    code, out, _ = qvl(*work, "--max-age", str(oldest), "--json")
    assert code == 0
    assert not any("left out" in w for w in json.loads(out)["warnings"])
    assert book.api["qwen-vl-max@intl-2025"].age_days(today) > oldest


def test_nothing_left_is_status_1_and_says_so(qvl):
    code, out, _ = qvl("--task", "documents", "--gpu", "rtx3060", "--latency", "1ms")
    assert code == 1
    assert "Nothing meets every requirement" in out


def test_top_and_all_decide_how_much_is_shown(qvl):
    _, short, _ = qvl("--task", "documents", "--gpu", "rtx4090", "--top", "2")
    _, long, _ = qvl("--task", "documents", "--gpu", "rtx4090", "--top", "20", "--all")
    assert "more (--top" in short
    assert "more (--all" in short
    assert "more (--" not in long


def test_report_and_plot_are_written(qvl, tmp_path):
    pytest.importorskip("matplotlib")
    page, picture = tmp_path / "r.html", tmp_path / "p.png"
    code, _, _ = qvl("--task", "charts", "--gpu", "rtx4090", "--report", str(page), "--plot", str(picture))
    assert code == 0
    assert "Qwen3-VL" in page.read_text(encoding="utf-8")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_report_and_a_plot_of_nothing_do_not_hide_the_answer(qvl, tmp_path):
    page, picture = tmp_path / "r.html", tmp_path / "p.png"
    args = ["--gpu", "rtx4090", "--min-quality", "99", "--report", str(page), "--plot", str(picture)]
    code, out, _ = qvl(*args)
    assert code == 1
    assert "--min-quality 99 decides" in out
    assert "without --min-quality 99: Qwen3.5-9B" in " ".join(out.split())
    assert "nothing to plot" in out
    assert not picture.exists()
    assert "without --min-quality 99" in page.read_text(encoding="utf-8")
    data = json.loads(qvl(*args[:4], "--json")[1])
    assert data["ways_out"][0]["change"] == "without --min-quality 99"
    assert data["ways_out"][0]["model"]


def test_the_best_says_where_its_scores_and_its_price_were_read(qvl):
    _, out, _ = qvl("--task", "ocr", "--where", "api", "--allow-stale", "--top", "1")
    text = " ".join(out.split())
    assert "scores as printed in Qwen3-VL report, arXiv 2511.21631v2 (2025-11, official)" in text
    assert "llm-prices v0.1.40 release notes (2026-05-20, third party)" in text
    _, out, _ = qvl("--where", "rent", "--allow-stale", "--json")
    best = json.loads(out)["ranked"][0]
    assert "a GPU hour" in best["cost"]["priced_by"]


def test_the_pareto_table_has_a_column_of_bills_only_where_there_are_any(qvl):
    for args, said in ((("--gpu", "rtx4090"), False), (("--where", "rent", "--allow-stale"), True)):
        _, out, _ = qvl(*args)
        header = out[out.index("No other beats these") :].splitlines()[1]
        assert ("per 1,000" in header) is said


def test_the_way_to_start_the_best_can_be_typed(qvl):
    args = ("--task", "documents", "--gpu", "rtx4090")
    _, out, _ = qvl(*args)
    command = out[out.index("  qvl launch") :].split("\n\n")[0].replace("\\\n", " ").split()
    assert json.loads(qvl(*args, "--json")[1])["ranked"][0]["launch"].split() == command
    assert main(command[1:]) == 0


def test_a_negative_age_is_refused_where_no_price_is_asked_for_too(qvl):
    code, _, err = qvl("--gpu", "rtx4090", "--max-age", "-1")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--task", "documint"], "did you mean|known"),
        (["--task", "documents", "--gpu", "rtx409"], "rtx4090"),
        (["--task", "documents", "--gpu", "0xh100"], "0 devices"),
        (["--task", "documents", "--gpu", "rtx4090", "--image", "100000x100000"], "10,000,000,000"),
        (["--task", "documents", "--gpu", "rtx4090", "--image", "big"], "--image"),
        (["--task", "documents", "--gpu", "rtx4090", "--prompt-tokens", "-5"], "-5"),
        (["--task", "documents", "--gpu", "rtx4090", "--concurrency", "0"], "concurrency"),
        (["--task", "documents", "--private", "--where", "api"], "contradict"),
        (["--task", "documents", "--latency", "soon"], "soon"),
        (["--task", "documents", "--volume", "lots"], "lots"),
        (["--task", "documents", "--quality", "superb"], "superb"),
        (["--task", "documents", "--languages", "english"], "two letters"),
        (["--task", "documents", "--needs", "smell"], "smell"),
        (["--task", "documents", "--precision", "fp3", "--gpu", "l4"], "fp3"),
        (["--task", "documents", "--budget", "100", "--where", "rent"], "--allow-stale"),
        (["--task", "documents", "--gpu", "l4", "--top", "0"], "--top 0"),
        (["--task", "documents", "--gpu", "l4", "--engine", "vlm"], "vlm"),
        (["--task", "documents", "--gpu", "l4", "--engine", "sglang"], "qvl launch --engine sglang"),
        (["--task", "documents", "--max-age", "-1"], "-1"),
        (["--task", "documents", "--prices", "/nowhere.toml"], "nowhere"),
        (["--task", "documents", "--gpu", "l4", "--report", "/nowhere/r.html"], "can't be written"),
    ],
)
def test_bad_input_is_one_line_and_status_2(qvl, args, text):
    import re

    code, out, err = qvl(*args)
    assert code == 2, (out, err)
    assert out == ""
    assert err.count("\n") == 1, err
    assert re.search(text, err), err


def test_without_flags_and_without_a_terminal_it_says_what_to_give(qvl, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    code, _, err = qvl()
    assert code == 2
    assert "--task documents" in err


def answers_of(lines):
    asked = []

    def prompt(question):
        asked.append(question)
        return lines.pop(0)

    return ask(prompt), asked


def test_empty_answers_take_the_defaults():
    answers, asked = answers_of([""] * 8)
    assert len(asked) == 8
    assert not any(answers.values())


def test_answers_are_kept():
    answers, _ = answers_of(["documents", "2xl40s", "y", "no", "ko,en", "100k/month", "5s", "high"])
    assert answers["gpu"] == "2xl40s"
    assert answers["private"] == "yes"
    assert answers["commercial"] == ""
    assert answers["quality"] == "high"


def test_a_wrong_answer_is_asked_again_with_the_reason():
    answers, asked = answers_of(
        [
            "documint",
            "documents",
            "rtx409",
            "rtx4090",
            "maybe",
            "y",
            "",
            "",
            "lots",
            "1k/day",
            "",
            "top",
            "high",
        ]
    )
    assert answers["task"] == "documents"
    assert answers["gpu"] == "rtx4090"
    assert answers["private"] == "yes"
    assert answers["volume"] == "1k/day"
    assert "documint" in asked[1]
    assert "rtx4090" in asked[3]


def test_a_language_that_is_no_code_is_asked_again_at_once():
    answers, asked = answers_of(["", "", "", "", "ko,eng", "ko,en", "", "", ""])
    assert answers["languages"] == "ko,en"
    assert "'eng'" in asked[5]


def test_on_a_terminal_the_questions_lead_to_a_choice(qvl, monkeypatch):
    import typer

    lines = iter(["charts", "rtx4090", "y", "", "en", "", "", "economy"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "prompt", lambda *_, **__: next(lines))
    code, out, _ = qvl()
    assert code == 0
    assert "charts" in out


def test_choosing_needs_neither_torch_nor_numpy():
    code = (
        "import sys; from qvl.cli.main import main; main(['choose', '--task', 'general', '--gpu', 'rtx4090']);"
        "heavy = {'torch', 'numpy', 'PIL', 'av', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
