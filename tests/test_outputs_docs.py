"""docs/outputs.md: every example on the page gives what the page says."""

import doctest
from pathlib import Path


def test_examples_on_the_page_are_true():
    page = Path(__file__).parent.parent / "docs" / "outputs.md"
    failed, tried = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert tried >= 20
    assert failed == 0
