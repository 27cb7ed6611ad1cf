"""The dispatcher: one line and exit 2 for anything wrong, and no verb imported before it is asked for."""

import importlib
import subprocess
import sys
import types

import pytest
import typer

from qvl.cli import main as cli
from qvl.cli.plain_values import PlainCommand
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


@pytest.mark.parametrize(
    "line",
    [
        "fit qwen2.5-vl-7b --gpu rtx4090 --image 640x480x2 --concurrency 4 --gpu-memory-utilization 0.8",
        "models qwen2.5-vl-7b",
        "choose --gpu rtx4090 --private --min-quality 50",
        "cost --model qwen-vl-max --image 640x480 --requests 9k --cache-hit 0.5 --allow-stale",
        "launch qwen2.5-vl-7b --gpu l40s --text-only --port 9000",
    ],
)
def test_a_planning_verb_loads_no_pydantic_and_no_numpy(line):
    """typer would build a pydantic adapter for each option; half of a cold start went there."""
    code = (
        f"import sys; from qvl.cli.main import main; code = main({line.split()!r});"
        "print(code, sorted(m for m in ('numpy', 'torch', 'pydantic', 'PIL') if m in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "0 []"


VALUES = ["", " ", "0", "1", "-1", "1.5", "1e3", "nan", "x", " 7 ", "1_000", "0x1", "true", "é", "70000"]


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_options_are_read_as_typer_reads_them(name):
    """Every option of every verb, with good and bad words: the same value, or the same refusal."""
    module = importlib.import_module(cli.VERBS[name][0])
    app = typer.Typer(add_completion=False)
    app.command(cls=PlainCommand)(module.run)
    command = typer.main.get_command(app)
    context = typer.Context(command)

    def read(param, value):
        try:
            return repr(param.get_runtime_param().coerce(value, param=param, ctx=context))
        except typer.BadParameter as e:
            return f"refused: {e.format_message()}"

    for param in command.params:
        several = param.multiple or param.nargs == -1
        for value in [None, param.default, *([v] if several else v for v in VALUES)]:
            if callable(value):
                continue
            param._runtime_param = None
            typers = read(param, value)
            param._runtime_param = None
            assert param in command.get_params(context)
            assert read(param, value) == typers, (param.name, value)


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
