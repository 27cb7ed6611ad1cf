"""Boxes, documents, events and actions from any backend: the family's prompt, its reply parsed and mapped.

found = run_task(model, "boxes", ["shapes.png"], "Locate the red circle.")
for box in found.result: print(box.label, box.rect)        # in pixels of shapes.png
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

from qvl.backends.answer import Answer, MediaSize, conversation, media_item
from qvl.backends.base import Backend, Stream
from qvl.backends.media import image_size, video_limits
from qvl.backends.settings import Settings
from qvl.catalog.generations import Generation, names
from qvl.errors import OutputError, PromptError
from qvl.geometry import Size
from qvl.inputs.image import load_image
from qvl.inputs.processor import MediaSettings
from qvl.inputs.video import load_video
from qvl.outputs.actions import ActionResult, Click, parse_actions
from qvl.outputs.blocks import Page
from qvl.outputs.boxes import Box, Place, Point, parse_boxes
from qvl.outputs.documents import parse_document
from qvl.outputs.draw import Drawing, draw_actions, draw_places, draw_regions
from qvl.outputs.events import Clip, Event, parse_events
from qvl.outputs.export import to_dict
from qvl.outputs.mapping import PictureMap, Rect, merge_overlapping
from qvl.outputs.repetition import RepetitionGuard
from qvl.outputs.results import ParseResult
from qvl.tasks.prompts import Prompt, Task, Tool, is_plain, task_prompt
from qvl.tasks.retry import Retry, ask_watched

if TYPE_CHECKING:
    from PIL import Image

Result = ParseResult[Place] | ParseResult[Event] | Page | ActionResult


@dataclass(frozen=True)
class TextPart:
    """A reply, and where the image it is about lies in the user's; None for videos."""

    text: str
    picture: PictureMap | None


R = TypeVar("R", bound=Result, covariant=True)


@dataclass(frozen=True, kw_only=True)
class TaskAnswer(Generic[R]):
    """`result` is typed by the task; `warnings` are about the asking, the result's own are about the text."""

    task: Task
    answer: Answer
    result: R
    parts: tuple[TextPart, ...] = ()  # what was parsed: one text, or one for each half of the image
    clip: Clip | None = None
    warnings: tuple[str, ...] = ()

    @property
    def picture(self) -> PictureMap | None:
        """Of the whole image as the model saw it; None for videos, and when it saw only parts."""
        return self.parts[0].picture if len(self.parts) == 1 else None

    @property
    def reason(self) -> str | None:
        """Why nothing was found; None when something was."""
        return self.result.reason

    @property
    def all_warnings(self) -> tuple[str, ...]:
        return (*self.warnings, *self.answer.notes, *self.result.warnings)

    def to_dict(self) -> dict[str, Any]:
        """For json.dumps; coordinates are in pixels of the original image, times in seconds."""
        asking = [*self.warnings, *self.answer.notes]
        return {"task": self.task, "asking": asking, **result_dict(self.result)}


def result_dict(result: Result) -> dict[str, Any]:
    """For json.dumps; coordinates are in pixels of the original image, times in seconds."""
    if isinstance(result, Page):
        return to_dict(result)
    return result.to_dict()


class TaskSettings(Settings, total=False):
    """Settings of a task: those of the question, and how it is watched; see `run_task`."""

    retry: Retry
    on_text: Callable[[str], object] | None


def generation_of(backend: Backend) -> Generation:
    """Raises: OutputError when it isn't known."""
    generation = backend.generation
    if generation is None:
        raise OutputError(
            f"the family of {backend.name!r} is unknown, so its coordinates can't be interpreted: "
            f"give it with --family ({', '.join(names())})"
        )
    return generation


def run_task(
    backend: Backend,
    task: Task,
    media: Sequence[Any],
    question: str = "",
    *,
    tool: Tool = "computer_use",
    retry: Retry = "seed",
    page_number: int = 1,
    on_text: Callable[[str], object] | None = None,
    **settings: Unpack[Settings],
) -> TaskAnswer[Any]:
    """Asks about one image (or one video, for events and moment), watches for endless repetition, parses and maps.

    retry: what is done with a reply that repeats itself: `no`, `seed` (asked for again, drawn another way), or `crop`
    (after that, about the two halves of the image, for boxes and documents). on_text gets the text as it comes, of
    every try.
    Raises: PromptError, MediaError, BackendError as the backend; OutputError when its family isn't known.
    """
    generation = generation_of(backend)
    wants = "video" if task in ("events", "moment") else "image"
    items = [media_item(source) for source in media]
    if len(items) != 1 or items[0]["type"].removesuffix("_url") != wants:
        kinds = ", ".join(str(item.get("type")) for item in items) or "none"
        raise PromptError(f"{task} needs exactly one {wants}, got {kinds}")
    given: dict[str, Any] = dict(settings)
    if backend.can.raw:  # a server's own default is to sample, which moves boxes
        given.setdefault("temperature", 0)
    pixels = MediaSettings(**{k: v for k, v in given.items() if k in MediaSettings.__dataclass_fields__})
    clip = clip_of(items[0], generation, pixels) if wants == "video" else None
    screen = _seen(backend, generation, items[0], pixels) if task == "actions" else None
    prompt = task_prompt(task, generation, question, model=backend.name, tool=tool, screen=screen)
    image = load_image(_source(items[0])) if retry == "crop" and task in ("boxes", "document") else None

    def ask(crop: Rect | None, drawn: dict[str, Any]) -> Stream:
        shown = items if crop is None or image is None else [{**items[0], **_cropped(items[0], image, crop)}]
        return backend.stream_chat(_messages(prompt, shown), **(given | drawn))

    watched = ask_watched(
        ask,
        retry=retry,
        size=None if image is None else Size(image.height, image.width),
        make_guard=lambda: RepetitionGuard(_written_size(generation, task, screen)),
        on_text=on_text,
    )
    answer, warnings = watched.answer, list(watched.notes)
    if all(part.ended for part in watched.parts) and not answer.text.strip() and answer.reasoning:
        warnings.append("the answer ended while the model still thought: raise --max-new-tokens")
    elif answer.finish_reason == "length":
        warnings.append(f"the answer was cut after {answer.completion_tokens} tokens: raise --max-new-tokens")
    if task == "document" and not generation.prompts.page:
        warnings.append(f"{generation} was not taught to write pages: expect no boxes")
    whole = None if image is None else Size(image.height, image.width)
    parts = tuple(
        TextPart(p.answer.text, _picture(p.answer.media, whole, p.crop) if wants == "image" else None)
        for p in watched.parts
    )
    results = [
        parse_reply(task, part.text, generation, part.picture, clip, backend.name, page_number)
        for part in parts
    ]
    return TaskAnswer(
        task=task,
        answer=answer,
        result=joined_results(results),
        parts=parts,
        clip=clip,
        warnings=tuple(warnings),
    )


def _source(item: Mapping[str, Any]) -> Any:
    source = item.get("image", item.get("image_url"))
    return source["url"] if isinstance(source, Mapping) else source


def cut(image: Image.Image, crop: Rect) -> Image.Image:
    """A part of an image, in whole pixels."""
    return image.crop((int(crop.x1), int(crop.y1), int(crop.x2), int(crop.y2)))


def _cropped(item: Mapping[str, Any], image: Image.Image, crop: Rect) -> dict[str, Any]:
    part = cut(image, crop)
    return {key: part for key in ("image", "image_url") if key in item} | {"type": "image"}


def joined_results(results: Sequence[Any]) -> Any:
    """One result of those of an image's parts, which lie in the whole image already."""
    first, *more = results
    if not more:
        return first
    told: dict[str, Any] = {
        "warnings": tuple(dict.fromkeys(w for r in results for w in r.warnings)),
        "repairs": tuple(dict.fromkeys(r for found in results for r in found.repairs)),
        "reason": None if any(r.reason is None for r in results) else first.reason,
        "suspected": next((r.suspected for r in results if r.suspected is not None), None),
    }
    if isinstance(first, Page):
        return dataclasses.replace(first, blocks=tuple(b for page in results for b in page.blocks), **told)
    items = [item for result in results for item in result.items]
    _, twice = merge_overlapping([item for item in items if isinstance(item, Box)])
    dropped = set(map(id, twice))
    return dataclasses.replace(first, items=tuple(i for i in items if id(i) not in dropped), **told)


def _messages(prompt: Prompt, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    messages = conversation(items, prompt.question, prompt.system)
    if not prompt.media_first:
        messages[-1]["content"] = [messages[-1]["content"][-1], *messages[-1]["content"][:-1]]
    return messages


def _written_size(generation: Generation, task: Task, screen: Size | None) -> Size | None:
    """The size in the numbers that the model writes, where it is known before the answer."""
    scale = generation.coordinates.scale
    if task not in ("boxes", "document"):
        return None
    return Size(int(scale), int(scale)) if scale else screen


def _seen(backend: Backend, generation: Generation, item: Mapping[str, Any], pixels: MediaSettings) -> Size:
    """The size at which the backend will show an image, worked out before asking."""
    own = {k: v for k, v in item.items() if k in MediaSettings.__dataclass_fields__}
    image = load_image(_source(item))
    limits = backend.limits
    asked = MediaSettings(**own).over(pixels)
    shape = asked.shape(Size(image.height, image.width))
    return image_size(shape, generation, asked.image_limits(limits) if limits else None).seen


def clip_of(item: Mapping[str, Any], generation: Generation, settings: MediaSettings) -> Clip:
    """The length of a video and the seconds of the frames that are shown. Raises: MediaError."""
    own = {k: v for k, v in item.items() if k in MediaSettings.__dataclass_fields__}
    asked = MediaSettings(**own).over(settings)
    source = item.get("video", item.get("video_url"))
    source = source["url"] if isinstance(source, Mapping) else source
    limits = asked.video_limits(video_limits(generation))
    video = load_video(source, limits, sample_fps=asked.sample_fps, raw_fps=asked.raw_fps)
    return Clip(duration=video.seconds, frame_times=video.times)


def _picture(media: tuple[MediaSize, ...], whole: Size | None, crop: Rect | None) -> PictureMap | None:
    if not media:
        return None
    original = media[0].original if crop is None or whole is None else whole
    return PictureMap(original, media[0].seen, crop=crop)


def parse_reply(
    task: Task,
    text: str,
    family: Generation | str,
    picture: PictureMap | None,
    clip: Clip | None,
    model: str = "",
    page_number: int = 1,
) -> Result:
    """A reply's text as the task's typed result, mapped to the image. Raises: OutputError without its size."""
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
    """What was found, on a copy of the image. Raises: OutputError for moments, which have no place in an image."""
    if isinstance(found.result, Page):
        return draw_regions(image, found.result)
    if isinstance(found.result, ActionResult):
        return draw_actions(image, found.result.items)
    if found.task == "boxes":
        return draw_places(image, found.result)
    raise OutputError(
        f"{found.task} can't be drawn: they are times; qvl find-moment --frames saves the images there"
    )
