"""The planner against other people's measurements, and the page that shows it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from plan_report import (
    GUIDE_TABLE_3,
    guide_needs,
    guide_word,
    official_cells,
    speed_bounds,
    tables,
    training_rows,
)

PAGE = Path(__file__).parent.parent / "docs" / "plan.md"


def test_all_32_official_cells_are_within_3_percent():
    cells = official_cells()
    assert len(cells) == 32
    assert max(abs(c.error) for c in cells) <= 0.03


def test_the_16_bit_cells_exceed_what_bf16_weights_weigh():
    # the table's "GB" can only mean GiB: 16.07 GB would be less than the 7B's weights
    assert 8_291_375_616 * 2 / 1e9 > 16.07


@pytest.mark.parametrize("row", training_rows(), ids=lambda r: r.what)
def test_training_rows_are_within_10_percent_or_named(row):
    if abs(row.error) > 0.10:
        assert len(row.word) > 20
    else:
        assert row.word == ""


def test_most_training_rows_are_explained():
    rows = training_rows()
    assert sum(abs(r.error) <= 0.10 for r in rows) >= 9
    assert max(abs(r.error) for r in rows) < 0.20


def test_measured_speeds_stay_below_their_bound():
    for model, precision, measured, bound in speed_bounds():
        assert measured < bound, (model, precision)


def words(model, precision):
    (row,) = (r for r in GUIDE_TABLE_3 if r.model == model and r.precision == precision)
    return guide_word(row)


def test_32b_in_16_bits_can_not_have_48_gb():
    assert "weights alone are 62.3 GiB" in words("Qwen2.5-VL-32B-Instruct", "bf16")


def test_7b_in_16_bits_leaves_nothing_on_16_gb():
    assert "can't be right" in words("Qwen2.5-VL-7B-Instruct", "bf16")


def test_7b_in_4_bits_holds():
    assert words("Qwen2.5-VL-7B-Instruct", "awq").startswith("the minimum holds")


def test_the_least_exceeds_the_weights_and_comfort_exceeds_the_least():
    for row in GUIDE_TABLE_3:
        weights, least, comfortable = guide_needs(row)
        assert weights < least < comfortable


def test_the_page_holds_what_the_report_prints():
    page = PAGE.read_text(encoding="utf-8")
    kept = page.split("<!-- report -->\n")[1].split("<!-- end of report -->")[0]
    assert kept == tables(), "run: python benchmarks/plan_report.py, and put its output into docs/plan.md"
