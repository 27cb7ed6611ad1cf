"""OmniDocBench: whole pages to Markdown: text, formulas and tables, each matched with its truth."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qvl.evaluate.benchmarks import page_rules as rules
from qvl.evaluate.benchmarks import readers
from qvl.evaluate.benchmarks.record import Benchmark, Files, Rows, mean, settings_with
from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers.base import Grade, Reply, Scorer, levenshtein

KINDS = {
    "text": (("text_block", "title", "text_caption", "header", "footer", "page_number", "footnote"), "text"),
    "formula": (("equation_isolated", "equation_inline"), "latex"),
    "table": (("table",), "html"),
}
UNMATCHED = 0.7  # a pair further apart is none
_STYLE = r"\\(?:text|mathrm|mathbf|mathit|mathsf|mathcal|mathbb|boldsymbol|textbf|textit)\{([^}]*)\}"
_SPACE = r"\\(?:hspace|vspace|tag|label)\{[^}]*\}|\\q?quad|\\[,;! ]"
_MATH = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]", re.DOTALL)
_TABLE = re.compile(r"<table[\s>].*?</table>", re.DOTALL | re.IGNORECASE)
_PIPES = re.compile(r"(?:^\|.+\|[ \t]*\n)(?:^\|[\s:|-]+\|[ \t]*\n)(?:^\|.+\|[ \t]*(?:\n|$))+", re.MULTILINE)

Parts = dict[str, list[str]]


def truth_parts(page: dict[str, Any]) -> Parts:
    """Text, formulas and tables in reading order; parts of one block that the page's end cut are joined.

    Source: EvolvingLMMs-Lab/lmms-eval @75571cf lmms_eval/tasks/omnidocbench/utils.py, as are the rules below.
    """
    same: dict[Any, Any] = {}
    for relation in (page.get("extra") or {}).get("relation", []):
        if relation.get("relation_type") == "truncated":
            same[relation["target_anno_id"]] = relation["source_anno_id"]
    groups: dict[Any, list[dict[str, Any]]] = {}
    for block in page["layout_dets"]:
        root = block.get("anno_id", id(block))
        seen = {root}
        while root in same and same[root] not in seen:
            root = same[root]
            seen.add(root)
        groups.setdefault(root, []).append(block)
    found: dict[str, list[tuple[int, str]]] = {name: [] for name in KINDS}
    for blocks in groups.values():
        blocks.sort(key=lambda b: b.get("order") or 0)
        for name, (categories, field) in KINDS.items():
            if blocks[0].get("category_type") in categories:
                text = " ".join(b[field] for b in blocks if b.get(field)).strip()
                if text:
                    found[name].append((blocks[0].get("order") or 0, text))
    return {name: [t for _, t in sorted(parts, key=lambda p: p[0])] for name, parts in found.items()}


def said_parts(text: str) -> Parts:
    """Tables as HTML or pipes, displayed formulas, and the other lines as text."""
    text = re.sub(r"```(?:markdown|html|latex)?\s*\n?", "", text).replace("```", "")
    tables = _TABLE.findall(text)
    text = _TABLE.sub("\n", text)
    tables += [rules.markdown_table(t) for t in _PIPES.findall(text)]
    text = _PIPES.sub("\n", text)
    formulas = [(a or b).strip() for a, b in _MATH.findall(text)]
    lines = (re.sub(r"\$(.+?)\$", r"\1", line).strip() for line in re.split(r"\n+", _MATH.sub("\n", text)))
    kept = (re.sub(r"^#{1,6}\s*", "", line) for line in lines)
    return {"text": [k for k in kept if len(k) > 1], "formula": [f for f in formulas if f], "table": tables}


def plain_text(text: str) -> str:
    """Lower-case letters and digits of all scripts, single blanks."""
    text = unicodedata.normalize("NFKC", text).lower()
    return " ".join("".join(c if c.isalnum() else " " for c in text).split())


def plain_formula(text: str) -> str:
    text = re.sub(r"\\(?:begin|end)\{[^}]*\}", "", unicodedata.normalize("NFKC", text))
    return " ".join(re.sub(_SPACE, " ", re.sub(_STYLE, r"\1", text)).lower().split())


def plain_table(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip().lower())


def matched(said: Sequence[str], truth: Sequence[str], plain: Callable[[str], str]) -> dict[int, int]:
    """Which part said stands for which of the truth: the assignment of least total distance, far pairs left out."""
    a, b = [plain(s) for s in said], [plain(t) for t in truth]
    cost = [[1 - rules.closeness(x, y) for x in a] for y in b]
    return {t: s for t, s in assign(cost).items() if cost[t][s] <= UNMATCHED}


def assign(cost: Sequence[Sequence[float]]) -> dict[int, int]:
    """Row to column with the least total cost, as many as the smaller side has. Source: Kuhn 1955, with potentials."""
    rows, columns = len(cost), len(cost[0]) if cost else 0
    if rows > columns:
        return {r: c for c, r in assign([list(column) for column in zip(*cost)]).items()}
    u, v, owner = [0.0] * (rows + 1), [0.0] * (columns + 1), [0] * (columns + 1)
    for row in range(1, rows + 1):
        owner[0], at = row, 0
        least, before, done = [float("inf")] * (columns + 1), [0] * (columns + 1), [False] * (columns + 1)
        while owner[at]:
            done[at], step, nearest = True, float("inf"), 0
            for j in range(1, columns + 1):
                if not done[j]:
                    value = cost[owner[at] - 1][j - 1] - u[owner[at]] - v[j]
                    if value < least[j]:
                        least[j], before[j] = value, at
                    if least[j] < step:
                        step, nearest = least[j], j
            for j in range(columns + 1):
                if done[j]:
                    u[owner[j]] += step
                    v[j] -= step
                else:
                    least[j] -= step
            at = nearest
        while at:
            owner[at], at = owner[before[at]], before[at]
    return {owner[j] - 1: j - 1 for j in range(1, columns + 1) if owner[j]}


def edit(said: Sequence[str], truth: Sequence[str], plain: Callable[[str], str]) -> tuple[int, int]:
    """(edits, characters) of the matched parts; a part of the truth that is missing costs its whole length."""
    pairs = matched(said, truth, plain)
    edits = length = 0
    for t, text in enumerate(map(plain, truth)):
        other = plain(said[pairs[t]]) if t in pairs else ""
        edits += levenshtein(text, other)
        length += max(len(text), len(other))
    return edits, length


def rule(reply: Reply, truth: Parts, sample: Sample, *, official: bool = False) -> Grade:
    """Parts of the page are matched by least total edit distance. The score is the mean over the kinds that the page
    has: text and formulas 1 - edits / characters, tables TEDS; parts that are missing count in full. `official` is
    the same: the authors' own match, its formula images (CDM) and its reading order can't be run here.
    """
    if not reply.text.strip():
        return Grade(0.0)
    said = said_parts(reply.text)
    parsed: dict[str, Any] = {}
    scores = []
    for name, plain in (("text", plain_text), ("formula", plain_formula)):
        if truth[name]:
            edits, length = edit(said[name], truth[name], plain)
            parsed[name] = [edits, length]
            scores.append(1 - edits / length if length else 1.0)
    if truth["table"]:
        pairs = matched(said["table"], truth["table"], plain_table)
        close = [
            rules.table_similarity(said["table"][pairs[t]], v) if t in pairs else 0.0
            for t, v in enumerate(truth["table"])
        ]
        parsed["table"] = close
        scores.append(mean(close))
    return Grade(mean(scores), parsed)


def parts(answer: Any, sample: Sample) -> Parts:
    found = truth_parts(answer)
    if not any(found.values()):
        raise ValueError("the page has no text, formula or table")
    return found


def read(path: Path, split: str) -> list[Sample]:
    """OmniDocBench.json, a list of pages, beside images/."""
    file = readers.the_file(path, "OmniDocBench.json")
    samples = []
    for i, page in enumerate(readers.read_json(file)):
        where = f"{file}[{i}]"
        info = readers.field(page, "page_info", where)
        image = readers.field(info, "image_path", where)
        samples.append(
            Sample(
                id=image, media=(readers.image_file(file.parent / "images", image, where),),
                answer={"layout_dets": readers.field(page, "layout_dets", where), "extra": page.get("extra")},
                stratum=str((info.get("page_attribute") or {}).get("language", "")), where=where,
            )
        )  # fmt: skip
    return samples


def prompt(sample: Sample, generation: str) -> str:
    """Own words: the official ones differ by model."""
    return (
        "Write this page as Markdown in reading order: tables as HTML, displayed formulas between $$ and $$."
    )


def figures(rows: Rows) -> dict[str, float]:
    """Edit distance of text and formulas by characters (lower is better), TEDS of tables, and the mean of the three."""
    out = {}
    for name in ("text", "formula"):
        counts = [_missing(s, name) if g.parsed is None else g.parsed.get(name) for s, g in rows]
        known = [c for c in counts if c]
        if total := sum(c[1] for c in known):
            out[f"{name} edit distance"] = sum(c[0] for c in known) / total
    tables = [
        v for s, g in rows for v in (_missing(s, "table") if g.parsed is None else g.parsed.get("table", []))
    ]
    if tables:
        out["table TEDS"] = mean(tables)
    good = [v if k == "table TEDS" else 1 - v for k, v in out.items()]
    return {"overall": mean(good), **out}


def _missing(sample: Sample, name: str) -> list[Any]:
    """What a page without an answer costs."""
    truth = truth_parts(sample.answer)[name]
    if name == "table":
        return [0.0] * len(truth)
    length = sum(len(plain_text(t) if name == "text" else plain_formula(t)) for t in truth)
    return [length, length]


OMNIDOCBENCH = Benchmark(
    name="omnidocbench",
    title="OmniDocBench: whole pages to Markdown",
    files=Files(
        where="hub data set opendatalab/OmniDocBench",
        licence="research use; see the hub's card",
        layout="OmniDocBench.json: [{layout_dets: [{category_type, text or latex or html, order, anno_id}], page_info: "
        "{image_path, page_attribute: {language}}, extra: {relation}}], images/ beside it",
        seen="layout_dets, extra: EvolvingLMMs-Lab/lmms-eval @75571cf: lmms_eval/tasks/omnidocbench/utils.py; "
        "page_info: likewise, and tasks/mdpbench/utils.py",
    ),
    read=read,
    prompt=prompt,
    scorer=Scorer(name="omnidocbench", rule=rule, truth=parts, graded=True),
    settings=settings_with(max_tokens=8192),
    figures=figures,
    pitfalls=(
        "the authors' figures also hold reading order and formulas compared as images: only figures of this rule can "
        "be compared with each other",
    ),
)  # fmt: skip
