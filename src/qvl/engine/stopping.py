"""Ends an answer at a stop string, and never shows a part of one. Text only."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Text goes in as it is decoded and comes out once it is certain that no stop string begins in it.

    A stop string may lie across any number of tokens; it is never part of what comes out.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, text: str) -> str:
        """The text that is certain now. After a stop string was seen, nothing comes out any more."""
        if not self._stops:
            return text
        if self.stopped_by is not None:
            return ""
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.stopped_by = min(found)
            out, self._held = self._held[:at], ""
            return out
        keep = self._doubtful()
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def finish(self) -> str:
        """What was held back, once no more text can come."""
        out, self._held = self._held, ""
        return out

    def _doubtful(self) -> int:
        """Length of the longest end of the held text that a stop string could begin with."""
        longest = min(len(self._held), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
