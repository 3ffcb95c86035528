"""The hot path: a request that is one operation, from its body to the last byte of its answer. No task, no waiting.

A state machine that the connection and the port below drive: body, quota, events, end. Each frame becomes at most one
write; an answer that is not streamed is one write, head and body together.
"""

from __future__ import annotations

from collections.abc import Sequence

from sage_client import RequestSink
from sage_core import SageError
from sage_gateway.access import Granted
from sage_gateway.edge import Edge
from sage_gateway.errors import CLIENT_CLOSED, HttpRefused
from sage_gateway.http import Exchange
from sage_gateway.operation import Answer
from sage_gateway.routes import Route
from sage_gateway.ticket import Ticket
from sage_gateway.visit import Visit
from sage_wire.messages import Completed, Event, Tokens

__all__ = ["OperationVisit"]


class OperationVisit(Visit):
    """A visit of a route with an operation; also the sink of its first work."""

    __slots__ = ("_answer", "_is_silent", "_num_left", "_ticket")

    _answer: Answer

    def __init__(self, edge: Edge, exchange: Exchange, route: Route) -> None:
        super().__init__(edge, exchange, route)
        self._ticket: Ticket | None = None
        self._num_left = 0
        self._is_silent = True

    def received(self, body: bytes) -> None:
        """Plan, and submit as soon as the key's quota allows."""
        operation = self.route.operation
        assert operation is not None
        try:
            planned = operation.plan(body, self.asked())
            if planned.num_ignored:
                self.route.meter.num_ignored_fields += planned.num_ignored
            self._answer = planned.answer
            self._num_left = len(planned.works)
            ticket = Ticket(self, planned)
            self.describe(planned, ticket)
            self._ticket = ticket
            ticket.admit(self._decided)
        except Exception as error:  # whatever is wrong with one request costs that request alone
            self.fail(error)

    def _decided(self, decision: Granted | HttpRefused | None) -> None:
        if isinstance(decision, HttpRefused):
            self.fail(decision)
            return
        if decision is not None:
            self.add_headers(decision.headers)
        ticket = self._ticket
        assert ticket is not None
        sinks: list[RequestSink] = [self, *[_Part(self, index) for index in range(1, self._num_left)]]
        try:
            ticket.submit(sinks)
        except Exception as error:  # as above; the port refuses by raising
            self.fail(error)
            return
        if self._answer.is_streamed:
            self.exchange.keep_alive()

    # RequestSink, of the first work; the name of `finish` is the protocol's

    def deliver(self, events: list[Event]) -> None:
        """Take what a frame brought for the first work."""
        self.take(0, events)

    def finish(self, error: SageError | None) -> None:
        """Take the end of one work; a successful one has been told by its `Completed`."""
        if self.is_over:
            return
        if error is not None:
            self.fail(error)

    def take(self, index: int, events: Sequence[Event]) -> None:
        """Turn events of work `index` into what the client sees of them."""
        if self.is_over:
            return
        try:
            data = self._answer.add(index, events)
        except Exception as error:  # whatever a worker sends costs that request alone
            self.fail(error)
            return
        if self._is_silent:
            for event in events:
                if type(event) is Tokens:
                    self._is_silent = False
                    self.note_first_token()
                    break
        if self.caller.quota is not None and self._ticket is not None:
            self._ticket.note(events)
        if type(events[-1]) is Completed:
            self._num_left -= 1
            if not self._num_left:
                self._complete(data)
                return
        if data:
            self.send_part(data)

    def _complete(self, data: bytes) -> None:
        answer = self._answer
        try:
            rest = answer.end()
        except Exception as error:  # what the worker sent does not make an answer
            self.fail(error)
            return
        usage = answer.usage
        self.note_usage(usage, answer.finish_reasons)
        if self._ticket is not None:
            self._ticket.end(usage.prompt_tokens + usage.completion_tokens)
        if answer.is_streamed:
            self.send_last(data + rest)
        else:
            self.respond(200, rest)

    # Ends

    def gone(self, reason: str) -> None:
        """Cancel whatever runs: nobody waits for it."""
        if not self.is_over:
            self._end(CLIENT_CLOSED, reason)

    def _end(self, status: int, reason: str = "its request ended at the gateway") -> None:
        super()._end(status)
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.end(None, reason)


class _Part:
    """The sink of one of the works after the first."""

    __slots__ = ("_index", "_visit")

    def __init__(self, visit: OperationVisit, index: int) -> None:
        self._visit = visit
        self._index = index

    def deliver(self, events: list[Event]) -> None:
        """Take what a frame brought for this work."""
        self._visit.take(self._index, events)

    def finish(self, error: SageError | None) -> None:
        """Take the end of this work."""
        self._visit.finish(error)
