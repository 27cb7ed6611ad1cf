"""The one thread that steps the engine, for callers on other threads who wait for events. Knows nothing of HTTP.

caller ── submit / cancel ──► list under a lock ──► this thread: engine.submit · cancel · step
   ▲                                                        │
   └────────────── deliver(event), called on this thread ◄──┘
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qvl.engine.engine import Engine, Event
from qvl.errors import BackendError, QvlError

if TYPE_CHECKING:
    from qvl.engine.sampling import Constraint
    from qvl.inputs.processor import ModelInputs
    from qvl.inputs.sampling import SamplingParams

log = logging.getLogger(__name__)

# Called on the engine's thread, so it must be quick and must not raise. First comes an Event without text when the
# request was taken on, or the QvlError that refused it; then its events, the last one with a finish_reason.
Deliver = Callable[[Event | QvlError], None]


@dataclass(eq=False)
class Ticket:
    """One request on its way through the loop."""

    inputs: ModelInputs
    params: SamplingParams
    deliver: Deliver
    constraint: Constraint | None = None
    request_id: int | None = None  # known to the engine's thread alone


class EngineLoop:
    """Owns an engine from `start` to `stop`: no other code may call it in between."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.failure: str | None = None  # why the thread ended, when it wasn't asked to
        self._wake = threading.Condition()
        self._incoming: list[Ticket] = []
        self._cancelled: list[Ticket] = []
        self._cancel_all = False
        self._stopping = False
        self._tickets: dict[int, Ticket] = {}
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and self.failure is None

    def start(self) -> None:
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, name="qvl-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Cancels what runs, delivers those ends, and waits for the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def submit(
        self,
        inputs: ModelInputs,
        params: SamplingParams,
        deliver: Deliver,
        constraint: Constraint | None = None,
    ) -> Ticket:
        """Hands a request over without waiting; from here on `deliver` gets exactly one refusal or end.

        Raises: BackendError when the loop doesn't run.
        """
        ticket = Ticket(inputs, params, deliver, constraint)
        with self._wake:
            if self._stopping or not self.alive:
                raise BackendError(f"the engine doesn't run: {self.failure or 'it was stopped'}")
            self._incoming.append(ticket)
            self._wake.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request before the next step; one that has ended already stays as it is."""
        with self._wake:
            self._cancelled.append(ticket)
            self._wake.notify()

    def cancel_all(self) -> None:
        """Ends every request that was submitted so far."""
        with self._wake:
            self._cancel_all = True
            self._wake.notify()

    # On the thread

    def _run(self) -> None:
        faults = 0  # in a row
        more = True
        while more:
            try:
                more = self._turn()
                faults = 0
            except Exception as e:  # a fault of ours: no request may wait for ever because of it
                log.exception("the engine's thread met a fault")
                faults += 1
                if not self._recover(f"{type(e).__name__}: {e}", last=faults == 3):
                    return

    def _recover(self, reason: str, last: bool) -> bool:
        """Ends everybody who was there with the reason. True if the engine's books are right, so that it may go on."""
        sound = not last
        if sound:
            try:
                for request_id in self._tickets:
                    self.engine.cancel(request_id)
                while self.engine.has_work:
                    self.engine.step()
                self.engine.check()
            except Exception:
                log.exception("the engine can't go on")
                sound = False
        left, self._tickets = [*self._tickets.values()], {}
        with self._wake:
            if not sound:  # no ticket comes in after this
                self.failure = reason
                left += self._incoming
                self._incoming = []
        for ticket in left:
            self._tell(ticket, BackendError(f"the engine failed: {reason}"))
        return sound

    def _turn(self) -> bool:
        with self._wake:
            while not (
                self._incoming
                or self._cancelled
                or self._cancel_all
                or self._stopping
                or self.engine.has_work
            ):
                self._wake.wait()
            incoming, self._incoming = self._incoming, []
            cancelled, self._cancelled = self._cancelled, []
            everybody, self._cancel_all = self._cancel_all or self._stopping, False
            stopping = self._stopping
        for number, ticket in enumerate(incoming):
            try:
                self._admit(ticket)
            except Exception as e:
                self._tell(ticket, BackendError(f"the engine failed: {type(e).__name__}: {e}"))
                with self._wake:  # those behind it have their turn after the fault
                    self._incoming = incoming[number + 1 :] + self._incoming
                    self._cancelled += cancelled
                raise
        for ticket in [*self._tickets.values()] if everybody else cancelled:
            if ticket.request_id is not None:
                self.engine.cancel(ticket.request_id)
        if self.engine.has_work:
            for event in self.engine.step():
                ended = event.finish_reason is not None
                pop = self._tickets.pop if ended else self._tickets.get
                ticket_or_none = pop(event.request_id, None)
                if ticket_or_none is not None:
                    self._tell(ticket_or_none, event)
        return not stopping or bool(self._tickets)

    def _admit(self, ticket: Ticket) -> None:
        try:
            ticket.request_id = self.engine.submit(ticket.inputs, ticket.params, ticket.constraint)
        except QvlError as e:
            self._tell(ticket, e)
            return
        self._tickets[ticket.request_id] = ticket
        self._tell(ticket, Event(ticket.request_id))

    def _tell(self, ticket: Ticket, what: Event | QvlError) -> None:
        try:
            ticket.deliver(what)
        except RuntimeError as e:  # its event loop is closed: whoever asked is gone
            log.debug("the events of request %s are not taken any more: %s", ticket.request_id, e)
            if ticket.request_id is not None:
                self.engine.cancel(ticket.request_id)
