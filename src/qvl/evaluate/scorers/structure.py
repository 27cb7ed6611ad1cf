"""Rules for answers with a structure: fields of JSON, tables, and pages in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from qvl.evaluate.samples import Sample
from qvl.evaluate.scorers.base import Grade, Reply, levenshtein, one_text
from qvl.evaluate.scorers.text import plain, read_number, similarity
from qvl.outputs.html import parse_html
from qvl.outputs.repair import RepairLog, find_json
from qvl.outputs.tables import Table, html_table, is_rule_row, pipe_table

Tree = tuple[Any, list["Tree"]]  # (label, children)


def fields_truth(answer: Any, sample: Sample) -> Any:
    """An object, or a text that holds one. Raises: ValueError."""
    if isinstance(answer, str):
        found = find_json(answer)
        answer = found[0].value if found and not found[0].repairs else answer
    if not isinstance(answer, dict) or not answer:
        raise ValueError(f"a JSON object with fields is needed, not {answer!r}")
    return answer


def fields(
    reply: Reply, truth: dict[str, Any], sample: Sample, *, tolerance: float = 0.0, case: bool = False
) -> Grade:
    """F1 of the fields of a JSON object: 2 · right / (fields of the truth + fields of the answer).

    A field has the type of its truth: a number is met within `tolerance` (relative), whatever currency or comma it is
    written with; true and false also as yes and no; a text up to white space and (without `case`) case; null by a
    field that is missing, null or empty. Fields of inner objects count one by one; lists are matched in any order.
    """
    found = find_json(reply.text)
    objects: list[dict[str, Any]] = [f.value for f in found if isinstance(f.value, dict)]
    if not objects:
        return Grade(0.0)
    said: dict[str, Any] = max(objects, key=_size)
    right, wanted, given = _matched(truth, said, tolerance, case)
    return Grade(2 * right / (wanted + given) if wanted + given else 1.0, said)


def _matched(truth: Any, said: Any, tolerance: float, case: bool) -> tuple[int, int, int]:
    """(right, fields of the truth, fields of the answer)."""
    if isinstance(truth, dict):
        inner = said if isinstance(said, dict) else {}
        parts = [_matched(truth.get(k), inner.get(k), tolerance, case) for k in {**truth, **inner}]
        lost = 0 if isinstance(said, dict) else _size(said)
        return sum(p[0] for p in parts), sum(p[1] for p in parts), sum(p[2] for p in parts) + lost
    if isinstance(truth, list):
        left = list(said) if isinstance(said, list) else [] if _empty(said) else [said]
        right = 0
        for item in truth:
            met = [_matched(item, other, tolerance, case)[0] for other in left]
            best = max(met, default=0)
            if best:
                right += best
                left.pop(met.index(best))
        return right, _size(truth), _size(said)
    if _empty(truth):
        return 0, 0, _size(said)
    return int(same_value(truth, said, tolerance, case)), 1, _size(said)


def _empty(value: Any) -> bool:
    return value is None or value == "" or value == [] or value == {}


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return sum(map(_size, value))
    return int(not _empty(value))


def same_value(truth: Any, said: Any, tolerance: float = 0.0, case: bool = False) -> bool:
    """Whether a field holds its truth, read as the truth's type."""
    if isinstance(said, dict | list):
        return False
    if isinstance(truth, bool):
        words = {"true": True, "yes": True, "false": False, "no": False}
        return words.get(plain(str(said))) is truth
    if isinstance(truth, int | float):
        value = read_number(said) if isinstance(said, str) else said
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value - truth) <= (tolerance + 1e-9) * abs(truth)
        )
    return said is not None and plain(str(truth), case) == plain(str(said), case)


def field_scores(pairs: Iterable[tuple[Any, Any]], **options: Any) -> dict[str, dict[str, float]]:
    """Of (truth, what was read) of each answer: how often each top field was right, of how many that have it."""
    found: dict[str, list[float]] = {}
    for truth, said in pairs:
        if not isinstance(truth, dict):
            continue
        for name, value in truth.items():
            inner = said.get(name) if isinstance(said, dict) else None
            right, wanted, given = _matched(
                value, inner, options.get("tolerance", 0.0), options.get("case", False)
            )
            whole = _empty(inner) if not wanted else right == wanted == given
            found.setdefault(name, []).append(float(whole))
    return {name: {"right": sum(v) / len(v), "num": len(v)} for name, v in found.items()}


def find_table(text: str) -> Table | None:
    """The first table of a text, in HTML or as Markdown pipes."""
    log = RepairLog()
    if "<t" in text.lower():
        for node in parse_html(text)[0].find("table"):
            return html_table(node, log)
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if is_rule_row(line) and i:
            end = i + 1
            while end < len(lines) and "|" in lines[end]:
                end += 1
            return pipe_table(lines[i - 1 : end], log)
    return None


def table_truth(answer: Any, sample: Sample) -> Table:
    """HTML, Markdown pipes, or rows of cells as lists. Raises: ValueError."""
    if isinstance(answer, list) and answer and all(isinstance(r, list) for r in answer):
        rows = ("<tr>" + "".join(f"<td>{_escaped(c)}</td>" for c in r) + "</tr>" for r in answer)
        answer = f"<table>{''.join(rows)}</table>"
    table = find_table(answer) if isinstance(answer, str) else None
    if table is None or not table.cells:
        raise ValueError("no table in it: HTML, Markdown pipes or a list of rows is needed")
    return table


def _escaped(cell: Any) -> str:
    import html

    return html.escape("" if cell is None else str(cell))


def table_tree(table: Table) -> Tree:
    rows: list[Tree] = [(("tr",), []) for _ in range(table.num_rows)]
    for cell in table.cells:
        rows[cell.row][1].append((("td", cell.colspan, cell.rowspan, plain(cell.text, case=True)), []))
    return ("table",), rows


def teds(reply: Reply, truth: Table, sample: Sample, *, structure: bool = False) -> Grade:
    """1 - tree edit distance / nodes of the larger tree, of the first table of the answer; `structure`: texts ignored.

    A cell costs 1 when its spans differ, else its normalised edit distance. Header cells count as cells.
    Source: Zhong et al., PubTabNet (2020).
    """
    table = find_table(reply.text)
    if table is None or not table.cells:
        return Grade(0.0)

    def change(a: Any, b: Any) -> float:
        if a[:3] != b[:3]:
            return 1.0
        return 0.0 if structure or a[0] != "td" else 1 - similarity(a[3], b[3])

    first, second = table_tree(table), table_tree(truth)
    nodes = max(len(table.cells) + table.num_rows, len(truth.cells) + truth.num_rows) + 1
    shown = f"{table.num_rows}x{table.num_columns}"
    return Grade(max(0.0, 1 - tree_distance(first, second, change) / nodes), shown)


def tree_distance(a: Tree, b: Tree, change: Callable[[Any, Any], float]) -> float:
    """Least cost of turning one ordered tree into another; adding or removing a node costs 1.

    Source: Zhang and Shasha, SIAM J. Comput. 18 (1989).
    """
    (labels_a, left_a), (labels_b, left_b) = _postorder(a), _postorder(b)
    trees = [[0.0] * len(labels_b) for _ in labels_a]
    for i in _keyroots(left_a):
        for j in _keyroots(left_b):
            la, lb = left_a[i], left_b[j]
            forest = [[0.0] * (j - lb + 2) for _ in range(i - la + 2)]
            for x in range(1, i - la + 2):
                forest[x][0] = x
            forest[0] = [float(y) for y in range(j - lb + 2)]
            for x in range(la, i + 1):
                row, above = forest[x - la + 1], forest[x - la]
                for y in range(lb, j + 1):
                    k = y - lb + 1
                    least = min(above[k], row[k - 1]) + 1
                    if left_a[x] == la and left_b[y] == lb:
                        row[k] = trees[x][y] = min(least, above[k - 1] + change(labels_a[x], labels_b[y]))
                    else:
                        row[k] = min(least, forest[left_a[x] - la][left_b[y] - lb] + trees[x][y])
    return trees[-1][-1]


def _postorder(tree: Tree) -> tuple[list[Any], list[int]]:
    """(labels, number of each one's leftmost leaf), children before parents. Tables are three levels deep."""
    labels: list[Any] = []
    left: list[int] = []

    def visit(node: Tree) -> int:
        firsts = [visit(child) for child in node[1]]
        labels.append(node[0])
        left.append(firsts[0] if firsts else len(labels) - 1)
        return left[-1]

    visit(tree)
    return labels, left


def _keyroots(left: list[int]) -> list[int]:
    return sorted({first: i for i, first in enumerate(left)}.values())


def blocks_truth(answer: Any, sample: Sample) -> list[str]:
    if isinstance(answer, list):
        return [plain(one_text(a, sample), case=True) for a in answer]
    return text_blocks(one_text(answer, sample))


def text_blocks(text: str) -> list[str]:
    """Paragraphs of a text, or the blocks of QwenVL HTML, white space folded."""
    if "<" in text and "data-bbox" in text:
        text = "\n\n".join(
            n.content() for n in parse_html(text)[0].find("h1", "h2", "h3", "h4", "p", "td", "li")
        )
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            parts[-1].append(line)
        elif parts[-1]:
            parts.append([])
    return [plain(" ".join(lines), case=True) for lines in parts if lines]


def blocks(reply: Reply, truth: list[str], sample: Sample) -> Grade:
    """1 - edit distance / longer length in characters, blocks aligned in their order, each block kept whole.

    A block that is missing or too many costs its length, so one lost paragraph doesn't shift the others.
    """
    said = text_blocks(reply.text)
    if not said:
        return Grade(0.0)
    above = [0]
    for t in truth:
        above.append(above[-1] + len(t))
    for s in said:
        row = [above[0] + len(s)]
        for j, t in enumerate(truth, 1):
            swap = above[j - 1] + (0 if s == t else levenshtein(s, t))
            row.append(min(swap, above[j] + len(s), row[-1] + len(t)))
        above = row
    longest = max(sum(map(len, said)), sum(map(len, truth)))
    return Grade(max(0.0, 1 - above[-1] / longest), {"blocks": len(said), "of": len(truth)})
