"""The first table of docs/family.md is what benchmarks/family_parity.py prints, figures aside."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import family_parity as table  # noqa: E402

from qvl.catalog.models import models  # noqa: E402

DOCS = (ROOT / "docs" / "family.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("family", table.CLAIMS)
def test_the_docs_have_the_row_that_the_command_prints(family):
    row = table.markdown(table.Row(family, 1e-6, 1e-6, 1, 1, "ORACLE"))
    networks, _, oracle, proven, not_proven = row.strip("| ").split(" | ")
    rows = [line for line in DOCS.splitlines() if line.startswith(f"| {networks} |")]
    assert len(rows) == 1, networks
    assert rows[0].endswith(f"| {proven} | {not_proven} |")
    before, after = oracle.split("ORACLE")
    said = rows[0].strip("| ").split(" | ")[2]
    assert said.startswith(before)
    assert said.endswith(after)


def test_every_family_of_open_weights_has_a_row():
    assert {m.family for m in models() if not m.hosted} == set(table.CLAIMS)
    assert table.HEAD in DOCS


@pytest.mark.parametrize("model", [m for m in models() if not m.hosted and not m.shape], ids=lambda m: m.name)
def test_a_size_without_a_config_is_named_among_what_is_not_proven(model):
    assert model.name.removeprefix("Qwen3.5-") in table.CLAIMS[model.family].not_proven
