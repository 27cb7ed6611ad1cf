"""What a benchmark is here: one record with its files, reader, prompt, settings, rule and known faults.

    bench = benchmark("docvqa")                       from qvl.evaluate.benchmarks
    samples = bench.samples("val_v1.0.json", generation=QWEN2_5_VL.name)
    grade = bench.scorer.grade(Reply(text="12.50"), samples[0])
    bench.figures([(samples[0], grade)])              the figures that its tables print

Asks no model and downloads nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qvl.catalog.generations.qwen2_5_vl import QWEN2_5_VL
from qvl.catalog.generations.qwen2_vl import QWEN2_VL
from qvl.catalog.generations.qwen3_vl import QWEN3_VL
from qvl.errors import QvlError, nearest
from qvl.evaluate.samples import Sample, SampleError
from qvl.evaluate.scorers.base import Grade, Scorer

Rows = Sequence[tuple[Sample, Grade]]


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where the official files are, and what they look like.

    seen: repository @ commit: file in which the layout was read; "" where it was not, and the record says unverified.
    items: by split. checksums: file name to MD5 as its publisher prints it.
    """

    where: str
    licence: str
    layout: str
    seen: str = ""
    items: Mapping[str, int] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the model is run with; None leaves it to the checkpoint's own files. source: who says so."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None  # of all frames of a video
    fps: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    presence_penalty: float | None = None
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Those that are set, without the source."""
        return {k: v for k, v in vars(self).items() if v is not None and k != "source"}


GREEDY = Settings(
    temperature=0.0, source="greedy: what the harnesses do; the Qwen2 and 2.5 reports don't say"
)
# Qwen3-VL report, and evaluation/mmmu of QwenLM/Qwen3-VL @9658872
QWEN3_SAMPLED = Settings(
    temperature=0.7, top_p=0.8, top_k=20, presence_penalty=1.5,
    source="Qwen3-VL report: large instruct models are sampled",
)  # fmt: skip
QWEN25_IMAGE = replace(
    GREEDY, min_pixels=1280 * 28 * 28, max_pixels=16384 * 28 * 28,
    source="VLMEvalKit @e8e78f0 vlmeval/config.py: small images are enlarged to 1,280 tokens",
)  # fmt: skip
IMAGE_SETTINGS: Mapping[str, Settings] = {
    QWEN2_VL.name: QWEN25_IMAGE,
    QWEN2_5_VL.name: QWEN25_IMAGE,
    QWEN3_VL.name: QWEN3_SAMPLED,
    "*": GREEDY,
}


def settings_with(table: Mapping[str, Settings] = IMAGE_SETTINGS, **changes: Any) -> dict[str, Settings]:
    """The same settings of all generations, with these values changed."""
    return {name: replace(s, **changes) for name, s in table.items()}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark. `read` gives samples whose question is the bare one; `prompt` words it for a generation."""

    name: str
    title: str
    files: Files
    read: Callable[[Path, str], list[Sample]]  # (file or folder, split)
    prompt: Callable[[Sample, str], str]
    scorer: Scorer
    system: Callable[[Sample, str], str | None] | None = (
        None  # the system prompt, where a tool's schema is wanted
    )
    faults: tuple[str, ...] = ()  # known ones of the official rule, and what ours does instead
    pitfalls: tuple[str, ...] = ()  # what makes two figures of it incomparable
    splits: tuple[str, ...] = ("",)  # the first is the default
    settings: Mapping[str, Settings] = field(default_factory=lambda: IMAGE_SETTINGS)
    figures: Callable[[Rows], dict[str, float]] = field(default_factory=lambda: means)

    def samples(self, data: str | Path, *, split: str = "", generation: str = "") -> list[Sample]:
        """The items with their prompts. Raises: SampleError that names the file, and the line where there is one."""
        path = Path(data)
        if not path.exists():
            raise SampleError(
                f"{path}: there is no such file or folder. `qvl eval {self.name} --how` says where to get it"
            )
        if split and split not in self.splits:
            raise SampleError(
                f"{self.name} has no split {split!r}; {nearest(split, [s for s in self.splits if s])}"
            )
        try:
            found = self.read(path, split or self.splits[0])
        except SampleError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, StopIteration, OSError) as e:
            raise SampleError(
                f"{path}: not in the layout of {self.name} ({type(e).__name__}: {e}). `qvl eval {self.name} --how` "
                "says what it is"
            ) from e
        if not found:
            raise SampleError(
                f"{path}: nothing of {self.name} in it. `qvl eval {self.name} --how` says what is needed"
            )
        for sample in found:
            if not isinstance(sample.question, str) or not isinstance(sample.stratum, str):
                raise SampleError(f"{sample.where}: its question or its kind is no text")
        _refuse_repeated(found)
        system = self.system or (lambda sample, _: sample.system)
        return [replace(s, question=self.prompt(s, generation), system=system(s, generation)) for s in found]

    def settings_for(self, generation: str) -> Settings:
        """Of this generation, of the one that its name goes on from (qwen3_vl_moe from qwen3_vl), or of all."""
        for name, settings in self.settings.items():
            if name != "*" and generation.startswith(name):
                return settings
        return self.settings.get("*", GREEDY)

    def how(self) -> str:
        """Where to get the files, their licence, layout and checksums, the rule and what is wrong with it."""
        files = self.files
        lines = [
            self.title,
            "",
            f"Files: {files.where}",
            f"Licence: {files.licence}",
            f"Layout: {files.layout}",
        ]
        lines.append(f"Layout seen in: {files.seen or 'unverified'}")
        if files.items:
            lines.append("Items: " + ", ".join(f"{k} {v:,}" for k, v in files.items.items()))
        lines += [f"MD5 of {name}: {value}" for name, value in files.checksums.items()]
        if self.splits != ("",):
            lines.append("Splits: " + ", ".join(self.splits))
        lines += ["", "Rule: " + " ".join(self.scorer.about.split())]
        lines += [f"Fault of the official rule: {f}" for f in self.faults]
        lines += [f"Mind: {p}" for p in self.pitfalls]
        return "\n".join(lines)


def _refuse_repeated(samples: Iterable[Sample]) -> None:
    seen: dict[str, str] = {}
    for sample in samples:
        if sample.id in seen:
            raise SampleError(f"{sample.where}: id {sample.id!r} is that of {seen[sample.id]} too")
        seen[sample.id] = sample.where


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def by_stratum(rows: Rows) -> dict[str, float]:
    """Mean score of each stratum, in the order of first sight."""
    groups: dict[str, list[float]] = defaultdict(list)
    for sample, grade in rows:
        groups[str(sample.stratum)].append(grade.score)  # a text in all of these readers
    return {name: mean(scores) for name, scores in groups.items() if name}


def means(rows: Rows) -> dict[str, float]:
    """Mean over all items, and of each stratum."""
    return {"mean": mean(g.score for _, g in rows), **by_stratum(rows)}


def macro_means(rows: Rows) -> dict[str, float]:
    """Mean of the strata's means, mean over all items, and of each stratum."""
    groups = by_stratum(rows)
    return {"macro mean": mean(groups.values()), **means(rows)}


def unknown(name: str, known: Iterable[str]) -> QvlError:
    return QvlError(f"no benchmark {name!r}; {nearest(name, list(known))}")
