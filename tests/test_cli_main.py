"""The dispatcher: one line and exit 2 for anything wrong, and no verb imported before it is asked for."""

import subprocess
import sys
import types

import pytest
import typer

from qvl.cli import main as cli
from qvl.errors import MediaError


@pytest.fixture
def verb(monkeypatch):
    """Registers a module-like object as the verb `try`."""

    def register(function):
        module = types.ModuleType("qvl_try_verb")
        module.run = function
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.VERBS, "try", (module.__name__, "a test"))

    return register


def test_unknown_verb_names_the_nearest_and_exits_2(capsys):
    assert cli.main(["asl"]) == 2
    assert "ask" in capsys.readouterr().err


def test_bad_input_is_one_line_and_exit_2(verb, capsys):
    def run(path: str) -> None:
        raise MediaError(f"{path}: 0 bytes")

    verb(run)
    assert cli.main(["try", "a.png"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "qvl try: a.png: 0 bytes\n"


@pytest.mark.parametrize("args", [[], ["a", "--frob"], ["a", "--count", "x"]])
def test_wrong_usage_is_one_line_and_exit_2(verb, capsys, args):
    def run(path: str, count: int = 1) -> None:
        pass

    verb(run)
    assert cli.main(["try", *args]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "qvl try --help" in err


def test_a_verb_can_end_with_its_own_status(verb):
    def run() -> None:
        raise typer.Exit(1)

    verb(run)
    assert cli.main(["try"]) == 1


def test_interrupt_is_130(verb):
    def run() -> None:
        raise KeyboardInterrupt

    verb(run)
    assert cli.main(["try"]) == 130


def test_overview_imports_no_verb_and_no_heavy_module():
    code = (
        "import sys; from qvl.cli.main import main; main(['--help']);"
        "print(sorted(m for m in ('typer', 'numpy', 'torch', 'pydantic', 'rich') if m in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    for name in cli.VERBS:
        assert f"  {name}" in out


def test_version_is_the_packages(capsys):
    import qvl

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"qvl {qvl.__version__}\n"


def test_a_missing_extra_is_one_line_that_says_what_to_install(verb, capsys):
    def run() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    verb(run)
    assert cli.main(["try"]) == 2
    assert (
        capsys.readouterr().err
        == "qvl try: this needs torch, which isn't installed: pip install 'qvl[run]'\n"
    )


def test_any_other_missing_module_is_our_own_fault_and_raises(verb):
    def run() -> None:
        raise ModuleNotFoundError("No module named 'qvl.nowhere'", name="qvl.nowhere")

    verb(run)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["try"])
