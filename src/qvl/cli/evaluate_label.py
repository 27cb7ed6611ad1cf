"""`qvl eval label DATA`: a model answers, a person corrects, and eval JSONL comes out."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from qvl.cli.evaluate import show_progress
from qvl.cli.options import AnswerOptions, JsonOption, SourceOptions, command, option
from qvl.cli.show import terminal_safe
from qvl.cli.tables import print_json
from qvl.evaluate.label import Labels, least_sure_first, propose, read_answer
from qvl.evaluate.samples import read_samples

HELP = "Enter: right.  Text: the right answer.  ?: skip.  Ctrl-D: stop; the same command goes on."


@command
def run(
    source: SourceOptions,
    answers: AnswerOptions,
    data: Annotated[
        str, typer.Argument(help="A folder of images, or a .jsonl or .csv file; truths aren't needed.")
    ],
    out: Path = option(Path("labels.jsonl"), "The file of labelled items.", "-o", "--out"),
    question: str | None = option(None, "The question for items without one (default: to read all text)."),
    as_json: JsonOption = False,
) -> int:
    """Correct a model's answers and save them as items for qvl eval; the least confident come first."""
    samples = {s.id: s for s in read_samples(data, question, labelled=False)}
    labels = Labels(out)
    with source.open() as model:
        folder = out.with_name(out.name + ".run")
        result = propose(
            model,
            list(samples.values()),
            folder,
            settings=answers.settings(),
            on_line=partial(show_progress, scored=False),
        )
    print(file=sys.stderr)
    counts = {"confirmed": 0, "corrected": 0, "skipped": 0}
    print(HELP, file=sys.stderr)
    for line in least_sure_first(result.lines, labels.done):
        said = _ask_person(line, samples[line["id"]].media)
        if said is None:
            break
        if said.strip() == "?" or (not said.strip() and line.get("error")):
            counts["skipped"] += 1
            continue
        right = line["answer"] if not said.strip() else said.strip()
        counts["corrected" if said.strip() else "confirmed"] += 1
        labels.add(samples[line["id"]], read_answer(right), line)
    left = len([i for i in samples if i not in labels.done])
    if as_json:
        print_json({**counts, "left": left, "out": str(out)})
    else:
        print(f"{counts['confirmed']} confirmed, {counts['corrected']} corrected, {left} left; kept in {out}")
    return 0


def _ask_person(line: Any, media: Any) -> str | None:
    """What was typed; None at the end of the input."""
    sure = "" if line.get("confidence") is None else f"   confidence {line['confidence']:.1%}"
    names = ", ".join(str(m) for m in media if isinstance(m, str))
    answer = f"(failed: {line['error']})" if line.get("error") else str(line["answer"])
    print(f"\n{terminal_safe(line['id'])}  {names}{sure}\n{terminal_safe(line['prompt'])}", file=sys.stderr)
    print(f"  {terminal_safe(answer)}\n> ", end="", file=sys.stderr, flush=True)
    typed = sys.stdin.readline()
    return typed.rstrip("\n") if typed else None
