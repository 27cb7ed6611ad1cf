"""Charades-STA: a sentence to the span of a video in which it happens, scored by temporal IoU."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from qvl.catalog.generations.qwen3_vl import QWEN3_VL
from qvl.evaluate.benchmarks import readers
from qvl.evaluate.benchmarks.record import GREEDY, QWEN3_SAMPLED, Benchmark, Files, Rows, mean
from qvl.evaluate.samples import Sample, SampleError
from qvl.evaluate.scorers.base import Grade, Reply, Scorer

Span = tuple[float, float]

_EXAMPLE = "a specific example is : 20.8 - 30.0 seconds"
_WORDS = ("starts", "ends", "happens in", "start time", "end time", "start", "end", "happen")
_RANGE = re.compile(r"(\d+(?:\.\d+)?)\s*[–-]\s*(\d+(?:\.\d+)?)")
_LOOSE_RANGE = re.compile(r"(\d+(?:\.\d+)?)\s*s?\s*[–-]\s*(\d+(?:\.\d+)?)\s*s?")
_NUMBER = re.compile(r"\b(\d+(?:\.\d+)?)\b")
_CLOCK = re.compile(r"\b(\d{1,2}):(\d{2}):(\d{2})\b")
_TIME = r"(?:(?:(\d+):)?(\d{1,2}):(\d{2}(?:\.\d+)?)|(\d+(?:\.\d+)?))"
_SPAN = re.compile(
    rf"{_TIME}\s*(?:s|secs?|seconds?)?\s*(?:-|–|—|~|to|and|until|,|;)+\s*(?:ends?\s+at\s+)?{_TIME}"
)


def iou(a: Span, b: Span) -> float:
    """Shared time over the whole stretch that both cover, gap included."""
    whole = max(a[1], b[1]) - min(a[0], b[0])
    return max(min(a[1], b[1]) - max(a[0], b[0]), 0.0) / whole if whole > 0 else 0.0


def official_span(text: str) -> Span | None:
    """The first range of a sentence with a word of time in it; else the first number of each such sentence, in pairs;
    else hh:mm:ss. Every `to` is a dash first, those inside words too.

    Source: EvolvingLMMs-Lab/lmms-eval @75571cf lmms_eval/tasks/charades_sta/eval_tvg.py.
    """
    text = text.lower().replace(_EXAMPLE, "").replace("to", "-")
    sentences = [s for s in re.split(r"[!?\n]", text) if any(w in s for w in _WORDS)]
    for sentence in sentences:
        if found := _RANGE.findall(sentence):
            return _ordered(*map(float, found[0]))
    times = [float(found[0]) for s in sentences if (found := _NUMBER.findall(s))]
    if len(times) < 2:
        clocks = [_CLOCK.search(s) for s in sentences]
        times = [int(c[1]) * 3600.0 + int(c[2]) * 60 + int(c[3]) for c in clocks if c]
    if len(times) >= 2:
        return _ordered(times[0], times[1])
    for sentence in sentences:
        if found := _LOOSE_RANGE.findall(sentence):
            return _ordered(*map(float, found[0]))
    return None


def _ordered(start: float, end: float) -> Span:
    return (start, end) if end > start else (end, start)


def said_span(text: str) -> Span | None:
    """JSON with a start and an end; else the last two times joined by a dash, `to` or `and`; else the only two times.
    Times are seconds, mm:ss or hh:mm:ss, with decimals.
    """
    for found in re.findall(r"\{[^{}]*\}", text):
        try:
            value = json.loads(found)
        except ValueError:
            continue
        start = next((v for k, v in value.items() if "start" in str(k).lower()), None)
        end = next((v for k, v in value.items() if "end" in str(k).lower()), None)
        times = [_seconds_of(str(t)) for t in (start, end)]
        if times[0] is not None and times[1] is not None:
            return _ordered(times[0], times[1])
    spans = [m.groups() for m in _SPAN.finditer(text.lower())]
    if spans:
        return _ordered(_seconds(spans[-1][:4]), _seconds(spans[-1][4:]))
    alone = [_seconds(m.groups()) for m in re.finditer(_TIME, text)]
    return _ordered(*alone) if len(alone) == 2 else None


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, plain = parts
    if plain is not None:
        return float(plain)
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)


def _seconds_of(text: str) -> float | None:
    found = re.search(_TIME, text)
    return _seconds(found.groups()) if found else None


def rule(reply: Reply, truth: Span, sample: Sample, *, official: bool = False) -> Grade:
    """Temporal IoU of the span that the answer names, in seconds, mm:ss or JSON; an answer without one scores 0.

    official: lmms-eval's reading, the one in public use; the authors' own code reads no text.
    """
    found = official_span(reply.text) if official else said_span(reply.text)
    return Grade(0.0) if found is None else Grade(iou(found, truth), list(found))


def span(answer: Any, sample: Sample) -> Span:
    start, end = map(float, answer)
    if end < start:
        raise ValueError(f"a span from {start} to {end} runs backwards")
    return start, end


def read(path: Path, split: str) -> list[Sample]:
    """charades_sta_test.txt, lines of `VIDEO start end##sentence`, beside the Charades videos."""
    file = readers.the_file(path, f"charades_sta_{split}.txt", f"Charades/charades_sta_{split}.txt")
    folders = [file.parent / f for f in ("Charades_v1_480", "Charades_v1", "videos", ".")]
    samples = []
    for number, line in enumerate(readers.text(file).splitlines(), 1):
        where = f"{file}:{number}"
        found = re.fullmatch(r"(\S+) (\S+) (\S+)##(.+)", line.strip())
        if not found:
            if line.strip():
                raise SampleError(f"{where}: not of the form `VIDEO start end##sentence`")
            continue
        video = next((f / f"{found[1]}.mp4" for f in folders if (f / f"{found[1]}.mp4").is_file()), None)
        if video is None:
            raise SampleError(f"{where}: there is no video {folders[0] / f'{found[1]}.mp4'}")
        samples.append(
            Sample(
                id=str(number), media=(str(video),), question=found[4], answer=[float(found[2]), float(found[3])],
                cluster=found[1], where=where,
            )
        )  # fmt: skip
    return samples


def prompt(sample: Sample, generation: str) -> str:
    """Own words: Qwen's aren't published. The form that is asked for is one that both readings understand."""
    return (
        f"Find when this happens in the video: {sample.question}\n"
        "Answer in seconds, in the form: The event happens in START - END seconds."
    )


def figures(rows: Rows) -> dict[str, float]:
    """mIoU (the figure that Qwen prints) and recall at 0.3, 0.5 and 0.7."""
    scores = [g.score for _, g in rows]
    recalls = {f"R@1 IoU {at}": mean(float(s >= at) for s in scores) for at in (0.3, 0.5, 0.7)}
    return {"mIoU": mean(scores), **recalls}


CHARADES = Benchmark(
    name="charades_sta",
    title="Charades-STA: a sentence to its span of time",
    files=Files(
        where="github.com/jiyanggao/TALL (charades_sta_test.txt); videos: Charades, scaled to 480p, at allenai.org",
        licence="Charades licence: non-commercial use",
        layout="charades_sta_test.txt: `VIDEO start end##sentence`; Charades_v1_480/VIDEO.mp4",
        items={"test": 3720, "train": 12408},
    ),
    read=read,
    splits=("test", "train"),
    prompt=prompt,
    scorer=Scorer(name="charades_sta", rule=rule, truth=span, graded=True),
    settings={
        QWEN3_VL.name: replace(
            QWEN3_SAMPLED, fps=4.0, max_frames=2048, max_tokens=128, source="Qwen3-VL report: 4 fps"
        ),
        "*": replace(GREEDY, fps=2.0, max_frames=768, max_tokens=128, source="Qwen2.5-VL report: 2 fps"),
    },
    figures=figures,
    faults=(
        "every `to` becomes a dash, in words too; only sentences with a word of time are read; `0:05 - 0:10` is 5 - 0",
        "results are kept by video, sentence and time, so that repeated lines collapse",
    ),
    pitfalls=(
        "the real sampled fps must reach the model: without it Qwen2.5-VL-7B gets 29.5 instead of 43.6 (lmms-eval "
        "takes 32 frames and lets the processor assume 2 fps). qvl always passes it on",
    ),
)  # fmt: skip
