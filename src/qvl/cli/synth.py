"""`qvl synth`: draw images and videos whose answers are known, or score a model on them."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvl.cli.options import HUB_NAMES, JsonOption, SourceOptions, command, option
from qvl.records import pick
from qvl.synth import KINDS, TEST_SEEDS, Clip, Sample, SynthError, make, resolve_kind

if TYPE_CHECKING:
    from qvl.tasks.model import Model

# Longest answer per kind, in tokens of any tokenizer that has one token per character.
ANSWER_TOKENS = {"page": 1024, "find": 96, "screen": 96}
DEFAULT_ANSWER_TOKENS = 64
BATCH = 16


@dataclass(frozen=True)
class ScoredOptions(SourceOptions):
    """The model that is scored."""

    model: str | None = option(
        None, "Score this model on the samples (default: draw them).", "--score", "--model", metavar=HUB_NAMES
    )


@command
def run(
    source: ScoredOptions,
    kind: list[str] | None = option(
        None,
        "What to draw: read, field (receipt, form), find, count, chart, page, screen, clip or pair "
        "(repeatable; default: all to score, none to draw).",
    ),
    seed: int = option(0, "The first seed to draw."),
    num: int | None = option(None, "Samples of each kind (default: 1 to draw, 500 to score).", "-n", "--num"),
    difficulty: int = option(1, "From 0 to 3; 1 is the level of the tests."),
    script: str = option("latin", "The writing of kind read: latin, ko or zh; the last two need a font."),
    out: Path | None = option(None, "The folder to write samples to.", "-o", "--out"),
    seed0: int | None = option(None, "The first seed to score (default: the first of the test seeds)."),
    as_json: JsonOption = False,
) -> int:
    """Draw samples from seeds into a folder, or score a model on unseen ones."""
    count = num if num is not None else (500 if source.model else 1)
    if count < 1:
        raise SynthError(f"-n {count}: needs at least 1")
    for name in kind or []:
        resolve_kind(name)
    if source.model:
        return _score(source, kind or list(KINDS), count, difficulty, seed0, as_json)
    if source != ScoredOptions():
        raise SynthError("options of the model need --score")
    if not kind:
        raise SynthError(f"no --kind; known: {', '.join(KINDS)}, receipt, form")
    if out is None:
        raise SynthError("no output folder: add -o FOLDER (or --score MODEL to score a model)")
    return _draw(kind, seed, count, difficulty, script, out)


def _draw(kinds: list[str], seed: int, count: int, difficulty: int, script: str, out: Path) -> int:
    """Writes the media of each sample and one line of JSON about it, the same line that goes to stdout."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        record = (out / "samples.jsonl").open("a", encoding="utf-8")
    except OSError as e:
        raise SynthError(f"can't write to {out}: {e.strerror}") from e
    with record:
        for kind in kinds:
            for i in range(count):
                sample = make(kind, seed + i, difficulty, script=script)
                line = json.dumps(describe(sample, write_media(sample, out)), ensure_ascii=False)
                print(line, file=record)
                print(line)
    return 0


def write_media(sample: Sample, folder: Path) -> list[str]:
    """Saves images as PNG and videos as MP4. Returns the file names in the sample's order."""
    names = []
    stem = f"{sample.kind}-{sample.seed}-d{sample.difficulty}"
    for i, medium in enumerate(sample.media):
        part = stem if len(sample.media) == 1 else f"{stem}-{i + 1}"
        if isinstance(medium, Clip):
            names.append(f"{part}.mp4")
            write_clip(medium, folder / names[-1])
        else:
            names.append(f"{part}.png")
            medium.save(folder / names[-1])
    return names


def write_clip(clip: Clip, path: Path) -> None:
    """Encodes a video as H.264 in MP4, one image per frame time, at a quality where flat colours stay flat."""
    from fractions import Fraction

    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(clip.fps).limit_denominator(1000))
        _, stream.height, stream.width, _ = clip.frames.shape
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12"}
        for frame in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def describe(sample: Sample, files: list[str]) -> dict[str, Any]:
    """A sample without its pixels, as JSON can hold it."""
    boxes = [box._asdict() for box in sample.boxes]
    return pick(sample, "kind", "seed", "difficulty", "question", "answer", media=files, boxes=boxes)


def _score(
    source: SourceOptions, kinds: list[str], count: int, difficulty: int, seed0: int | None, as_json: bool
) -> int:
    from qvl.evaluate.score_synth import RULES, wilson  # numpy: drawing and --help do without

    start = TEST_SEEDS.start if seed0 is None else seed0
    chat, model = source.open(), source.model
    results = []
    for kind in kinds:
        began, right = time.perf_counter(), 0
        for done in range(0, count, BATCH):
            batch = [make(kind, start + i, difficulty) for i in range(done, min(count, done + BATCH))]
            right += _num_right(chat, batch)
            seen = done + len(batch)
            print(f"\r{kind} {seen}/{count}, {right / seen:.1%} right", end="", file=sys.stderr, flush=True)
        seconds = time.perf_counter() - began
        print(f"\r{kind} {count}/{count} in {seconds:.0f} s{' ' * 20}", file=sys.stderr)
        low, high = wilson(right, count)
        results.append(
            {
                "kind": kind, "n": count, "right": right, "share": right / count, "low": low, "high": high,
                "rule": RULES[resolve_kind(kind)], "seconds": round(seconds, 1),
            }
        )  # fmt: skip
    if as_json:
        print(json.dumps({"model": model, "difficulty": difficulty, "seed0": start, "kinds": results}))
        return 0
    print(f"{model}, difficulty {difficulty}, seeds from {start}, greedy")
    print(f"{'kind':<8} {'n':>6} {'right':>7}   {'95% interval':<15} right means")
    for r in results:
        interval = f"{r['low']:.1%} - {r['high']:.1%}"
        print(f"{r['kind']:<8} {r['n']:>6} {r['share']:>7.1%}   {interval:<15} {r['rule']}")
    return 0


def _num_right(model: Model, batch: list[Sample]) -> int:
    """Asks greedily and together, and counts the right answers."""
    from qvl.evaluate.score_synth import score

    limit = ANSWER_TOKENS.get(resolve_kind(batch[0].kind), DEFAULT_ANSWER_TOKENS)
    answers = model.ask_many([(list(s.media), s.question) for s in batch], max_new_tokens=limit)
    return sum(score(s, answer.text) for s, answer in zip(batch, answers, strict=True))
