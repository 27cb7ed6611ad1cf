"""OCRBench v2: 10,000 items of 30 kinds in English and Chinese, each kind with a rule of its own."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qvl.evaluate.benchmarks import page_rules as rules
from qvl.evaluate.benchmarks import prompts, readers
from qvl.evaluate.benchmarks.record import Benchmark, Files, Rows, mean, settings_with
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers.base import Grade, Reply, Scorer
from qvl.evaluate.scorers.text import read_choice
from qvl.outputs.mapping import iou

CAPABILITIES = {
    "text recognition en": ("text recognition en", "fine-grained text recognition en", "full-page OCR en"),
    "text detection en": ("text grounding en", "VQA with position en"),
    "text spotting en": ("text spotting en",),
    "relationship extraction en": ("key information extraction en", "key information mapping en"),
    "element parsing en": (
        "document parsing en", "chart parsing en", "table parsing en", "formula recognition en",
    ),
    "mathematical calculation en": ("math QA en", "text counting en"),
    "visual text understanding en": ("document classification en", "cognition VQA en", "diagram QA en"),
    "knowledge reasoning en": (
        "reasoning VQA en", "science QA en", "APP agent en", "ASCII art classification en",
    ),
    "text recognition cn": ("full-page OCR cn",),
    "relationship extraction cn": ("key information extraction cn", "handwritten answer extraction cn"),
    "element parsing cn": ("document parsing cn", "table parsing cn", "formula recognition cn"),
    "visual text understanding cn": ("cognition VQA cn",),
    "knowledge reasoning cn": ("reasoning VQA cn", "text translation cn"),
}  # fmt: skip
CAPABILITY = {kind: name for name, kinds in CAPABILITIES.items() for kind in kinds}
_JOINERS = ("", ".", ". ", ",", ", ", "、", ";", "; ", " ", "和")
_SPECIAL = "!?.:,*\"()·[]/'"


def vqa(said: str, answers: Sequence[str], *, chinese: bool = False, case: bool = False) -> float:
    """A short answer (under 5 words; in Chinese under 4 parts between commas) must be contained; a longer one is scored
    by 1 - edit distance / longer length, 0 under 0.5. The best of the answers.

    Source: Yuliang-Liu/MultimodalOCR @794c36d OCRBench_v2/eval_scripts/vqa_metric.py.
    """

    def plain(text: str) -> str:
        text = text.strip().replace("\n", " ")
        text = text if case else text.lower()
        return text.replace(" ", "") if chinese else text

    score, said = 0.0, plain(said)
    for answer in map(plain, map(str, answers)):
        short = len(answer.split(",")) < 4 if chinese else len(answer.split()) < 5
        if short:
            score = 1.0 if answer in said else score
        elif (close := rules.closeness(said, answer)) >= 0.5:
            score = max(score, close)
    return score


def count(said: str, answers: Sequence[str], method: str) -> float:
    """Exact: contained. Regression: 1 - |first number - truth| / truth where over 0.5."""
    said, best = said.lower().strip().replace("\n", " "), 0.0
    for answer in (str(a).lower().strip() for a in answers):
        if method == "exact match":
            best = max(best, float(answer in said))
        elif found := re.search(r"\d+", said):
            value, truth = int(found[0]), int(answer)
            if 0 < value < 2 * truth and 1 - abs(value - truth) / truth > 0.5:
                best = max(best, 1 - abs(value - truth) / truth)
    return best


def formula(said: str, answers: Sequence[str]) -> float:
    """Contained, without blanks."""
    bare = [str(t).strip().replace("\n", " ").replace(" ", "") for t in (said, *answers)]
    return float(any(a in bare[0] for a in bare[1:]))


def without_text_tags(latex: str) -> str:
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", latex)


def last_box(text: str) -> list[int] | None:
    """The last (x1, y1, x2, y2) of whole numbers up to 1000."""
    found = re.findall(r"[(\[]\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*[)\]]", text)
    boxes = [b for b in ([int(v) for v in f] for f in found) if max(b) <= 1000]
    return boxes[-1] if boxes else None


def box_overlap(said: Any, truth: Any) -> float:
    try:
        return iou([int(v) for v in said], [int(v) for v in truth])
    except (TypeError, ValueError, IndexError):
        return 0.0


def with_position(said: str, sample: Sample) -> float:
    """Half for the answer, half for its box."""
    fields = rules.read_fields(said)
    answer = vqa(fields["answer"], sample.answer) if "answer" in fields else 0.0
    try:
        box = ast.literal_eval(fields.get("bbox", ""))
    except (ValueError, SyntaxError):
        box = None
    return 0.5 * answer + 0.5 * box_overlap(box, sample.meta["bbox"])


def spotted(said: str) -> list[tuple[list[int], str]]:
    """[x1, y1, x2, y2, text] entries of the reply, each once."""
    try:
        data = ast.literal_eval(said)
        rows = [[*map(str, item)] for item in data if isinstance(item, list | tuple) and len(item) >= 5]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        rows = [i.split(",", 4) for i in re.findall(r"[\[(]\s*([^\[\]()]*?)\s*[\])]", said)]
    out: list[tuple[list[int], str]] = []
    for row in rows:
        text = row[4].replace("\n", "").strip().strip("\"'") if len(row) >= 5 else ""
        try:
            box = [int(v.strip()) for v in row[:4]]
        except ValueError:
            continue
        if len(row) >= 5 and all(0 <= v <= 1000 for v in box) and (box, text) not in out:
            out.append((box, text))
    return [(b, t) for b, t in out if b[0] < b[2] and b[1] < b[3]]


def spotting(said: str, boxes: Sequence[Sequence[int]], texts: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of boxes that meet (IoU over 0.5) with equal words, case aside; a mark at
    the truth's ends is forgiven; boxes over unreadable words (###) don't count.

    Source: the ICDAR protocol in OCRBench_v2/eval_scripts/spotting_eval; rectangles here as there.
    """
    truth = [([min(b[0::2]), min(b[1::2]), max(b[0::2]), max(b[1::2])], t) for b, t in zip(boxes, texts)]
    ignored = [b for b, t in truth if t == "###"]
    cared = [(b, t) for b, t in truth if t != "###"]
    found = [(b, t) for b, t in spotted(said) if not any(_covered(b, i) > 0.5 for i in ignored)]
    used: set[int] = set()
    right = 0
    for box, text in cared:
        at = next((i for i, (b, _) in enumerate(found) if i not in used and iou(b, box) > 0.5), None)
        if at is not None:
            used.add(at)
            right += same_words(text.upper(), found[at][1].upper())
    return 2 * right / (len(cared) + len(found)) if cared and found else 0.0


def _covered(box: Sequence[int], by: Sequence[int]) -> float:
    w, h = min(box[2], by[2]) - max(box[0], by[0]), min(box[3], by[3]) - max(box[1], by[1])
    return max(w, 0) * max(h, 0) / ((box[2] - box[0]) * (box[3] - box[1]))


def same_words(truth: str, said: str) -> bool:
    forms = {truth}
    if truth and truth[0] in _SPECIAL:
        forms.add(truth[1:])
    if truth and truth[-1] in _SPECIAL:
        forms |= {f[:-1] for f in (truth, *forms) if f}
    return said in forms


def _short_answer(said: str, sample: Sample, official: bool) -> float:
    method = sample.meta["eval"]
    if method == "multiple choice":
        right = "".join(c for c in said if c.isalpha()) == sample.answer[0]
        if not right and not official:
            found = read_choice(
                said, ("\x00",) * 8
            )  # the options stand in the question: only a letter can name one
            right = found is not None and "ABCDEFGH"[found] == sample.answer[0]
        return float(right)
    chinese = str(sample.stratum).endswith("cn") and not method
    return vqa(said, sample.answer, chinese=chinese, case=method == "case sensitive")


def _handwritten(said: str, sample: Sample, official: bool) -> float:
    answer = str(sample.answer[0])
    if "简答" in sample.meta["asked"]:
        return rules.page_similarity(said, answer)
    return float(any(j.join(answer) in said for j in _JOINERS))


def _fields(said: str, sample: Sample, official: bool) -> float:
    fields = rules.read_fields(said)
    return max(rules.fields_f1(fields, choice) for choice in rules.field_choices(sample.answer[0]))


def _table(said: str, sample: Sample, official: bool) -> float:
    if "markdown" in sample.meta["asked"].lower() and "html" not in sample.meta["asked"].lower():
        return rules.table_similarity(rules.markdown_table(said), rules.markdown_table(sample.answer[0]))
    said, truth = rules.wrapped_table(said), sample.answer[0]
    return rules.table_similarity(said, truth if "<table" in truth else f"<table>{truth}</table>")


def _chart(said: str, sample: Sample, official: bool) -> float:
    fenced = re.findall(r"```(?:python|json)?\n(.*?)\n```", said, re.DOTALL | re.IGNORECASE)
    content = re.sub(
        r"#.*", "", re.sub(r"^\s*\w+\s*=\s*", "", max(fenced, key=len) if fenced else said.strip())
    )
    try:
        data = ast.literal_eval(content[: content.rfind("}") + 1] if "}" in content else content)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return 0.0
    truth = (
        sample.answer[0] if isinstance(sample.answer[0], dict) else ast.literal_eval(str(sample.answer[0]))
    )
    return (
        rules.table_similarity(rules.dict_table(data), rules.dict_table(truth))
        if isinstance(data, dict)
        else 0.0
    )


def _document(said: str, sample: Sample, official: bool) -> float:
    compare = rules.outline_similarity if official else rules.outline_with_words
    return compare(said, str(sample.answer[0]))


Kind = Callable[[str, Sample, bool], float]
_PAGE: Kind = lambda said, s, o: rules.page_similarity(said, str(s.answer[0]))  # noqa: E731
KINDS: dict[str, Kind] = {
    **dict.fromkeys(
        (
            "APP agent en", "ASCII art classification en", "math QA en", "reasoning VQA en", "science QA en",
            "text recognition en", "document classification en", "cognition VQA en", "diagram QA en",
            "cognition VQA cn", "reasoning VQA cn",
        ),
        _short_answer,
    ),
    **dict.fromkeys((f"key information {k}" for k in ("extraction en", "mapping en", "extraction cn")), _fields),
    **dict.fromkeys(("fine-grained text recognition en", "full-page OCR en", "full-page OCR cn"), _PAGE),
    "text translation cn": _PAGE,
    **dict.fromkeys(("table parsing en", "table parsing cn"), _table),
    **dict.fromkeys(("document parsing en", "document parsing cn"), _document),
    "chart parsing en": _chart,
    "handwritten answer extraction cn": _handwritten,
    "formula recognition en": lambda said, s, o: formula(said, s.answer),
    "formula recognition cn": lambda said, s, o: formula(
        without_text_tags(said), [without_text_tags(str(s.answer[0]))]
    ),
    "text counting en": lambda said, s, o: count(said, s.answer, s.meta["eval"] or "exact match"),
    "text grounding en": lambda said, s, o: box_overlap(last_box(said), s.answer),
    "VQA with position en": lambda said, s, o: with_position(said, s),
    "text spotting en": lambda said, s, o: spotting(said, s.meta["bbox"], s.meta["content"]),
}  # fmt: skip


def rule(reply: Reply, truth: Any, sample: Sample, *, official: bool = False) -> Grade:
    """By kind: containment of short answers and ANLS of long ones, letters, counts, formulas contained, tables and
    charts by TEDS, fields by their share, pages by the mean of BLEU, METEOR, F1 and edit distance, boxes by IoU.

    official: documents by the shape of their outline alone, and letters only when nothing else is said.
    """
    if not reply.text.strip():
        return Grade(0.0)
    return Grade(float(KINDS[str(sample.stratum)](reply.text, sample, official)), reply.text)


def answers(answer: Any, sample: Sample) -> Any:
    kind = str(sample.stratum)
    if kind not in KINDS:
        raise ValueError(f"type {kind!r} is unknown")
    if not answer and kind != "text spotting en":
        raise ValueError("no answer")
    if kind.startswith("key information") and not rules.field_choices(answer[0]):
        raise ValueError("no field has a value")
    try:  # a truth that the rule can't be run on can't be read
        KINDS[kind]("[0, 0, 1, 1, 0]", sample, False)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as e:
        raise ValueError(f"the rule for {kind} can't read it ({e})") from e
    return answer


def read(path: Path, split: str) -> list[Sample]:
    """OCRBench_v2.json beside EN_part/ and CN_part/."""
    file = readers.the_file(path, "OCRBench_v2.json")
    samples = []
    for i, row in enumerate(readers.read_json(file)):
        where = f"{file}[{i}]"
        kind, image = readers.field(row, "type", where), readers.field(row, "image_path", where)
        if split not in ("all", kind.rpartition(" ")[2]):
            continue
        answer = row.get("answers", [])
        samples.append(
            Sample(
                id=str(readers.field(row, "id", where)), media=(readers.image_file(file.parent, image, where),),
                question=readers.field(row, "question", where),
                answer=answer if isinstance(answer, list) else [answer], stratum=kind, cluster=image,
                meta={
                    "eval": row.get("eval", ""), "bbox": row.get("bbox"), "content": row.get("content"),
                    "asked": row["question"],
                },
                where=where,
            )
        )  # fmt: skip
    return samples


def figures(rows: Rows) -> dict[str, float]:
    """The mean of each capability, and the unweighted mean of those of each language, which is the published pair."""
    groups: dict[str, list[float]] = defaultdict(list)
    for sample, grade in rows:
        groups[CAPABILITY[str(sample.stratum)]].append(grade.score)
    out = {name: mean(groups[name]) for name in CAPABILITIES if name in groups}
    overall = {
        title: mean(v for k, v in out.items() if k.endswith(language))
        for title, language in (("English", "en"), ("Chinese", "cn"))
    }
    return overall | out


OCRBENCH_V2 = Benchmark(
    name="ocrbench_v2",
    title="OCRBench v2: 10,000 reading tasks of 30 kinds, English and Chinese",
    files=Files(
        where="github.com/Yuliang-Liu/MultimodalOCR, OCRBench_v2/README.md (an archive), or hub data set "
        "ling99/OCRBench_v2",
        licence="of the source data sets; research use",
        layout="OCRBench_v2.json: [{dataset_name, type, id, image_path, question, answers, eval?, bbox?, content?}], "
        "EN_part/ and CN_part/ beside it",
        seen="Yuliang-Liu/MultimodalOCR @794c36d6423cf1d5764081128bcaeb46b240def6: OCRBench_v2/README.md, "
        "OCRBench_v2/eval_scripts/eval.py",
        items={"all": 10000},
    ),
    read=read,
    splits=("all", "en", "cn"),
    prompt=prompts.as_it_is,
    scorer=Scorer(name="ocrbench_v2", rule=rule, truth=answers, graded=True),
    settings=settings_with(max_tokens=4096),
    figures=figures,
    faults=(
        "documents: the tree edit distance only looks whether a line is blank, so any text of the same shape is "
        "perfect. Ours compares the words",
        "multiple choice: all letters of the reply together must be the answer: `The answer is B` is wrong. Ours "
        "reads it",
    ),
    pitfalls=(
        "METEOR without stems and WordNet, and Chinese by character instead of jieba: page scores lie a little below "
        "the official ones",
        "lmms-eval weighs by items instead of capabilities, and cuts answers at 128 tokens",
    ),
)  # fmt: skip
