"""Parsed pages as Markdown, clean HTML, JSON, CSV and DocLayout-style JSON. All boxes are in pixels of the
original page.

The text of a page is untrusted: HTML is escaped when made and then sanitised by nh3, with no links, no
scripts, no styles and no addresses of images; CSV cells can't become formulas.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from qvl.outputs.blocks import Block, Page, Run, plain
from qvl.outputs.mapping import Rect
from qvl.outputs.tables import Cell, Table
from qvl.records import json_text, pick, printable

_MATH = re.compile(r"(\$\$[^$]{1,2000}\$\$|\$[^$\n]{1,1000}\$|\\\([^\n]{1,1000}?\\\)|\\\[[^\n]{1,1000}?\\\])")
_MARKUP = re.compile(r"([*`<\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|\\(?=[!-/:-@\[-`{-~]))")
_LINE_START = re.compile(
    r"^([ \t]*)(#{1,6}(?=\s)|[-+>](?=\s|$)|={3,}|-{3,}|~{3,}|\d{1,9}(?=[.)]\s))", re.MULTILINE
)
_AROUND = {"bold": "**", "italic": "*", "strike": "~~", "code": "`"}
_TAGS = {
    "bold": "strong", "italic": "em", "underline": "u", "strike": "s", "sup": "sup", "sub": "sub",
    "code": "code", "mark": "mark",
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ Markdown


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it stands; formulas between $ signs stay formulas."""
    parts = _MATH.split(text)
    for index in range(0, len(parts), 2):
        parts[index] = _MARKUP.sub(r"\\\1", parts[index])
    escaped = "".join(parts)
    return _LINE_START.sub(lambda m: m[1] + (m[2] + "\\" if m[2].isdigit() else "\\" + m[2]), escaped)


def _markdown_runs(runs: Sequence[Run]) -> str:
    out: list[str] = []
    for run in runs:
        body = run.text.strip()
        if not body:
            out.append(run.text)
            continue
        text = body if "code" in run.styles else escape_markdown(body)
        for style in sorted(run.styles):
            mark = _AROUND.get(style)
            if mark and not (style == "code" and "`" in body):
                text = f"{mark}{text}{mark}"
            elif not mark:
                text = f"<{_TAGS[style]}>{text}</{_TAGS[style]}>"
        lead = run.text[: len(run.text) - len(run.text.lstrip())]
        out.append(lead + text + run.text[len(run.text.rstrip()) :])
    return "".join(out)


def _pipe_cell(text: str) -> str:
    return escape_markdown(text).replace("|", "\\|").replace("\n", "<br>")


def markdown_table(table: Table) -> str:
    """A pipe table; as HTML when cells span, which pipes can't say."""
    if table.has_spans:
        return clean_html(html_table(table))
    rows = table.rows()
    lines = ["| " + " | ".join(_pipe_cell(c) for c in row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * table.num_columns)
    return "\n".join(lines)


def _markdown_block(block: Block, depth: int = 0) -> str:
    text = _markdown_runs(block.runs)
    if block.kind == "heading":
        text = "#" * min(max(block.level, 1), 6) + " " + text.replace("\n", " ")
    elif block.kind == "formula":
        body = block.text.strip().removeprefix("$$").removesuffix("$$").strip()
        text = f"$$\n{body}\n$$" if body else ""
    elif block.kind in ("code", "music", "chemistry"):
        fence = "`" * max(3, _longest_ticks(block.text) + 1)
        language = {"music": "abc", "chemistry": "smiles"}.get(block.kind, "")
        text = f"{fence}{language}\n{block.text}\n{fence}" if block.text else ""
    elif block.kind == "table" and block.table is not None:
        text = markdown_table(block.table)
    elif block.kind == "image":
        where = f" at {_numbers(block.box)}" if block.box else ""
        text = f"<!-- image{where} -->"
    elif block.kind == "chart":
        text = "<!-- chart -->"
    elif block.kind == "caption":
        text = f"*{text}*" if text and "*" not in text else text
    elif block.kind == "list":
        lines = []
        for number, item in block.numbered():
            mark = f"{number}. " if block.ordered else "- "
            body = _markdown_runs(item.runs)
            inner = "\n".join(_markdown_block(c) for c in item.children)
            whole = body + ("\n" + inner if inner else "")
            lines.append(mark + whole.replace("\n", "\n" + " " * len(mark)))
        return "\n".join(lines)
    inner_blocks = "\n\n".join(t for c in block.children if (t := _markdown_block(c)))
    whole = "\n\n".join(t for t in (text, inner_blocks) if t)
    if block.kind == "quote":
        whole = "\n".join(("> " + line).rstrip() for line in whole.split("\n"))
    return whole


def _longest_ticks(text: str) -> int:
    return max((len(m) for m in re.findall(r"`+", text)), default=0)


def to_markdown(pages: Sequence[Page]) -> str:
    """All pages as one Markdown text, with a comment between pages."""
    texts = []
    for page in pages:
        body = "\n\n".join(t for block in page.blocks if (t := _markdown_block(block)))
        texts.append(body if len(pages) == 1 else f"<!-- page {page.number} -->\n\n{body}")
    return printable("\n\n".join(texts)).strip() + "\n"


# ---------------------------------------------------------------------------------------------------- HTML

_ALLOWED = set(
    "h1 h2 h3 h4 h5 h6 p ul ol li table thead tbody tr td th caption figure figcaption pre code blockquote strong em u "
    "s sup sub mark br section div".split()
)
_ALLOWED_ATTRIBUTES = {
    **{tag: {"data-bbox", "class", "data-page", "data-format"} for tag in _ALLOWED},
    "ol": {"data-bbox", "start"},
    "li": {"data-bbox", "value"},
    "td": {"data-bbox", "rowspan", "colspan"},
    "th": {"data-bbox", "rowspan", "colspan"},
}


def clean_html(text: str) -> str:
    """HTML with nothing left that acts or loads: the last guard, after everything was escaped."""
    import nh3

    return nh3.clean(
        text, tags=_ALLOWED, attributes=_ALLOWED_ATTRIBUTES, clean_content_tags={"script", "style"},
        url_schemes=set(), generic_attribute_prefixes=None, link_rel=None,
    )  # fmt: skip


def _numbers(box: Rect | None) -> str:
    return " ".join(f"{round(v, 1):g}" for v in box) if box else ""


def _at(box: Rect | None) -> str:
    return f' data-bbox="{_numbers(box)}"' if box else ""


def _lines(text: str) -> str:
    return html.escape(text, quote=False).replace("\n", "<br>")


def _html_runs(runs: Sequence[Run]) -> str:
    out = []
    for run in runs:
        text = _lines(run.text)
        for style in sorted(run.styles):
            text = f"<{_TAGS[style]}>{text}</{_TAGS[style]}>"
        out.append(text)
    return "".join(out)


def html_table(table: Table, box: Rect | None = None) -> str:
    """A table with its spans."""
    rows: list[list[str]] = [[] for _ in range(table.num_rows)]
    for cell in sorted(table.cells, key=lambda c: (c.row, c.column)):
        tag = "th" if cell.header else "td"
        spans = f' rowspan="{cell.rowspan}"' if cell.rowspan > 1 else ""
        spans += f' colspan="{cell.colspan}"' if cell.colspan > 1 else ""
        rows[cell.row].append(f"<{tag}{spans}{_at(cell.box)}>{_lines(cell.text)}</{tag}>")
    return f"<table{_at(box)}>\n" + "\n".join(f"<tr>{''.join(r)}</tr>" for r in rows) + "\n</table>"


def _html_block(block: Block) -> str:
    at, runs = _at(block.box), _html_runs(block.runs)
    inner = "\n".join(_html_block(c) for c in block.children)
    inner = "\n" + inner + "\n" if inner else ""
    match block.kind:
        case "heading":
            level = min(max(block.level, 1), 6)
            return f"<h{level}{at}>{runs}</h{level}>{inner}"
        case "table":
            return html_table(block.table, block.box) if block.table else f'<div class="table"{at}></div>'
        case "list":
            tag = "ol" if block.ordered else "ul"
            start = f' start="{block.start}"' if block.ordered and block.start != 1 else ""
            return f"<{tag}{start}{at}>{inner}</{tag}>"
        case "list_item":
            value = "" if block.value is None else f' value="{block.value}"'
            return f"<li{value}{at}>{runs}{inner}</li>"
        case "image" | "chart":
            return f'<figure class="{block.kind}"{at}>{runs}{inner}</figure>'
        case "caption":
            return f'<p class="caption"{at}>{runs}</p>{inner}'
        case "code" | "formula" | "music" | "chemistry":
            form = f' data-format="{html.escape(block.format)}"' if block.format else ""
            return f'<pre class="{block.kind}"{form}{at}>{html.escape(block.text, quote=False)}</pre>'
        case "quote":
            return f"<blockquote{at}>{runs}{inner}</blockquote>"
        case "group":
            return f"<div{at}>{runs}{inner}</div>"
    return f"<p{at}>{runs}</p>{inner}"


def to_html(pages: Sequence[Page]) -> str:
    """All pages as one clean HTML document; boxes stay as data-bbox, in pixels of the original pages."""
    body = "\n".join(
        f'<section data-page="{page.number}">\n'
        + "\n".join(_html_block(b) for b in page.blocks)
        + "\n</section>"
        for page in pages
    )
    return (
        '<!DOCTYPE html>\n<html>\n<head><meta charset="utf-8"></head>\n<body>\n'
        f"{clean_html(printable(body))}\n</body>\n</html>\n"
    )


# ---------------------------------------------------------------------------------------------- JSON, CSV


def _block_dict(block: Block) -> dict[str, Any]:
    out: dict[str, Any] = {"kind": block.kind}
    if block.runs:
        out["text"] = block.text
    if block.level:
        out["level"] = block.level
    if block.kind == "list":
        out["ordered"] = block.ordered
        if block.start != 1:
            out["start"] = block.start
    if block.value is not None:
        out["value"] = block.value
    if block.format:
        out["format"] = block.format
    if block.box:
        out["bbox"] = [round(v, 1) for v in block.box]
    if block.table is not None:
        out["table"] = pick(
            block.table, "num_rows", "num_columns", cells=[_cell_dict(c) for c in block.table.cells]
        )
    if block.children:
        out["children"] = [_block_dict(c) for c in block.children]
    return out


def _cell_dict(cell: Cell) -> dict[str, Any]:
    found = pick(cell, "row", "column", "rowspan", "colspan", "header", "text")
    return found | ({"bbox": [round(v, 1) for v in cell.box]} if cell.box else {})


def to_dict(page: Page) -> dict[str, Any]:
    """A page as plain lists and dicts, nested as the tree is."""
    size = page.picture.original if page.picture else None
    return pick(
        page,
        "page=number", "warnings", "repairs", "reason",
        width=size and size.width,
        height=size and size.height,
        blocks=[_block_dict(b) for b in page.blocks],
    )  # fmt: skip


def to_json(pages: Sequence[Page]) -> str:
    return json_text({"pages": [to_dict(p) for p in pages]}, indent=1) + "\n"


def to_csvs(pages: Sequence[Page]) -> dict[str, str]:
    """Name → CSV text for every table: `page1_table1`, `page1_table2`, …"""
    return {
        f"page{page.number}_table{index}": printable(table.to_csv())
        for page in pages
        for index, table in enumerate(page.tables, 1)
    }


# our kinds in the words of the layout detectors trained on DocStructBench
_LAYOUT = {
    "heading": "title",
    "paragraph": "plain text",
    "list": "plain text",
    "list_item": "plain text",
    "quote": "plain text",
    "code": "plain text",
    "image_text": "plain text",
    "table": "table",
    "formula": "isolate_formula",
    "image": "figure",
    "chart": "figure",
    "music": "figure",
    "chemistry": "figure",
}


def to_layout(page: Page) -> dict[str, Any]:
    """A page's regions as layout detectors and their benchmarks give them: a flat list in reading order, each
    with its category, its corners clockwise from the top left, and its content.

    Blocks without a box of their own, and groups, are left out: this format is about places.
    """
    regions: list[dict[str, Any]] = []

    def visit(block: Block, inside: str) -> None:
        if block.kind == "caption":
            category = "table_caption" if inside == "table" else "figure_caption"
        else:
            category = _LAYOUT.get(block.kind, "")
        if block.box and category:
            x1, y1, x2, y2 = (round(v, 1) for v in block.box)
            region: dict[str, Any] = {
                "category_type": category, "poly": [x1, y1, x2, y1, x2, y2, x1, y2], "order": len(regions) + 1,
            }  # fmt: skip
            if block.kind == "table" and block.table:
                region["html"] = html_table(block.table)
            elif block.kind == "formula":
                region["latex"] = block.text
            elif text := plain(block):
                region["text"] = text
            regions.append(region)
        for child in block.children:
            visit(child, block.kind)

    for block in page.blocks:
        visit(block, "")
    size = page.picture.original if page.picture else None
    info: dict[str, Any] = {"page_no": page.number}
    if size:
        info |= {"height": size.height, "width": size.width}
    return {"layout_dets": regions, "page_info": info}
