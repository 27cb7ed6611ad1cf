"""What every backend offers, and the one place that opens one by what a user wrote.

Whoever evaluates, probes or parses takes a `Backend` and never asks which one it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from qvl.backends.answer import Answer, MediaSize
from qvl.errors import PromptError
from qvl.geometry import PixelLimits
from qvl.outputs.thinking import Piece

if TYPE_CHECKING:
    from pathlib import Path

    from qvl.backends.model import Model


class Stream(Iterator[str]):
    """Pieces of an answer as they come; what the model thinks first is in `pieces`. Closing or leaving early cancels.

    A backend says how more is brought (`_bring`) and how it is let go (`_let_go`).
    """

    answer: Answer | None = None  # the whole one, once the last piece was taken
    media: tuple[MediaSize, ...] = ()  # as the model sees each; empty when its family isn't known

    def __init__(self) -> None:
        self._pieces: deque[Piece] = deque()  # not yet handed out
        self._closed = False

    def _bring(self) -> bool:
        """Waits until there is more for `_pieces`; False when nothing will come. Raises: BackendError."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """Gives back what the request holds; may be called again."""

    def pieces(self) -> Iterator[Piece]:
        """The thoughts and then the answer, as they come. Leaving this loop leaves the stream open."""
        while True:
            while not self._pieces:
                if not self._bring():
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
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):  # made halfway: nothing is held
            self.close()


class Backend(Protocol):
    """A model that answers questions about pictures and clips.

    settings are the same everywhere: how to draw (max_new_tokens, temperature, top_p, top_k, seed, stop, …) and how
    large media are shown (min_pixels, max_pixels, fps, …). One that a backend doesn't know is refused by name.
    Raises, all of them: PromptError, MediaError, CapacityError, BackendError.
    """

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str | None:
        """None when it isn't set and the model's name doesn't tell."""

    @property
    def limits(self) -> PixelLimits | None:
        """The area that a picture may take by default; None for the first generation's fixed square, or unknown."""

    def ask(
        self, media: Sequence[Any], question: str, *, system: str | None = None, **settings: Any
    ) -> Answer: ...

    def stream(
        self, media: Sequence[Any], question: str, *, system: str | None = None, **settings: Any
    ) -> Stream: ...

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Answer: ...

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Stream: ...

    def ask_many(
        self, questions: Iterable[tuple[Sequence[Any], str]], *, system: str | None = None, **settings: Any
    ) -> list[Answer]:
        """Answers in the order of the questions, worked on together."""


def open_backend(
    model: str | Path | None = None,
    *,
    endpoint: str | None = None,
    region: str | None = None,
    mapped: bool = False,
    **options: Any,
) -> Model:
    """The one door: a model by what a user wrote, `mini` when that is nothing.

    endpoint: a server, where `model` is the served name. Without one, an address for `model` is a server that serves
    one model, the name of a hosted flagship (`qwen-vl-max`) is Alibaba Model Studio in `region`, and everything else
    a folder or hub id for our own engine, for which `mapped` is (a server's weights are its own). options: those of
    `http.connect` or of `native.load`, None left out.
    Raises: what those raise; BackendError for options of a server when there is none.
    """
    from qvl.errors import BackendError

    given = {name: value for name, value in options.items() if value is not None}
    where = _where(model, endpoint, region)
    if where is not None:
        from qvl.backends.http import connect
        from qvl.errors import BackendError

        if "weights" in given:
            raise BackendError(
                f"weights {given['weights']!r}: a server has loaded its weights already; start it with them"
            )
        return connect(*where, region=region, **given)
    for name in sorted(SERVER_OPTIONS & set(given)):
        raise BackendError(
            f"{name} {given[name]!r} is for a server: give its endpoint too, or a hosted model"
        )
    from qvl.backends.native import load

    return load("mini" if model is None else model, mapped=mapped, **given)


SERVER_OPTIONS = frozenset(["family", "api_key_env", "high_resolution", "max_spend", "prices"])


def _where(
    model: str | Path | None, endpoint: str | None, region: str | None
) -> tuple[str, str | None] | None:
    """(address, name) of a server; None for a model of this machine."""
    from pathlib import Path

    from qvl.backends.studio import DEFAULT_REGION, hosted_name, region_url

    name = None if model is None else str(model)
    if endpoint is not None:
        return endpoint, name
    if name is not None and name.startswith(("http://", "https://")):
        return name, None
    if name is not None and region is not None:
        return region_url(region), name
    if region is not None:
        from qvl.errors import BackendError

        raise BackendError(f"region {region!r}: say which hosted model with --model, such as qwen-vl-max")
    if name is None or Path(name).exists():
        return None
    hosted = hosted_name(name)
    return None if hosted is None else (region_url(DEFAULT_REGION), hosted)
