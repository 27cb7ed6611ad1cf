"""Places, pages, moments and actions from any backend: the words that a family was taught, its reply parsed and mapped.

found = run_task(model, "boxes", ["shapes.png"], "Locate the red circle.")
for box in found.result: print(box.label, box.rect)        # in pixels of shapes.png

The words below are what each generation answers in its own format; their wording matters more than their style.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from qvl.backends.answer import Answer, MediaSize, conversation, media_item
from qvl.backends.base import Backend, Stream
from qvl.backends.media import image_size, video_limits
from qvl.catalog.config import Family
from qvl.errors import OutputError, PromptError
from qvl.inputs.geometry import Size
from qvl.inputs.processor import MediaSettings
from qvl.outputs.actions import ActionResult, Click, parse_actions, screen_convention
from qvl.outputs.boxes import Place, Point, parse_boxes
from qvl.outputs.documents import Page, parse_document
from qvl.outputs.events import Clip, Event, parse_events
from qvl.outputs.mapping import CONVENTIONS, PictureMap
from qvl.outputs.repetition import RepetitionGuard
from qvl.outputs.results import ParseResult

if TYPE_CHECKING:
    from PIL import Image

    from qvl.outputs.draw import Drawing

Task = Literal["boxes", "document", "events", "moment", "actions"]
Tool = Literal["computer_use", "mobile_use"]
Result = ParseResult[Place] | ParseResult[Event] | Page | ActionResult

# Taught on drawn pictures with questions as people type them; it knows no instruction about the format.
PLAIN_MODELS = frozenset(["mini"])


def is_plain(model: str) -> bool:
    """By the last part of its name, so that a folder of that name counts too."""
    return model.replace("\\", "/").rstrip("/").rpartition("/")[2] in PLAIN_MODELS


@dataclass(frozen=True)
class Prompt:
    """What is said to the model. The older document prompt stands before its picture."""

    question: str
    system: str | None = None
    media_first: bool = True


R = TypeVar("R", bound=Result, covariant=True)


@dataclass(frozen=True, kw_only=True)
class TaskAnswer(Generic[R]):
    """`result` is typed by the task; `warnings` are about the asking, the result's own are about the text."""

    task: Task
    answer: Answer
    result: R
    picture: PictureMap | None = None
    clip: Clip | None = None
    warnings: tuple[str, ...] = ()

    @property
    def reason(self) -> str | None:
        """Why nothing was found; None when something was."""
        return self.result.reason

    @property
    def all_warnings(self) -> tuple[str, ...]:
        return (*self.warnings, *self.answer.notes, *self.result.warnings)

    def to_dict(self) -> dict[str, Any]:
        """For json.dumps; coordinates are in pixels of the original picture, times in seconds."""
        if isinstance(self.result, Page):
            from qvl.outputs.export import to_dict

            result = to_dict(self.result)
        else:
            result = self.result.to_dict()
        return {"task": self.task, "asking": [*self.warnings, *self.answer.notes], **result}


# ---------------------------------------------------------------------------------------------- the prompts

_ASKS_FOR_PLACES = re.compile(r"bbox|box|coordinate|point_2d|json|<ref>|坐标|좌표", re.IGNORECASE)


def task_prompt(
    task: Task,
    family: Family,
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
        raise PromptError(f"no question: {task} needs to be told what to look for")
    if family == "qwen_vl" and task in ("events", "moment", "actions"):
        raise PromptError(f"the first generation was not taught {task}: take Qwen2.5-VL or later")
    if is_plain(model):
        return _plain_prompt(task, question)
    if task == "boxes":
        return Prompt(question if _ASKS_FOR_PLACES.search(question) else f"{question} {_PLACES[family]}")
    if task == "document":
        prompt = _DOCUMENTS[family]
        return dataclasses.replace(prompt, question=prompt.question + (f"\n{question}" if question else ""))
    if task == "moment":
        return Prompt(
            f"Give the query: '{question}', when does the described content occur in the video? {_TIMES}"
        )
    if task == "events":
        return Prompt(f"{question} {_TIMES}")
    if screen is None:
        raise OutputError("actions need the size of the screenshot as the model sees it")
    return Prompt(question, system=tool_system_prompt(family, tool, screen))


_JSON_PLACES = "Report the bbox coordinates in JSON format."
_PLACES: dict[Family, str] = {
    "qwen_vl": "Mark each with its name and box.",
    "qwen2_vl": "Detect the bounding box of each.",
    "qwen2_5_vl": _JSON_PLACES,
    "qwen3_vl": _JSON_PLACES,
    "qwen3_vl_moe": _JSON_PLACES,
    "qwen3_5": _JSON_PLACES,
    "qwen3_5_moe": _JSON_PLACES,
}
_UNTAUGHT_PAGE = Prompt(
    "Write this page as HTML with its headings, paragraphs, lists and tables in reading order."
)
_DOCUMENTS: dict[Family, Prompt] = {
    "qwen_vl": _UNTAUGHT_PAGE,
    "qwen2_vl": _UNTAUGHT_PAGE,
    "qwen2_5_vl": Prompt("QwenVL HTML ", media_first=False),  # the blank at its end is part of it
    "qwen3_vl": Prompt("qwenvl html"),
    "qwen3_vl_moe": Prompt("qwenvl html"),
    "qwen3_5": Prompt("qwenvl html"),
    "qwen3_5_moe": Prompt("qwenvl html"),
}
_TIMES = "Give the start and the end of each as mm:ss.ff."


def _plain_prompt(task: Task, question: str) -> Prompt:
    if task == "document":
        return Prompt("QwenVL HTML")
    if task == "moment" and not question.endswith("?"):
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


def tool_system_prompt(family: Family, tool: Tool, screen: Size) -> str:
    """The tool's schema with the screen's size in the numbers that this family writes."""
    scale = screen_convention(family, tool).scale
    wide, high = (int(scale), int(scale)) if scale else (screen.width, screen.height)
    if tool == "computer_use":
        actions, more = _COMPUTER_ACTIONS, _COMPUTER_ARGUMENTS
        what = "Controls a computer with mouse and keyboard."
    else:
        later = family.startswith("qwen3")
        actions, more = (*_MOBILE_ACTIONS, *(("answer",) if later else ("key", "open"))), _MOBILE_ARGUMENTS
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


# ---------------------------------------------------------------------------------------------- asking


def run_task(
    backend: Backend,
    task: Task,
    media: Sequence[Any],
    question: str = "",
    *,
    tool: Tool = "computer_use",
    retries: int = 1,
    page_number: int = 1,
    on_text: Callable[[str], object] | None = None,
    **settings: Any,
) -> TaskAnswer[Any]:
    """Asks about one picture (or one clip, for events and moment), watches for endless repetition, parses and maps.

    retries: how often a reply that repeats itself is asked for again, drawn another way. on_text gets the text as it
    comes, of every try.
    Raises: PromptError, MediaError, BackendError as the backend; OutputError when its family isn't known.
    """
    family = backend.family
    if family is None:
        raise OutputError(
            f"the family of {backend.name!r} isn't known, so what its numbers mean can't be told: say it with --family "
            f"({', '.join(CONVENTIONS)})"
        )
    wants = "video" if task in ("events", "moment") else "image"
    items = [media_item(source) for source in media]
    if len(items) != 1 or items[0]["type"].removesuffix("_url") != wants:
        kinds = ", ".join(str(item.get("type")) for item in items) or "none"
        raise PromptError(
            f"{task} needs exactly one {'clip' if wants == 'video' else 'picture'}, got {kinds}"
        )
    pixels = MediaSettings(**{k: v for k, v in settings.items() if k in MediaSettings.__dataclass_fields__})
    clip = clip_of(items[0], family, pixels) if wants == "video" else None
    screen = _seen(backend, family, items[0], pixels) if task == "actions" else None
    prompt = task_prompt(task, family, question, model=backend.name, tool=tool, screen=screen)
    messages = _messages(prompt, items)

    tries: list[tuple[Answer, str | None]] = []
    for number in range(retries + 1):
        drawn = {} if number == 0 else {"temperature": 0.5, "seed": number}
        guard = RepetitionGuard(_written_size(family, task, screen))
        tries.append(_watched(backend.stream_chat(messages, **(settings | drawn)), guard, on_text))
        if tries[-1][1] is None:
            break
    answer, stopped = next((t for t in tries if t[1] is None), max(tries, key=lambda t: len(t[0].text)))
    warnings = [f"try {n}: {why}" for n, (_, why) in enumerate(tries, 1) if why is not None]
    if stopped is None and not answer.text.strip() and answer.reasoning:
        warnings.append("the answer ended while the model still thought: raise --max-new-tokens")
    elif stopped is None and answer.finish_reason == "length":
        warnings.append(f"the answer was cut after {answer.completion_tokens} tokens: raise --max-new-tokens")
    if task == "document" and _DOCUMENTS[family] is _UNTAUGHT_PAGE:
        warnings.append(f"{family} was not taught to write pages: expect no boxes")
    picture = _picture(answer.media) if wants == "image" else None
    result = _parsed(task, answer.text, family, picture, clip, backend.name, page_number)
    return TaskAnswer(
        task=task, answer=answer, result=result, picture=picture, clip=clip, warnings=tuple(warnings)
    )


def _messages(prompt: Prompt, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    messages = conversation(items, prompt.question, prompt.system)
    if not prompt.media_first:
        messages[-1]["content"] = [messages[-1]["content"][-1], *messages[-1]["content"][:-1]]
    return messages


def _written_size(family: Family, task: Task, screen: Size | None) -> Size | None:
    """The size in the numbers that the model writes, where it is known before the answer."""
    scale = CONVENTIONS[family].scale
    if task not in ("boxes", "document"):
        return None
    return Size(int(scale), int(scale)) if scale else screen


def _watched(
    stream: Stream, guard: RepetitionGuard, on_text: Callable[[str], object] | None
) -> tuple[Answer, str | None]:
    """(the answer, why it was stopped). A stopped one is cut to what came before it began to repeat."""
    guards = {True: RepetitionGuard(), False: guard}  # thoughts go round in circles too
    said: dict[bool, list[str]] = {True: [], False: []}
    with stream:  # leaving it cancels the request
        for text, thought in stream.pieces():
            said[thought].append(text)
            if on_text is not None and not thought:
                on_text(text)
            if guards[thought].feed(text):
                break
        else:
            for watched in guards.values():
                watched.finish()
    stops = {thought: watched.stop for thought, watched in guards.items() if watched.stop is not None}
    if stream.answer is None and not stops:
        return stream.finish(), None  # says why there is no answer
    answer = stream.answer or Answer(
        text="",
        finish_reason="repetition",
        prompt_tokens=0,
        visual_tokens=sum(size.visual_tokens for size in stream.media),
        completion_tokens=0,
        media=stream.media,
    )
    if not stops:
        return answer, None
    kept = {kind: "".join(texts) for kind, texts in said.items()}
    for kind, stop in stops.items():
        kept[kind] = kept[kind][: stop.keep]
    where = "while thinking, " if True in stops else ""
    reason = where + next(iter(stops.values())).reason
    return dataclasses.replace(
        answer, text=kept[False], reasoning=kept[True], finish_reason="repetition"
    ), reason


def _seen(backend: Backend, family: Family, item: Mapping[str, Any], pixels: MediaSettings) -> Size:
    """The size at which the backend will show a picture, worked out before asking."""
    from qvl.inputs.image import load_image

    source = item.get("image", item.get("image_url"))
    own = {k: v for k, v in item.items() if k in MediaSettings.__dataclass_fields__}
    image = load_image(source["url"] if isinstance(source, Mapping) else source)
    limits = backend.limits
    limits = MediaSettings(**own).over(pixels).image_limits(limits) if limits else None
    return image_size(Size(image.height, image.width), family, limits).seen


def clip_of(item: Mapping[str, Any], family: Family, settings: MediaSettings) -> Clip:
    """The length of a clip and the seconds of the frames that are shown. Raises: MediaError."""
    from qvl.inputs.video import load_video

    own = {k: v for k, v in item.items() if k in MediaSettings.__dataclass_fields__}
    asked = MediaSettings(**own).over(settings)
    source = item.get("video", item.get("video_url"))
    source = source["url"] if isinstance(source, Mapping) else source
    video = load_video(source, asked.video_limits(video_limits(family)), sample_fps=asked.sample_fps)
    return Clip(duration=video.seconds, frame_times=video.times)


def _picture(media: tuple[MediaSize, ...]) -> PictureMap | None:
    return PictureMap(media[0].original, media[0].seen) if media else None


def _parsed(
    task: Task,
    text: str,
    family: Family,
    picture: PictureMap | None,
    clip: Clip | None,
    model: str,
    page_number: int,
) -> Result:
    if task == "boxes":
        return parse_boxes(text, family, picture)
    if task == "document":
        return parse_document(text, family, picture, number=page_number)
    if task in ("events", "moment"):
        return parse_events(text, clip)
    actions = parse_actions(text, family, picture)
    if is_plain(model) and not actions.items:
        points = [p for p in parse_boxes(text, family, picture) if isinstance(p, Point) and not p.clamped]
        if points:
            return ActionResult(
                items=tuple(Click(p.x, p.y) for p in points),
                warnings=(f"{model} answers with a place and no action: read as a click",),
            )
    return actions


def draw_result(found: TaskAnswer[Any], image: Image.Image) -> Drawing:
    """What was found, on a copy of the picture. Raises: OutputError for moments, which have no place in a picture."""
    from qvl.outputs.draw import draw_actions, draw_places, draw_regions

    if isinstance(found.result, Page):
        return draw_regions(image, found.result)
    if isinstance(found.result, ActionResult):
        return draw_actions(image, found.result.items)
    if found.task == "boxes":
        return draw_places(image, found.result)
    raise OutputError(
        f"{found.task} can't be drawn: they are times; qvl find-moment --frames saves the pictures there"
    )
