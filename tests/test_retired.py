"""Names that were switched off: kept with their day and what replaces them, and recommended nowhere.

A page may still name one where it says that it was switched off, or where it retells a scenario or prices of 2025.
"""

import re
from itertools import product
from pathlib import Path

import pytest

from qvl.backends.studio import longest_output, retired_note, thinks
from qvl.catalog.models import find_model, models, other_named
from qvl.cli.main import VERBS, main
from qvl.errors import RetiredModelWarning
from qvl.plan.choose.relax import with_ways_out
from qvl.tasks.open import open_backend
from test_plan_choose import BOOK, FakePlanner, pick

ROOT = Path(__file__).parent.parent
RETIRED = {m.name.lower() for m in models() if m.retired} | {"qvq-max"}
SOLD = re.compile(rf"(?<![\w-])({'|'.join(sorted(map(re.escape, RETIRED)))})(?![\w-])", re.I)
# where the past is told: the guide of July 2025, prices of then, names that a rule tells apart
PAST = re.compile(r"switched off|gone from a reseller|@2025|July 2025|_FIRST_OF_32", re.I)


def sales(text):
    return [line for line in text.splitlines() if SOLD.search(line) and not PAST.search(line)]


def test_those_of_the_notice_are_retired():
    assert {"qwen-vl-max", "qwen-vl-plus", "qvq-max"} <= RETIRED


def test_a_retired_model_has_its_day_its_source_and_a_replacement_that_answers():
    for m in models():
        if m.retired:
            assert re.fullmatch(r"2026-\d\d-\d\d", m.retired.value), m.name
            assert m.retired.note
            assert find_model(m.replacement).retired is None, m.name
    assert "qwen3.7-plus" in other_named("qvq-max").status


@pytest.mark.parametrize(
    "path",
    [
        ROOT / "README.md", ROOT / "CONTRIBUTING.md",
        *(p for p in sorted((ROOT / "docs").glob("*.md")) if p.stem not in ("log", "design")),
        *sorted((ROOT / "examples").rglob("*.py")), *sorted((ROOT / "examples").rglob("*.md")),
        *sorted((ROOT / "src").rglob("*.py")),
    ],
    ids=lambda p: str(p.relative_to(ROOT)),
)  # fmt: skip
def test_no_page_example_or_source_sells_one(path):
    assert sales(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("verb", VERBS)
def test_no_help_text_names_one(verb, capsys):
    main([*verb.split(), "--help"])
    assert not SOLD.search(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("task", "where", "aim"),
    product(
        ("documents", "ocr", "video", "agents", "general", "reasoning"), (("api",), ("rent", "api")),
        ("high", "balanced", "economy"),
    ),
)  # fmt: skip
def test_choose_recommends_none(task, where, aim):
    choice = pick(task, book=BOOK, where=where, aim=aim)
    offered = [c.model for c in (*choice.ranked, *choice.unranked)]
    assert offered
    assert not any(m.retired for m in offered)
    off = {r.model.name: r for r in choice.ruled_out if r.model.retired}
    assert {m.name for m in models() if m.retired} == set(off)
    assert all(f"use {r.model.replacement}" in r.reason for r in off.values())


def test_no_way_out_leads_to_one():
    choice = with_ways_out(pick(book=BOOK, where=("api",), min_quality=99), FakePlanner(), BOOK)
    assert choice.ways_out
    assert not any(w.candidate.model.retired for w in choice.ways_out)


def test_the_guides_table_keeps_its_rows():
    text = (ROOT / "docs" / "choose.md").read_text(encoding="utf-8")
    assert "Qwen-VL-Max API (switched off)" in text
    for name in ("Qwen-VL-Max", "Qwen-VL-Plus"):
        assert find_model(name).hosted


def test_opening_one_says_so_and_goes_on(monkeypatch):
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-test")
    with pytest.warns(RetiredModelWarning, match=r"switched off on 2026-10-10; use qwen3\.8-max"):
        assert open_backend("qwen-vl-max-2025-08-13").name == "qwen-vl-max-2025-08-13"
    with pytest.warns(RetiredModelWarning, match="qwen3"):
        open_backend("qwen-vl-plus", region="singapore")
    assert retired_note("qwen3.7-plus") is None
    assert retired_note("our-own-name") is None


def test_asking_one_warns_in_a_line(monkeypatch, capsys):
    monkeypatch.delenv("DASHSCOPE_API_KEY", raising=False)  # nothing is sent
    code = main(["ask", "--model", "qwen-vl-max", str(ROOT / "examples" / "receipt.png"), "What?"])
    assert code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "switched off" in line]
    assert lines == ["qvl ask: warning: Qwen-VL-Max was switched off on 2026-10-10; use qwen3.8-max"]


def test_the_cost_of_one_is_answered_with_a_warning(capsys):
    words = "cost --model qwen-vl-max --image 1280x720 --requests 1k --allow-stale --today 2026-11-30".split()
    assert main(words) == 0
    assert "warning: Qwen-VL-Max was switched off on 2026-10-10" in capsys.readouterr().err
    words[2] = "qwen3.7-plus"
    assert main(words) == 0
    assert "switched off" not in capsys.readouterr().err


def test_qvl_models_says_it_and_answers_for_the_wider_family(capsys):
    assert main(["models", "qwen-vl-plus"]) == 0
    assert re.search(r"switched off\s+2026-10-10: use qwen3.7-plus", capsys.readouterr().out)
    assert main(["models", "Qwen3-Omni-30B-A3B", "qwen3-vl-8b"]) == 0
    out = capsys.readouterr().out
    assert "speech" in out
    assert "not run by qvl" in out
    assert "Qwen3-VL-8B-Instruct" in out
    assert main(["models", "Qwen3.8-Flash-Next", "--json"]) == 0
    assert '"qwen-community-1.0"' in capsys.readouterr().out
    assert main(["models"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Qwen-VL-Max"))
    assert "off 2026-10-10" in row


def test_names_from_3_5_on_think_unasked_and_reserve_their_thoughts():
    assert thinks("qwen3.7-plus", {})
    assert not thinks("qwen3.7-plus", {"enable_thinking": False})
    assert not thinks("qwen3-vl-plus", {})
    assert longest_output("qwen3.7-plus", {}) == 65_536 + 262_144
    assert longest_output("qwen3.8-max", {"enable_thinking": False}) == 131_072
    assert longest_output("qwen3.7-flash", {"max_tokens": 10, "thinking_budget": 5}) == 15
