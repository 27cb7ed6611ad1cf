"""What `qvl.load` gives, whoever answers: one object to ask, and to ask for places, pages, moments and actions.

model = qvl.load("mini")                                   # or a folder, a hub id, "qwen-vl-max", "http://…"
print(model.ask(["receipt.png"], "What is the total?"))
for box in model.boxes("shapes.png", "the red circle").result: print(box.label, box.rect)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from qvl.backends.answer import Answer, conversation
from qvl.backends.base import Stream
from qvl.geometry import PixelLimits

if TYPE_CHECKING:
    from qvl.backends.base import Backend
    from qvl.backends.pages import ReadPage
    from qvl.backends.tasks import TaskAnswer, Tool
    from qvl.outputs.actions import ActionResult
    from qvl.outputs.blocks import Page
    from qvl.outputs.boxes import Place
    from qvl.outputs.events import Event
    from qvl.outputs.results import ParseResult


class Model:
    """A backend brings `stream_chat`, its name, its family and its limits; the rest is the same for all of them.

    media: paths, data URLs, bytes, PIL pictures, arrays, clips (see `media_item`). settings: see `Backend`.
    Raises, all of them: MediaError, PromptError, CapacityError, BackendError; and OutputError those that map places
    when the model's family isn't known.
    """

    name: str

    @property
    def family(self) -> str | None:
        raise NotImplementedError

    @property
    def limits(self) -> PixelLimits | None:
        raise NotImplementedError

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Stream:
        """The next turn of a conversation: `{"role", "content"}` messages with text, image and video items."""
        raise NotImplementedError

    def ask_many(
        self, questions: Iterable[tuple[Sequence[Any], str]], *, system: str | None = None, **settings: Any
    ) -> list[Answer]:
        """Answers to (media, question) pairs in their order."""
        return [self.ask(media, question, system=system, **settings) for media, question in questions]

    # Asking

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Answer:
        """As `stream_chat`, waited for whole."""
        return self.stream_chat(messages, **settings).finish()

    def ask(self, media: Any, question: str, *, system: str | None = None, **settings: Any) -> Answer:
        """The answer to a question about pictures and videos, in the order given; a single one may be given bare."""
        return self.chat(conversation(as_list(media), question, system), **settings)

    def stream(self, media: Any, question: str, *, system: str | None = None, **settings: Any) -> Stream:
        """As `ask`, in pieces of text as they come; `.answer` after the last one. Leaving early cancels."""
        return self.stream_chat(conversation(as_list(media), question, system), **settings)

    # Asking for something that is parsed and mapped: see qvl.backends.tasks.run_task

    def boxes(self, picture: Any, what: str, **settings: Any) -> TaskAnswer[ParseResult[Place]]:
        """Boxes and points, in pixels of the picture."""
        return cast("TaskAnswer[ParseResult[Place]]", self._task("boxes", picture, what, settings))

    def page(self, picture: Any, **settings: Any) -> TaskAnswer[Page]:
        """One picture of a page: its blocks in reading order, with their places."""
        return cast("TaskAnswer[Page]", self._task("document", picture, "", settings))

    def read(
        self, document: Any, *, pages: str | None = None, dpi: float | None = None, **settings: Any
    ) -> list[ReadPage]:
        """All pages of a picture or PDF, or of several, in order. pages: `1-3,7` of the only PDF."""
        from qvl.backends.pages import DEFAULT_DPI, list_pages, read_pages

        paths = [str(path) for path in as_list(document)]
        refs = list_pages(paths, DEFAULT_DPI if dpi is None else dpi, pages)
        return list(read_pages(cast("Backend", self), refs, **settings))

    def events(self, clip: Any, question: str, **settings: Any) -> TaskAnswer[ParseResult[Event]]:
        """What happens in a clip, each with its start and end in seconds."""
        return cast("TaskAnswer[ParseResult[Event]]", self._task("events", clip, question, settings))

    def find_moment(self, clip: Any, what: str, **settings: Any) -> TaskAnswer[ParseResult[Event]]:
        """From when to when something happens, in seconds of the clip."""
        return cast("TaskAnswer[ParseResult[Event]]", self._task("moment", clip, what, settings))

    def actions(
        self, screenshot: Any, goal: str, *, tool: Tool = "computer_use", **settings: Any
    ) -> TaskAnswer[ActionResult]:
        """The next actions on this screen, in its pixels; nothing is done."""
        return cast(
            "TaskAnswer[ActionResult]", self._task("actions", screenshot, goal, {"tool": tool, **settings})
        )

    def _task(self, task: Any, medium: Any, question: str, settings: Mapping[str, Any]) -> TaskAnswer[Any]:
        from qvl.backends.tasks import run_task

        return run_task(cast("Backend", self), task, [medium], question, **settings)


def as_list(media: Any) -> list[Any]:
    """A list is always a list of media, never the frames of one."""
    return list(media) if isinstance(media, (list, tuple)) else [media]
