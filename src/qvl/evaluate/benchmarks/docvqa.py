"""DocVQA and InfographicVQA: questions about scanned pages and infographics, scored by ANLS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qvl.evaluate.benchmarks import prompts, readers
from qvl.evaluate.benchmarks.record import Benchmark, Files, settings_with
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers.base import Grade, Reply, Scorer, accepted, levenshtein

THRESHOLD = 0.5


def plain(text: str) -> str:
    """Lower case, single blanks. Punctuation, articles and % signs stay."""
    return " ".join(text.lower().split())


def anls(said: str, answers: tuple[str, ...], *, raw_length: bool = False) -> float:
    """1 - edit distance / longer length, of the best answer; under 0.5 it is 0, and 0.5 itself counts.

    raw_length: lengths before blanks are tidied, as QwenLM/Qwen-VL @aa00ed0 eval_mm/infographicsvqa_eval.py and the
    harnesses after it do; blanks at the end raise the score then.
    """
    distances = []
    for answer in answers:
        a, b = plain(answer), plain(said)
        length = max(len(answer.upper()), len(said.upper())) if raw_length else max(len(a), len(b))
        distances.append(levenshtein(a, b) / length if length else 0.0)
    score = 1 - min(distances)
    return score if score >= THRESHOLD else 0.0


def rule(reply: Reply, truth: tuple[str, ...], sample: Sample, *, official: bool = False) -> Grade:
    """ANLS: 1 - edit distance / longer length of the lower-case texts with single blanks, of the best accepted answer;
    under 0.5 it is 0.

    official: lengths before blanks are tidied.
    """
    return Grade(anls(reply.text, truth, raw_length=official), reply.text.strip() or None)


def read(path: Path, split: str) -> list[Sample]:
    """The competition's JSON with the images beside it, or VLMEvalKit's TSV."""
    names = (f"{split}_v1.0_withQT.json", f"{split}_v1.0.json", f"infographicsVQA_{split}_v1.0*.json")
    file = readers.the_file(path, *names, "*.tsv") if path.is_dir() else path
    return read_vqa_tsv(file) if file.suffix == ".tsv" else _read_json(file)


def _read_json(file: Path) -> list[Sample]:
    samples = []
    for i, row in enumerate(readers.field(readers.read_json(file), "data", str(file))):
        where = f"{file}: data[{i}]"
        image = row.get("image") or f"images/{readers.field(row, 'image_local_name', where)}"
        base = file.parent if (file.parent / image).is_file() else file.parent / "images"
        samples.append(
            Sample(
                id=str(readers.field(row, "questionId", where)),
                media=(readers.image_file(base, image if base == file.parent else Path(image).name, where),),
                question=readers.field(row, "question", where),
                answer=readers.field(row, "answers", where),
                stratum=", ".join(row.get("question_types") or row.get("answer_type") or []),
                cluster=str(image),
                where=where,
            )
        )
    return samples


def read_vqa_tsv(file: Path) -> list[Sample]:
    """VLMEvalKit's TSV of questions with answers: one text, or a Python list of them as text."""
    samples = []
    for where, row, images in readers.read_tsv(file):
        answer = readers.literal_list(readers.field(row, "answer", where))
        samples.append(
            Sample(
                id=row["index"], media=images, question=row["question"], answer=answer,
                stratum=row.get("split", "") or row.get("category", ""), where=where,
                cluster=row.get("image_path", "") or row["index"],
            )
        )  # fmt: skip
    return samples


DOCVQA = Benchmark(
    name="docvqa",
    title="DocVQA: questions about scanned pages",
    files=Files(
        where="rrc.cvc.uab.es challenge 17, task 1 (free registration), or VLMEvalKit's DocVQA_VAL.tsv; the answers of "
        "the test split are hidden: send a list of {questionId, answer} to that site",
        licence="research use; see the site",
        layout="val_v1.0_withQT.json: {dataset_name, data: [{questionId, question, question_types, image, answers}]}, "
        "documents/ or images/ beside it; TSV: index, image (base64), question, answer",
        seen="fields data, questionId, answers: QwenLM/Qwen-VL @aa00ed0: eval_mm/infographicsvqa_eval.py; the rest "
        "unverified; TSV: open-compass/VLMEvalKit @e8e78f0: vlmeval/dataset/image_vqa.py",
        items={"val": 5349, "test": 5188},
    ),
    read=read,
    splits=("val", "test"),
    prompt=prompts.short_answer,
    scorer=Scorer(name="docvqa", rule=rule, truth=accepted, graded=True),
    settings=settings_with(max_tokens=100),
    faults=("blanks at the end of an answer raise its score, as lengths are taken before they are tidied",),
    pitfalls=(
        "val and test differ by 0.3 to 1.8 points for the same model: reports print test, quantisation tables val",
        "the harness of the Red Hat cards has no 0.5 threshold and strips punctuation: its ANLS is another measure",
        "`42%` against `42` is 0.67",
    ),
)  # fmt: skip

INFOVQA = replace(
    DOCVQA,
    name="infovqa",
    title="InfographicVQA: questions about infographics",
    files=Files(
        where="rrc.cvc.uab.es challenge 17, task 3 (free registration), or VLMEvalKit's InfoVQA_VAL.tsv; the answers "
        "of the test split are hidden",
        licence="research use; see the site",
        layout="infographicsVQA_val_v1.0_withQT.json: {dataset_name, data: [{questionId, question, image_local_name, "
        "answers, answer_type, evidence, operation/reasoning}]}, images/ beside it; TSV as DocVQA",
        seen="fields data, questionId, answers, answer_type: QwenLM/Qwen-VL @aa00ed0: "
        "eval_mm/infographicsvqa_eval.py; image_local_name unverified",
        items={"val": 2801, "test": 3288},
    ),
    pitfalls=DOCVQA.pitfalls[:2],
)  # fmt: skip
