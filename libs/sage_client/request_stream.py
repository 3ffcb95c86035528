"""The reader's end of one request: an async iterator of events, or of everything that is pending at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from sage_client.open_request import OpenRequest, RequestSink
from sage_core import SageError
from sage_wire.messages import Event

__all__ = ["RequestStream"]


class RequestStream:
    """Events of one request, in order, ending with `Completed`; made by `RequestPort.submit`, read by one task.

    Yields Tokens, Vectors, Scores, Output, Annotated and last Completed; raises the request's SageError where it
    failed, after everything that came before. Losses, lost workers and late frames have been dealt with below it.
    Cancelling the task that reads, or closing the stream, cancels the request: use `async with` where a reader may
    leave early.
    """

    def __init__(self, open_request: Callable[[RequestSink], OpenRequest]) -> None:
        """`open_request` opens the request whose sink this is."""
        self._pending: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None
        self._is_finished = False
        self._error: SageError | None = None
        self.request = open_request(self)

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.request.request_id

    @property
    def pool(self) -> str:
        """The pool it was submitted to."""
        return self.request.pool

    @property
    def attempt(self) -> int:
        """The current attempt, from 0."""
        return self.request.attempt

    @property
    def worker_id(self) -> str | None:
        """Who runs the current attempt; None until it started."""
        return self.request.worker_id

    @property
    def queue_ms(self) -> float:
        """How long the attempt that started last had waited at the scheduler."""
        return self.request.queue_ms

    @property
    def is_finished(self) -> bool:
        """True once the end is known; events may still be pending."""
        return self._is_finished

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if not self._pending:
            await self._wait()
        return self._pending.pop(0)

    async def next_batch(self) -> list[Event]:
        """Return every pending event, waiting for the first; never an empty list.

        Raises the request's SageError, or StopAsyncIteration once `Completed` has been returned.
        """
        if not self._pending:
            await self._wait()
        batch, self._pending = self._pending, []
        return batch

    def cancel(self, reason: str = "cancelled by the caller") -> None:
        """End the request wherever it is; its reader gets Cancelled. Idempotent; no effect after the end."""
        self.request.cancel(reason)

    async def aclose(self) -> None:
        """Cancel the request unless it has ended."""
        self.cancel("the stream was closed")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def deliver(self, events: list[Event]) -> None:
        """See `RequestSink.deliver`."""
        self._pending += events
        self._wake()

    def finish(self, error: SageError | None) -> None:
        """See `RequestSink.finish`."""
        self._is_finished = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self) -> None:
        """Return with something pending, or raise the end."""
        while not self._pending:
            if self._is_finished:
                if self._error is None:
                    raise StopAsyncIteration
                raise self._error
            if self._waiter is not None:
                raise RuntimeError("a request stream is read by one task at a time")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.cancel("its reader was cancelled")
                raise
            finally:
                self._waiter = None
