"""The bounded mailbox: who may wait, who may run, in which order. No IO, no clock of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Lane", "Mailbox"]

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Lane(Generic[T]):
    """The queue of one handler, or of all that share; at most `max_slots` of it run at once."""

    max_slots: int
    num_running: int = 0
    waiting: deque[tuple[int, T]] = field(default_factory=deque)


class Mailbox(Generic[T]):
    """At most `max_waiting` items wait and `max_slots` run, over all lanes; first come, first served.

    A lane at its own limit does not hold up the others.
    """

    def __init__(self, max_waiting: int, max_slots: int) -> None:
        self._max_waiting = max_waiting
        self._max_slots = max_slots
        self._lanes: list[Lane[T]] = []
        self._num_arrived = 0
        self.num_waiting = 0
        self.num_running = 0

    @property
    def is_full(self) -> bool:
        """True where `admit` would refuse."""
        return self.num_waiting >= self._max_waiting

    @property
    def is_idle(self) -> bool:
        """True where nothing waits and nothing runs."""
        return self.num_waiting == 0 and self.num_running == 0

    @property
    def max_slots(self) -> int:
        """How many may run at once."""
        return self._max_slots

    def lane(self, max_slots: int | None = None) -> Lane[T]:
        """Add a lane; without a limit of its own it may fill every slot."""
        lane: Lane[T] = Lane(self._max_slots if max_slots is None else min(max_slots, self._max_slots))
        self._lanes.append(lane)
        return lane

    def admit(self, lane: Lane[T], item: T) -> bool:
        """Let `item` wait in `lane`; False where the mailbox is full."""
        if self.num_waiting >= self._max_waiting:
            return False
        self._num_arrived += 1
        lane.waiting.append((self._num_arrived, item))
        self.num_waiting += 1
        return True

    def take(self) -> tuple[Lane[T], T] | None:
        """Acquire a slot for the item that has waited longest and may run; None where there is none."""
        if self.num_running >= self._max_slots or self.num_waiting == 0:
            return None
        first: Lane[T] | None = None
        for lane in self._lanes:
            is_ready = lane.waiting and lane.num_running < lane.max_slots
            if is_ready and (first is None or lane.waiting[0][0] < first.waiting[0][0]):
                first = lane
        if first is None:
            return None
        _, item = first.waiting.popleft()
        self.num_waiting -= 1
        self.num_running += 1
        first.num_running += 1
        return first, item

    def release(self, lane: Lane[T]) -> None:
        """Give back a slot of `lane`."""
        lane.num_running -= 1
        self.num_running -= 1

    def remove(self, is_unwanted: Callable[[T], bool]) -> list[T]:
        """Remove and return the waiting items that are unwanted; the others keep their order."""
        removed: list[T] = []
        for lane in self._lanes:
            kept: deque[tuple[int, T]] = deque()
            for order, item in lane.waiting:
                if is_unwanted(item):
                    removed.append(item)
                else:
                    kept.append((order, item))
            lane.waiting = kept
        self.num_waiting -= len(removed)
        return removed
