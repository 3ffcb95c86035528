"""One timer of the event loop for many things that wait, most of them in vain.

A request sets its alarm with nearly every step and almost never hears it. So an earlier entry stays where a later one
is asked for, and an end removes nothing: both are noticed when the entry's turn comes. Entries only name what waits,
so that `forget` lets go of it at once. An asyncio timer for each request took 6 us per request of a gateway's core, and
`asyncio.timeout` as much of a worker's; this takes 1 us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar

from sage_core import Clock

__all__ = ["Alarms", "Waiting"]


class Waiting(Protocol):
    """What may wait. `due_at` and `queued_at` are kept by its alarms, None at first."""

    due_at: float | None
    queued_at: float | None

    @property
    def is_finished(self) -> bool:
        """True from the moment it waits for nothing any more."""
        ...


T = TypeVar("T", bound=Waiting)


class Alarms(Generic[T]):
    """Calls `ring` with whatever is due, each time it was set once, on `clock`'s time. Used from one event loop."""

    def __init__(self, clock: Clock, ring: Callable[[T], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._heap: list[tuple[float, int]] = []
        self._items: dict[int, T] = {}
        """What waits, by identity. Where that is gone, or another's by now, `queued_at` is not the entry's time."""
        self._timer: asyncio.TimerHandle | None = None

    def set(self, item: T, at: float) -> None:
        """Ring for `item` at `at`, instead of whenever it was to be."""
        item.due_at = at
        if item.queued_at is not None and item.queued_at <= at:
            return
        item.queued_at = at
        self._items[id(item)] = item
        entry = (at, id(item))
        heappush(self._heap, entry)
        if self._heap[0] == entry:  # compiled tuples have no identity
            self._arm()

    def forget(self, item: T) -> None:
        """Let go of `item`, which has ended. Idempotent, and not needed but for what it holds."""
        self._items.pop(id(item), None)

    def close(self) -> None:
        """Ring no more."""
        self._heap.clear()
        self._items.clear()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            delay = max(0.0, self._heap[0][0] - self._clock.now())
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        try:
            for item in self._due(self._clock.now()):
                if not item.is_finished:
                    self._ring(item)
        finally:
            self._arm()

    def _due(self, now: float) -> list[T]:
        """Take out what is due, and with it whatever comes first and has ended or been put off."""
        heap, items, found = self._heap, self._items, list[T]()
        while heap:
            at, key = heap[0]
            item = items.get(key)
            if item is not None and item.queued_at == at:
                due_at = item.due_at
                if item.is_finished:
                    del items[key]
                elif due_at is not None and due_at > at:
                    heappop(heap)
                    item.queued_at = due_at
                    heappush(heap, (due_at, key))
                    continue
                elif at > now:
                    break
                else:
                    item.queued_at = item.due_at = None
                    del items[key]
                    found.append(item)
            heappop(heap)
        return found
