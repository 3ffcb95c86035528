"""Requests that a coroutine answers, each in a task of its own: looking, cancelling, and routes that keep state."""

from __future__ import annotations

import asyncio

from sage_core import Unavailable
from sage_gateway.edge import Edge
from sage_gateway.errors import CLIENT_CLOSED
from sage_gateway.http import Exchange
from sage_gateway.routes import Handler, Route
from sage_gateway.visit import ClientGone, Visit

__all__ = ["HandlerVisit"]


class HandlerVisit(Visit):
    """A visit of a route with handlers. What the handler raises becomes the answer; see `Visit.fail`.

    Where the client leaves, the handler's task is cancelled. A handler that streams calls `begin_events`, `send` and
    `finish`; one that does not, `respond`. None of them waits: a client that falls `max_backlog` behind is cut off.
    """

    __slots__ = ("_handler", "_task", "body", "method", "path", "query")

    def __init__(self, edge: Edge, exchange: Exchange, route: Route) -> None:
        super().__init__(edge, exchange, route)
        self.method = exchange.method
        self.path = exchange.path
        self.query = exchange.query
        self.body = b""
        self._handler: Handler | None = None
        self._task: asyncio.Task[None] | None = None

    def handle_with(self, handler: Handler) -> None:
        """Let `handler` answer once the body is here."""
        self._handler = handler

    def received(self, body: bytes) -> None:
        """Start the handler."""
        self.body = body
        self._task = asyncio.get_running_loop().create_task(self._serve(), name=f"serve {self.request_id}")

    def begin_events(self) -> None:
        """Answer with server-sent events: from now on a silence is broken by comments, the first with the head."""
        self.exchange.keep_alive()

    def send(self, data: bytes) -> None:
        """Send server-sent events. Raises ClientGone where nobody reads them any more."""
        if self.is_over:
            raise ClientGone
        self.send_part(data)

    def finish(self, data: bytes = b"", *, status: int = 200) -> None:
        """Send the last events and end the answer; `status` is what the metrics and the trace are told."""
        self.send_last(data, status)

    async def _serve(self) -> None:
        assert self._handler is not None
        try:
            await self._handler(self)
            if not self.is_over:
                raise RuntimeError("the handler ended without an answer")
        except asyncio.CancelledError:
            self.fail(Unavailable("the gateway is shutting down; try again"))
            raise
        except (
            Exception
        ) as error:  # the edge of the process: told to the client, and logged where it is a bug
            self.fail(error)

    def gone(self, reason: str) -> None:
        """Cancel the handler: nobody waits for it."""
        del reason
        if not self.is_over:
            self._end(CLIENT_CLOSED)
            if self._task is not None:
                self._task.cancel()

    def stop(self) -> None:
        """End with an error, and the handler with it."""
        super().stop()
        if self._task is not None:
            self._task.cancel()
