"""A forgiving reader of the small HTML that models write for documents: text → tree of `Node`s.

Not a browser's parser, on purpose: model output is full of formulas (`a < b`), so only known tags with proper
attributes count as tags and everything else stays text; and each thing mended is reported with its place, which
browser-like parsers don't do. One pass, no recursion.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from qvl.outputs.repair import RepairLog

MAX_DEPTH = 48  # deeper tags are dropped, their text stays

VOID = frozenset(["br", "img", "hr", "col", "input", "wbr", "meta", "link"])
INLINE = frozenset(
    "b strong i em u s del ins sup sub code span a small mark q cite label font tt kbd var big strike".split()
)
BLOCK = frozenset(
    "html head body h1 h2 h3 h4 h5 h6 p div ul ol li dl dt dd pre blockquote table thead tbody tfoot tr td th caption "
    "colgroup figure figcaption style script section article header footer main aside nav form formula title "
    "address center math textarea button select option".split()
)
KNOWN = VOID | INLINE | BLOCK
RAW = frozenset(["style", "script"])  # their content is no text of the page

# a start tag on the left ends an open one of these on the right
_ENDS: dict[str, frozenset[str]] = {
    "li": frozenset(["li"]),
    "dt": frozenset(["dt", "dd"]),
    "dd": frozenset(["dt", "dd"]),
    "tr": frozenset(["tr", "td", "th", "caption", "colgroup"]),
    "td": frozenset(["td", "th"]),
    "th": frozenset(["td", "th"]),
    "thead": frozenset(["tr", "td", "th", "caption", "colgroup"]),
    "tbody": frozenset(["thead", "tbody", "tr", "td", "th", "caption", "colgroup"]),
    "tfoot": frozenset(["thead", "tbody", "tr", "td", "th"]),
    "option": frozenset(["option"]),
    **{
        name: frozenset(["p", "h1", "h2", "h3", "h4", "h5", "h6"])
        for name in (
            "p h1 h2 h3 h4 h5 h6 div ul ol dl pre blockquote table figure section article header footer hr".split()
        )
    },
}
# and doesn't look for them beyond one of these
_FENCES: dict[str, frozenset[str]] = {
    "li": frozenset(["ul", "ol", "table"]),
    **dict.fromkeys(["tr", "td", "th", "thead", "tbody", "tfoot"], frozenset(["table"])),
}
_CELL_FENCE = frozenset(["td", "th", "caption", "table", "li", "div"])

_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]{0,15})(?=[\s/>])|<!--|<!doctype[^<>]{0,200}>", re.IGNORECASE)
_ATTRIBUTE = re.compile(
    r"\s+([A-Za-z][\w:.-]{0,40})\s*=\s*(?:\"([^\"<>]{0,2000})\"|'([^'<>]{0,2000})'|([^\s\"'<>]{1,2000}))"
    r"|\s+(nowrap|checked|disabled|selected|hidden|border)(?=[\s/>])"
)
_TAG_END = re.compile(r"\s*/?>")
_CUT_TAG = re.compile(
    r"</?[A-Za-z][A-Za-z0-9]{0,15}(?:\s[^<>]{0,4000})?\Z|</?\Z|<!--(?:(?!-->)[\s\S]){0,4000}\Z"
)


@dataclass
class Node:
    """A tag with its attributes and children; a text is a Node with an empty tag. `start` is where it begins."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)
    text: str = ""
    start: int = 0

    def walk(self) -> Iterator[Node]:
        """This node and all below it, in the order of the text."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    def find(self, *tags: str) -> Iterator[Node]:
        return (n for n in self.walk() if n.tag in tags)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.attributes.get("class", "").lower().split())

    def content(self, skip: frozenset[str] = frozenset()) -> str:
        """All text below, with line breaks for <br>, without that of `skip` tags, style and script."""
        parts: list[str] = []
        stack = [self]
        while stack:
            node = stack.pop()
            if not node.tag:
                parts.append(node.text)
            elif node.tag == "br":
                parts.append("\n")
            elif node is self or (node.tag not in skip and node.tag not in RAW):
                stack.extend(reversed(node.children))
        return "".join(parts)


def parse_html(text: str) -> tuple[Node, tuple[str, ...]]:
    """The tree below a node named `#root`, and what was mended. Comments come as nodes of tag `!--`."""
    log = RepairLog()
    builder = _Builder(log)
    cut = _CUT_TAG.search(text, max(0, len(text) - 4100))
    if cut and _may_be_tag(cut.group()):
        log.add("cut-off tag at the end dropped", cut.start())
        text = text[: cut.start()]
    pos = 0
    while (match := _TAG.search(text, pos)) is not None:
        if match.group() == "<!--":
            builder.text(text[pos : match.start()], pos)
            end = text.find("-->", match.end())
            if end < 0:
                log.add("unclosed comment", match.start())
                end = len(text)
            builder.comment(text[match.end() : end], match.start())
            pos = end + 3
            continue
        if not match[2]:  # <!DOCTYPE html>
            builder.text(text[pos : match.start()], pos)
            pos = match.end()
            continue
        name = match[2].lower()
        attributes, end = _attributes(text, match.end())
        if name not in KNOWN or end < 0:
            kind = (
                f"<{name}> isn't a tag of documents"
                if name not in KNOWN
                else f"<{name} that isn't a whole tag"
            )
            log.add(f"{kind}, kept as text", match.start())
            builder.text(text[pos : match.end()], pos)
            pos = match.end()
            continue
        builder.text(text[pos : match.start()], pos)
        pos = end
        if match[1]:
            builder.end(name, match.start())
            continue
        builder.start(name, attributes, match.start(), text[end - 2 : end] == "/>")
        if name in RAW:
            closing = text.find(f"</{name}", pos)
            stop = closing if closing >= 0 else len(text)
            builder.text(text[pos:stop], pos)
            pos = stop
    builder.text(text[pos:], pos)
    builder.finish(len(text))
    return builder.root, log.lines()


def _may_be_tag(piece: str) -> bool:
    name = re.match(r"</?([A-Za-z0-9]*)", piece)
    if piece.startswith("<!--") or name is None:
        return True
    begun = name[1].lower()
    whole = len(name.group()) < len(piece)
    return begun in KNOWN if whole else any(tag.startswith(begun) for tag in KNOWN)


def _attributes(text: str, at: int) -> tuple[dict[str, str], int]:
    """Attributes from `at` on and where the tag ends; -1 if it doesn't end as a tag."""
    found: dict[str, str] = {}
    while (match := _ATTRIBUTE.match(text, at)) is not None and len(found) < 40:
        if match[5]:
            found.setdefault(match[5].lower(), "")
        else:
            value = next((match[i] for i in (2, 3, 4) if match[i] is not None), "")
            if match[4] is not None and value.endswith("/") and text[match.end() : match.end() + 1] == ">":
                value = value[:-1]
            found.setdefault(match[1].lower(), html.unescape(value))
        at = match.end()
    end = _TAG_END.match(text, at)
    return found, end.end() if end else -1


class _Builder:
    """Keeps the open tags as a stack, and closes what HTML closes by itself without a word."""

    def __init__(self, log: RepairLog) -> None:
        self.root = Node("#root")
        self.stack = [self.root]
        self.log = log
        self.dropped: dict[str, int] = {}  # tags left out for depth, by name

    def text(self, text: str, at: int) -> None:
        if text:
            self.stack[-1].children.append(Node("", text=html.unescape(text), start=at))

    def comment(self, text: str, at: int) -> None:
        self.stack[-1].children.append(Node("!--", text=text, start=at))

    def start(self, name: str, attributes: dict[str, str], at: int, self_closed: bool) -> None:
        self._imply(name)
        if len(self.stack) > MAX_DEPTH and name not in VOID:
            self.log.add(f"tags nested deeper than {MAX_DEPTH} left out", at)
            self.dropped[name] = self.dropped.get(name, 0) + 1
            return
        node = Node(name, attributes, start=at)
        self.stack[-1].children.append(node)
        if name not in VOID and not self_closed:
            self.stack.append(node)

    def _imply(self, name: str) -> None:
        """Closes the tags that this one ends by the rules of HTML: <li> ends an open <li>."""
        ends = _ENDS.get(name)
        if ends is None:
            return
        fences = _FENCES.get(name, _CELL_FENCE)
        lowest = len(self.stack)
        for index in range(len(self.stack) - 1, 0, -1):
            if self.stack[index].tag in fences:
                break
            if self.stack[index].tag in ends:
                lowest = index
        for node in self.stack[lowest:]:
            if node.tag in INLINE:
                self.log.add(f"unclosed <{node.tag}>", node.start)
        del self.stack[lowest:]

    def end(self, name: str, at: int) -> None:
        if self.dropped.get(name):
            self.dropped[name] -= 1
            return
        if name in VOID:
            if name != "br":
                self.log.add(f"stray </{name}> dropped", at)
            return
        fences = frozenset(["table"]) if name not in ("table", "html", "body", "div") else frozenset()
        for index in range(len(self.stack) - 1, 0, -1):
            tag = self.stack[index].tag
            if tag == name or (name[0] == tag[0] == "h" and name[1:].isdigit() and tag[1:].isdigit()):
                if tag != name:
                    self.log.add(f"<{tag}> closed by </{name}>", at)
                for node in self.stack[index + 1 :]:
                    if node.tag not in ("li", "tr", "td", "th", "p", "tbody", "thead", "dd", "dt", "option"):
                        self.log.add(f"unclosed <{node.tag}>", node.start)
                del self.stack[index:]
                return
            if tag in fences:
                break
        self.log.add(f"stray </{name}> dropped", at)

    def finish(self, at: int) -> None:
        for node in self.stack[1:]:
            if node.tag not in ("html", "body"):
                self.log.add(f"unclosed <{node.tag}>", node.start)
        if any(n.tag in ("html", "body") for n in self.stack[1:]):
            self.log.add("the document's end is missing", at)
        del self.stack[1:]
