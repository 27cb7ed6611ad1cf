"""`qvl VERB ...`: finds the verb, imports that one file, runs it, and turns errors into one line and exit 2.

A verb is a file here with a function `run` whose signature typer reads. Nothing else is imported before
the verb is known, so `qvl --help` and the planning verbs start in a fraction of a second.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Any

# verb → (module with `run`, one line for the list)
VERBS: dict[str, tuple[str, str]] = {
    "ask": ("qvl.cli.ask", "ask a model about images or videos"),
    "read": ("qvl.cli.read", "convert pages and PDFs to Markdown, HTML, JSON or CSV"),
    "find-moment": ("qvl.cli.find_moment", "find when something happens in a video"),
    "synth": ("qvl.cli.synth", "draw images and videos whose answers are known; score a model on them"),
    "models": ("qvl.cli.models", "list and compare the family: shapes, licences, scores"),
    "fit": ("qvl.cli.fit", "plan memory and speed of a model for your images on your hardware"),
    "cost": ("qvl.cli.cost", "compare the cost of an API, rented and owned hardware for your traffic"),
    "choose": ("qvl.cli.choose", "recommend a model, precision, engine and hardware, with reasons"),
    "chat": ("qvl.cli.chat", "chat with a model about images in the terminal"),
    "serve": ("qvl.cli.serve", "serve a model behind the OpenAI API"),
    "bench": ("qvl.cli.bench", "load-test an OpenAI-compatible endpoint"),
    "eval": ("qvl.cli.evaluate", "score a model on your own items or on a benchmark"),
    "eval compare": ("qvl.cli.evaluate_compare", "compare runs on the same items"),
    "eval confidence": (
        "qvl.cli.evaluate_confidence",
        "calibration of a model's confidence; a cascade of two models",
    ),
    "eval import": ("qvl.cli.evaluate_import", "import another harness's answers, to score and compare them"),
    "eval label": ("qvl.cli.evaluate_label", "correct a model's answers into labelled items"),
    "eval plan": ("qvl.cli.evaluate_plan", "plan how many items a difference needs"),
    "eval published": ("qvl.cli.evaluate_published", "show published scores next to measured runs"),
    "launch": ("qvl.cli.launch", "write a checked launch command for an engine, with a reason for each flag"),
    "doctor": ("qvl.cli.doctor", "test a model or a server with questions whose outcome is known"),
    "check": ("qvl.cli.check", "find faults in a checkpoint without loading it"),
    "convert": ("qvl.cli.convert", "rename a checkpoint's tensors for another engine"),
}


def main(argv: list[str] | None = None) -> int:
    """The console script. Returns the exit status: 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("--help", "-h", "help"):
        print(_overview())
        return 0
    if args[0] == "--version":
        from qvl import __version__

        print(f"qvl {__version__}")
        return 0
    verb = args.pop(0)
    if args and f"{verb} {args[0]}" in VERBS:  # a folder of that name: ./compare
        verb = f"{verb} {args.pop(0)}"
    if verb not in VERBS:
        from qvl.errors import nearest

        print(f"qvl: no verb {verb!r}; {nearest(verb, list(VERBS))}", file=sys.stderr)
        return 2
    from qvl.cli.gate import gated

    with gated():
        return run_verb(verb, args)


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in VERBS.items())
    return f"usage: qvl VERB ...   (see qvl VERB --help)\n\n{verbs}\n\n  --version"


def run_verb(verb: str, args: list[str]) -> int:
    import typer
    from typer import exceptions as usage

    from qvl.cli.plain_values import PlainCommand
    from qvl.errors import QvlError, RetiredModelWarning, missing_extra

    show = warnings.showwarning

    def shown(message: Warning | str, category: type[Warning], *where: Any) -> None:
        """Ours as a line like the errors; others as Python prints them."""
        if issubclass(category, RetiredModelWarning):
            print(f"qvl {verb}: warning: {message}", file=sys.stderr)
        else:
            show(message, category, *where)

    warnings.showwarning = shown  # type: ignore[assignment]
    try:
        module = importlib.import_module(VERBS[verb][0])
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        settings = {"help_option_names": ["--help", "-h"]}
        app.command(name=verb, cls=PlainCommand, context_settings=settings)(module.run)
        code = app(args, prog_name=f"qvl {verb}", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except QvlError as e:
        print(f"qvl {verb}: {e}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as e:
        missing = missing_extra(e)
        if missing is None:
            raise
        print(f"qvl {verb}: {missing}", file=sys.stderr)
        return 2
    except usage.Exit as e:
        return e.exit_code
    except usage.TyperException as e:
        print(f"qvl {verb}: {e.format_message()} (see qvl {verb} --help)", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, usage.Abort):
        print(f"qvl {verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `qvl models | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        warnings.showwarning = show


if __name__ == "__main__":
    sys.exit(main())
