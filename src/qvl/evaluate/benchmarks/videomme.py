"""Video-MME: 2,700 multiple-choice questions about 900 videos, three to a video."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from qvl.catalog.generations.qwen2_5_vl import QWEN2_5_VL
from qvl.catalog.generations.qwen2_vl import QWEN2_VL
from qvl.catalog.generations.qwen3_vl import QWEN3_VL
from qvl.evaluate.benchmarks import prompts, readers
from qvl.evaluate.benchmarks.record import GREEDY, QWEN3_SAMPLED, Benchmark, Files, Rows, by_stratum, mean
from qvl.evaluate.samples import Sample, SampleError
from qvl.evaluate.scorers.base import Grade, Reply, Scorer
from qvl.evaluate.scorers.text import read_choice

# Two strings of the official list lack the comma between them, so two of its lead-ins are never met.
_LEAD_INS = (
    "The best answer is", "The correct answer is", "The answer is", "The answer",
    "The best option is" "The correct option is", "Best answer:" "Best option:",
)  # fmt: skip


def official_letter(text: str) -> str:
    """The first capital A to D anywhere, once lead-ins are out: `Based on` gives B. "" when there is none.

    Source: BradyFU/Video-MME @4e7566d evaluation/eval_your_results.py.
    """
    text = text.strip()
    for words in _LEAD_INS:
        text = text.replace(words, "")
    found = re.search("[ABCD]", text)
    return found[0] if found else ""


def rule(reply: Reply, truth: str, sample: Sample, *, official: bool = False) -> Grade:
    """Right when the answer names the right option, by letter or text; one that names none is wrong and stays in the
    denominator.

    official: the first capital A to D anywhere; answers without one leave the denominator (see `accuracy of answered`).
    """
    if official:
        letter = official_letter(reply.text)
        return Grade(float(letter == truth), letter or None)
    found = read_choice(reply.text, sample.choices)
    letter = "" if found is None else prompts.letters(sample.choices)[found]
    return Grade(float(letter == truth), letter or None)


def letter_truth(answer: Any, sample: Sample) -> str:
    if answer not in tuple(prompts.letters(sample.choices)):
        raise ValueError(f"{answer!r} is no letter of the {len(sample.choices)} options")
    return str(answer)


def bare_option(text: str) -> str:
    """`A. Apples.` without its letter."""
    return re.sub(r"^\(?[A-Z][.):]\s*", "", text.strip())


def prompt(sample: Sample, generation: str) -> str:
    """Source: QwenLM/Qwen3-VL @9658872 evaluation/VideoMME/dataset_utils.py; subtitles, if any, stand first."""
    subtitles = sample.meta.get("subtitles")
    words = f"This video's subtitles are listed below:\n{subtitles}\n" if subtitles else ""
    return (
        f"{words}Select the best answer to the following multiple-choice question based on the video. Respond with "
        f"only the letter (A, B, C, or D) of the correct option.\nQuestion: {sample.question}\n"
        f"{prompts.option_lines(sample.choices)}\nThe best answer is:"
    )


def subtitle_text(file: Path) -> str:
    """The lines of an .srt file without numbers, times and marks."""
    keep = (line.strip() for line in readers.text(file).splitlines())
    lines = [re.sub(r"<[^>]*>", "", k) for k in keep if k and not k.isdecimal() and "-->" not in k]
    return " ".join(lines)


def read(path: Path, split: str) -> list[Sample]:
    """The hub's test parquet, or the template's nested JSON, beside data/ID.mp4 and subtitle/ID.srt."""
    parquet = path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet")))
    if parquet:
        rows = [(where, row) for where, row, _ in readers.read_parquet(path, ())]
        base = path if path.is_dir() else path.parent
    else:
        file = readers.the_file(path, "test.json", "output_test_template.json", "*.json")
        rows, base = list(_nested(file)), file.parent
    return [_sample(row, where, base, split) for where, row in rows]


def _nested(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, video in enumerate(readers.read_json(file)):
        for j, question in enumerate(readers.field(video, "questions", f"{file}[{i}]")):
            yield (
                f"{file}[{i}].questions[{j}]",
                {**video, "videoID": video.get("videoID", video["video_id"]), **question},
            )


def _sample(row: dict[str, Any], where: str, base: Path, split: str) -> Sample:
    video = readers.field(row, "videoID", where)
    file = next(
        (f for f in (base / "data" / f"{video}.mp4", base / "videos" / f"{video}.mp4") if f.is_file()), None
    )
    if file is None:
        raise SampleError(f"{where}: there is no video {base / 'data' / f'{video}.mp4'}")
    subtitles = base / "subtitle" / f"{video}.srt"
    spoken = split == "with_subtitles" and subtitles.is_file()
    return Sample(
        id=str(readers.field(row, "question_id", where)),
        media=(str(file),),
        question=readers.field(row, "question", where),
        answer=readers.field(row, "answer", where),
        choices=tuple(bare_option(o) for o in readers.field(row, "options", where)),
        stratum=readers.field(row, "duration", where),
        cluster=str(video),
        meta={"task": row.get("task_type", ""), "subtitles": subtitle_text(subtitles) if spoken else ""},
        where=where,
    )


def figures(rows: Rows) -> dict[str, float]:
    """Accuracy over all items and by duration; that of the answered ones alone is the official figure."""
    answered = mean(g.score for _, g in rows if g.parsed is not None)
    return {"accuracy": mean(g.score for _, g in rows), "accuracy of answered": answered, **by_stratum(rows)}


VIDEO_QWEN25 = replace(
    GREEDY, fps=2.0, min_frames=4, max_frames=768, min_pixels=128 * 28 * 28, max_pixels=768 * 28 * 28,
    total_pixels=24576 * 28 * 28, source="Qwen2.5-VL report: 2 fps, 768 frames, 24,576 tokens; VLMEvalKit -ForVideo",
)  # fmt: skip
SETTINGS = {
    QWEN2_VL.name: replace(VIDEO_QWEN25, max_tokens=128),
    QWEN2_5_VL.name: replace(VIDEO_QWEN25, max_tokens=128),
    QWEN3_VL.name: replace(
        QWEN3_SAMPLED, fps=2.0, min_frames=4, max_frames=512, min_pixels=3584, max_pixels=401408,
        total_pixels=19267584, max_tokens=32768,
        source="QwenLM/Qwen3-VL @9658872 evaluation/VideoMME; the report says up to 2,048 frames and 224K tokens",
    ),
    "*": replace(GREEDY, max_tokens=128),
}  # fmt: skip

VIDEOMME = Benchmark(
    name="videomme",
    title="Video-MME: questions about short, medium and long videos",
    files=Files(
        where="hub data set lmms-lab/Video-MME (videos_chunked_*.zip, subtitle.zip, test parquet), or the template of "
        "github.com/BradyFU/Video-MME; the videos are online ones, and some disappear: keep a list with hashes",
        licence="research use only",
        layout="[{video_id, duration, domain, sub_category, questions: [{question_id, task_type, question, options "
        "('A. text'), answer}]}] or parquet with one row a question; data/VIDEO_ID.mp4, subtitle/VIDEO_ID.srt",
        seen="BradyFU/Video-MME @8889f313a4b9e9480611d65daa505aab2ef63808: evaluation/output_test_template.json; "
        "parquet: EvolvingLMMs-Lab/lmms-eval @75571cf: lmms_eval/tasks/videomme/utils.py",
        items={"short": 900, "medium": 900, "long": 900},
    ),
    read=read,
    splits=("without_subtitles", "with_subtitles"),
    prompt=prompt,
    scorer=Scorer(name="videomme", rule=rule, truth=letter_truth),
    settings=SETTINGS,
    figures=figures,
    faults=(
        "answers without a capital A to D leave the denominator; ours stay in it",
        "the first capital A to D anywhere counts: `Based on...` is B, `I think (A)` is right but `Definitely A` is D",
        "two pairs of lead-ins are joined by a missing comma",
    ),
    pitfalls=(
        "frames, fps and pixels: 62.9 became 65.1 for the 7B at the report's budget",
        "three questions share a video: intervals are clustered by it",
        "16 new tokens cut any answer that reasons first",
    ),
)  # fmt: skip
