"""A page as the models write it (QwenVL HTML, Qwen3's `qwenvl markdown`) → a tree of blocks with boxes in
pixels of the original page. Blocks come in reading order, which is the order in which the model wrote them.

Writing pages out again as Markdown, HTML, JSON or CSV is done by export.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from qvl import moved
from qvl.catalog.generations import by_name
from qvl.catalog.generations.generation import Convention, Generation
from qvl.errors import OutputError
from qvl.outputs.blocks import Block, Kind, Page, Run
from qvl.outputs.boxes import Box, Quad, Written, map_place, suspect
from qvl.outputs.html import INLINE, RAW, Node, parse_html
from qvl.outputs.mapping import PictureMap, Rect
from qvl.outputs.qwen_markdown import parse_markdown
from qvl.outputs.repair import RepairLog, answer_text
from qvl.outputs.tables import html_table

_STYLES = {
    "b": "bold", "strong": "bold", "i": "italic", "em": "italic", "u": "underline", "ins": "underline",
    "s": "strike", "del": "strike", "strike": "strike", "sup": "sup", "sub": "sub", "code": "code", "tt": "code",
    "kbd": "code", "mark": "mark",
}  # fmt: skip

_FENCE = re.compile(r"\A\s*```[ \t]*[A-Za-z]{0,12}[ \t]*\n?")
_IS_HTML = re.compile(r"data-bbox|<(?:html|body|h[1-6]|p|div|table|ul|ol|pre|img)[\s>]", re.IGNORECASE)
_IS_MARKDOWN = re.compile(
    r"<!--\s{0,5}(?:Table|Image|Figure|Chart)|^ {0,3}#{1,6} |^\s{0,3}\|.{0,400}\||\\begin\{tabular|\$\$"
    r"|^\s{0,3}[-*] \S",
    re.MULTILINE | re.IGNORECASE,
)


def parse_document(
    text: str,
    family: Generation | str,
    picture: PictureMap | None,
    *,
    number: int = 1,
    format: Literal["auto", "html", "markdown"] = "auto",
    convention: Convention | None = None,
) -> Page:
    """A reply to a document prompt, as a page whose boxes lie in the original image.

    format: "auto" takes HTML or Markdown by their marks, and finds no page in plain prose.
    Raises: OutputError when the reply has boxes and the image's size is missing, or for an unknown family;
    never for malformed text.
    """
    generation = by_name(family)
    answer = answer_text(text)
    if answer.reason:
        return Page(number=number, picture=picture, reason=answer.reason)
    log = RepairLog()
    body = answer.text
    fence = _FENCE.match(body)
    if fence:
        end = body.rfind("```", fence.end())
        if end < 0:
            log.add("unclosed code fence", 0)
        body = body[fence.end() : end if end >= 0 else len(body)]
    if format == "auto":
        if _IS_HTML.search(body):
            format = "html"
        elif _IS_MARKDOWN.search(body):
            format = "markdown"
        else:
            return Page(
                number=number, picture=picture,
                reason="no document markup in the text: the model may not know this prompt (small ones ignore it)",
            )  # fmt: skip
    frame = _Frame(generation, convention or generation.coordinates, picture)
    if format == "html":
        root, repairs = parse_html(body)
        _collect(root, frame)
        frame.map_all()
        blocks = _Blocks(frame, log).of(root)
    else:
        drafts, repairs = parse_markdown(body)
        for index, draft in enumerate(drafts):
            if draft.numbers:
                frame.add(index, Written(numbers=draft.numbers, label=draft.block.kind))
        frame.map_all()
        blocks = [
            dataclasses.replace(d.block, box=frame.boxes.get(i), seen=frame.seen.get(i))
            for i, d in enumerate(drafts)
        ]
    return Page(
        blocks=tuple(blocks),
        number=number,
        picture=picture,
        warnings=tuple(frame.warnings),
        repairs=(*repairs, *log.lines()),
        reason=None if blocks else "no document content in the text",
        suspected=frame.suspected,
    )


@dataclass
class _Frame:
    """Collects the boxes of a page, looks at them together, then maps each; keys are ids of nodes or indices."""

    generation: Generation
    convention: Convention
    picture: PictureMap | None
    written: dict[int, Written] = field(default_factory=dict)
    boxes: dict[int, Rect] = field(default_factory=dict)
    seen: dict[int, Rect] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    suspected: Convention | None = None

    def add(self, key: int, written: Written) -> None:
        self.written[key] = written

    def map_all(self) -> None:
        """Raises: OutputError when there are boxes but no image."""
        if not self.written:
            return
        if self.picture is None:
            raise OutputError(
                f"the page has {len(self.written)} boxes, which can't be mapped without the image's size: "
                "pass picture=picture_map(size, family)"
            )
        self.suspected, why = suspect(self.written.values(), self.convention, self.picture)
        if self.suspected:
            self.warnings.append(
                f"{why}: the numbers look like {self.suspected.name}, and are read as {self.convention.name} "
                f"({self.generation})"
            )
        notes: list[str] = []
        for number, (key, written) in enumerate(self.written.items(), 1):
            place, said = map_place(written, self.convention, self.picture, number)
            notes += said
            if isinstance(place, (Box, Quad)):
                self.boxes[key] = place.rect
                self.seen[key] = place.seen if isinstance(place, Box) else _around(place.seen)
        self.warnings += notes[:50]
        if len(notes) > 50:
            self.warnings.append(f"{len(notes) - 50} more warnings of this kind")


def _around(corners: Iterable[tuple[float, float]]) -> Rect:
    points = list(corners)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return Rect(min(xs), min(ys), max(xs), max(ys))


_SEPARATOR = re.compile(r"[\s,;]+")


def _collect(root: Node, frame: _Frame) -> None:
    """Every data-bbox (or data-polygon) that holds numbers; others are reported."""
    bad = 0
    for node in root.walk():
        for name, counts in (("data-bbox", (4,)), ("bbox", (4,)), ("data-polygon", (8,))):
            value = node.attributes.get(name)
            if value is None or id(node) in frame.written:
                continue
            parts = [p for p in _SEPARATOR.split(value.strip(" []()")) if p]
            try:
                numbers = tuple(float(p) for p in parts)
            except ValueError:
                numbers = ()
            if len(numbers) in counts and all(abs(n) < 1e9 for n in numbers):
                frame.add(id(node), Written(numbers=numbers, label=node.tag))
            else:
                bad += 1
    if bad:
        frame.warnings.append(f"{bad} data-bbox attributes without 4 numbers left out")


class _Blocks:
    """Nodes → blocks. The tree is at most 48 deep, so recursion is safe."""

    def __init__(self, frame: _Frame, log: RepairLog) -> None:
        self.frame, self.log = frame, log

    def _place(self, node: Node) -> dict[str, Any]:
        inner = next((c for c in node.children if c.tag == "img" and id(c) in self.frame.boxes), None)
        key = id(node) if id(node) in self.frame.boxes or inner is None else id(inner)
        return {"box": self.frame.boxes.get(key), "seen": self.frame.seen.get(key)}

    def of(self, node: Node) -> list[Block]:
        """The blocks among a node's children; loose text between them becomes paragraphs."""
        made: list[Block] = []
        loose: list[Node] = []

        def flush() -> None:
            runs = _runs(loose)
            if runs:
                made.append(Block(kind="paragraph", runs=runs))
            loose.clear()

        for child in node.children:
            if child.tag in ("", "br") or (child.tag in INLINE and not _has_blocks(child)):
                if child.tag in INLINE and id(child) in self.frame.boxes:  # text with a box of its own
                    flush()
                    runs = _runs([child])
                    if runs:
                        made.append(Block(kind="paragraph", runs=runs, **self._place(child)))
                    continue
                loose.append(child)
                continue
            flush()
            made += self.block(child)
        flush()
        return made

    def block(self, node: Node) -> list[Block]:
        tag, place = node.tag, self._place(node)
        if tag in RAW or tag in ("!--", "hr", "colgroup", "head", "meta", "link", "wbr", "input"):
            return []
        if tag[0] == "h" and tag[1:].isdigit():
            return [self._text_block(node, "heading", level=int(tag[1:]))]
        if tag in ("ul", "ol"):
            items = [b for b in self.of(node) if b.kind == "list_item" or b.text or b.children]
            items = [b if b.kind == "list_item" else Block(kind="list_item", children=(b,)) for b in items]
            start = _whole(node, "start")
            made = Block(
                kind="list",
                ordered=tag == "ol",
                start=1 if start is None or tag == "ul" else start,
                children=tuple(items),
                **place,
            )
            return [made] if items else []
        if tag in ("li", "dt", "dd"):
            item = self._text_block(node, "list_item")
            return [dataclasses.replace(item, value=_whole(node, "value") if tag == "li" else None)]
        if tag == "table":
            return self._table(node)
        if tag == "pre":
            return [Block(kind="code", runs=(Run(node.content().strip("\n")),), **place)]
        if tag == "math" or tag == "formula":
            return self._special(node, "formula", "latex")
        if tag == "img":
            return [Block(kind="image", **place)]
        if tag in ("figure", "div", "section", "p", "img"):
            special = self._by_class(node)
            if special is not None:
                return special
        if tag in ("p", "center", "address", "title", "caption", "figcaption"):
            kind: Kind = "caption" if "caption" in tag else "paragraph"
            block = self._text_block(node, kind)
            return [block] if block.runs or block.children or block.box else []
        if tag == "blockquote":
            return [Block(kind="quote", children=tuple(self.of(node)), **place)]
        inner = self.of(node)
        if place["box"] is None:
            return inner
        if len(inner) == 1 and inner[0].box is None:
            return [dataclasses.replace(inner[0], **place)]
        return [Block(kind="group", children=tuple(inner), **place)]

    def _by_class(self, node: Node) -> list[Block] | None:
        words = " ".join(node.classes).replace("_", " ").replace("-", " ").replace(".", " ").split()
        if "formula" in words and "chemical" in words:
            return self._special(node, "chemistry", "smile")
        if "music" in words:
            return self._special(node, "music", "abc notation")
        if "formula" in words or "equation" in words:
            return self._special(node, "formula", "latex")
        if "chart" in words:
            return [Block(kind="chart", children=tuple(self.of(node)), **self._place(node))]
        if "image" in words or "figure" in words:
            return self._image(node, words)
        if "caption" in words:
            return [self._text_block(node, "caption")]
        return None

    def _special(self, node: Node, kind: Kind, default_format: str) -> list[Block]:
        """Formulas, music and molecules: their text is code of its own kind, kept letter by letter."""
        content = node.content().strip()
        made = node.attributes.get("format", default_format)
        return [Block(kind=kind, runs=(Run(content),) if content else (), format=made, **self._place(node))]

    def _image(self, node: Node, words: list[str]) -> list[Block]:
        place = self._place(node)
        inner = [b for b in self.of(node) if not (b.kind == "image" and not b.children)]
        kind: Kind | None = "caption" if "caption" in words else "image_text" if "ocr" in words else None
        if kind is not None:
            inner = [dataclasses.replace(b, kind=kind) if b.kind == "paragraph" else b for b in inner]
        return [Block(kind="image", children=tuple(inner), **place)]

    def _table(self, node: Node) -> list[Block]:
        captions = [
            Block(kind="caption", runs=runs, **self._place(c))
            for c in node.children
            if c.tag == "caption" and (runs := _runs(c.children))
        ]
        boxes = {id(c): self.frame.boxes[id(c)] for c in node.find("td", "th") if id(c) in self.frame.boxes}
        table = html_table(node, self.log, boxes)
        stray = [
            c for c in node.children if c.tag not in ("thead", "tbody", "tfoot", "tr", "td", "th", "caption")
        ]
        around = self.of(Node("div", children=stray))  # text between the rows, which browsers move out too
        if around:
            self.log.add("text between table rows moved after the table", node.start)
        if not table.cells and not captions:
            return around
        return [*captions, Block(kind="table", table=table, **self._place(node)), *around]

    def _text_block(self, node: Node, kind: Kind, level: int = 0) -> Block:
        """Runs up to the first inner block; the rest become children."""
        first = next(
            (i for i, c in enumerate(node.children) if c.tag and c.tag != "br" and _is_block(c)),
            len(node.children),
        )
        runs = _runs(node.children[:first])
        rest = self.of(Node(node.tag, children=node.children[first:]))
        if not runs and kind == "list_item" and rest and rest[0].kind == "paragraph" and rest[0].box is None:
            runs, rest = rest[0].runs, rest[1:]  # <li><p>text</p></li>
        return Block(kind=kind, runs=runs, level=level, children=tuple(rest), **self._place(node))


def _whole(node: Node, name: str) -> int | None:
    """A whole number that an attribute holds, of a size that a list may have."""
    text = node.attributes.get(name, "").strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,6}", text) else None


_NO_TEXT = RAW | frozenset(["!--", "wbr"])


def _is_block(node: Node) -> bool:
    return node.tag not in _NO_TEXT and (node.tag not in INLINE or _has_blocks(node))


def _has_blocks(node: Node) -> bool:
    return any(n.tag and n.tag not in INLINE and n.tag != "br" and n.tag not in _NO_TEXT for n in node.walk())


def _runs(nodes: Iterable[Node]) -> tuple[Run, ...]:
    """Inline nodes as runs, blanks as browsers show them: runs of blanks are one, none at the ends."""
    found: list[Run] = []

    def add(node: Node, styles: frozenset[str]) -> None:
        if not node.tag:
            found.append(Run(node.text, styles))
        elif node.tag == "br":
            found.append(Run("\v", styles))  # a mark that isn't folded with other blanks
        elif node.tag not in RAW and node.tag != "!--":
            style = _STYLES.get(node.tag)
            inner = styles | {style} if style else styles
            for child in node.children:
                add(child, inner)

    for node in nodes:
        add(node, frozenset())
    # pieces are joined once at the end: adding each to a growing text takes the square of its length
    merged: list[tuple[list[str], frozenset[str]]] = []
    for run in found:
        text = re.sub(r"[^\S\v]+", " ", run.text)
        if merged and merged[-1][0][-1][-1:] in " \v":
            text = text.lstrip(" ")
        if not text:
            continue
        if merged and merged[-1][1] == run.styles:
            merged[-1][0].append(text)
        else:
            merged.append(([text], run.styles))
    joined = [Run(re.sub(r" ?\v ?", "\n", "".join(texts)), styles) for texts, styles in merged]
    if joined:
        joined[0] = Run(joined[0].text.lstrip(), joined[0].styles)
        joined[-1] = Run(joined[-1].text.rstrip(), joined[-1].styles)
    return tuple(r for r in joined if r.text)


__getattr__ = moved.names(__name__)
