"""An asynchronous iterator fed by plain function calls. Cancelling a reader never loses an item."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["QueueFeed"]

T = TypeVar("T")


class QueueFeed(Generic[T]):
    """Items in the order they were pushed; one reader at a time.

    `on_close` runs once, when the reader closes the feed, and gets what was pushed but never read.
    """

    def __init__(self, on_close: Callable[[list[T]], Awaitable[None]] | None = None) -> None:
        self._items: deque[T] = deque()
        self._wake = asyncio.Event()
        self._on_close = on_close
        self._is_closed = False
        self._error: Exception | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_closed(self) -> bool:
        """True once the reader closed it or `end` was called."""
        return self._is_closed

    def push(self, item: T) -> None:
        """Append an item; ignored after the end."""
        if not self._is_closed:
            self._items.append(item)
            self._wake.set()

    def end(self, error: Exception | None = None) -> None:
        """Let the reader finish what is there, then stop it, raising `error` where one is given."""
        self._is_closed = True
        self._error = error
        self._wake.set()

    def __aiter__(self) -> QueueFeed[T]:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._is_closed:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._items.popleft()

    async def aclose(self) -> None:
        """Stop the feed and give back what was not read. Idempotent."""
        on_close, self._on_close = self._on_close, None
        unread = list(self._items)
        self._items.clear()
        self._is_closed = True
        self._wake.set()
        if on_close is not None:
            await on_close(unread)
