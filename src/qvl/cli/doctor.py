"""`qvl doctor`: the golden test of an endpoint. Exit 0 when nothing failed, 1 when a probe failed, 2 for bad input."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvl.backends.studio import hosted_name
from qvl.cli.gate import own
from qvl.cli.media import check_writable
from qvl.cli.options import JsonOption, SourceOptions, command, option
from qvl.cli.tables import console, print_json, table
from qvl.doctor import EndpointUnderTest, examine, sets
from qvl.doctor.baseline import (
    Baseline,
    BaselineError,
    baseline_path,
    embedded_weights,
    is_file_name,
    name_of,
)
from qvl.doctor.expected import Reference
from qvl.doctor.report import cause_text, write_html
from qvl.doctor.run import chosen
from qvl.errors import PromptError
from qvl.records import pick
from qvl.tasks.prompts import is_plain

if TYPE_CHECKING:
    from qvl.backends.base import Backend
    from qvl.doctor import Report
    from qvl.doctor.expected import ExpectedAnswers
    from qvl.doctor.probe import Probe
    from qvl.doctor.report import Result
    from qvl.geometry import PixelLimits

PROBES = "PROBE|THEME|LEVEL"


@command
def run(
    source: SourceOptions,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[BASELINE]",
            help="With --baseline: a file (.json) or a name (default: the model's name).",
        ),
    ] = None,
    reference: str | None = option(
        None,
        "The same weights, loaded locally to compare answers with (default: mini for a server of mini, "
        "else a saved baseline).",
        metavar="PATH|HUB_ID|mini",
    ),
    baseline: str | None = option(
        None,
        "Save these answers, or compare with saved ones (default: compare, if a baseline exists).",
        metavar="save|compare",
    ),
    only: list[str] | None = option(
        None, "Run only these probes (repeatable; default: all).", metavar=PROBES
    ),
    skip: list[str] | None = option(None, "Run all but these (repeatable; default: none).", metavar=PROBES),
    max_pixels: int | None = option(
        None, "The pixel limit that the server was started with (default: as published)."
    ),
    seed: int | None = option(None, "The seed of images and questions (default: the baseline's, else 0)."),
    report: str | None = option(None, "Write a page with the evidence.", metavar="OUT.html"),
    as_json: JsonOption = False,
    list_probes: bool = option(False, "List the probes without running them.", "--list"),
) -> int:
    """Test a model or a server with images and questions whose outcome is known."""
    probes = chosen(only or (), skip or ())
    if list_probes:
        _print_list(probes, as_json)
        return 0
    _check(baseline, name, reference, seed)
    check_writable(report)
    if baseline == "save" and name is not None:
        check_writable(name if is_file_name(name) else None)
    # the baseline is read before anything is loaded
    kept = (
        Baseline.read(baseline_path(name or name_of(source.model or "mini")))
        if baseline == "compare"
        else None
    )
    backend = source.open()
    limits = _limits(backend, max_pixels)
    notes: list[str] = []
    expected: ExpectedAnswers | None
    if kept is not None:
        _belongs(kept, backend)
        expected = kept
    elif baseline == "save":
        expected = None
    else:
        expected = _expected(backend, source.endpoint, reference, limits, notes)
    number = kept.seed if kept is not None else getattr(expected, "seed", 0) if seed is None else seed
    if seed is not None and expected is not None and getattr(expected, "seed", seed) != seed:
        expected = None  # a baseline knows only its own questions
        notes.append(f"the stored baseline has other questions than seed {seed}: nothing is compared")
    under_test = EndpointUnderTest(backend, seed=number, expected=expected, limits=limits)
    done = examine(under_test, probes, None if as_json else _progress)
    if done.stopped is not None:
        notes.append(f"stopped after {len(done.results)} of {len(probes)} probes: {done.stopped}")
    elif baseline == "save":
        notes.append(_save(under_test, done, name))
    if as_json:
        print_json({**done.to_dict(), "notes": notes})
    else:
        _print(done)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    if report is not None:
        write_html(done, report)
        print(f"report: {report}", file=sys.stderr)
    return 0 if done.ok and done.stopped is None else 1


def _check(baseline: str | None, name: str | None, reference: str | None, seed: int | None) -> None:
    if baseline not in (None, "save", "compare"):
        raise PromptError(f"--baseline {baseline!r}: known: save, compare")
    if name is not None and baseline is None:
        raise PromptError(f"{name!r} is the name of a baseline: add --baseline save or --baseline compare")
    if baseline is not None and reference is not None:
        raise PromptError(
            "--reference and --baseline exclude each other: answers are compared with one of them"
        )
    if (
        reference is not None
        and not Path(reference).exists()
        and ("://" in reference or hosted_name(reference))
    ):
        raise PromptError(
            f"--reference {reference}: is loaded on this machine, so it can't be a served model"
        )
    if seed is not None and not 0 <= seed < 50_000:
        raise PromptError(f"--seed {seed}: must be from 0 to 49,999")
    if seed is not None and baseline == "compare":
        raise PromptError("--seed goes with --baseline save: comparing takes the baseline's own")


def _limits(backend: Backend, max_pixels: int | None) -> PixelLimits | None:
    """Raises: PromptError for a family without limits, MediaError for a limit that can't be."""
    if max_pixels is None:
        return None
    if backend.limits is None:
        raise PromptError("--max-pixels: the model's family is unknown; give it with --family")
    low = min(backend.limits.min_pixels, max_pixels)
    return replace(backend.limits, min_pixels=low, max_pixels=max_pixels)


def _belongs(kept: Baseline, backend: Backend) -> None:
    """Raises: BaselineError for a baseline of another family, or of weights that are no longer embedded."""
    if kept.family is not None and backend.family is not None and kept.family != backend.family:
        raise BaselineError(f"the baseline is of a {kept.family}, the model is a {backend.family}")
    if kept.weights is not None and kept.weights != embedded_weights():
        raise BaselineError(
            f"the baseline of {kept.made} was made with other weights of the embedded model: make it again with "
            "qvl doctor --baseline save"
        )


def _expected(
    backend: Backend,
    endpoint: str | None,
    reference: str | None,
    limits: PixelLimits | None,
    notes: list[str],
) -> ExpectedAnswers | None:
    """What to compare with by default: the embedded model for a server of it, or a stored baseline."""
    if reference is None and endpoint is not None and is_plain(backend.name):
        reference = "mini"
    if reference is not None:
        return Reference(SourceOptions(model=reference).open(), limits or backend.limits)
    path = baseline_path(name_of(backend.name))
    if not path.exists():
        return None
    try:
        kept = Baseline.read(path)
        _belongs(kept, backend)
    except BaselineError as e:
        notes.append(f"no comparison: {e}")
        return None
    return kept


def _save(under_test: EndpointUnderTest, done: Report, name: str | None) -> str:
    """Asks what is left of the compared questions, writes them, and says where."""
    replies = {
        item.question.name: reply for name in sets.SETS for item, reply in sets.asked(under_test, name)
    }
    embedded = under_test.name == "mini" and under_test.backend.can.local
    kept = Baseline(
        model=under_test.name,
        family=under_test.family,
        seed=under_test.seed,
        made=time.strftime("%Y-%m-%d"),
        replies=replies,
        weights=embedded_weights() if embedded else None,
    )
    path = baseline_path(name or name_of(under_test.name), writing=True)
    kept.write(path)
    warning = "" if done.ok else f"; {len(done.failed)} probes failed, so it may keep a fault"
    return f"baseline of {len(replies)} answers in {path}{warning}"


def _progress(result: Result) -> None:
    """One line that is overwritten, for people who wait."""
    if sys.stderr.isatty():
        own(sys.stderr).write(f"\r\x1b[K{result.probe.name}: {result.finding.status}")
        sys.stderr.flush()


def _print(done: Report) -> None:
    if sys.stderr.isatty():
        own(sys.stderr).write("\r\x1b[K")
    out = console()
    rows: list[tuple[str, str, str]] = []
    for theme in dict.fromkeys(result.probe.theme for result in done.results):
        rows.append((theme.upper(), "", ""))
        for result in (r for r in done.results if r.probe.theme == theme):
            finding = result.finding
            rows.append((result.probe.name, finding.status, finding.evidence))
    out.print(table(["probe", "status", "evidence"], rows, whole=(0, 1)))
    for result in done.failed:
        out.print(f"\n{result.probe.name} failed: {result.probe.shows}", markup=False, style="bold")
        for cause in result.probe.causes:
            out.print(f"  maybe: {cause_text(cause)}", markup=False)
    compared = f"compared with {done.compared_with}" if done.compared_with else "compared with nothing"
    out.print(
        f"\n{done.model} ({done.family or 'family unknown'}): {done.counts}; {done.num_asked} questions in "
        f"{done.seconds:.0f} s, {compared}.",
        markup=False,
    )


def _print_list(probes: Sequence[Probe], as_json: bool) -> None:
    if as_json:
        print_json([pick(p, "name", "theme", "level", "shows") for p in probes])
        return
    console().print(
        table(["probe", "theme", "level", "shows"], [(p.name, p.theme, p.level, p.shows) for p in probes])
    )
