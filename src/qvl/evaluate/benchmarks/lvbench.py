"""LVBench: 1,549 multiple-choice questions about 103 videos of about an hour."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from qvl.catalog.generations.qwen2_5_vl import QWEN2_5_VL
from qvl.catalog.generations.qwen2_vl import QWEN2_VL
from qvl.catalog.generations.qwen3_vl import QWEN3_VL
from qvl.evaluate.benchmarks import prompts, readers
from qvl.evaluate.benchmarks.record import GREEDY, QWEN3_SAMPLED, Benchmark, Files, Rows, mean
from qvl.evaluate.benchmarks.videomme import letter_truth
from qvl.evaluate.samples import Sample, SampleError
from qvl.evaluate.scorers.base import Grade, Reply, Scorer
from qvl.evaluate.scorers.text import read_choice


def official_letter(text: str) -> str:
    """What stands before the first `)`, after a `(` in it, of that the first word's first character: `The answer is B`
    gives T.

    Source: THUDM/LVBench @f998d95 lvbench/utils/answer_util.py.
    """
    text = text.strip().split(")")[0].strip()
    if "(" in text:
        text = text.split("(")[1].strip()
    return text.split(" ")[0][:1]


def rule(reply: Reply, truth: str, sample: Sample, *, official: bool = False) -> Grade:
    """Right when the answer names the right option, by letter or text; one that names none is wrong.

    official: the first character of what stands before the first `)`.
    """
    if official:
        letter = official_letter(reply.text)
        return Grade(float(letter == truth), letter or None)
    found = read_choice(reply.text, sample.choices)
    letter = "" if found is None else prompts.letters(sample.choices)[found]
    return Grade(float(letter == truth), letter or None)


def split_options(question: str) -> tuple[str, tuple[str, ...]]:
    """(question, options) of a text that ends in `(A) one` lines."""
    words, *options = re.split(r"\n\s*\([A-D]\)\s*", question)
    return words.strip(), tuple(o.strip() for o in options)


def read(path: Path, split: str) -> list[Sample]:
    """video_info.meta.jsonl, one line a video, beside videos/KEY.mp4."""
    file = readers.the_file(path, "video_info.meta.jsonl", "data/video_info.meta.jsonl")
    samples = []
    for where, row in readers.read_jsonl(file):
        key = str(readers.field(row, "key", where))
        folders = (file.parent / "videos", file.parent, file.parent / "all_videos")
        video = next((f / f"{key}.mp4" for f in folders if (f / f"{key}.mp4").is_file()), None)
        if video is None:
            raise SampleError(f"{where}: there is no video {folders[0] / f'{key}.mp4'}")
        for qa in readers.field(row, "qa", where):
            question, choices = split_options(readers.field(qa, "question", where))
            samples.append(
                Sample(
                    id=str(readers.field(qa, "uid", where)), media=(str(video),), question=question, choices=choices,
                    answer=readers.field(qa, "answer", where), cluster=key,
                    meta={"abilities": qa.get("question_type", [])}, where=where,
                )
            )  # fmt: skip
    return samples


def prompt(sample: Sample, generation: str) -> str:
    """The MVBench-like prompt that Qwen names for it (Qwen3-VL issue 715), options as `(A) text` as in the file."""
    lines = [f"({letter}) {c}" for letter, c in zip(prompts.letters(sample.choices), sample.choices)]
    return f"Question: {sample.question}\nOptions:\n" + "\n".join(lines) + "\nOnly give the best option."


def figures(rows: Rows) -> dict[str, float]:
    """Accuracy, and that of each ability; a question counts under all of its abilities."""
    groups: dict[str, list[float]] = defaultdict(list)
    for sample, grade in rows:
        for ability in sample.meta["abilities"]:
            groups[ability].append(grade.score)
    return {"accuracy": mean(g.score for _, g in rows)} | {k: mean(v) for k, v in groups.items()}


_QWEN25 = replace(
    GREEDY, fps=2.0, min_frames=4, max_frames=768, min_pixels=48 * 28 * 28, max_pixels=128 * 28 * 28, max_tokens=128,
    source="Qwen's answer in Qwen3-VL issue 715: 4 to 768 frames at 2 fps, 48 to 128 tokens a frame",
)  # fmt: skip

LVBENCH = Benchmark(
    name="lvbench",
    title="LVBench: questions about very long videos",
    files=Files(
        where="hub data set THUDM/LVBench (video_info.meta.jsonl); the videos are fetched from their public site",
        licence="CC BY-NC-SA 4.0",
        layout="one JSON line a video: {key, type, qa: [{uid, question with (A) to (D) lines, answer, question_type "
        "list, time_reference}]}, videos/KEY.mp4",
        seen="qa, uid, question_type, answer: THUDM/LVBench @f998d95541cd5f0953c52449b185c6467b9b099d: "
        "lvbench/metrics/compute_accuracy.py; key: scripts/save_video_txt.py; the form of the options unverified",
        items={"test": 1549},
    ),
    read=read,
    prompt=prompt,
    scorer=Scorer(name="lvbench", rule=rule, truth=letter_truth),
    settings={
        QWEN2_VL.name: _QWEN25,
        QWEN2_5_VL.name: _QWEN25,
        QWEN3_VL.name: replace(
            QWEN3_SAMPLED, fps=2.0, max_frames=2048, total_pixels=224 * 1024 * 32 * 32, max_tokens=128,
            source="Qwen3-VL issues 1772 and 2057: the budget is 224K tokens, not VIDEO_MAX_PIXELS of 20,480 (49 "
            "instead of 58)",
        ),
        "*": replace(GREEDY, max_tokens=128),
    },
    figures=figures,
    faults=(
        "the first character counts: `The answer is B` is T and `**B**` is *, both wrong. Ours reads them",
        "questions without an answer leave the denominator; ours stay in it",
    ),
    pitfalls=("the token budget: 49 against 58 for Qwen3-VL", "15 questions share a video: clustered by it"),
)  # fmt: skip
