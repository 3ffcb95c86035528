"""The hot path: a request that is one operation, from its body to the last byte of its answer. No task, no waiting.

A state machine that the connection and the port below drive: body, quota, events, end. Each frame becomes at most one
write; an answer that is not streamed is one write, head and body together.
"""

from __future__ import annotations

from sage_core import SageError
from sage_gateway.access import Granted
from sage_gateway.edge import Edge
from sage_gateway.errors import CLIENT_CLOSED, HttpRefused
from sage_gateway.http import Exchange
from sage_gateway.operation import Answer
from sage_gateway.routes import Route
from sage_gateway.ticket import Part, Ticket
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
        self.guard(self._plan, body)

    def _plan(self, body: bytes) -> None:
        operation = self.route.operation
        assert operation is not None
        planned = operation.plan(body, self.asked())
        if planned.num_ignored:
            self.route.meter.num_ignored_fields += planned.num_ignored
        self._answer = planned.answer
        self._num_left = len(planned.works)
        ticket = Ticket(self, planned)
        self.describe(planned, ticket)
        self._ticket = ticket
        ticket.admit(self._decided)

    def _decided(self, decision: Granted | HttpRefused | None) -> None:
        if isinstance(decision, HttpRefused):
            self.fail(decision)
            return
        if decision is not None:
            self.add_headers(decision.headers)
        self.guard(self._submit)

    def _submit(self) -> None:
        assert self._ticket is not None
        self._ticket.submit([self, *[Part(self, index) for index in range(1, self._num_left)]])
        if self._answer.is_streamed:
            self.exchange.keep_alive()

    # RequestSink, of the first work; the name of `finish` is the protocol's

    def deliver(self, events: list[Event]) -> None:
        """Take what a frame brought for the first work."""
        self.take(0, events)

    def finish(self, error: SageError | None) -> None:
        """Take the end of one work; a successful one has been told by its `Completed`."""
        if error is not None:
            self.fail(error)

    def take(self, index: int, events: list[Event]) -> None:
        """Turn events of work `index` into what the client sees of them."""
        if not self.is_over:
            self.guard(self._take, index, events)

    def _take(self, index: int, events: list[Event]) -> None:
        data = self._answer.add(index, events)
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
        rest = answer.end()
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
