"""What the gateway is serving now, by id: the ledger behind cancel, drain and the limit on concurrency."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sage_core import Budget, Overloaded, Unavailable
from sage_gateway.metrics import IN_FLIGHT
from sage_gateway.ports import Stream, SubmitPort
from sage_wire.messages import Targets, Work

__all__ = ["InFlight", "Ticket"]

_RETRY_SECONDS = 1.0


@dataclass(slots=True)
class Ticket:
    """One admitted request: whose it is, how urgent, what it was promised, and the streams it has open below."""

    request_id: str
    shown_id: str
    tenant: str
    slo_class: str
    targets: Targets
    route: str
    budget: Budget
    traceparent: str | None
    port: SubmitPort
    streams: list[Stream] = field(default_factory=list)

    def submit(self, pool: str, work: Work) -> Stream:
        """Submit one piece of work of this request; the first has the request's own id, others a suffix."""
        suffix = f"-{len(self.streams)}" if self.streams else ""
        stream = self.port.submit(
            pool,
            work,
            budget=self.budget,
            request_id=self.request_id + suffix,
            tenant=self.tenant,
            slo_class=self.slo_class,
            targets=self.targets,
            route=self.route,
            traceparent=self.traceparent,
        )
        self.streams.append(stream)
        return stream

    def cancel(self, reason: str) -> None:
        """End all of it, wherever it is. Idempotent."""
        for stream in self.streams:
            stream.cancel(reason)


class InFlight:
    """Admits at most `max_in_flight` requests, and finds them by id."""

    def __init__(self, max_in_flight: int) -> None:
        self._max = max_in_flight
        self._tickets: dict[str, Ticket] = {}
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._tickets)

    @contextmanager
    def admit(self, ticket: Ticket) -> Iterator[Ticket]:
        """Hold `ticket` for the length of the block; whatever it still has open then is cancelled.

        Raises Overloaded at the limit and Unavailable while draining.
        """
        if self.is_draining:
            raise Unavailable("this gateway is shutting down; try again", retry_after=_RETRY_SECONDS)
        if len(self._tickets) >= self._max:
            raise Overloaded(
                f"the gateway serves {self._max} requests, its limit; try again", retry_after=_RETRY_SECONDS
            )
        self._tickets[ticket.request_id] = ticket
        IN_FLIGHT.set(len(self._tickets))
        try:
            yield ticket
        finally:
            del self._tickets[ticket.request_id]
            IN_FLIGHT.set(len(self._tickets))
            ticket.cancel("its request ended at the gateway")

    def find(self, request_id: str, tenant: str) -> list[Ticket]:
        """Return the caller's requests with this id, ours or the one it gave itself."""
        ticket = self._tickets.get(request_id)
        if ticket is not None and ticket.tenant == tenant:
            return [ticket]
        return [
            ticket
            for ticket in self._tickets.values()
            if ticket.shown_id == request_id and ticket.tenant == tenant
        ]
