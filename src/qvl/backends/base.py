"""What every backend offers, and the one place that opens one by what a user wrote.

Whoever evaluates, probes or parses takes a `Backend` and never asks which one it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from qvl.backends.answer import Answer, MediaSize
from qvl.catalog.config import Family
from qvl.inputs.geometry import PixelLimits


class Stream(Protocol):
    """Pieces of text as they come. Closing or leaving early cancels."""

    @property
    def answer(self) -> Answer | None:
        """The whole answer once the last piece was taken."""

    @property
    def media(self) -> tuple[MediaSize, ...]:
        """Each picture and video as the model sees it; empty when its family isn't known."""

    def __iter__(self) -> Iterator[str]: ...

    def __next__(self) -> str: ...

    def finish(self) -> Answer:
        """Waits for the end. Raises: BackendError; PromptError after `close`."""

    def close(self) -> None: ...


class Backend(Protocol):
    """A model that answers questions about pictures and clips.

    settings are the same everywhere: how to draw (max_new_tokens, temperature, top_p, top_k, seed, stop, …) and how
    large media are shown (min_pixels, max_pixels, fps, …). One that a backend doesn't know is refused by name.
    Raises, all of them: PromptError, MediaError, CapacityError, BackendError.
    """

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> Family | None:
        """None when nobody said it and the model's name doesn't tell."""

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
    model: str | None = None,
    *,
    endpoint: str | None = None,
    family: str | None = None,
    api_key_env: str | None = None,
    **options: Any,
) -> Backend:
    """A server when an endpoint is given, otherwise a checkpoint on this machine (`mini` when no model is named).

    options: those of `http.connect` or of `native.load`.
    Raises: what those raise; BackendError for options of a server without an endpoint.
    """
    from qvl.errors import BackendError

    if endpoint is not None:
        from qvl.backends.http import connect

        return connect(endpoint, model, family=family, api_key_env=api_key_env, **options)
    for name, value in (("family", family), ("api_key_env", api_key_env)):
        if value is not None:
            raise BackendError(f"{name} {value!r} is for a server: give its endpoint too")
    from qvl.backends.native import load

    return load(model or "mini", **options)
