"""The way from an engine's stepping loop to the one consumer of a request: a queue that ends exactly once."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from sage_wire.messages import Completed, Tokens

__all__ = ["EventStream"]


class EventStream:
    """Events of one request, written and read on the same event loop.

    Cheaper than `asyncio.Queue`: no lock and, while the reader keeps up, one future per event. Bounded by
    `max_tokens` of the request, since an engine writes at most one event per token.

    A reader that gathers for `gather` seconds (see `Generate.gather_ms`) is woken for the first event and the last, and
    in between once per `gather`: waking it took more of a worker's time than all else about a token.
    """

    __slots__ = ("_events", "_failure", "_gather", "_is_closed", "_unread_since", "_waiter")

    def __init__(self, gather: float = 0.0) -> None:
        self._gather = gather
        self._unread_since = 0.0
        self._events: deque[Tokens | Completed] = deque()
        self._failure: BaseException | None = None
        self._is_closed = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_closed(self) -> bool:
        """True after `Completed`, a failure or `close`; what is put later is dropped."""
        return self._is_closed

    def put(self, event: Tokens | Completed) -> None:
        """Hand over an event; `Completed` ends the stream."""
        if self._is_closed:
            return
        if self._gather and type(event) is Tokens:
            now = time.monotonic()
            if not self._unread_since:
                self._unread_since = now  # the first one leaves at once
            elif not self._events:
                self._unread_since = now
                self._events.append(event)
                return
            elif now - self._unread_since < self._gather:
                self._events.append(event)
                return
        self._events.append(event)
        self._is_closed = isinstance(event, Completed)
        self._wake()

    def fail(self, error: BaseException) -> None:
        """End the stream: the reader gets what is already here, then `error`. Idempotent."""
        if self._is_closed:
            return
        self._failure = error
        self._is_closed = True
        self._wake()

    def close(self) -> None:
        """End the stream from the reader's side: what is unread is dropped, and what comes later too."""
        self._is_closed = True
        self._events.clear()

    async def get(self) -> Tokens | Completed:
        """Return the next event; raises the failure once everything before it was read."""
        while not self._events:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._events.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
