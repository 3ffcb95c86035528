"""One admitted request: on which terms its works are submitted, what its key pays for it, and how all of it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from sage_client import RequestSink, measure
from sage_core import SageError
from sage_gateway.access import Caller, Granted
from sage_gateway.errors import HttpRefused
from sage_gateway.operation import Planned
from sage_gateway.ports import OpenWork
from sage_gateway.terms import asked_class, budget_seconds, targets_of
from sage_wire.messages import Event, Tokens

if TYPE_CHECKING:
    from sage_gateway.visit import Visit

__all__ = ["Part", "Ticket"]


class Taker(Protocol):
    """What reads the works of a ticket."""

    def take(self, index: int, events: list[Event]) -> None:
        """Take what a frame brought for work `index`."""
        ...

    def fail(self, error: Exception) -> None:
        """Take the failure of a work. May be called again, and after the end."""
        ...


class Part:
    """The sink of one work of several."""

    __slots__ = ("_index", "_taker")

    def __init__(self, taker: Taker, index: int) -> None:
        self._taker = taker
        self._index = index

    def deliver(self, events: list[Event]) -> None:
        """See `RequestSink`."""
        self._taker.take(self._index, events)

    def finish(self, error: SageError | None) -> None:
        """See `RequestSink`; a work that succeeded has been told by its `Completed`."""
        if error is not None:
            self._taker.fail(error)


class Ticket:
    """Order: `admit`, then `submit` once it called back with None, then `end`, exactly once."""

    __slots__ = (
        "_deadline",
        "_edge",
        "_first_number",
        "_granted",
        "_is_over",
        "_num_seen",
        "_open",
        "_planned",
        "_route",
        "_targets",
        "_traceparent",
        "_visit_id",
        "caller",
        "request_id",
        "shown_id",
        "slo_class",
    )

    def __init__(self, visit: Visit, planned: Planned) -> None:
        """Raises BadRequest for headers that cannot be meant, HttpRefused for a class that the key may not have."""
        edge, headers = visit.edge, visit.headers
        self.caller: Caller = visit.caller
        self.slo_class = visit.caller.slo_class(asked_class(headers, planned.service_tier))
        self._deadline = edge.clock.now() + budget_seconds(headers, edge.settings)
        self._targets = targets_of(headers, edge.settings)
        self._edge = edge
        self._planned = planned
        self._route = visit.route.name
        self._traceparent = visit.traceparent
        # The first work has the request's own id; those after it, also of later runs, a number.
        self._first_number = visit.num_works
        visit.num_works += len(planned.works)
        self._visit_id = visit.request_id
        self.request_id = self._id_of(0) if self._first_number else visit.request_id
        self.shown_id = visit.shown_id
        self._open: list[OpenWork] = []
        self._granted: Granted | None = None
        self._is_over = False
        self._num_seen = 0

    @property
    def tenant(self) -> str:
        """Whose request it is."""
        return self.caller.tenant

    @property
    def budget_seconds(self) -> float:
        """What is left of its time."""
        return max(0.0, self._deadline - self._edge.clock.now())

    def admit(self, on_decision: Callable[[Granted | HttpRefused | None], None]) -> None:
        """Take a place at this gateway, then ask the key's quota; None: there is none, and nothing to wait for.

        Calls back at once, or later where a quota is asked; not after `end`. Raises what `InFlight.admit` raises.
        """
        edge = self._edge
        edge.in_flight.admit(self)
        if self.caller.quota is None:
            on_decision(None)
            return

        def decided(decision: Granted | HttpRefused) -> None:
            if isinstance(decision, Granted):
                if self._is_over:
                    edge.gate.release(decision)
                    return
                self._granted = decision
            if not self._is_over:
                on_decision(decision)

        works = self._planned.works
        edge.gate.admit(self.caller, edge.gate.reserved_tokens(works), decided)

    def submit(self, sinks: Sequence[RequestSink]) -> None:
        """Submit every work, each with its sink. Raises what the port raises; `end` takes back what was submitted."""
        edge = self._edge
        seconds = self.budget_seconds
        for index, sink in enumerate(sinks):
            self._open.append(
                edge.port.open(
                    self._planned.served.name,
                    self._planned.works[index],
                    sink,
                    budget=seconds,
                    request_id=self._id_of(index) if index else self.request_id,
                    tenant=self.caller.tenant,
                    slo_class=self.slo_class,
                    targets=self._targets,
                    route=self._route,
                    traceparent=self._traceparent,
                )
            )

    def note(self, events: Sequence[Event]) -> None:
        """Count what has been generated; only quotas ask for it, where the request ends before its usage is known."""
        for event in events:
            if isinstance(event, Tokens):
                self._num_seen += len(event.token_ids) or 1

    def cancel(self, reason: str) -> None:
        """End all of it, wherever it is: every sink gets its `finish`. Idempotent."""
        for work in tuple(self._open):
            work.cancel(reason)

    def end(self, num_tokens: int | None, reason: str = "its request ended at the gateway") -> None:
        """Give the place back, pay, and cancel what still runs. Idempotent.

        `num_tokens` is what was used; None where that is not known, as the request ended early.
        """
        if self._is_over:
            return
        self._is_over = True
        self._edge.in_flight.release(self)
        if self._granted is not None:
            self._pay(self._granted, num_tokens)
        # Emptied first: a sink that is told of the cancel may end this ticket again.
        works, self._open = self._open, []
        for work in works:
            work.cancel(reason)

    def _pay(self, granted: Granted, num_tokens: int | None) -> None:
        gate = self._edge.gate
        if num_tokens is not None:
            gate.settle(granted, num_tokens)
        elif any(work.worker_id is not None for work in self._open):
            num_prompt = sum(measure(work).num_prompt_tokens for work in self._planned.works)
            gate.settle(granted, num_prompt + self._num_seen)
        else:
            gate.release(granted)

    def _id_of(self, index: int) -> str:
        number = self._first_number + index
        return f"{self._visit_id}-{number}" if number else self._visit_id
