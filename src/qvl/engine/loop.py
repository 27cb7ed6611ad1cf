"""Steps the engine and delivers each event to its request: `Driver`, and `EngineLoop`, a thread that runs one.

After a fault in a step its requests end with an error, and later ones are answered. Knows nothing of HTTP.

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

MOST_FAULTS = 3  # in a row, before the engine is given up


@dataclass(eq=False)
class Ticket:
    """One request on its way through the engine."""

    inputs: ModelInputs
    params: SamplingParams
    deliver: Deliver
    constraint: Constraint | None = None
    request_id: int | None = None  # known to whoever drives


class Driver:
    """Takes requests on, steps, and delivers. Not thread-safe: one thread at a time."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.failure: str | None = None  # why it can't go on, after a fault that it couldn't recover from
        self._tickets: dict[int, Ticket] = {}
        self._faults = 0  # in a row

    @property
    def busy(self) -> bool:
        return bool(self._tickets)

    def admit(self, ticket: Ticket) -> None:
        """Tells the ticket that it was taken on, or why it wasn't."""
        if self.failure is not None:
            self._tell(ticket, BackendError(f"the engine is not running: {self.failure}"))
            return
        try:
            ticket.request_id = self.engine.submit(ticket.inputs, ticket.params, ticket.constraint)
        except QvlError as e:
            self._tell(ticket, e)
        except Exception as e:
            self._tell(ticket, BackendError(f"the engine failed: {type(e).__name__}: {e}"))
            self._recover(e)
        else:
            self._tickets[ticket.request_id] = ticket
            self._tell(ticket, Event(ticket.request_id))

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request now; its event comes with the next step. One that has ended already stays as it is."""
        if ticket.request_id is not None and self.failure is None:
            try:
                self.engine.cancel(ticket.request_id)
            except Exception as e:
                self._recover(e)

    def forget(self, ticket: Ticket) -> None:
        """Cancels a request whose asker wants to hear no more of it."""
        self.cancel(ticket)
        if ticket.request_id is not None:
            self._tickets.pop(ticket.request_id, None)

    def cancel_all(self) -> None:
        for ticket in [*self._tickets.values()]:
            self.cancel(ticket)

    def step(self) -> None:
        """Runs one step and delivers what it brought."""
        try:
            for event in self.engine.step():
                ended = event.finish_reason is not None
                pop = self._tickets.pop if ended else self._tickets.get
                ticket = pop(event.request_id, None)
                if ticket is not None:
                    self._tell(ticket, event)
            self._faults = 0
        except Exception as e:  # a fault of ours: no asker may wait for ever because of it
            self._recover(e)

    def _recover(self, error: Exception) -> None:
        """Ends all requests there are with the reason; gives up when the engine's books aren't right afterwards."""
        reason = f"{type(error).__name__}: {error}"
        log.error("the engine met a fault", exc_info=error)
        self._faults += 1
        sound = self._faults < MOST_FAULTS
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
        if not sound:
            self.failure = reason
        left, self._tickets = [*self._tickets.values()], {}
        for ticket in left:
            self._tell(ticket, BackendError(f"the engine failed: {reason}"))

    def _tell(self, ticket: Ticket, what: Event | QvlError) -> None:
        try:
            ticket.deliver(what)
        except RuntimeError as e:  # its event loop is closed: whoever asked is gone
            log.debug("the events of request %s are not taken: %s", ticket.request_id, e)
            if ticket.request_id is not None:
                self.engine.cancel(ticket.request_id)


class EngineLoop:
    """Owns an engine from `start` to `stop`: no other code may call it in between."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._driver = Driver(engine)
        self._wake = threading.Condition()
        self._incoming: list[Ticket] = []
        self._cancelled: list[Ticket] = []
        self._cancel_all = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    @property
    def failure(self) -> str | None:
        """Why the thread ended, when it wasn't asked to."""
        return self._driver.failure

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and self.failure is None

    def start(self) -> None:
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, name="qvl-engine", daemon=True)
        self._thread.start()

    def stop(self, patience_s: float | None = None) -> None:
        """Cancels what runs, delivers those ends, and waits for the thread, or for `patience_s`."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(patience_s)

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
                raise BackendError(f"the engine is not running: {self.failure or 'it was stopped'}")
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
        while self._turn():
            pass

    def _turn(self) -> bool:
        driver = self._driver
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
        for ticket in incoming:
            driver.admit(ticket)
        if everybody:
            driver.cancel_all()
        for ticket in cancelled:
            driver.cancel(ticket)
        if driver.failure is None and self.engine.has_work:
            driver.step()
        if driver.failure is not None:
            with self._wake:  # no ticket comes in after this, as `alive` is False
                incoming, self._incoming = self._incoming, []
            for ticket in incoming:
                driver.admit(ticket)
            return False
        return not stopping or driver.busy
