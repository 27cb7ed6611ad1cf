"""The interface of every backend. Code that evaluates, probes or parses takes a `Backend`, whichever it is."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, Unpack

from qvl import moved
from qvl.backends.answer import Answer, MediaSize, as_list, conversation
from qvl.backends.settings import Settings
from qvl.catalog.generations import Generation
from qvl.errors import BackendError, PromptError
from qvl.geometry import PixelLimits
from qvl.outputs.thinking import Piece

if TYPE_CHECKING:
    from qvl.backends.spend import Meter

# methods that backends had before they moved to the room above
TASKS = ("boxes", "page", "read", "events", "find_moment", "actions")


class Stream(Iterator[str]):
    """Pieces of an answer as they come; what the model thinks first is in `pieces`. Closing or leaving early cancels.

    A backend says how more is fetched (`fetch_more`) and how it is released (`release`).
    """

    answer: Answer | None = None  # the whole one, once the last piece was taken
    media: tuple[MediaSize, ...] = ()  # as the model sees each; empty when its family isn't known

    def __init__(self) -> None:
        self._pieces: deque[Piece] = deque()  # not yet handed out
        self._closed = False

    def fetch_more(self) -> bool:
        """Waits until there is more for `_pieces`; False at the end. Raises: BackendError."""
        raise NotImplementedError

    def release(self) -> None:
        """Gives back what the request holds; may be called again."""

    def drop(self) -> None:
        """As `close`, by the garbage collector, which may run in the middle of anything: waits for no lock."""
        self.close()

    async def afetch_more(self) -> bool:
        """As `fetch_more`, without holding up the event loop."""
        return await asyncio.to_thread(self.fetch_more)

    async def aclose(self) -> None:
        self.close()

    def pieces(self) -> Iterator[Piece]:
        """The reasoning and then the answer, streamed. Leaving this loop keeps the stream open."""
        while True:
            while not self._pieces:
                if not self.fetch_more():
                    return
            yield self._pieces.popleft()

    def __next__(self) -> str:
        return next(piece.text for piece in self.pieces() if not piece.thought)

    def finish(self) -> Answer:
        """Waits for the end. Raises: BackendError; PromptError after `close`."""
        for _ in self.pieces():
            pass
        if self.answer is None:
            raise PromptError("the answer was closed before its end")
        return self.answer

    def close(self) -> None:
        """Cancels what still runs; its memory, connection or slot is free on return."""
        self._closed = True
        self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):  # made halfway: nothing is held
            self.drop()


class AsyncStream(AsyncIterator[str]):
    """As `Stream`, for `async for`; the request begins with the first piece. Cancelling a wait cancels it."""

    def __init__(self, opening: Callable[[], Awaitable[Stream]]):
        self._opening = opening
        self._stream: Stream | None = None

    @property
    def answer(self) -> Answer | None:
        """The whole one, once the last piece was taken."""
        return None if self._stream is None else self._stream.answer

    @property
    def media(self) -> tuple[MediaSize, ...]:
        """As the model sees each; empty before the first piece, and when its family isn't known."""
        return () if self._stream is None else self._stream.media

    async def _next(self) -> Piece | None:
        if self._stream is None:
            self._stream = await self._opening()
        stream = self._stream
        try:
            while not stream._pieces:
                if not await stream.afetch_more():
                    return None
        except asyncio.CancelledError:
            await asyncio.shield(stream.aclose())
            raise
        return stream._pieces.popleft()

    async def pieces(self) -> AsyncIterator[Piece]:
        """The reasoning and then the answer, streamed. Leaving this loop keeps the stream open."""
        while (piece := await self._next()) is not None:
            yield piece

    async def __anext__(self) -> str:
        while (piece := await self._next()) is not None:
            if not piece.thought:
                return piece.text
        raise StopAsyncIteration

    async def finish(self) -> Answer:
        """Waits for the end. Raises: BackendError; PromptError after `aclose`."""
        async for _ in self.pieces():
            pass
        if self.answer is None:
            raise PromptError("the answer was closed before its end")
        return self.answer

    async def aclose(self) -> None:
        """Cancels what still runs; its memory, connection or slot is free on return."""
        if self._stream is not None:
            await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a kind of backend supports, declared by its class."""

    settings: frozenset[str] = frozenset(
        Settings.__annotations__
    )  # of a question; others are refused by name
    local: bool = False  # runs in this process, with memory and weights of its own
    logprobs: bool = False  # None of a server's are promised: each decides for itself
    token_ids: bool = False
    scales_down: bool = False  # to fewer pixels than the model's own least, where `max_pixels` asks for it
    raw: bool = False  # `post` sends a body as it is
    prices: bool = False  # calls may cost money, which `meter` counts

    @property
    def tools(self) -> bool:
        return "tools" in self.settings

    @property
    def thinking(self) -> bool:
        """Whether `thinking` switches it on and off, for models that can do both."""
        return "thinking" in self.settings

    @property
    def schemas(self) -> bool:
        """Whether answers can be kept to a JSON schema."""
        return "response_format" in self.settings

    @property
    def ignore_eos(self) -> bool:
        return "ignore_eos" in self.settings


class Backend(ABC):
    """A model that answers questions about images and videos.

    A backend brings `stream_chat`, its name, its generation, its limits and what it can; the rest is made of these.

    media: paths, data URLs, bytes, PIL images, arrays, videos (see `media_item`).
    settings are the same everywhere: how to sample (max_new_tokens, temperature, top_p, top_k, seed, stop, …) and how
    large media are shown (min_pixels, max_pixels, fps, …). One that a backend doesn't know is refused by name.
    Raises, all of them: PromptError, MediaError, CapacityError, BackendError.
    """

    can: Capabilities = Capabilities()
    name: str

    @property
    @abstractmethod
    def generation(self) -> Generation | None:
        """None when it isn't set and the model's name doesn't tell."""

    @property
    def family(self) -> str | None:
        """The generation's name."""
        return None if self.generation is None else self.generation.name

    @property
    @abstractmethod
    def limits(self) -> PixelLimits | None:
        """The area that an image may take by default; None for the first generation's fixed square, or unknown."""

    @property
    def max_model_len(self) -> int | None:
        """Prompt and answer together, in tokens; None where it isn't known."""
        return None

    @property
    def meter(self) -> Meter | None:
        """What calls have cost; None where no price is known."""
        return None

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most memory held at once so far; None for a model elsewhere."""
        return None

    @property
    def token_bytes(self) -> Callable[[int], bytes] | None:
        """What a token id stands for, where answers have ids (`can.token_ids`)."""
        return None

    @property
    def max_concurrency(self) -> int:
        """How many questions are worked on at once."""
        return 1

    def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A raw request to chat/completions and its raw reply, where `can.raw`. Raises: BackendError."""
        raise BackendError(f"{self.name}: not a server, so it takes no raw requests")

    def close(self) -> None:
        """Closes connections, if there are any."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def aclose(self) -> None:
        """As `close`, with the connections of this event loop."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @abstractmethod
    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **settings: Unpack[Settings]) -> Stream:
        """The next turn of a conversation: `{"role", "content"}` messages with text, image and video items."""

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Unpack[Settings]) -> Answer:
        """As `stream_chat`, but returns the whole answer."""
        return self.stream_chat(messages, **settings).finish()

    def ask(
        self, media: Any, question: str, *, system: str | None = None, **settings: Unpack[Settings]
    ) -> Answer:
        """The answer to a question about images and videos, in the order given; a single one needs no list."""
        return self.chat(conversation(as_list(media), question, system), **settings)

    def stream(
        self, media: Any, question: str, *, system: str | None = None, **settings: Unpack[Settings]
    ) -> Stream:
        """As `ask`, in pieces of text as they come; `.answer` after the last one. Leaving early cancels."""
        return self.stream_chat(conversation(as_list(media), question, system), **settings)

    def ask_many(
        self,
        questions: Iterable[tuple[Sequence[Any], str]],
        *,
        system: str | None = None,
        **settings: Unpack[Settings],
    ) -> list[Answer]:
        """Answers to (media, question) pairs in their order, `max_concurrency` at a time."""
        return [self.ask(media, question, system=system, **settings) for media, question in questions]

    # For callers in an event loop

    async def _aopen(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Stream:
        return await asyncio.to_thread(self.stream_chat, messages, **settings)

    def astream_chat(
        self, messages: Sequence[Mapping[str, Any]], **settings: Unpack[Settings]
    ) -> AsyncStream:
        """As `stream_chat`, for `async for`."""
        return AsyncStream(lambda: self._aopen(messages, settings))

    async def achat(self, messages: Sequence[Mapping[str, Any]], **settings: Unpack[Settings]) -> Answer:
        """As `chat`. Cancelling the coroutine cancels the request."""
        return await self.astream_chat(messages, **settings).finish()

    async def aask(
        self, media: Any, question: str, *, system: str | None = None, **settings: Unpack[Settings]
    ) -> Answer:
        """As `ask`. Cancelling the coroutine cancels the request."""
        return await self.achat(conversation(as_list(media), question, system), **settings)

    def astream(
        self, media: Any, question: str, *, system: str | None = None, **settings: Unpack[Settings]
    ) -> AsyncStream:
        """As `stream`, for `async for`."""
        return self.astream_chat(conversation(as_list(media), question, system), **settings)

    async def aask_many(
        self,
        questions: Iterable[tuple[Sequence[Any], str]],
        *,
        system: str | None = None,
        **settings: Unpack[Settings],
    ) -> list[Answer]:
        """As `ask_many`; media are read as room comes free. The first error cancels the rest."""
        room = asyncio.Semaphore(self.max_concurrency)

        async def one(media: Sequence[Any], question: str) -> Answer:
            async with room:
                return await self.aask(media, question, system=system, **settings)

        tasks = [asyncio.ensure_future(one(media, question)) for media, question in questions]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    __getattr__ = moved.methods("qvl.tasks.model:Model", TASKS)


__getattr__ = moved.names(__name__)
