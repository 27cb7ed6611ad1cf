"""OCRBench (v1): 1,000 short reading tasks, scored by containment, in points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qvl.catalog.generations.qwen2_5_vl import QWEN2_5_VL
from qvl.catalog.generations.qwen2_vl import QWEN2_VL
from qvl.evaluate.benchmarks import prompts, readers
from qvl.evaluate.benchmarks.record import QWEN25_IMAGE, Benchmark, Files, Rows, mean, settings_with
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers.base import Grade, Reply, Scorer, accepted

FORMULAS = "HME100k"


def contains(said: str, answers: tuple[str, ...], *, formula: bool = False) -> bool:
    """Whether an answer stands anywhere in what was said. Formulas lose all blanks and keep their case.

    Source: Yuliang-Liu/MultimodalOCR @794c36d OCRBench/example.py.
    """

    def plain(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if formula else text.lower()

    return any(plain(a) in plain(said) for a in answers)


def rule(reply: Reply, truth: tuple[str, ...], sample: Sample, *, official: bool = False) -> Grade:
    """Right when an accepted answer stands anywhere in the reply: lower case and line breaks as blanks; in formulas
    without blanks and with case. `official` is the same rule.
    """
    right = contains(reply.text, truth, formula=sample.meta.get("dataset") == FORMULAS)
    return Grade(float(right), reply.text.strip() or None)


def read(path: Path, split: str) -> list[Sample]:
    """OCRBench.json with OCRBench_Images/ beside it, or VLMEvalKit's TSV."""
    file = (
        readers.the_file(path, "OCRBench.json", "OCRBench/OCRBench.json", "OCRBench.tsv")
        if path.is_dir()
        else path
    )
    if file.suffix == ".tsv":
        return [
            Sample(
                id=row["index"], media=images, question=row["question"],
                answer=readers.literal_list(readers.field(row, "answer", where)), stratum=row.get("category", ""),
                meta={"dataset": FORMULAS if row.get("category", "").startswith("Handwritten Math") else ""},
                where=where,
            )
            for where, row, images in readers.read_tsv(file)
        ]  # fmt: skip
    bases = (file.parent / "OCRBench_Images", file.parent.parent / "OCRBench_Images", file.parent)
    base = next((b for b in bases if b.is_dir()), file.parent)
    samples = []
    for i, row in enumerate(readers.read_json(file)):
        where = f"{file}[{i}]"
        image = readers.field(row, "image_path", where)
        samples.append(
            Sample(
                id=f"{i}",  # the ids of the file repeat
                media=(readers.image_file(base, image, where),),
                question=readers.field(row, "question", where),
                answer=readers.field(row, "answers", where),
                stratum=readers.field(row, "type", where),
                cluster=image,
                meta={"dataset": row.get("dataset_name", "")},
                where=where,
            )
        )
    return samples


def figures(rows: Rows) -> dict[str, float]:
    """Points of 1,000, those of each type, and the mean length of a right answer in characters."""
    out = {"points": sum(g.score for _, g in rows)}
    for sample, grade in rows:
        kind = str(sample.stratum)
        out[kind] = out.get(kind, 0.0) + grade.score
    return out | {"characters of a right answer": mean(len(str(g.parsed or "")) for _, g in rows if g.score)}


OCRBENCH = Benchmark(
    name="ocrbench",
    title="OCRBench: 1,000 short reading tasks",
    files=Files(
        where="github.com/Yuliang-Liu/MultimodalOCR (OCRBench.json and the link to OCRBench_Images.zip), hub data set "
        "echo840/OCRBench, or VLMEvalKit's OCRBench.tsv",
        licence="of the 29 source data sets; research use",
        layout="OCRBench.json: [{dataset_name, id, image_path, question, answers (text or list), type}], "
        "OCRBench_Images/IMAGE_PATH; TSV: index, image (base64), question, answer, category",
        seen="Yuliang-Liu/MultimodalOCR @794c36d6423cf1d5764081128bcaeb46b240def6: OCRBench/OCRBench/OCRBench.json",
        items={"test": 1000},
    ),
    read=read,
    prompt=prompts.as_it_is,
    scorer=Scorer(name="ocrbench", rule=rule, truth=accepted),
    settings=settings_with(max_tokens=128)
    | {
        generation.name: replace(QWEN25_IMAGE, min_pixels=100 * 28 * 28, max_tokens=128)
        for generation in (QWEN2_VL, QWEN2_5_VL)
    },
    figures=figures,
    pitfalls=(
        "containment rewards long answers: look at their length beside the points",
        "845 and 866 are both published for Qwen2-VL-7B, 794 and 809 for the 2B",
        "lmms-eval folds full-width characters, and counts on in a second run of one process",
    ),
)  # fmt: skip
