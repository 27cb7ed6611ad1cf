"""The helpers that the planning verbs print with."""

import json

import pytest

from qvl.cli.tables import console, print_json, short_count, table


def printed(capsys, *args, **kwargs):
    console().print(table(*args, **kwargs))
    return capsys.readouterr().out


@pytest.mark.parametrize(("columns", "width"), [("60", 60), ("110", 110), ("300", 120)])
def test_the_console_is_as_wide_as_the_terminal_up_to_120(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    assert console().width == width


def test_brackets_in_cells_are_printed_not_read_as_markup(capsys):
    assert "[bold]x[/bold]" in printed(capsys, ("a",), [("[bold]x[/bold]",)])


def test_numbers_are_right_aligned(capsys):
    lines = printed(capsys, ("n", "m"), [("a", "1"), ("b", "1000")], right=(1,)).splitlines()
    assert lines[-2].rstrip().endswith("   1")


def test_empty_headers_leave_no_rule(capsys):
    assert "─" not in printed(capsys, ("", ""), [("a", "b")])


def test_whole_columns_do_not_break(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = printed(capsys, ("name", "words"), [("a-long-name-of-24-letters", "many words " * 6)], whole=(0,))
    assert "a-long-name-of-24-letters" in out


@pytest.mark.parametrize(
    ("tokens", "text"),
    [(262144, "256K"), (128000, "128K"), (32768, "32K"), (131072, "128K"), (1500, "1,500")],
)
def test_context_lengths_read_as_advertised(tokens, text):
    assert short_count(tokens) == text


def test_json_keeps_letters_and_ends_with_a_line(capsys):
    print_json({"한": "글"})
    out = capsys.readouterr().out
    assert out.endswith("}\n")
    assert "한" in out
    assert json.loads(out) == {"한": "글"}
