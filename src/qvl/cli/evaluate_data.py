"""Reads DATA of `qvl eval`: the user's own items, or a benchmark's official files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvl.cli.options import HUB_NAMES, option
from qvl.errors import PromptError, QvlError
from qvl.evaluate.benchmarks import BENCHMARKS, benchmark
from qvl.evaluate.benchmarks.record import Benchmark
from qvl.evaluate.runner import TEMPLATE, Result
from qvl.evaluate.samples import Sample, read_samples
from qvl.evaluate.scorers import SCORERS, find_scorer, fit_scorer
from qvl.evaluate.scorers.base import Grade, Scorer
from qvl.evaluate.scorers.judge import RUBRIC, judge_scorer
from qvl.tasks import open as door


@dataclass(frozen=True)
class ScoreOptions:
    """Which rule scores the answers, and what is asked."""

    scorer: str | None = option(
        None,
        "The scoring rule (default: one that fits the truth).",
        metavar=f"{'|'.join(SCORERS)}|FILE.py:FUNCTION",
    )
    scorer_option: list[str] | None = option(
        None, "An option of the rule (repeatable; default: none).", metavar="NAME=VALUE"
    )
    judge: str | None = option(
        None, "The model that judges, for --scorer judge (default: none).", metavar=HUB_NAMES
    )
    judge_endpoint: str | None = option(None, "The judge's server (default: this machine).", metavar="URL")
    judge_labels: str | None = option(
        None, "Answers with a person's labels, to hold the judge to (default: none).", metavar="FILE.jsonl"
    )
    rubric: Path | None = option(
        None, "What the judge goes by (default: the same as the reference, in whatever words)."
    )
    question: str | None = option(None, "The question for items without one (default: the scorer's).")
    prompt: str | None = option(
        None, "The words of each question (default: {question}{choices}{suffix}).", metavar="TEMPLATE"
    )


@dataclass(frozen=True)
class BenchmarkOptions:
    """For a benchmark by its name."""

    data_path: str | None = option(
        None, "The benchmark's files (default: DATA is the user's own).", "--data", metavar="FOLDER|FILE"
    )
    split: str = option("", "The part of the benchmark (default: its first).")
    official: bool = option(False, "Score by the official rule, faults and all.", "--official")
    how: bool = option(False, "Print where to get a benchmark's files, and the faults of its rule.", "--how")


@dataclass(frozen=True)
class Items:
    """What a run asks: samples, rule, words, and settings that the user's own go over."""

    samples: Sequence[Sample]
    scorer: Scorer
    prompt: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    bench: Benchmark | None = None

    def figures(self, result: Result) -> dict[str, float]:
        """The figures that a benchmark's tables print; none for the user's own items."""
        if self.bench is None:
            return {}
        lines = {r["id"]: r for r in result.lines}
        rows = [
            (s, Grade(float(lines[s.id]["score"]), lines[s.id]["parsed"]))
            for s in self.samples
            if s.id in lines
        ]
        return dict(self.bench.figures(rows))


def find_benchmark(data: str, options: BenchmarkOptions) -> Benchmark | None:
    """Raises: QvlError for a benchmark without its files, or options of one beside the user's own items."""
    name = data.lower().replace("-", "_")
    if name in BENCHMARKS and not Path(data).exists():
        found = benchmark(name)
        if options.data_path is None and not options.how:
            raise QvlError(
                f"{data} needs its files: --data FOLDER; qvl eval {data} --how says where to get them"
            )
        return found
    if options.how or options.data_path or options.split or options.official:
        raise PromptError(
            f"--how, --data, --split and --official are for a benchmark: {', '.join(BENCHMARKS)}"
        )
    return None


def own_items(data: str, scoring: ScoreOptions) -> Items:
    """Raises: SampleError, QvlError."""
    samples = read_samples(data, scoring.question)
    scorer = named_scorer(scoring, samples[0])
    return Items(samples, scorer, TEMPLATE if scoring.prompt is None else scoring.prompt)


def benchmark_items(
    bench: Benchmark, options: BenchmarkOptions, scoring: ScoreOptions, family: str | None
) -> Items:
    """A benchmark worded and set for a generation. Raises: SampleError, QvlError."""
    if scoring.question is not None:
        raise PromptError("--question is for items of your own: a benchmark has its own questions")
    assert options.data_path is not None
    samples = bench.samples(options.data_path, split=options.split, generation=family or "")
    scorer = bench.scorer if scoring.scorer is None else named_scorer(scoring, samples[0])
    if scoring.scorer is None:
        scorer = scorer.with_options(_options(scoring) | ({"official": True} if options.official else {}))
    settings = bench.settings_for(family or "").to_dict()
    if "max_tokens" in settings:
        settings["max_new_tokens"] = settings.pop("max_tokens")
    about = {"benchmark": bench.name, "split": options.split or bench.splits[0]}
    return Items(samples, scorer, scoring.prompt or "{question}", settings, about, bench)


def named_scorer(scoring: ScoreOptions, sample: Sample) -> Scorer:
    """The one that was asked for, or one that fits a sample. Raises: QvlError."""
    judging = scoring.judge or scoring.judge_endpoint
    if scoring.scorer == "judge" and judging:
        model = door.open_backend(scoring.judge, endpoint=scoring.judge_endpoint)
        return judge_scorer(model, rubric=RUBRIC if scoring.rubric is None else _read(scoring.rubric))
    if judging or scoring.judge_labels or scoring.rubric:
        raise PromptError(
            "--judge, --judge-endpoint, --judge-labels and --rubric go with --scorer judge and a --judge"
        )
    return find_scorer(scoring.scorer or fit_scorer(sample), _options(scoring))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise QvlError(f"{path}: can't be read ({e})") from e


def _options(scoring: ScoreOptions) -> dict[str, str | int | float | bool]:
    given: dict[str, str | int | float | bool] = {}
    for pair in scoring.scorer_option or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise PromptError(f"--scorer-option {pair!r}: write NAME=VALUE")
        given[name.replace("-", "_")] = value
    return given
