"""Tool calls of the agent prompts → typed actions in coordinates of the real screen.

Qwen2.5-VL and later call `computer_use` and `mobile_use` inside `<tool_call>` tags (as JSON, or as
`<function=…><parameter=…>` in the newest templates); Qwen2-VL's agent prompts use `✿FUNCTION✿: … ✿ARGS✿: …`.

Actions are executed, so none is adjusted to fit: an action that is unknown, lacks an argument or points outside the
screen is refused, and so is all that follows it, since it counted on the refused one having happened.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from qvl.catalog.generations import by_name
from qvl.catalog.generations.generation import Convention, Generation
from qvl.errors import OutputError
from qvl.outputs.mapping import PictureMap
from qvl.outputs.repair import RepairLog, answer_text, find_json
from qvl.outputs.results import item_dict

Button = Literal["left", "right", "middle"]


@dataclass(frozen=True)
class Click:
    x: float
    y: float
    button: Button = "left"
    count: int = 1


@dataclass(frozen=True)
class LongPress:
    x: float
    y: float
    seconds: float


@dataclass(frozen=True)
class Move:
    x: float
    y: float


@dataclass(frozen=True)
class Drag:
    """From where the pointer is; a `Swipe` says both ends itself."""

    x: float
    y: float


@dataclass(frozen=True)
class Swipe:
    x: float
    y: float
    to_x: float
    to_y: float


@dataclass(frozen=True)
class Scroll:
    """`up` and `right` in the model's own pixels: positive scrolls up, and to the right."""

    up: float = 0.0
    right: float = 0.0


@dataclass(frozen=True)
class Keys:
    """Pressed together, in this order, and let go in the opposite one."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class TypeText:
    text: str


@dataclass(frozen=True)
class SystemButton:
    button: Literal["Back", "Home", "Menu", "Enter"]


@dataclass(frozen=True)
class OpenApp:
    name: str


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Reply:
    """An answer to the user in words."""

    text: str


@dataclass(frozen=True)
class Terminate:
    status: Literal["success", "failure"]


Action = (
    Click
    | LongPress
    | Move
    | Drag
    | Swipe
    | Scroll
    | Keys
    | TypeText
    | SystemButton
    | OpenApp
    | Wait
    | Reply
    | Terminate
)


@dataclass(frozen=True, kw_only=True)
class ActionResult:
    """`items` are safe to carry out in order. `refused` says what was not read as an action and why; it is
    always the first one refused, and `not_reached` counts the calls after it."""

    items: tuple[Action, ...] = ()
    refused: str | None = None
    not_reached: int = 0
    thought: str = ""
    warnings: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For json.dumps."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return out | {
            "items": [item_dict(a) for a in self.items],
            "warnings": list(self.warnings),
            "repairs": list(self.repairs),
        }


@dataclass(frozen=True)
class ToolCall:
    """A call as written: the tool's name and its arguments."""

    name: str
    arguments: Mapping[str, Any]


class Refused(Exception):
    """Why a call is no action; never leaves this module's functions."""


# ------------------------------------------------------------------------------------------- finding calls

_CALL = re.compile(r"<tool_call>|</tool_call>")
_OLD = re.compile(r"✿FUNCTION✿\s{0,5}[:：]\s{0,5}([\w.-]{1,80})\s{0,5}✿ARGS✿\s{0,5}[:：]")
_OLD_END = re.compile(r"✿(?:FUNCTION|RESULT|RETURN)✿")
_FUNCTION = re.compile(r"<function=([\w.-]{1,80})>")
_PARAMETER = re.compile(r"<parameter=([\w.-]{1,80})>")
_ACTION_LINE = re.compile(r"^\s{0,8}Action\s{0,3}:", re.MULTILINE)


def find_calls(text: str) -> tuple[list[ToolCall | str], tuple[str, ...], int]:
    """Calls in the order written (a text where one can't be read, with the reason), the repairs, and where the
    first begins."""
    calls: list[ToolCall | str] = []
    repairs: list[str] = []
    log = RepairLog()
    tags = list(_CALL.finditer(text))
    begins = len(text)
    for tag, following in zip(tags, [*tags[1:], None]):
        if tag.group() == "</tool_call>":
            continue
        begins = min(begins, tag.start())
        body = text[tag.end() : following.start() if following else len(text)]
        if following is None or following.group() == "<tool_call>":
            log.add("unclosed <tool_call>", tag.start())
        calls += _body_calls(body, repairs, cut=following is None)
    if not tags:
        for match in _OLD.finditer(text):
            begins = min(begins, match.start())
            end = _OLD_END.search(text, match.end())
            found = find_json(text[match.end() : end.start() if end else len(text)])
            calls.append(_named(match[1], found[0].value if found else None, repairs))
            if found:
                repairs += found[0].repairs
                if not found[0].complete:
                    calls[-1] = f"the call of {match[1]!r} is cut off"
    if not calls and not tags:  # a server's tool parser may already have taken the tags away
        for item in find_json(text):
            if isinstance(item.value, dict) and "name" in item.value and "arguments" in item.value:
                begins = min(begins, item.start)
                repairs += item.repairs
                calls.append(
                    _named(str(item.value["name"]), item.value["arguments"], repairs)
                    if item.complete
                    else f"the call of {item.value['name']!r} is cut off"
                )
    return calls, (*log.lines(), *repairs[:50]), begins


def _body_calls(body: str, repairs: list[str], cut: bool) -> list[ToolCall | str]:
    function = _FUNCTION.search(body)
    if function:
        if "</function>" not in body:
            return [f"the call of {function[1]!r} is cut off"]
        return [ToolCall(function[1], dict(_parameters(body)))]
    made: list[ToolCall | str] = []
    for found in find_json(body):
        repairs += found.repairs
        for value in found.value if isinstance(found.value, list) else [found.value]:
            if not isinstance(value, dict) or "name" not in value:
                made.append("a tool call without a name")
            elif not found.complete and cut:
                made.append(f"the call of {value['name']!r} is cut off")
            else:
                made.append(_named(str(value["name"]), value.get("arguments"), repairs))
    return made or [f"a tool call that can't be read: {body.strip()[:60]!r}"]


def _named(name: str, arguments: Any, repairs: list[str]) -> ToolCall | str:
    if isinstance(arguments, str):  # OpenAI's way: the arguments as a JSON text
        found = find_json(arguments)
        if found and not found[0].complete:
            return f"the arguments of {name!r} are cut off"
        repairs += found[0].repairs if found else ()
        arguments = found[0].value if found else None
    if not isinstance(arguments, dict):
        return f"the call of {name!r} has no readable arguments"
    return ToolCall(name, arguments)


def _parameters(body: str) -> Iterator[tuple[str, Any]]:
    """`<parameter=name>value</parameter>`; one that isn't closed is left out, and so refused as missing."""
    at = 0
    while (match := _PARAMETER.search(body, at)) is not None:
        end = body.find("</parameter>", match.end())
        if end < 0:
            return
        yield match[1], _plain(match[1], body[match.end() : end].strip("\n"))
        at = end


def _plain(name: str, text: str) -> Any:
    """A parameter's text; a list where it is one. What is to be typed stays a text, whatever it looks like."""
    if name == "text":
        return text
    text = text.strip()
    if text.startswith("["):
        found = find_json(text)
        return found[0].value if found and found[0].complete else text
    return text


# ----------------------------------------------------------------------------------------- reading actions


@dataclass
class _Reader:
    """The arguments of one call, each read with its own check."""

    arguments: Mapping[str, Any]
    picture: PictureMap
    convention: Convention
    warnings: list[str] = field(default_factory=list)

    def place(self, key: str = "coordinate") -> tuple[float, float]:
        """A point on the real screen. The far edge itself belongs to the last pixel."""
        value = self.arguments.get(key)
        if isinstance(value, str):  # "[100, 200]"
            found = find_json(value)
            value = found[0].value if found else None
        if not isinstance(value, list) or len(value) != 2:
            raise Refused(f"{key} is {_short(value)}, it must be [x, y]")
        x, y = (self._finite(v, key) for v in value)
        scale = self.convention.scale
        size = self.picture.seen
        wide, high = (scale, scale) if scale else (size.width, size.height)
        if not (0 <= x <= wide and 0 <= y <= high):
            raise Refused(
                f"{key} [{x:g}, {y:g}] lies outside the screen, which the model knows as {wide:g}x{high:g}"
            )
        real_x, real_y = self.picture.to_original(*self.picture.written_to_seen(x, y, self.convention))
        last = self.picture.original
        edge_x, edge_y = min(real_x, last.width - 1), min(real_y, last.height - 1)
        if (edge_x, edge_y) != (real_x, real_y):
            self.warnings.append(f"{key} [{x:g}, {y:g}] moved by under a pixel, onto the screen's last one")
        return edge_x, edge_y

    def _finite(self, value: Any, key: str) -> float:
        if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,9}(\.\d{1,9})?\s*", value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise Refused(f"{key} is {_short(self.arguments.get(key))}, which isn't a number")
        return float(value)

    def number(self, key: str, least: float = -1e6, most: float = 1e6, default: float | None = None) -> float:
        if key not in self.arguments and default is not None:
            return default
        value = self._finite(self.arguments.get(key), key)
        if not least <= value <= most:
            raise Refused(f"{key} is {value:g}, it must lie between {least:g} and {most:g}")
        return value

    def text(self, key: str = "text") -> str:
        value = self.arguments.get(key)
        if not isinstance(value, str):
            raise Refused(f"{key} is {_short(value)}, it must be a text")
        return value

    def choice(self, key: str, known: tuple[str, ...]) -> Any:
        value = self.arguments.get(key)
        for name in known:
            if isinstance(value, str) and value.lower() == name.lower():
                return name
        raise Refused(f"{key} is {_short(value)}; known: {', '.join(known)}")

    def keys(self) -> tuple[str, ...]:
        value = self.arguments.get("keys", self.arguments.get("text"))
        if isinstance(value, str):
            value = value.split("+") if "+" in value.strip("+ ") else [value]
        if (
            not isinstance(value, list)
            or not value
            or not all(isinstance(k, str) and k.strip() for k in value)
        ):
            raise Refused(f"keys is {_short(value)}, it must be a list of key names")
        return tuple(k.strip() for k in value)

    def pointer(self, button: Button, count: int = 1) -> Action:
        return Click(*self.place(), button, count)


def _short(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]


# One line an action: how its arguments become the typed action. Names are those of the tools' schemas.
COMPUTER: dict[str, Callable[[_Reader], Action]] = {
    "key": lambda r: Keys(r.keys()),
    "type": lambda r: TypeText(r.text()),
    "mouse_move": lambda r: Move(*r.place()),
    "left_click": lambda r: r.pointer("left"),
    "click": lambda r: r.pointer("left"),
    "left_click_drag": lambda r: Drag(*r.place()),
    "right_click": lambda r: r.pointer("right"),
    "middle_click": lambda r: r.pointer("middle"),
    "double_click": lambda r: r.pointer("left", 2),
    "triple_click": lambda r: r.pointer("left", 3),
    "scroll": lambda r: Scroll(up=r.number("pixels")),
    "hscroll": lambda r: Scroll(right=r.number("pixels")),
    "wait": lambda r: Wait(r.number("time", 0, 3600)),
    "terminate": lambda r: Terminate(r.choice("status", ("success", "failure"))),
    "answer": lambda r: Reply(r.text()),
}
MOBILE: dict[str, Callable[[_Reader], Action]] = {
    "key": lambda r: Keys(r.keys()),
    "click": lambda r: r.pointer("left"),
    "long_press": lambda r: LongPress(*r.place(), r.number("time", 0, 60, default=1.0)),
    "swipe": lambda r: Swipe(*r.place(), *r.place("coordinate2")),
    "type": lambda r: TypeText(r.text()),
    "system_button": lambda r: SystemButton(r.choice("button", ("Back", "Home", "Menu", "Enter"))),
    "open": lambda r: OpenApp(r.text()),
    "wait": lambda r: Wait(r.number("time", 0, 3600)),
    "terminate": lambda r: Terminate(r.choice("status", ("success", "failure"))),
    "answer": lambda r: Reply(r.text()),
}
TOOLS = {"computer_use": COMPUTER, "mobile_use": MOBILE}
_ARGUMENTS = frozenset(
    ["action", "coordinate", "coordinate2", "text", "time", "button", "status", "keys", "pixels"]
)


def screen_convention(family: Generation | str, tool: str) -> Convention:
    """How this generation writes places on a screen: Qwen3's phone tool counts to 999, all else as for boxes."""
    generation = by_name(family)
    phone = generation.phone_coordinates if tool == "mobile_use" else None
    return phone or generation.coordinates


def parse_actions(
    text: str, family: Generation | str, screen: PictureMap | None, *, convention: Convention | None = None
) -> ActionResult:
    """The actions a reply asks for, up to the first that must be refused.

    screen: from `picture_map` with the real screen's size as original; when the screenshot was scaled before it
    was sent, the original is still the real screen.
    Raises: OutputError without a screen size or for an unknown family, never for the text.
    """
    generation = by_name(family)
    if screen is None:
        raise OutputError(
            "actions can't be placed without the screen's size: pass screen=picture_map(size, family)"
        )
    answer = answer_text(text)
    if answer.reason:
        return ActionResult(reason=answer.reason)
    calls, repairs, begins = find_calls(answer.text)
    thought = _ACTION_LINE.split(answer.text[:begins], maxsplit=1)[0].strip()
    items: list[Action] = []
    warnings: list[str] = []
    refused: str | None = None
    reached = 0
    for call in calls:
        reached += 1
        try:
            items.append(_read(call, generation, screen, convention, warnings))
        except Refused as why:
            refused = str(why)
            break
        if isinstance(items[-1], Terminate):
            break
    left = len(calls) - reached
    if left and refused is None:
        warnings.append(f"{left} calls after terminate left out")
    reason = None
    if not items:
        reason = refused or "no tool call in the text"
    return ActionResult(
        items=tuple(items),
        refused=refused,
        not_reached=left if refused else 0,
        thought=thought.removeprefix("Thought:").strip(),
        warnings=tuple(warnings),
        repairs=repairs,
        reason=reason,
    )


def _read(
    call: ToolCall | str,
    generation: Generation,
    screen: PictureMap,
    convention: Convention | None,
    warnings: list[str],
) -> Action:
    if isinstance(call, str):
        raise Refused(call)
    if call.name not in TOOLS:
        raise Refused(f"no tool is named {call.name!r}; known: {', '.join(TOOLS)}")
    table = TOOLS[call.name]
    name = call.arguments.get("action")
    if not isinstance(name, str) or name not in table:
        raise Refused(f"{call.name} has no action {_short(name)}; known: {', '.join(table)}")
    unknown = sorted(str(k) for k in set(call.arguments) - _ARGUMENTS)
    if unknown:
        warnings.append(f"{name}: unknown arguments ignored: {', '.join(unknown)[:80]}")
    reader = _Reader(call.arguments, screen, convention or screen_convention(generation, call.name))
    try:
        action = table[name](reader)
    except Refused as why:
        raise Refused(f"{call.name} {name}: {why}") from None
    warnings += [f"{name}: {w}" for w in reader.warnings]
    return action


# ------------------------------------------------------------------------------------------- carrying out


class Executor(Protocol):
    """Whatever can carry out one action on a real screen."""

    def execute(self, action: Action) -> None:
        """Raises: OutputError for an action it can't do."""


def carry_out(actions: Iterable[Action], executor: Executor) -> int:
    """Hands actions over one by one and stops after Terminate; returns how many were handed over."""
    count = 0
    for action in actions:
        executor.execute(action)
        count += 1
        if isinstance(action, Terminate):
            break
    return count


def describe(action: Action) -> str:
    """`click left (120, 48)`, `type "hello"`: one short line for logs and drawings."""
    match action:
        case Click(x, y, button, count):
            times = {1: "", 2: "double ", 3: "triple "}.get(count, f"{count}x ")
            return f"{times}click {button} ({x:.0f}, {y:.0f})"
        case LongPress(x, y, seconds):
            return f"long press ({x:.0f}, {y:.0f}) {seconds:g} s"
        case Move(x, y):
            return f"move to ({x:.0f}, {y:.0f})"
        case Drag(x, y):
            return f"drag to ({x:.0f}, {y:.0f})"
        case Swipe(x, y, to_x, to_y):
            return f"swipe ({x:.0f}, {y:.0f}) to ({to_x:.0f}, {to_y:.0f})"
        case Scroll(up, right):
            return " ".join(
                f"scroll {way} {abs(n):g}"
                for n, way in ((up, "up" if up > 0 else "down"), (right, "right" if right > 0 else "left"))
                if n
            ) or "scroll 0"  # fmt: skip
        case Keys(keys):
            return "press " + "+".join(keys)
        case TypeText(text):
            return f'type "{text[:40]}"'
        case SystemButton(button):
            return f"press {button}"
        case OpenApp(name):
            return f"open {name[:40]}"
        case Wait(seconds):
            return f"wait {seconds:g} s"
        case Reply(text):
            return f'answer "{text[:40]}"'
        case Terminate(status):
            return f"end: {status}"
    raise AssertionError(f"not an action: {action!r}")
