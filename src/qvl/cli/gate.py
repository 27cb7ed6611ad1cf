"""What stands before stdout and stderr while a verb runs: strangers' words must not steer a terminal.

Names of models and tensors, errors of servers and answers come from outside, and are printed in a hundred places;
so the check is where all of them pass. `print` and loggers write through it, and `own` is for what is ours.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from qvl.records import printable

if TYPE_CHECKING:
    from rich.console import Console


class Gate:
    """A text stream whose control characters and bidi overrides are replaced; all else is the stream's own."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def gated() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Gate(own(sys.stdout)), Gate(own(sys.stderr))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def own(stream: TextIO) -> TextIO:
    """The stream behind the gate, for our own control sequences."""
    return stream.stream if isinstance(stream, Gate) else stream


def gated_console(**options: Any) -> Console:
    """A rich console that writes its own colours, and everything else as the gate does."""
    from rich.console import Console
    from rich.segment import Segment

    class GatedConsole(Console):
        def render(self, *args: Any, **kwargs: Any) -> Iterator[Segment]:
            for segment in super().render(*args, **kwargs):
                yield segment if segment.control else Segment(printable(segment.text), segment.style)

    return GatedConsole(file=own(sys.stdout), **options)
