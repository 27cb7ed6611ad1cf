"""Tool calls in the family's own words: `<tool_call>` around one JSON object, each way.

request   tools, earlier calls and results  →  prompt   (templates that know no tools are helped here)
answer    text as it comes                  →  Said: text, or a whole call
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qvl.errors import PromptError

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Call:
    """A function the model wants called. `arguments` is JSON, as OpenAI's clients expect it."""

    name: str
    arguments: str
    id: str
    goes_on: bool = False  # more arguments of the call that came last

    def openai(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


Said = str | Call


class CallReader:
    """Text goes in as it comes; text and whole calls come out, and no part of a call ever as text.

    What stands in the tags and is no call of a known function comes out as the text it was.
    """

    def __init__(self, names: Sequence[str], one: bool = False):
        """one: what is called after the first is left out."""
        self._names = frozenset(names)
        self._one = one
        self._held = ""
        self._inside = False
        self._called = False
        self._spoke = False  # since the last call, other than space

    def push(self, text: str) -> list[Said]:
        self._held += text
        said: list[Said] = []
        while True:
            mark = CLOSE if self._inside else OPEN
            before, found, after = self._held.partition(mark)
            if not found:
                break
            self._held = after
            said += self._call(before, OPEN + before + CLOSE) if self._inside else self._text(before)
            self._inside = not self._inside
        if not self._inside:
            keep = _begins(self._held, OPEN)
            cut = len(self._held) - keep
            # space at the end may stand before a call, where it means nothing
            cut = len(self._held[:cut].rstrip())
            said += self._text(self._held[:cut], final=True)
            self._held = self._held[cut:]
        return said

    def finish(self) -> list[Said]:
        """What is left. A call whose closing tag is missing counts when its JSON is whole."""
        held, self._held = self._held, ""
        if self._inside:
            self._inside = False
            return self._call(held, OPEN + held)
        return self._text(held, final=not self._called)

    def _text(self, text: str, final: bool = False) -> list[Said]:
        text = text if final else text.rstrip()
        if self._called and not self._spoke:
            text = text.lstrip()
        self._spoke = self._spoke or bool(text.strip())
        return [text] if text else []

    def _call(self, body: str, verbatim: str) -> list[Said]:
        try:
            raw = json.loads(body)
            name, arguments = raw["name"], raw.get("arguments", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return [verbatim]
        if not isinstance(name, str) or name not in self._names:
            return [verbatim]
        again = self._called
        self._called, self._spoke = True, False
        if self._one and again:
            return []
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return [Call(name, text, f"call_{secrets.token_hex(12)}")]


class ForcedCallReader:
    """A call that a grammar forces, its arguments as they come. `call_grammar` leaves no other way to write it."""

    _HEAD = re.compile(re.escape(OPEN) + r'\s*\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')

    def __init__(self) -> None:
        self._held = ""
        self._call: Call | None = None
        self._scan = _ValueScan()

    def push(self, text: str) -> list[Said]:
        said: list[Said] = []
        self._held += text
        if self._call is None:
            head = self._HEAD.match(self._held)
            if head is None:
                return []
            self._call = Call(json.loads(head[1]), "", f"call_{secrets.token_hex(12)}")
            self._held = self._held[head.end() :]
            said.append(self._call)
        piece = self._held[: self._scan.length(self._held)]
        self._held = ""
        if piece:
            said.append(replace(self._call, arguments=piece, goes_on=True))
        return said

    def finish(self) -> list[Said]:
        """What was cut before the call's name stays text."""
        held, self._held = self._held, ""
        return [held] if held and self._call is None else []


class _ValueScan:
    """How much of a text belongs to one JSON object, which may come in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = self._ended = False

    def length(self, piece: str) -> int:
        for at, char in enumerate(piece):
            if self._ended:
                return at
            if self._quoted:
                self._quoted = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                self._ended = self._depth == 0
        return len(piece)


def _begins(text: str, mark: str) -> int:
    """Length of the longest end of `text` that `mark` could begin with."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0


# ------------------------------------------------------------------------------------------- into the prompt


def write_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The conversation with tools, calls and results written out, for templates that leave them out.

    The released Qwen2-VL and Qwen2.5-VL templates do, though the language models under them learned the format.
    """
    written = [_plain(message) for message in messages]
    if tools:
        first = written.pop(0) if written[0]["role"] == "system" else {"role": "system", "content": ""}
        head = _text_of(first["content"])
        written.insert(
            0, {"role": "system", "content": f"{head}\n\n{_notice(tools)}" if head else _notice(tools)}
        )
    return written


def _notice(tools: Sequence[Mapping[str, Any]]) -> str:
    """Word for word what the models saw in training; other words make them call less reliably."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{listed}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        f"{OPEN}{CLOSE} XML tags:\n{OPEN}\n"
        f'{{"name": <function-name>, "arguments": <args-json-object>}}\n{CLOSE}'
    )


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        # a result is words of a stranger: it stays text, whatever tags it holds
        result = _text_of(message["content"])
        return {"role": "user", "content": f"<tool_response>\n{result}\n</tool_response>"}
    if not message.get("tool_calls"):
        return dict(message)
    lines = [_text_of(message.get("content") or "")]
    for call in message["tool_calls"]:
        function = call["function"]
        try:
            arguments = json.loads(function["arguments"] or "{}")
        except (ValueError, RecursionError) as e:
            raise PromptError(f"arguments of the call of {function['name']} are not JSON ({e})") from e
        body = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
        lines.append(f"{OPEN}\n{body}\n{CLOSE}")
    return {"role": message["role"], "content": "\n".join(line for line in lines if line)}


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(item["text"] for item in content)


# -------------------------------------------------------------------------------------------- forcing a call


def call_grammar(
    tools: Sequence[Mapping[str, Any]], special: frozenset[str], otherwise: Mapping[str, Any] | None = None
) -> str:
    """A Lark grammar (llguidance's) of exactly one call of one of the tools.

    otherwise: a schema; then the answer may also be that, and the calls may be several.
    special: added tokens of the vocabulary; a tag that is one of them must come as that token.
    """
    one_of = []
    for tool in tools:
        function = tool["function"]
        arguments = function.get("parameters") or {"type": "object"}
        one_of.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    # `x-guidance` would let a request change how its own grammar is read
    schema = readable({"anyOf": one_of}) | {"x-guidance": JSON_STYLE}
    opened, closed = (tag if tag in special else json.dumps(tag) for tag in (OPEN, CLOSE))
    call = f'{opened} "\\n" call "\\n" {closed}'
    rule = f"call: %json {json.dumps(schema)}\n"
    if otherwise is None:
        return f"start: {call}\n{rule}"
    answer = readable(otherwise) | {"x-guidance": JSON_STYLE}
    return (
        f'start: tagged ("\\n" tagged)* | answer\nanswer: %json {json.dumps(answer)}\ntagged: {call}\n{rule}'
    )


# One way to write space: a model that likes blanks could otherwise write nothing else.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def readable(schema: Any) -> Any:
    """The schema as the grammar library gets it: without keys that speak to the library, and closed.

    Where it leaves open what else an object may hold, nothing else is written: weak models would invent keys until
    their tokens end.
    """
    plain = without_guidance(schema)
    return plain if _joins(plain) else _closed(plain)


def without_guidance(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        return {key: without_guidance(value) for key, value in schema.items() if key != "x-guidance"}
    return [without_guidance(value) for value in schema] if isinstance(schema, list) else schema


def _joins(schema: Any) -> bool:
    """Whether objects are put together of several schemas, each of which has to let the others' keys pass."""
    if isinstance(schema, Mapping):
        several = isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1
        beside = "properties" in schema and not _JOINERS.isdisjoint(schema)
        return several or beside or any(map(_joins, schema.values()))
    return isinstance(schema, list) and any(map(_joins, schema))


_JOINERS = frozenset(
    ["$ref", "allOf", "anyOf", "oneOf", "if", "not", "dependentSchemas", "unevaluatedProperties"]
)
_OF_NAMES = frozenset(["properties", "patternProperties", "$defs", "definitions"])
_VALUES = frozenset(["const", "default", "enum", "examples"])


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(value) for value in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _OF_NAMES and isinstance(value, Mapping):
            closed[key] = {name: _closed(inner) for name, inner in value.items()}
        else:
            closed[key] = value if key in _VALUES else _closed(value)
    named, required = closed.get("properties"), closed.get("required", [])
    is_open = {"additionalProperties", "patternProperties"}.isdisjoint(closed)
    if not (named and isinstance(named, dict) and isinstance(required, list) and is_open):
        return closed
    if all(isinstance(name, str) and name in named for name in required):
        closed["additionalProperties"] = False
    return closed
