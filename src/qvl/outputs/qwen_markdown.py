"""Qwen3-VL's `qwenvl markdown`: Markdown with tables in LaTeX and the boxes of tables and images in comments,
`<!-- Table (x1,y1,x2,y2) -->` and `<!-- Image (x1, y1, x2, y2) -->`. One pass over the lines."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qvl.outputs.blocks import Block, Run
from qvl.outputs.html import parse_html
from qvl.outputs.repair import RepairLog
from qvl.outputs.tables import html_table, is_rule_row, latex_table, pipe_table


@dataclass(frozen=True)
class Draft:
    """A block with the numbers its comment gave, not yet mapped."""

    block: Block
    numbers: tuple[float, ...] = ()


_N = r"\s{0,4}(-?\d{1,9}(?:\.\d{1,9})?)\s{0,4}"
_PLACE = re.compile(rf"<!--\s{{0,5}}([A-Za-z]{{1,20}})\s{{0,5}}[(\[]{_N},{_N},{_N},{_N}[)\]]\s{{0,5}}-->")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+([^\n]*?)[ \t]*#*[ \t]*\Z")
_ITEM = re.compile(r"([ \t]*)([-*+•]|\d{1,4}[.)])[ \t]+(\S[^\n]*)\Z")
_INLINE = re.compile(
    r"\*\*([^*\n]{1,2000})\*\*|(?<![\w*])\*([^*\s][^*\n]{0,2000})\*(?![\w*])|`([^`\n]{1,2000})`"
)
_KINDS = {"table": "table", "image": "image", "figure": "image", "picture": "image", "chart": "chart"}
_ENDS = {"$$": "$$", "\\[": "\\]", "```": "```"}


def parse_markdown(text: str) -> tuple[list[Draft], tuple[str, ...]]:
    """Blocks in the order written, and what was mended."""
    return _Reader(text).run()


def inline_runs(text: str) -> tuple[Run, ...]:
    """`**bold**`, `*italic*` and backticked code as runs; everything else stays as it stands."""
    runs: list[Run] = []
    at = 0
    for match in _INLINE.finditer(text):
        runs.append(Run(text[at : match.start()]))
        style = "bold" if match[1] else "italic" if match[2] else "code"
        runs.append(Run(match[1] or match[2] or match[3], frozenset([style])))
        at = match.end()
    runs.append(Run(text[at:]))
    return tuple(r for r in runs if r.text)


class _Reader:
    def __init__(self, text: str) -> None:
        # a comment may share its line with what it belongs to
        self.lines = _PLACE.sub(lambda m: f"\n{m.group()}\n", text.replace("\r\n", "\n")).split("\n")
        self.at = 0
        self.made: list[Draft] = []
        self.paragraph: list[str] = []
        self.items: list[tuple[int | None, str]] = []  # the number of an ordered list's item, and its text
        self.pending: tuple[str, tuple[float, ...]] | None = None  # a comment that waits for its table
        self.log = RepairLog()
        self.inner: tuple[str, ...] = ()  # what HTML tables needed

    def run(self) -> tuple[list[Draft], tuple[str, ...]]:
        while self.at < len(self.lines):
            self._line(self.lines[self.at])
        self._flush()
        self._settle()
        return self.made, (*self.inner[:20], *self.log.lines())

    def _add(self, block: Block) -> None:
        """A block takes the waiting comment's box when it is of the kind that the comment names."""
        numbers: tuple[float, ...] = ()
        if self.pending and self.pending[0] == block.kind:
            numbers, self.pending = self.pending[1], None
        self._settle()
        self.made.append(Draft(block, numbers))

    def _settle(self) -> None:
        if self.pending is not None:
            kind, numbers = self.pending
            self.pending = None
            block = Block(kind="table" if kind == "table" else "chart" if kind == "chart" else "image")
            if kind == "table":
                self.log.add("table comment without a table", self.at)
            self.made.append(Draft(block, numbers))

    def _flush(self) -> None:
        """Ends the paragraph or list that is being read."""
        if self.paragraph:
            runs = inline_runs("\n".join(self.paragraph))
            self.paragraph = []
            if runs:
                self._add(Block(kind="paragraph", runs=runs))
        if self.items:
            start = self.items[0][0]
            # writers number every item 1, and renderers count on; other leaps are meant
            counted = len({number for number, _ in self.items}) > 1
            due, children = start, []
            for number, text in self.items:
                leap = counted and number is not None and number != due
                children.append(
                    Block(kind="list_item", runs=inline_runs(text), value=number if leap else None)
                )
                due = None if number is None else number + 1
            self.items = []
            self._add(
                Block(
                    kind="list",
                    ordered=start is not None,
                    start=1 if start is None else start,
                    children=tuple(children),
                )
            )

    def _line(self, line: str) -> None:
        stripped = line.strip()
        self.at += 1
        if not stripped:
            if self.paragraph:
                self._flush()
            return
        place = _PLACE.match(stripped)
        if place:
            self._flush()
            self._settle()
            kind = _KINDS.get(place[1].lower())
            if kind is None:
                self.log.add(f"unknown comment {place[1]!r} read as an image", self.at)
            self.pending = (kind or "image", tuple(float(place[i]) for i in range(2, 6)))
            if kind in (None, "image"):
                self._settle()
            return
        if stripped.startswith("<!--"):
            return
        opening = next((o for o in _ENDS if stripped.startswith(o)), None)
        if opening:
            self._flush()
            self._fenced(stripped, opening)
            return
        if "\\begin{tabular" in stripped or "\\begin{longtable" in stripped or "<table" in stripped:
            self._flush()
            self._block_table(line)
            return
        following = self.lines[self.at] if self.at < len(self.lines) else ""
        if stripped.startswith("|") or ("|" in stripped and is_rule_row(following)):
            self._flush()
            rows = [line]
            while self.at < len(self.lines) and "|" in self.lines[self.at]:
                rows.append(self.lines[self.at])
                self.at += 1
            self._add(Block(kind="table", table=pipe_table(rows, self.log, self.at)))
            return
        heading = _HEADING.match(line) if len(line) < 2000 else None
        if heading:
            self._flush()
            self._add(Block(kind="heading", level=len(heading[1]), runs=inline_runs(heading[2])))
            return
        item = _ITEM.match(line)
        if item:
            if self.paragraph:
                self._flush()
            digits = item[2].rstrip(".)")
            number = int(digits) if digits.isdecimal() and len(digits) < 7 else None
            if self.items and (self.items[0][0] is None) != (number is None):
                self._flush()
            self.items.append((number, item[3].rstrip()))
            return
        if self.items and line[:1] in " \t":
            marker, text = self.items[-1]
            self.items[-1] = (marker, f"{text}\n{stripped}")
            return
        if self.items:
            self._flush()
        self.paragraph.append(stripped)

    def _until(self, mark: str, first: str) -> tuple[str, bool]:
        """Lines up to the one that holds `mark`, and whether there is one."""
        parts = [first]
        while mark not in parts[-1]:
            if self.at >= len(self.lines):
                return "\n".join(parts), False
            parts.append(self.lines[self.at])
            self.at += 1
        last, _, rest = parts[-1].partition(mark)
        parts[-1] = last
        if rest.strip():
            self.at -= 1
            self.lines[self.at] = rest
        return "\n".join(parts), True

    def _fenced(self, stripped: str, opening: str) -> None:
        start = self.at
        first = stripped[len(opening) :]
        if opening == "```":
            first = ""  # the fence's language
        content, closed = self._until(_ENDS[opening], first)
        if not closed:
            self.log.add(f"unclosed {opening}", start)
        kind = "code" if opening == "```" else "formula"
        if content.strip():
            if "\\begin{tabular" in content:
                self._latex(content)
                return
            block = Block(
                kind="code" if kind == "code" else "formula",
                runs=(Run(content.strip("\n") if kind == "code" else content.strip()),),
                format="" if kind == "code" else "latex",
            )
            self._add(block)

    def _block_table(self, line: str) -> None:
        if "<table" in line:
            before, _, rest = line.partition("<table")
            content, _ = self._until("</table>", "<table" + rest)
            root, repairs = parse_html(content + "</table>")
            self.inner += repairs
            for node in list(root.find("table"))[:1]:
                self._add(Block(kind="table", table=html_table(node, self.log)))
        else:
            before, _, rest = line.partition("\\begin{")
            name = rest.partition("}")[0]
            content, closed = self._until(f"\\end{{{name}}}", "\\begin{" + rest)
            self._latex(content + (f"\\end{{{name}}}" if closed else ""))
        if before.strip():
            self.paragraph.append(before.strip())

    def _latex(self, content: str) -> None:
        table = latex_table(content, self.log, self.at)
        if table is not None and table.cells:
            self._add(Block(kind="table", table=table))
