"""Tables with spans, from the three ways in which the models write them: HTML, LaTeX tabular, Markdown pipes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qvl.outputs.html import Node
from qvl.outputs.mapping import Rect
from qvl.outputs.repair import RepairLog

MAX_COLUMNS = 256  # a span of a million columns is a slip of the model, not a table


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Text at a row and column, counted from 0, over `rowspan` x `colspan` places."""

    row: int
    column: int
    text: str
    rowspan: int = 1
    colspan: int = 1
    header: bool = False
    box: Rect | None = None


@dataclass(frozen=True)
class Table:
    cells: tuple[Cell, ...]

    @property
    def num_rows(self) -> int:
        return max((c.row + c.rowspan for c in self.cells), default=0)

    @property
    def num_columns(self) -> int:
        return max((c.column + c.colspan for c in self.cells), default=0)

    @property
    def has_spans(self) -> bool:
        return any(c.rowspan > 1 or c.colspan > 1 for c in self.cells)

    def rows(self) -> list[list[str]]:
        """Every row with as many places as the widest; a spanning cell stands in its first place only."""
        num_columns = self.num_columns
        grid = [[""] * num_columns for _ in range(self.num_rows)]
        for cell in self.cells:
            grid[cell.row][cell.column] = cell.text
        return grid

    def to_csv(self) -> str:
        """Comma-separated rows. Texts that a spreadsheet would run as a formula get an apostrophe in front:
        what stands on a scanned page is untrusted input."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(
            [_harmless(text) for text in row] for row in self.rows()
        )
        return out.getvalue()


_FORMULA = re.compile(r"[=@\t\r]|[-+](?![\d.,\s]*%?\Z)")


def _harmless(text: str) -> str:
    return "'" + text if _FORMULA.match(text) else text


@dataclass(frozen=True)
class Draft:
    """A cell before it has its place."""

    text: str
    rowspan: int = 1
    colspan: int = 1
    header: bool = False
    box: Rect | None = None


def lay_out(rows: Sequence[Sequence[Draft]], log: RepairLog, at: int = 0) -> Table:
    """Gives each cell the first place that no earlier span covers, as browsers do."""
    cells: list[Cell] = []
    free_from: list[int] = []  # for every column the first row that isn't covered
    for row, drafts in enumerate(rows):
        column = 0
        for draft in drafts:
            while column < len(free_from) and free_from[column] > row:
                column += 1
            if column >= MAX_COLUMNS:
                log.add(f"table cells beyond column {MAX_COLUMNS} left out", at)
                break
            wide = min(max(1, draft.colspan), MAX_COLUMNS - column)
            tall = min(max(1, draft.rowspan), len(rows) - row)
            if (wide, tall) != (draft.colspan, draft.rowspan):
                log.add("table span cut to the table's size", at)
            for c in range(column, column + wide):
                if c < len(free_from) and free_from[c] > row:
                    log.add("overlapping table spans", at)
                    wide = c - column
                    break
            while len(free_from) < column + wide:
                free_from.append(0)
            for c in range(column, column + wide):
                free_from[c] = row + tall
            cells.append(
                Cell(
                    row=row,
                    column=column,
                    text=draft.text,
                    rowspan=tall,
                    colspan=wide,
                    header=draft.header,
                    box=draft.box,
                )
            )
            column += wide
    return Table(tuple(cells))


def _span(text: str | None) -> int:
    text = (text or "").strip()
    return int(text) if text.isdecimal() and len(text) < 6 and text.isascii() else 1


def tidy(text: str) -> str:
    """Runs of blanks as one, line breaks kept, none at the ends."""
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def html_table(node: Node, log: RepairLog, box_of: dict[int, Rect] | None = None) -> Table:
    """A <table> node; rows are taken wherever they lie in it, cells of inner tables become text.

    box_of: the already mapped boxes of cells, by id of their node.
    """
    rows: list[list[Draft]] = []
    stack = list(reversed(node.children))
    in_head: set[int] = set()
    while stack:
        child = stack.pop()
        if child.tag in ("thead", "tbody", "tfoot"):
            if child.tag == "thead":
                in_head |= {id(c) for c in child.children}
            stack.extend(reversed(child.children))
        elif child.tag == "tr":
            rows.append(
                [
                    Draft(
                        tidy(cell.content(skip=frozenset())),
                        _span(cell.attributes.get("rowspan")) if "rowspan" in cell.attributes else 1,
                        _span(cell.attributes.get("colspan")) if "colspan" in cell.attributes else 1,
                        cell.tag == "th" or id(child) in in_head,
                        (box_of or {}).get(id(cell)),
                    )
                    for cell in child.children
                    if cell.tag in ("td", "th")
                ]
            )
        elif child.tag in ("td", "th"):  # a cell without its row
            log.add("table cell outside a row", child.start)
            rows.append([Draft(tidy(child.content()), header=child.tag == "th")])
    return lay_out(rows, log, node.start)


# --------------------------------------------------------------------------------------------------- LaTeX

_TABULAR = re.compile(r"\\begin\{(tabular[x*]?|array|longtable)\}")
_RULES = re.compile(
    r"\\(?:hline|toprule|midrule|bottomrule|cr)(?![a-zA-Z])|\\c(?:line|midrule)(?:\([lr]+\))?\{[^{}]{0,40}\}"
)
_STYLE = re.compile(r"\\(?:textbf|textit|emph|underline|textrm|texttt|mathrm|mathbf|text)\{([^{}]{0,2000})\}")
_MULTI = re.compile(r"\\multi(column|row)\{\s*(\d{1,4})\s*\}\s*(?:\[[^\[\]]{0,20}\])?\{[^{}]{0,40}\}\s*\{")


def latex_table(text: str, log: RepairLog, at: int = 0) -> Table | None:
    """The first tabular of a text; None if it has none. A missing \\end is reported."""
    begin = _TABULAR.search(text)
    if begin is None:
        return None
    end = text.find(f"\\end{{{begin[1]}}}", begin.end())
    if end < 0:
        log.add("unclosed LaTeX table", at + begin.start())
        end = len(text)
    body = text[begin.end() : end]
    body = body[_braces(body) :] if body.startswith("{") else body
    rows: list[list[Draft]] = []
    for line in _split(body, "\\\\"):
        line = _RULES.sub("", line)
        if line.strip():
            rows.append([_latex_cell(cell) for cell in _split(line, "&")])
    return lay_out(_without_covered(rows), log, at)


def _without_covered(rows: list[list[Draft]]) -> list[list[Draft]]:
    """LaTeX writes an empty cell where a \\multirow from above reaches; our layout skips those by itself."""
    covered: dict[int, int] = {}
    kept: list[list[Draft]] = []
    for row, drafts in enumerate(rows):
        column, line = 0, []
        for draft in drafts[:MAX_COLUMNS]:
            if not draft.text and covered.get(column, 0) > row:
                column += draft.colspan
                continue
            line.append(draft)
            for c in range(column, min(column + draft.colspan, MAX_COLUMNS)):
                covered[c] = row + draft.rowspan
            column += draft.colspan
        kept.append(line)
    return kept


def _latex_cell(text: str) -> Draft:
    colspan = rowspan = 1
    text = text.strip()
    for _ in range(2):  # a multicolumn may hold a multirow
        match = _MULTI.match(text)
        if match is None:
            break
        count = max(1, int(match[2]))
        colspan, rowspan = (count, rowspan) if match[1] == "column" else (colspan, count)
        inside = text[match.end() :]
        text = inside[:-1].strip() if inside.endswith("}") else inside
    for _ in range(3):  # \textbf{\textit{x}}
        text = _STYLE.sub(r"\1", text)
    return Draft(tidy(re.sub(r"\\([&%$#_{}])", r"\1", text)), rowspan, colspan)


def _braces(text: str) -> int:
    """Where the group that opens at 0 ends; 0 if it doesn't."""
    depth = 0
    for index, char in enumerate(text[:2000]):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return index + 1
    return 0


def _split(text: str, mark: str) -> list[str]:
    """Cuts at a mark outside braces; `\\&` is no mark."""
    parts: list[str] = []
    depth, start, at = 0, 0, 0
    while at < len(text):
        if depth == 0 and text.startswith(mark, at):
            parts.append(text[start:at])
            at += len(mark)
            start = at
            continue
        char = text[at]
        if char == "\\":
            at += 2
            continue
        depth = max(0, depth + (char == "{") - (char == "}"))
        at += 1
    parts.append(text[start:])
    return parts


# ------------------------------------------------------------------------------------------------ Markdown

_RULE_ROW = re.compile(r"\s*\|?(?:\s*:?-{1,}:?\s*\|)*\s*:?-{1,}:?\s*\|?\s*\Z")
_PIPE = re.compile(r"(?<!\\)\|")


def is_rule_row(line: str) -> bool:
    """`|---|:-:|`, the line under the header of a Markdown table."""
    return "|" in line and len(line) < 4000 and _RULE_ROW.match(line) is not None


def pipe_table(lines: Iterable[str], log: RepairLog, at: int = 0) -> Table:
    """Lines of a Markdown table; the row before the rule row is the header."""
    rows: list[list[Draft]] = []
    for line in lines:
        if is_rule_row(line):
            rows = [[Draft(d.text, header=True) for d in row] for row in rows]
            continue
        line = line.strip()
        line = line.removeprefix("|")
        line = line[:-1] if line.endswith("|") and not line.endswith("\\|") else line
        rows.append([Draft(cell.strip().replace("\\|", "|")) for cell in _PIPE.split(line)])
    return lay_out(rows, log, at)
