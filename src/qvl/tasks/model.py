"""The object that `qvl.load` returns for any backend: questions, boxes, documents, events and actions.

model = qvl.load("mini")                                   # or a folder, a hub id, "qwen3.7-plus", "http://…"
print(model.ask(["receipt.png"], "What is the total?"))
for box in model.boxes("shapes.png", "the red circle").result: print(box.label, box.rect)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from qvl.backends.answer import Answer, as_list
from qvl.backends.base import Backend, Stream
from qvl.backends.settings import Settings
from qvl.backends.spend import Meter
from qvl.catalog.generations import Generation
from qvl.geometry import PixelLimits
from qvl.inputs.pages import DEFAULT_DPI, list_pages
from qvl.outputs.actions import ActionResult
from qvl.outputs.blocks import Page
from qvl.outputs.boxes import Place
from qvl.outputs.events import Event
from qvl.outputs.results import ParseResult
from qvl.tasks.pages import ReadPage, read_pages
from qvl.tasks.prompts import Tool
from qvl.tasks.run import TaskAnswer, TaskSettings, run_task


class Model(Backend):
    """A backend plus the tasks. Attributes of one backend only (memory, wire, calls) are passed through.

    Raises, all tasks: MediaError, PromptError, CapacityError, BackendError; and OutputError those that map places
    when the model's family isn't known.
    """

    def __init__(self, backend: Backend):
        self.backend = backend
        self.name = backend.name
        self.can = backend.can

    def __repr__(self) -> str:
        return repr(self.backend)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__") or name == "backend":
                raise AttributeError(name)
            return getattr(self.backend, name)

    @property
    def generation(self) -> Generation | None:
        return self.backend.generation

    @property
    def family(self) -> str | None:
        return self.backend.family

    @property
    def limits(self) -> PixelLimits | None:
        return self.backend.limits

    @property
    def max_model_len(self) -> int | None:
        return self.backend.max_model_len

    @property
    def meter(self) -> Meter | None:
        return self.backend.meter

    @property
    def peak_memory_bytes(self) -> int | None:
        return self.backend.peak_memory_bytes

    @property
    def token_bytes(self) -> Callable[[int], bytes] | None:
        return self.backend.token_bytes

    @property
    def max_concurrency(self) -> int:
        return self.backend.max_concurrency

    def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return self.backend.post(body)

    def close(self) -> None:
        self.backend.close()

    async def aclose(self) -> None:
        await self.backend.aclose()

    # Asking; the rest is made of these

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **settings: Unpack[Settings]) -> Stream:
        return self.backend.stream_chat(messages, **settings)

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Unpack[Settings]) -> Answer:
        return self.backend.chat(messages, **settings)

    def ask_many(
        self,
        questions: Iterable[tuple[Sequence[Any], str]],
        *,
        system: str | None = None,
        **settings: Unpack[Settings],
    ) -> list[Answer]:
        return self.backend.ask_many(questions, system=system, **settings)

    async def _aopen(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Stream:
        return await self.backend._aopen(messages, settings)

    async def achat(self, messages: Sequence[Mapping[str, Any]], **settings: Unpack[Settings]) -> Answer:
        return await self.backend.achat(messages, **settings)

    # Asking for something that is parsed and mapped: see qvl.tasks.run.run_task

    def boxes(
        self, picture: Any, what: str, **settings: Unpack[TaskSettings]
    ) -> TaskAnswer[ParseResult[Place]]:
        """Boxes and points, in pixels of the image."""
        return run_task(self, "boxes", [picture], what, **settings)

    def page(self, picture: Any, **settings: Unpack[TaskSettings]) -> TaskAnswer[Page]:
        """One image of a page: its blocks in reading order, with their places."""
        return run_task(self, "document", [picture], "", **settings)

    def read(
        self,
        document: Any,
        *,
        pages: str | None = None,
        dpi: float | None = None,
        **settings: Unpack[TaskSettings],
    ) -> list[ReadPage]:
        """All pages of an image or PDF, or of several, in order. pages: `1-3,7` of the only PDF."""
        paths = [str(path) for path in as_list(document)]
        refs = list_pages(paths, DEFAULT_DPI if dpi is None else dpi, pages)
        return list(read_pages(self, refs, **settings))

    def events(
        self, clip: Any, question: str, **settings: Unpack[TaskSettings]
    ) -> TaskAnswer[ParseResult[Event]]:
        """What happens in a video, each with its start and end in seconds."""
        return run_task(self, "events", [clip], question, **settings)

    def find_moment(
        self, clip: Any, what: str, **settings: Unpack[TaskSettings]
    ) -> TaskAnswer[ParseResult[Event]]:
        """When something happens in a video, in seconds."""
        return run_task(self, "moment", [clip], what, **settings)

    def actions(
        self, screenshot: Any, goal: str, *, tool: Tool = "computer_use", **settings: Unpack[TaskSettings]
    ) -> TaskAnswer[ActionResult]:
        """The next actions on this screen, in its pixels; none is executed."""
        return run_task(self, "actions", [screenshot], goal, tool=tool, **settings)
