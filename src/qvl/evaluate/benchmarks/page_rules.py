"""Rules for pages, tables and fields that several reading benchmarks share, as their official scripts compute them."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

from qvl.evaluate.scorers.base import levenshtein
from qvl.evaluate.scorers.structure import Tree, tree_distance
from qvl.outputs.html import Node, parse_html

# ------------------------------------------------------------------------------------------------ tables


def table_similarity(said: str, truth: str) -> float:
    """TEDS of two HTML texts that hold a table: 1 - tree edit distance / nodes of the larger one below its root.

    Header cells count as nodes without text. Source: PubTabNet's TEDS, as in Yuliang-Liu/MultimodalOCR @794c36d
    OCRBench_v2/eval_scripts/TEDS_metric.py.
    """
    first, second = _first_table(said), _first_table(truth)
    if first is None or second is None:
        return 0.0
    nodes = max(_descendants(first), _descendants(second))
    if not nodes:
        return 1.0
    return 1 - tree_distance(_table_tree(first), _table_tree(second), _change) / nodes


def wrapped_table(html: str) -> str:
    """From the first <body> or <table> on; "" when there is none."""
    html = html.replace("\n", "")
    at = html.find("<body")
    at = html.find("<table") if at < 0 else at
    return html[at:] if at >= 0 else ""


def markdown_table(text: str) -> str:
    """A pipe table as HTML; its second line is the rule."""
    lines = text.strip("`markdown").strip().split("\n")  # the official script strips these letters, too
    rows = [line.strip().split("|")[1:-1] for line in [lines[0], *lines[2:]]]
    cells = ("".join(f"<td>{c.strip() or ' '}</td>" for c in row) for row in rows)
    return f"<table>{''.join(f'<tr>{c}</tr>' for c in cells)}</table>"


def dict_table(data: dict[str, Any]) -> str:
    """A chart's data as a table of two columns; the official script puts a blank between all characters of a value."""
    rows = (f"<tr><td>{key}</td><td>{' '.join(str(value))}</td></tr>" for key, value in data.items())
    return f"<table>{''.join(rows)}</table>"


def _first_table(html: str) -> Node | None:
    return next(parse_html(html)[0].find("table"), None)


def _descendants(node: Node) -> int:
    return sum(bool(n.tag) for n in node.walk()) - 1


def _table_tree(node: Node) -> Tree:
    if node.tag == "td":
        spans = (node.attributes.get("colspan") or "1", node.attributes.get("rowspan") or "1")
        return ("td", *spans, _tokens(node)[1:-1]), []
    return (node.tag, "", "", []), [_table_tree(c) for c in node.children if c.tag]


def _tokens(node: Node) -> list[str]:
    """A cell's characters and tags."""
    if not node.tag:
        return list(node.text)
    return [f"<{node.tag}>", *(t for c in node.children for t in _tokens(c)), f"</{node.tag}>"]


def _change(a: Any, b: Any) -> float:
    if a[:3] != b[:3]:
        return 1.0
    longest = max(len(a[3]), len(b[3]))
    return levenshtein(a[3], b[3]) / longest if longest else 0.0


# ------------------------------------------------------------------------------------------------ fields


def read_fields(text: str) -> dict[str, str]:
    """JSON or a Python dict in a fence or alone, else `key: value` pairs; all values as texts.

    Source: MultimodalOCR @794c36d OCRBench_v2/eval_scripts/TEDS_metric.py convert_str_to_dict.
    """
    fenced = re.search(r"```(?:python|json)?\n(.*?)\n```", text, re.DOTALL | re.IGNORECASE)
    content = fenced[1] if fenced else text.strip()
    data: Any = _literal(content)
    if not isinstance(data, dict):
        pairs = re.findall(r'["\']?([\w\s]+)["\']?\s*[:=]\s*["\']?([^\n,"\'{}]+)["\']?', content)
        data = {key.strip(): value for key, value in pairs}
    return {str(k).strip(): str(v).strip() for k, v in data.items()}


def _literal(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def field_choices(truth: Any) -> list[dict[str, str]]:
    """Each way to pick one accepted value a field. Raises: ValueError."""
    data = truth if isinstance(truth, dict) else _literal(str(truth).strip('"'))
    if isinstance(data, str):
        data = _literal(data)
    if not isinstance(data, dict):
        raise ValueError(f"{truth!r} is no object of fields")
    values = [v if isinstance(v, list) else [v] for v in data.values()]
    return [dict(zip(data, picked)) for picked in product(*values)]


def fields_f1(said: dict[str, str], truth: dict[str, str]) -> float:
    """Share of the fields of both that are equal, without case and blanks; a field too many counts as a wrong one."""
    names = set(said) | set(truth)

    def plain(value: str | None) -> str | None:
        return value.lower().strip().replace("\n", " ").replace(" ", "") if value else value

    scores = [float(n in said and n in truth and plain(said[n]) == plain(truth[n])) for n in names]
    return sum(scores) / len(scores) if scores else 0.0


# ------------------------------------------------------------------------------------------------ text of a page


def words_of(text: str, *others: str) -> list[str]:
    """Words; characters where any of the texts holds Chinese (the official script cuts Chinese with jieba)."""
    if any(re.search("[\u4e00-\u9fa5]", t) for t in (text, *others)):
        return [c for c in text if not c.isspace()]
    return text.split()


def bleu(said: Sequence[str], truth: Sequence[str]) -> float:
    """Sentence BLEU with equal weights up to four words and no smoothing, as nltk.translate.bleu."""
    if not said:
        return 0.0
    logs = 0.0
    for n in range(1, 5):
        grams = Counter(tuple(said[i : i + n]) for i in range(len(said) - n + 1))
        known = Counter(tuple(truth[i : i + n]) for i in range(len(truth) - n + 1))
        met = sum(min(c, known[g]) for g, c in grams.items())
        if not met:
            return 0.0
        logs += math.log(met / max(1, sum(grams.values()))) / 4
    short = 1.0 if len(said) > len(truth) else math.exp(1 - len(truth) / len(said))
    return short * math.exp(logs)


def meteor(said: Sequence[str], truth: Sequence[str]) -> float:
    """METEOR by equal words alone; the official script also counts stems and synonyms of WordNet."""
    hypothesis = [w.lower() for w in said]
    left: list[tuple[int, str]] = [(i, w.lower()) for i, w in enumerate(truth)]
    pairs = []
    for i in reversed(range(len(hypothesis))):
        at = next((j for j in reversed(range(len(left))) if left[j][1] == hypothesis[i]), None)
        if at is not None:
            pairs.append((i, left.pop(at)[0]))
    if not pairs:
        return 0.0
    pairs.sort()
    chunks = 1 + sum(b != (a[0] + 1, a[1] + 1) for a, b in pairwise(pairs))
    precision, recall = len(pairs) / len(said), len(pairs) / len(truth)
    harmonic = precision * recall / (0.9 * precision + 0.1 * recall)
    return harmonic * (1 - 0.5 * (chunks / len(pairs)) ** 3)


def page_similarity(said: str, truth: str) -> float:
    """Mean of BLEU, METEOR, F1 of the sets of words, and 1 - edit distance / longer length.

    Source: MultimodalOCR @794c36d OCRBench_v2/eval_scripts/page_ocr_metric.py.
    """
    if not said or not truth:
        return 0.0
    a, b = words_of(said, truth), words_of(truth, said)
    shared = len(set(a) & set(b))
    f1 = 2 * shared / (len(set(a)) + len(set(b))) if a or b else 0.0
    edit = levenshtein(said, truth) / max(len(said), len(truth))
    return (bleu(a, b) + meteor(a, b) + f1 + 1 - edit) / 4


def closeness(said: str, truth: str) -> float:
    """1 - edit distance / longer length."""
    longest = max(len(said), len(truth))
    return 1 - levenshtein(said, truth) / longest if longest else 1.0


# ------------------------------------------------------------------------------------------------ outline


def outline_similarity(said: str, truth: str) -> float:
    """1 - tree edit distance / nodes of the larger outline, headings over their lines. Only whether a line is blank is
    compared, never its words: a fault of the official rule.

    Source: MultimodalOCR @794c36d OCRBench_v2/eval_scripts/TEDS_metric.py STEDS.
    """

    def change(a: str, b: str) -> float:
        return float(not a.split() or not b.split())

    return _outlines(said, truth, change)


def outline_with_words(said: str, truth: str) -> float:
    """As `outline_similarity`, with the words of two lines compared by edit distance."""
    return _outlines(said, truth, lambda a, b: 1 - closeness(" ".join(a.split()), " ".join(b.split())))


def _outlines(said: str, truth: str, change: Any) -> float:
    first, second = outline(said), outline(truth)
    nodes = max(_size(first), _size(second))
    return 1 - tree_distance(first, second, change) / nodes


def outline(text: str) -> Tree:
    """Lines under the heading before them, all headings under the root; lines before the first under TITLE."""
    root: Tree = ("ROOT", [("TITLE", [])])
    title = ""
    for line in map(_cleaned, text.split("\n")):
        if line.startswith("#"):
            title = line.replace("#", "")
            root[1].append((title, []))
        else:
            parent = _find(root, title or "TITLE")
            assert parent is not None
            parent[1].append((line, []))
    return root


def _find(tree: Tree, label: str) -> Tree | None:
    if tree[0] == label:
        return tree
    return next((found for c in tree[1] if (found := _find(c, label)) is not None), None)


def _size(tree: Tree) -> int:
    return 1 + sum(map(_size, tree[1]))


def _cleaned(line: str) -> str:
    line = re.sub(r"<bos>|<eos>|<pad>|<unk>", "", line)
    for pattern, new in (
        (r"\s##(\S)", r"\1"), (r"\\\s", r"\\"), (r"\s\*\s\*\s", "**"), (r"{\s", "{"), (r"\s}", "}"), (r"\s}", "}"),
        (r"\\begin\s", r"\\begin"), (r"\\end\s", r"\\end"), (r"\\end{table}", "\\\\end{table} \n\n"),
    ):  # fmt: skip
        line = re.sub(pattern, new, line)
    return line.replace("\n", " ").replace("*", " ").replace("_", " ")
