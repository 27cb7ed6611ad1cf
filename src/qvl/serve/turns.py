"""Whose answer comes next: clients take turns, however many requests each of them has.

The engine's own queue is first come, first served; so it gets little more than it can run, and the others wait here.
A client is an API key, or without keys an address. Before a client's next answer come those in the engine and one
request of each other client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar

from qvl.serve.problems import overloaded

client_of_request: ContextVar[str] = ContextVar("client", default="")


class Turns:
    """`slots` answers at once. Used on one event loop."""

    def __init__(self, slots: int):
        self._slots = slots
        self._free = slots
        self._queues: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}  # the first is next
        self._closed = False

    @property
    def num_waiting(self) -> int:
        return sum(count for queue in self._queues.values() for count, _ in queue)

    async def take(self, client: str, count: int) -> int:
        """Waits for room for `count` answers, and gives what `give_back` is to be told. Raises: Problem 503."""
        if self._closed:
            raise _ended()
        wanted = min(count, self._slots)
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append((wanted, turn))
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self.give_back(wanted)
            raise
        return wanted

    def give_back(self, count: int) -> None:
        self._free += count
        self._grant()

    def close(self) -> None:
        """Refuses all that wait."""
        self._closed = True
        for queue in self._queues.values():
            for _, turn in queue:
                if not turn.done():
                    turn.set_exception(_ended())
        self._queues.clear()

    def _grant(self) -> None:
        while self._queues:
            client, queue = next(iter(self._queues.items()))
            while queue and queue[0][1].done():  # left while it waited
                queue.popleft()
            if not queue:
                del self._queues[client]
                continue
            wanted, turn = queue[0]
            if wanted > self._free:
                return
            queue.popleft()
            del self._queues[client]
            if queue:
                self._queues[client] = queue  # at the end
            self._free -= wanted
            turn.set_result(None)


def _ended() -> Exception:
    return overloaded(503, "the server is shutting down and ended the answer", 2)
