"""Vision features by content, within a byte budget: an image asked about twice is encoded once.

Holds values without looking at them (tensors in the engine, anything in tests). One entry is

    reserved  promised to be encoded, pinned by whoever encodes it
    pinned    some sequence is still reading it: never evicted
    idle      without readers: evicted, oldest first, when room is needed
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

_PENDING = object()


@dataclass
class _Entry:
    num_bytes: int
    pins: int = 0
    value: Any = _PENDING


class FeatureCache:
    def __init__(self, byte_budget: int):
        assert byte_budget >= 0
        self.byte_budget = byte_budget
        self.num_bytes = 0
        self._entries: dict[str, _Entry] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_pinned_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self._entries.values() if entry.pins)

    def holds(self, name: str) -> bool:
        """Whether the features are here or on their way."""
        return name in self._entries

    def ready(self, name: str) -> bool:
        """Whether the features can be read."""
        return name in self._entries and self._entries[name].value is not _PENDING

    def reserve(self, name: str, num_bytes: int) -> bool:
        """Makes room for features about to be encoded and pins them. False: wait until others are done.

        Features larger than the whole budget are taken when nothing else is pinned, so that they can be served at
        all: what is held never exceeds the larger of the budget and one visual.
        """
        assert not self.holds(name)
        pinned = self.num_pinned_bytes
        if pinned and pinned + num_bytes > self.byte_budget:
            return False
        self._evict_down_to(max(0, self.byte_budget - num_bytes))
        self._entries[name] = _Entry(num_bytes, pins=1)
        self.num_bytes += num_bytes
        return True

    def store(self, name: str, value: Any) -> None:
        entry = self._entries[name]
        assert entry.value is _PENDING, f"{name} encoded twice"
        entry.value = value

    def value(self, name: str) -> Any:
        value = self._entries[name].value
        assert value is not _PENDING, f"{name} read before it was encoded"
        return value

    def pin(self, name: str) -> None:
        self._entries[name].pins += 1
        self._idle.pop(name, None)

    def unpin(self, name: str) -> None:
        """One reader fewer. What has no readers stays while the budget allows; a promise without a keeper goes."""
        entry = self._entries[name]
        assert entry.pins > 0, f"{name} unpinned twice"
        entry.pins -= 1
        if entry.pins == 0:
            self._idle[name] = None
            if entry.value is _PENDING:
                self._drop(name)
            self._evict_down_to(self.byte_budget)

    def _evict_down_to(self, num_bytes: int) -> None:
        while self.num_bytes > num_bytes and self._idle:
            self._drop(next(iter(self._idle)))

    def _drop(self, name: str) -> None:
        self._idle.pop(name, None)
        self.num_bytes -= self._entries.pop(name).num_bytes

    def pins(self) -> dict[str, int]:
        """How many readers each pinned entry has."""
        return {name: entry.pins for name, entry in self._entries.items() if entry.pins}

    def check(self) -> None:
        assert self.num_bytes == sum(entry.num_bytes for entry in self._entries.values())
        assert set(self._idle) == {name for name, entry in self._entries.items() if entry.pins == 0}
        assert not self._idle or self.num_bytes <= self.byte_budget or self.num_pinned_bytes > 0
