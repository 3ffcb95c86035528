"""Forms batches of items of similar length from many callers' items. Pure: no IO, no clock.

A padded batch costs its number of items times its longest item. So a batch starts with the item that has waited
longest, and grows by its neighbours in length, the cheaper one first. Sorting over all that waits is the largest
cheap gain for embedding models (3.5 times the throughput on mixed lengths).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

__all__ = ["BatchLimits", "BatchQueue", "Entry"]

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """`max_padded` bounds items times longest item. `max_waste` is the share of padding above which a batch stops
    growing, once the padding is more than `free_padding`: below that a further batch costs more than the padding.
    """

    max_items: int = 64
    max_padded: int = 65536
    max_waste: float = 0.5
    free_padding: int = 1024

    def halved(self) -> BatchLimits:
        """Return the limits of batches of half the size."""
        return replace(self, max_items=max(1, self.max_items // 2), max_padded=max(1, self.max_padded // 2))


@dataclass(frozen=True, slots=True, eq=False)
class Entry(Generic[ItemT]):
    """One item: of caller number `ticket`, at `index` of its items."""

    ticket: int
    index: int
    length: int
    item: ItemT


class BatchQueue(Generic[ItemT]):
    """Items that wait. `len()` counts items."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._order = 0
        self._by_age: OrderedDict[int, Entry[ItemT]] = OrderedDict()
        self._by_length: list[tuple[int, int]] = []
        self._by_ticket: dict[int, set[int]] = {}

    def __len__(self) -> int:
        return len(self._by_age)

    def add(self, ticket: int, items: Sequence[ItemT], lengths: Sequence[int]) -> None:
        """Queue the items of one caller."""
        orders = self._by_ticket.setdefault(ticket, set())
        for index, (item, length) in enumerate(zip(items, lengths, strict=True)):
            order = self._order
            self._order += 1
            self._by_age[order] = Entry(ticket, index, length, item)
            insort(self._by_length, (length, order))
            orders.add(order)

    def discard(self, ticket: int) -> int:
        """Drop what is left of one caller's items; return how many."""
        orders = self._by_ticket.pop(ticket, set())
        for order in orders:
            entry = self._by_age.pop(order)
            del self._by_length[bisect_left(self._by_length, (entry.length, order))]
        return len(orders)

    def take(self) -> list[Entry[ItemT]]:
        """Remove and return the next batch, shortest item first; empty only if nothing waits."""
        if not self._by_age:
            return []
        order, oldest = next(iter(self._by_age.items()))
        low = bisect_left(self._by_length, (oldest.length, order))
        low, high = self._grow(low, low + 1)
        chosen = self._by_length[low:high]
        del self._by_length[low:high]
        batch = []
        for _, taken in chosen:
            entry = self._by_age.pop(taken)
            orders = self._by_ticket[entry.ticket]
            orders.discard(taken)
            if not orders:
                del self._by_ticket[entry.ticket]
            batch.append(entry)
        return batch

    def _grow(self, low: int, high: int) -> tuple[int, int]:
        """Widen the window [low, high) of the sorted lengths to its neighbours while limits and padding allow."""
        lengths, limits = self._by_length, self._limits
        total = longest = lengths[low][0]
        while high - low < limits.max_items:
            shorter = lengths[low - 1][0] if low > 0 else None
            longer = lengths[high][0] if high < len(lengths) else None
            if shorter is None and longer is None:
                break
            # What the padded batch grows by: one more row, or one more row and every row longer.
            cost_shorter = None if shorter is None else longest - shorter
            cost_longer = None if longer is None else (longer - longest) * (high - low)
            takes_shorter = cost_longer is None or (cost_shorter is not None and cost_shorter <= cost_longer)
            added = shorter if takes_shorter else longer
            assert added is not None
            padded = (high - low + 1) * max(longest, added)
            waste = padded - total - added
            is_wasteful = waste > limits.free_padding and waste > limits.max_waste * padded
            if padded > limits.max_padded or is_wasteful:
                break
            total += added
            longest = max(longest, added)
            low, high = (low - 1, high) if takes_shorter else (low, high + 1)
        return low, high
