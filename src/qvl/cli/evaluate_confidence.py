"""`qvl eval confidence RUN [LARGER]`: whether a model knows when it is wrong; a cascade of two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qvl.cli.evaluate_compare import parse_share
from qvl.cli.media import check_writable
from qvl.cli.options import JsonOption, command, option
from qvl.cli.tables import console, print_json, table
from qvl.errors import QvlError
from qvl.evaluate import confidence as sure
from qvl.evaluate.runner import read_result


@command
def run(
    run: Annotated[str, typer.Argument(help="A run that was made with --confidence.")],
    larger: Annotated[
        str | None,
        typer.Argument(help="A larger model's run on the same items, for a cascade (default: none)."),
    ] = None,
    share: str = option(
        "5%", "The share of least confident answers that a person would review.", metavar="5%|0.05"
    ),
    plot: Path | None = option(None, "Plot the reliability diagram to this image.", metavar="OUT.png"),
    as_json: JsonOption = False,
) -> int:
    """How well a model's confidence predicts its errors: calibration, review, a cascade of two models."""
    check_writable(None if plot is None else str(plot))
    lines = read_result(run).lines
    _, confidences, scores = sure.with_confidence(lines)
    found: dict[str, Any] = {
        "num": len(scores), "score": sum(scores) / len(scores), "confidence": sum(confidences) / len(confidences),
        "calibration_error": sure.calibration_error(confidences, scores),
        "ranking": sure.ranking(confidences, scores),
        "reliability": sure.reliability(confidences, scores),
        "review": sure.review(confidences, scores, parse_share(share, "share")),
    }  # fmt: skip
    if len(scores) >= 10:
        calibrated = sure.cross_calibrated(confidences, scores)
        found["calibration_error_after"] = sure.calibration_error(calibrated, scores)
    if larger is not None:
        found["cascade"] = sure.cascade(lines, read_result(larger).lines)
    if plot is not None:
        draw(found["reliability"], plot)
    if as_json:
        print_json(found | {"ranking": None if found["ranking"] != found["ranking"] else found["ranking"]})
    else:
        _print(found)
    return 0


def _print(found: dict[str, Any]) -> None:
    print(
        f"{found['num']} answers: mean confidence {found['confidence']:.1%}, score {found['score']:.1%}; calibration "
        f"error {found['calibration_error']:.1%}"
        + (
            f", {found['calibration_error_after']:.1%} after calibration (5 folds)"
            if "calibration_error_after" in found
            else ""
        )
    )
    print(f"a right answer was surer than a wrong one in {found['ranking']:.1%} of pairs")
    rows = [
        (f"{r['from']:.1f} to {r['to']:.1f}", str(r["num"]), f"{r['confidence']:.1%}", f"{r['score']:.1%}",
         f"{r['low']:.1%} to {r['high']:.1%}")
        for r in found["reliability"]
    ]  # fmt: skip
    console().print(table(("confidence", "answers", "mean", "score", "95% interval"), rows, right=(1, 2, 3)))
    r = found["review"]
    print(
        f"a person who corrects the {r['num']} least sure catches {r['wrong_caught']:.0%} of what is wrong; the others "
        f"score {r['score_of_rest']:.1%}, all together {r['score_of_all']:.1%}"
    )
    if "cascade" in found:
        steps = [
            ("-" if c["threshold"] is None else f"{c['threshold']:.3f}", f"{c['sent_on']:.0%}", f"{c['score']:.1%}",
             f"{c['tokens']:,}", f"{c['seconds']:.1f}", f"{c['cost']:.4f}" if c["cost"] else "")
            for c in found["cascade"]
        ]  # fmt: skip
        heads = ("surer than", "sent on", "score", "tokens", "seconds", "cost")
        console().print(table(heads, steps, right=(0, 1, 2, 3, 4, 5)))


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Mean confidence against score, with intervals and the line of a perfect calibration."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4.5, 4.5), layout="constrained")
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey")
    x, y = [r["confidence"] for r in rows], [r["score"] for r in rows]
    errors = [[r["score"] - r["low"] for r in rows], [r["high"] - r["score"] for r in rows]]
    axes.errorbar(x, y, yerr=errors, fmt="o", capsize=3)
    axes.set(xlabel="mean confidence", ylabel="score", xlim=(0, 1), ylim=(0, 1))
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as e:
        raise QvlError(f"{path}: the plot can't be written ({e})") from e
    finally:
        pyplot.close(figure)
