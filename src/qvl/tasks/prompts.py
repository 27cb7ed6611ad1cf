"""The prompts of each task, as each generation was trained with them, so that `outputs` can parse the answer.

Where a model was trained on fixed words (QwenVL HTML, the grounding tags) they are those of its makers' readme and
cookbooks; the others are ours. Their wording matters more than their style.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from qvl.catalog.generations import Generation, by_name
from qvl.errors import OutputError, PromptError
from qvl.geometry import Size
from qvl.outputs.actions import screen_convention

Task = Literal["boxes", "document", "events", "moment", "actions"]
Tool = Literal["computer_use", "mobile_use"]

# Taught on drawn images with questions as people type them; it knows no instruction about the format.
PLAIN_MODELS = frozenset(["mini"])


def is_plain(model: str) -> bool:
    """By the last part of its name, so that a folder of that name counts too."""
    return model.replace("\\", "/").rstrip("/").rpartition("/")[2] in PLAIN_MODELS


@dataclass(frozen=True)
class Prompt:
    """What is said to the model. The older document prompt stands before its image."""

    question: str
    system: str | None = None
    media_first: bool = True


_ASKS_FOR_PLACES = re.compile(r"bbox|box|coordinate|point_2d|json|<ref>|坐标|좌표", re.IGNORECASE)


def task_prompt(
    task: Task,
    family: Generation | str,
    question: str,
    *,
    model: str = "",
    tool: Tool = "computer_use",
    screen: Size | None = None,
) -> Prompt:
    """The words for a task. screen: the size at which the model sees the screenshot; actions need it.

    Raises: PromptError for a task that this family can't do, or a question that is missing.
    """
    question = question.strip()
    if not question and task != "document":
        raise PromptError(f"no question: {task} needs a question that says what to look for")
    generation = by_name(family)
    if not generation.takes_video and task in ("events", "moment", "actions"):
        raise PromptError(f"{generation.title} was not trained for {task}: take Qwen2.5-VL or later")
    if is_plain(model):
        return _plain_prompt(task, question)
    if task == "boxes":
        asks = _ASKS_FOR_PLACES.search(question)
        return Prompt(question if asks else f"{question} {generation.prompts.boxes}")
    if task == "document":
        words = generation.prompts
        page = words.page or _UNTAUGHT_PAGE
        return Prompt(page + (f"\n{question}" if question else ""), media_first=not words.page_first)
    if task == "moment":
        return Prompt(
            f"Give the query: '{question}', when does the described content occur in the video? {_TIMES}"
        )
    if task == "events":
        return Prompt(f"{question} {_TIMES}")
    if screen is None:
        raise OutputError("actions need the size of the screenshot as the model sees it")
    return Prompt(question, system=tool_system_prompt(generation, tool, screen))


_UNTAUGHT_PAGE = "Write this page as HTML with its headings, paragraphs, lists and tables in reading order."
_TIMES = "Give the start and the end of each as mm:ss.ff."


def _plain_prompt(task: Task, question: str) -> Prompt:
    if task == "document":
        return Prompt("QwenVL HTML")
    if task in ("moment", "events") and not question.endswith("?"):
        thing = re.sub(r"^(?:the|an?)\s+", "", question.rstrip(". "), flags=re.IGNORECASE)
        thing = re.sub(r"\s+(?:appears?|is (?:visible|on screen|shown))$", "", thing)
        return Prompt(f"From when to when is the {thing} on screen?")
    return Prompt(question if question.endswith((".", "?", "!")) else f"{question}.")


_COMPUTER_ACTIONS = (
    *(
        "key",
        "type",
        "mouse_move",
        "left_click",
        "left_click_drag",
        "right_click",
        "middle_click",
        "double_click",
    ),
    *("triple_click", "scroll", "hscroll", "wait", "terminate", "answer"),
)
_MOBILE_ACTIONS = ("click", "long_press", "swipe", "type", "system_button", "wait", "terminate")
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "coordinate": {"type": "array", "description": "x and y on the screen."},
    "text": {"type": "string", "description": "What to type, open or answer."},
    "time": {"type": "number", "description": "Seconds, for wait and long_press."},
    "status": {
        "type": "string",
        "enum": ["success", "failure"],
        "description": "How the task ended, for terminate.",
    },
}
_COMPUTER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "keys": {"type": "array", "description": "Key names pressed together, for key."},
    "pixels": {"type": "number", "description": "How far to scroll; above 0 is up."},
}
_MOBILE_ARGUMENTS: dict[str, dict[str, Any]] = {
    "coordinate2": {"type": "array", "description": "Where a swipe ends."},
    "button": {
        "type": "string",
        "enum": ["Back", "Home", "Menu", "Enter"],
        "description": "For system_button.",
    },
}


def tool_system_prompt(family: Generation | str, tool: Tool, screen: Size) -> str:
    """The tool's schema with the screen's size in the numbers that this family writes."""
    generation = by_name(family)
    scale = screen_convention(generation, tool).scale
    wide, high = (int(scale), int(scale)) if scale else (screen.width, screen.height)
    actions: tuple[str, ...]
    if tool == "computer_use":
        actions, more = _COMPUTER_ACTIONS, _COMPUTER_ARGUMENTS
        what = "Controls a computer with mouse and keyboard."
    else:
        actions, more = (*_MOBILE_ACTIONS, *generation.phone_actions), _MOBILE_ARGUMENTS
        what = "Controls a phone by touch."
    parameters = {
        "type": "object",
        "required": ["action"],
        "properties": {"action": {"type": "string", "enum": list(actions)}, **_ARGUMENTS, **more},
    }
    function = {
        "name": tool,
        "description": f"{what} The screen's resolution is {wide}x{high}; click in the middle of elements.",
        "parameters": parameters,
    }
    return (
        "You are a helpful assistant who works on the user's screen with this function:\n"
        f"<tools>\n{json.dumps({'type': 'function', 'function': function})}\n</tools>\n"
        "Answer with the next call, as JSON with its name and arguments inside tags:\n"
        '<tool_call>\n{"name": <function name>, "arguments": <object>}\n</tool_call>'
    )
