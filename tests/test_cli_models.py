"""`qvl models`: list, page, comparison, sources, JSON, refusals."""

import json
import subprocess
import sys

import pytest

from qvl.catalog.models import models
from qvl.cli.main import main


@pytest.fixture
def qvl(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")

    def call(*args):
        code = main(["models", *args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_list_has_one_line_for_each_model(qvl):
    code, out, _ = qvl()
    assert code == 0
    for m in models():
        assert sum(line.startswith(m.name + " ") for line in out.splitlines()) == 1, m.name


@pytest.mark.parametrize("width", ["80", "100", "120"])
def test_no_line_is_wider_than_the_terminal(qvl, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    for args in (
        [],
        ["qwen2.5-vl-3b"],
        ["--compare", "qwen2.5-vl-7b", "qwen3-vl-8b"],
        ["qwen-vl", "--sources"],
    ):
        _, out, _ = qvl(*args)
        assert max(map(len, out.splitlines())) <= int(width), args


def test_the_list_says_that_3b_is_not_for_business(qvl):
    _, out, _ = qvl()
    line = next(line for line in out.splitlines() if line.startswith("Qwen2.5-VL-3B"))
    assert " NO " in line


def test_a_page_shows_count_licence_cache_and_bad_versions(qvl):
    code, out, _ = qvl("qwen2.5-vl-7b")
    assert code == 0
    for text in ("8,292,166,656", "Apache License 2.0", "56.0 KiB a token", "0.8.0, 0.8.1", "0.8.2"):
        assert text in out, text


def test_a_hosted_models_page_shows_its_prices_with_their_age(qvl):
    _, out, _ = qvl("qwen3-vl-plus")
    line = next(line for line in out.splitlines() if line.startswith("qwen3-vl-plus, up to 131,072 in"))
    for text in ("¥1.5", "¥15", "¥0.3", "¥0.75/¥7.5", "2026-01", "days old"):
        assert text in line, text
    assert "llm-prices" in " ".join(qvl("qwen3-vl-8b", "--sources")[1].split())
    prices = json.loads(qvl("qwen-vl-max", "--json")[1])["prices"]
    assert {p["name"] for p in prices} == {"qwen-vl-max", "qwen-vl-max@2025-07", "qwen-vl-max@intl-2025"}
    assert all(p["date"] and p["source"] and p["per_million_tokens"] for p in prices)


def test_a_page_shows_what_other_sources_say(qvl):
    _, out, _ = qvl("qwen2.5-vl-32b")
    line = next(line for line in out.splitlines() if line.startswith("MMMU"))
    assert "70.0" in line
    assert "70.2" in line


def test_a_size_without_config_points_to_the_config_flag(qvl, unseen):
    unseen("Qwen3.5-4B")
    _, out, _ = qvl("qwen3.5-4b")
    assert "--config" in out


def test_a_comparison_marks_the_best_of_each_row(qvl):
    code, out, _ = qvl("--compare", "qwen2.5-vl-7b", "qwen3-vl-8b")
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("MMMU"))
    assert row.index("58.6") < row.index("69.6 ◀")
    alone = next(line for line in out.splitlines() if line.startswith("TextVQA"))
    assert "84.9" in alone
    assert "◀" not in alone, "nobody to be better than"


def test_a_comparison_with_a_hosted_name_dates_its_scores_and_prices(qvl):
    _, out, _ = qvl("--compare", "qwen-vl-max", "qwen2.5-vl-72b")
    assert "¥1.6/¥4 (2026-01)" in out
    assert "51.4 (2024-01)" in next(line for line in out.splitlines() if line.startswith("MMMU"))


def test_a_comparison_of_one_is_refused_with_the_number(qvl):
    code, _, err = qvl("--compare", "qwen2.5-vl-7b")
    assert code == 2
    assert "at least two models, 1 given" in err


def test_sources_cite_every_figure_of_a_model(qvl):
    _, out, _ = qvl("qwen2.5-vl-32b", "--sources")
    text = " ".join(out.split())
    for name in ("released", "licence", "context", "parameters", "ability html", "engine vllm", "MMMU"):
        assert name in text
    assert "unverified" in text
    assert "used because" in text


def test_json_of_one_model_holds_figures_with_their_sources(qvl):
    _, out, _ = qvl("qwen2.5-vl-7b", "--json")
    data = json.loads(out)
    assert data["figures"]["context"]["value"] == 128000
    assert set(data["figures"]["context"]) >= {"source", "date", "kind", "verified"}
    assert data["config"]["text"]["num_key_value_heads"] == 4
    assert any(c["precision"] == "awq" for c in data["checkpoints"])
    assert any(s["benchmark"] == "DocVQA" and s["value"] == 95.7 for s in data["scores"])


def test_json_without_a_name_is_a_list_of_all(qvl):
    _, out, _ = qvl("--json")
    assert [m["name"] for m in json.loads(out)] == [m.name for m in models()]


def test_json_of_a_comparison_is_a_list_in_the_order_asked(qvl):
    _, out, _ = qvl("--compare", "qwen3-vl-8b", "qwen2.5-vl-7b", "--json")
    assert [m["name"] for m in json.loads(out)] == ["Qwen3-VL-8B-Instruct", "Qwen2.5-VL-7B-Instruct"]


def test_an_unknown_model_is_one_line_with_the_nearest_names(qvl):
    code, out, err = qvl("qwen2.5-vl-9b")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "qwen2.5-vl-7b" in err


def test_the_list_needs_neither_torch_nor_numpy():
    code = (
        "import sys; from qvl.cli.main import main; main(['models']);"
        "heavy = {'torch', 'numpy', 'PIL', 'av', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
