"""CC-OCR: 39 sets in four tracks: scenes, languages, document parsing, key information."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qvl.evaluate.benchmarks import page_rules as rules
from qvl.evaluate.benchmarks import prompts, readers
from qvl.evaluate.benchmarks.record import Benchmark, Files, Rows, mean, settings_with
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers.base import Grade, Reply, Scorer

DOCUMENTS = ("doc", "table", "formula", "molecular")
BY_CHARACTER = ("Arabic", "Japanese", "Korean")
_PREAMBLE = (
    r"\\documentclass\{.*?\}", r"\\usepackage\[.*?\]\{.*?\}", r"\\usepackage\{.*?\}", r"\\geometry\{.*?\}",
    r"\\begin\{document\}", r"\\end\{document\}", r"\\noindent",
)  # fmt: skip


def track_of(category: str) -> str:
    """By the field l2-category. Source: EvolvingLMMs-Lab/lmms-eval @75571cf lmms_eval/tasks/cc_ocr/utils.py."""
    if category in DOCUMENTS:
        return "doc_parsing"
    if category in ("constrained_category", "open_category"):
        return "kie"
    return "multi_scene_ocr" if category.endswith("_text") else "multi_lan_ocr"


def tokens(text: str, track: str, subset: str) -> list[str]:
    """Lower-case words, in scenes of letters and digits alone; characters in Chinese, Japanese, Korean and Arabic sets.

    Source of this and the other rules here: AlibabaResearch/AdvancedLiterateMachinery CC-OCR, read in its port in
    EvolvingLMMs-Lab/lmms-eval @75571cf lmms_eval/tasks/cc_ocr/evaluators.
    """
    text = re.sub(r"\s+", " ", text.strip().replace("###", "").replace("***", ""))
    if subset in BY_CHARACTER or subset.startswith("zh"):
        return list(text.replace(" ", "").lower())
    words = text.lower().split(" ")
    if track == "multi_scene_ocr":
        words = [re.sub("[^a-z0-9]+", "", w) for w in words]
    return [w for w in words if w]


def bag_f1(said: list[str], truth: list[str]) -> float:
    """2 · shared / (tokens of both), order aside."""
    shared = sum((Counter(said) & Counter(truth)).values())
    return 2 * shared / (len(said) + len(truth)) if said or truth else 0.0


def document(said: str, truth: str) -> float:
    """LaTeX without preamble and blanks, by edit distance."""
    for pattern in _PREAMBLE:
        said = re.sub(pattern, "", said)
    said, truth = (re.sub("[ \n]", "", t) for t in (_fenced(said, "latex"), truth))
    return rules.closeness(said, truth)


def formula(said: str, truth: str) -> float:
    said = said.replace("```latex", "").replace("```", "")
    return rules.closeness(re.sub("[ \n\t]", "", said), truth.replace(" ", ""))


def molecule(said: str, truth: str) -> float:
    return rules.closeness(re.sub("[ \n]|</?smiles>", "", said), truth.replace(" ", ""))


def table(said: str, truth: str) -> float:
    """TEDS, blanks in cells and full-width characters aside."""
    return rules.table_similarity(_tidy_tables(_fenced(said, "html")), _tidy_tables(truth))


def _fenced(text: str, name: str) -> str:
    found = re.search(rf"```{name}(.+?)```", text, re.DOTALL)
    return found[1] if found else text.partition(f"```{name}")[2] or text


def _tidy_tables(text: str) -> str:
    text = text if "</table>" in text else f"{text}</table>"
    out = []
    for one in re.findall("<table.*?>.*?</table>", text, re.DOTALL):
        one = re.sub(r">\s+<", "><", re.sub("<table.*?>", "<table>", one))
        out.append(re.sub(">(.*?)<", _tight, one, flags=re.DOTALL).replace("\n", "").strip())
    return half_width("".join(out))


def _tight(found: re.Match[str]) -> str:
    return ">" + re.sub("[ \n]", "", found[1]) + "<"


def half_width(text: str) -> str:
    return "".join(chr(ord(c) - 0xFEE0) if 0xFF01 <= ord(c) <= 0xFF5E else c for c in text)


_BY_KIND: dict[str, Callable[[str, str], float]] = {
    "doc": document, "table": table, "formula": formula, "molecular": molecule,
}  # fmt: skip


def plain_value(text: str) -> str:
    """Half-width, with blanks only where a word or number ends."""
    text = half_width(text.replace("\u3000", " ")).replace("、", ",")
    for pattern, new in (
        (r"(?<=[\u4e00-\u9fff])\s+(?=[\u4e00-\u9fff])", ""), (r"(?<=[\u4e00-\u9fff])\s+(?=[a-zA-Z0-9])", ""),
        (r"(?<=[a-zA-Z0-9])\s+(?=[\u4e00-\u9fff])", ""), (r"(?<![0-9])\s*([,.!?:;])\s*", r"\1 "),
        (r"(?<=[0-9])(?=[a-zA-Z])", " "), (r"(?<=[a-zA-Z])(?=[0-9])", " "), (r"\s+", " "),
    ):  # fmt: skip
        text = re.sub(pattern, new, text)
    return text


def flat_fields(value: Any, key: str = "") -> list[tuple[str, str]]:
    """(dotted name, value) of all leaves that aren't empty; lists don't number theirs."""
    if isinstance(value, dict):
        return [f for k, v in value.items() for f in flat_fields(v, f"{key}.{k}" if key else str(k))]
    if isinstance(value, list):
        return [f for v in value for f in flat_fields(v, key)]
    text = plain_value(str(value)).strip() if isinstance(value, str) else str(value).strip()
    return [(key, text)] if text else []


def read_object(text: str) -> Any:
    """JSON alone or in a fence, which may be cut off; {} for anything else."""
    if "```json" in text:
        text = text.split("```json", 1)[1].split("```")[0]
    try:
        return json.loads(text.strip().replace("\n", ""))
    except (ValueError, RecursionError):
        return {}


def field_counts(said: Any, truth: Any) -> tuple[int, int]:
    """(fields that are equal, fields of either that aren't)."""
    a, b = Counter(flat_fields(said)), Counter(flat_fields(truth))
    met = sum((a & b).values())
    return met, a.total() + b.total() - 2 * met


def rule(reply: Reply, truth: str, sample: Sample, *, official: bool = False) -> Grade:
    """Scenes and languages: F1 of bags of words or characters. Documents, formulas, molecules: 1 - edit distance /
    longer length; tables: TEDS. Key information: F1 of the fields, pooled over a set for its figure.
    `official` is the same.
    """
    said, track = reply.text, sample.meta["track"]
    if not said.strip():
        return Grade(0.0)
    if track == "kie":
        met, wrong = field_counts(read_object(said), json.loads(truth))
        return Grade(met / (met + wrong / 2) if met else 0.0, {"met": met, "wrong": wrong})
    if track == "doc_parsing":
        return Grade(_BY_KIND[sample.meta["category"]](said, truth), said)
    subset = sample.meta["subset"]
    return Grade(bag_f1(tokens(said, track, subset), tokens(truth, track, subset)), said)


def read_truth(answer: Any, sample: Sample) -> str:
    text = answer[0] if isinstance(answer, list) and answer else answer
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    if sample.meta["track"] == "kie":
        json.loads(text)
    return text


def read(path: Path, split: str) -> list[Sample]:
    """The hub's parquet files, VLMEvalKit's TSV, or JSONL with base64 images; fields split and l2-category."""
    rows: list[tuple[str, dict[str, Any], Callable[[], Any] | None]]
    if path.is_dir() and list(path.rglob("*.parquet")):
        rows = [(w, r, i) for w, r, (i,) in readers.read_parquet(path)]
    elif path.suffix == ".tsv" or (path.is_dir() and list(path.glob("*.tsv"))):
        rows = [(w, r, i) for f in _files(path, "*.tsv") for w, r, (i, *_) in readers.read_tsv(f)]
    else:
        lines = [line for f in _files(path, "*.jsonl") for line in readers.read_jsonl(f)]
        rows = [(w, r, _base64(readers.field(r, "image", w))) for w, r in lines]
    samples = [_sample(i, *row) for i, row in enumerate(rows)]
    return [s for s in samples if split in ("all", s.meta["track"])]


def _files(path: Path, pattern: str) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob(pattern))


def _base64(value: Any) -> Callable[[], Any]:
    return lambda: readers.decode_image(base64.b64decode(value))


def _sample(i: int, where: str, row: dict[str, Any], image: Any) -> Sample:
    category = str(readers.field(row, "l2-category", where)).strip()
    subset = str(readers.field(row, "split", where))
    track = track_of(category)
    return Sample(
        id=f"{subset}-{row.get('index', i)}", media=(image,), question=readers.field(row, "question", where),
        answer=readers.field(row, "answer", where), stratum=f"{track} {subset}",
        meta={"track": track, "category": category, "subset": subset}, where=where,
    )  # fmt: skip


def figures(rows: Rows) -> dict[str, float]:
    """Each track, the mean of its sets; their mean is the total. Documents: the mean of their four kinds first."""
    sets: dict[tuple[str, str, str], list[Grade]] = defaultdict(list)
    for sample, grade in rows:
        meta = sample.meta
        kind = meta["category"] if meta["track"] == "doc_parsing" else ""
        sets[meta["track"], kind, meta["subset"]].append(grade)
    kinds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (track, kind, _), grades in sets.items():
        kinds[track, kind].append(_pooled(grades) if track == "kie" else mean(g.score for g in grades))
    tracks: dict[str, list[float]] = defaultdict(list)
    for (track, _), values in kinds.items():
        tracks[track].append(mean(values))
    out = {track: mean(values) for track, values in tracks.items()}
    return {"total": mean(out.values()), **out}


def _pooled(grades: list[Grade]) -> float:
    read = [g.parsed for g in grades if g.parsed]
    met, wrong = sum(p["met"] for p in read), sum(p["wrong"] for p in read)
    return met / (met + wrong / 2) if met else 0.0


CC_OCR = Benchmark(
    name="cc_ocr",
    title="CC-OCR: scenes, languages, documents, key information",
    files=Files(
        where="hub data set wulipc/CC-OCR (four configurations), or VLMEvalKit's TSV files",
        licence="see the hub's card; of the source data sets",
        layout="image (base64), question, answer, split (the set's name), l2-category; parquet, JSONL or TSV",
        seen="EvolvingLMMs-Lab/lmms-eval @75571cfe0fa36ca5ec2e6aa2bb268f9d38295af3: lmms_eval/tasks/cc_ocr/utils.py",
        items={"all": 7058},
    ),
    read=read,
    splits=("all", "multi_scene_ocr", "multi_lan_ocr", "doc_parsing", "kie"),
    prompt=prompts.as_it_is,
    scorer=Scorer(name="cc_ocr", rule=rule, truth=read_truth, graded=True),
    settings=settings_with(max_tokens=4096),
    figures=figures,
    pitfalls=(
        "VLMEvalKit's total takes the accuracy of key information instead of its F1",
    ),
)  # fmt: skip
