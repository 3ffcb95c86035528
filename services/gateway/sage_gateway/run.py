"""Works of one plan, run and read by a coroutine. For handlers that do more than an operation can say."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from sage_core import Cancelled
from sage_gateway.access import Granted
from sage_gateway.errors import HttpRefused
from sage_gateway.operation import Planned
from sage_gateway.operations.usage import total_usage
from sage_gateway.ticket import Part, Ticket
from sage_gateway.visit import Visit
from sage_wire.messages import Completed, Event, Tokens, Usage

__all__ = ["Run"]


class Run:
    """`async with Run(visit, planned) as run: async for index, events in run: …`, read by one task.

    Entering admits the request (this gateway's limit, the key's quota) and submits every work; leaving cancels what
    still runs and pays. Iterating yields the events of one work at a time, in order per work, until all completed;
    it raises the SageError of the first work that fails, after what came before. The visit may be over already:
    a run in the background belongs to its caller, not to its client.
    """

    def __init__(self, visit: Visit, planned: Planned) -> None:
        """Raises what `Ticket` raises."""
        self.usage = Usage()
        """The sum over the works that completed."""
        self._visit = visit
        self._ticket = Ticket(visit, planned)
        self._num_left = len(planned.works)
        self._planned = planned
        self._pending: deque[tuple[int, list[Event]]] = deque()
        self._finish_reasons: list[str] = []
        self._error: Exception | None = None
        self._is_silent = True
        self._waiter: asyncio.Future[None] | None = None

    @property
    def request_id(self) -> str:
        """Of the first work, as it is known below."""
        return self._ticket.request_id

    def cancel(self, reason: str) -> None:
        """End it from anywhere; whoever reads gets Cancelled. Idempotent."""
        self.fail(Cancelled(reason))
        self._ticket.cancel(reason)

    async def __aenter__(self) -> Self:
        decided: asyncio.Future[Granted | HttpRefused | None] = asyncio.get_running_loop().create_future()

        def decide(decision: Granted | HttpRefused | None) -> None:
            if not decided.done():
                decided.set_result(decision)

        with ExitStack() as undo:
            undo.callback(self._ticket.end, None)
            self._visit.describe(self._planned, self._ticket)
            self._ticket.admit(decide)
            decision = await decided
            if isinstance(decision, HttpRefused):
                raise decision
            if decision is not None:
                self._visit.add_headers(decision.headers)
            self._ticket.submit([Part(self, index) for index in range(self._num_left)])
            undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._visit.note_usage(self.usage, self._finish_reasons)
        num_tokens = self.usage.prompt_tokens + self.usage.completion_tokens
        self._ticket.end(None if self._num_left else num_tokens)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, list[Event]]:
        while not self._pending:
            if self._error is not None:
                raise self._error
            if not self._num_left:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._pending.popleft()

    def take(self, index: int, events: list[Event]) -> None:
        """Hand events of work `index` to the reader. For the works."""
        if self._is_silent and any(isinstance(event, Tokens) for event in events):
            self._is_silent = False
            if not self._visit.is_over:
                self._visit.note_first_token()
        if self._ticket.caller.quota is not None:
            self._ticket.note(events)
        last = events[-1]
        if isinstance(last, Completed):
            self._num_left -= 1
            self._finish_reasons.append(last.finish_reason)
            self.usage = total_usage((self.usage, last.usage))
        self._pending.append((index, events))
        self._wake()

    def fail(self, error: Exception) -> None:
        """Raise `error` at the reader once it has read what came before. For the works."""
        if self._error is None:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
