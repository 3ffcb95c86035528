"""A streamed answer on its way to one client, and the watch over that client. One task per request, none per token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from sage_gateway.chunks import KEEP_ALIVE
from sage_gateway.exchange import ClientGone, Exchange
from sage_gateway.settings import GatewaySection

__all__ = ["EventStream", "Watch"]

_HEAD: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Reverse proxies that buffer would hold back the first token.
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """Writes server-sent events. The status line waits for the first bytes, so an early failure can still be a 4xx.

    One task writes events and the watch may add comments; writes never overlap. Times are the event loop's.
    """

    def __init__(self, exchange: Exchange, max_backlog: int) -> None:
        self._exchange = exchange
        self._max_backlog = max_backlog
        self._lock = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self.is_started = False
        self.is_finished = False
        self.last_sent_at = self._loop.time()
        self.blocked_since: float | None = None
        exchange.event_stream = self

    async def send(self, data: bytes) -> None:
        """Send `data` now; waits while the client's buffer is full.

        Raises ClientGone, having dropped the connection, where more than `max_backlog` bytes had gathered.
        """
        if len(data) > self._max_backlog:
            self._exchange.abort()
            raise ClientGone
        await self._write(data, is_last=False)

    async def finish(self, data: bytes) -> None:
        """Send the last events and end the response."""
        await self._write(data, is_last=True)

    async def keep_alive(self) -> None:
        """Send a comment, which clients ignore and proxies count as life."""
        await self._write(KEEP_ALIVE, is_last=False)

    async def _write(self, data: bytes, *, is_last: bool) -> None:
        async with self._lock:
            if self.is_finished:
                return
            self.blocked_since = self._loop.time()
            try:
                if not self.is_started:
                    self.is_started = True
                    await self._exchange.start(200, _HEAD)
                self.is_finished = is_last
                await self._exchange.send_body(data, is_last=is_last)
            finally:
                self.blocked_since = None
                self.last_sent_at = self._loop.time()


class Watch:
    """Watches the client while its request runs: calls `gone` with the reason when it leaves or stalls.

    With `events`, a silent stream gets a comment every `keep_alive_interval`, and a client that takes no bytes for
    `stall_timeout` is cut off; the block is then left with ClientGone. Use as an async context manager.
    """

    def __init__(
        self,
        exchange: Exchange,
        settings: GatewaySection,
        gone: Callable[[str], None],
        events: EventStream | None = None,
    ) -> None:
        self._exchange = exchange
        self._settings = settings
        self._gone = gone
        self._events = events
        self._has_stalled = False

    async def __aenter__(self) -> Self:
        self._reader = asyncio.current_task()
        self._task = asyncio.create_task(self._run(), name=f"watch {self._exchange.request_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._task.cancel()
        (outcome,) = await asyncio.gather(self._task, return_exceptions=True)
        if self._has_stalled and isinstance(error, asyncio.CancelledError):
            assert self._reader is not None
            if self._reader.uncancel() == 0:
                raise ClientGone from None
        if error is None and isinstance(outcome, Exception):
            raise outcome

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout_at(self._next_look()):
                    await self._exchange.wait_gone()
            except TimeoutError:
                if await self._is_cut_off():
                    return
                continue
            if self._events is None or not self._events.is_finished:
                self._exchange.is_gone = True
                self._gone("the client disconnected")
            return

    def _next_look(self) -> float | None:
        events = self._events
        if events is None:
            return None
        if events.blocked_since is not None:
            return events.blocked_since + self._settings.stall_timeout
        # A write that blocks right after this look is noticed by the next one.
        return min(
            events.last_sent_at + self._settings.keep_alive_interval,
            asyncio.get_running_loop().time() + self._settings.stall_timeout,
        )

    async def _is_cut_off(self) -> bool:
        """Act on the time that has passed; True where the client was dropped."""
        events = self._events
        assert events is not None
        now = asyncio.get_running_loop().time()
        if events.blocked_since is not None:
            is_stalled = now - events.blocked_since >= self._settings.stall_timeout
        elif now - events.last_sent_at >= self._settings.keep_alive_interval:
            is_stalled = not await self._has_sent_comment(events)
        else:
            is_stalled = False
        if is_stalled:
            self._cut()
        return is_stalled

    async def _has_sent_comment(self, events: EventStream) -> bool:
        try:
            async with asyncio.timeout(self._settings.stall_timeout):
                await events.keep_alive()
        except TimeoutError:
            return False
        return True

    def _cut(self) -> None:
        """Drop a client that takes nothing. Its reader may be blocked in a write, so it is woken by a cancellation."""
        self._has_stalled = True
        self._exchange.abort()
        self._gone("the client takes no data")
        assert self._reader is not None
        self._reader.cancel()
