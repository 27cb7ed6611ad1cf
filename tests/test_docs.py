"""Docs in step with the code: verbs, options, files and make targets that they name exist."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

from qvl.cli.main import VERBS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"\bqvl ([a-z]+(?:-[a-z]+)*)((?:[^`\n|\\]|\\\n)*)")


def commands(page: Path):
    """(verb, options) of every `qvl ...` inside code marks of a page."""
    text = page.read_text(encoding="utf-8")
    code = re.findall(r"```(?!mermaid).*?```|`[^`\n]+`", text, re.S)
    for piece in code:
        for verb, rest in COMMAND.findall(piece):
            second = rest.split()[:1]
            verb = f"{verb} {second[0]}" if second and f"{verb} {second[0]}" in VERBS else verb
            yield verb, re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)


def options_of(verb: str) -> set[str]:
    """Long options as typer derives or declares them, without running anything."""
    import typer
    from typer.main import get_command

    app = typer.Typer()
    app.command()(importlib.import_module(VERBS[verb][0]).run)
    return {o for p in get_command(app).params for o in [*p.opts, *p.secondary_opts]} | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_in_docs_exist_with_their_options(page):
    wrong = []
    for verb, options in commands(page):
        if verb not in VERBS:
            wrong.append(f"qvl {verb}: no such verb")
            continue
        wrong += [f"qvl {verb} {o}: no such option" for o in options if o not in options_of(verb)]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_in_docs_exist(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:docs|examples|benchmarks|training|tests|src)/[\w./-]+\.\w+", text))
    named |= {m for m in re.findall(r"\]\((?!http)([^)#]+)", text)}
    missing = [f for f in named if not (ROOT / f).exists() and not (page.parent / f).exists()]
    assert missing == []


def test_every_verb_is_in_the_readme_and_has_a_run():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for verb, (module, line) in VERBS.items():
        assert f"qvl {verb} " in readme, verb
        assert inspect.isfunction(importlib.import_module(module).run), verb
        assert line


def test_make_targets_in_docs_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8")):
            assert target in targets, f"{page.name}: make {target}"


def test_no_path_of_a_machine_in_the_project():
    pattern = re.compile(r"(?<![\w.])/(?:work|farm|root)/")
    for path in ROOT.rglob("*"):
        hidden = any(
            part.startswith(".") or part in ("runs", "out", "build") for part in path.relative_to(ROOT).parts
        )
        if hidden or path.suffix not in {
            ".py",
            ".md",
            ".toml",
            ".json",
            ".csv",
            ".txt",
            ".yaml",
            ".yml",
            ".sh",
        }:
            continue
        assert not pattern.search(path.read_text(encoding="utf-8")), path
