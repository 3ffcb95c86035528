"""Batches that a scheduler formed, until all their members are here: each becomes one engine batch. Pure.

Members of a batch arrive one after the other, as they are told one by one and their tokens are counted. A batch runs
when it is whole, or `patience` after its first member with what is there; what comes later waits no longer than the
engine is busy.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from sage_worker.batch_queue import BatchLimits, Entry

__all__ = ["FormedBatch", "FormedBatches"]

ItemT = TypeVar("ItemT")

MAX_REMEMBERED: Final = 1024


@dataclass(frozen=True, slots=True)
class FormedBatch:
    """Names a batch: number `number` of the leader with `fence`, of `size` requests."""

    fence: int
    number: int
    size: int


@dataclass(slots=True)
class _Open(Generic[ItemT]):
    due: float
    num_members: int = 0
    entries: list[Entry[ItemT]] = field(default_factory=list)


class FormedBatches(Generic[ItemT]):
    """Batches in the order in which they began. `len()` counts items. `now` never goes back."""

    def __init__(self, limits: BatchLimits, *, patience: float) -> None:
        self._limits = limits
        self._patience = patience
        self._open: OrderedDict[FormedBatch, _Open[ItemT]] = OrderedDict()
        self._closed: OrderedDict[FormedBatch, None] = OrderedDict()
        self._pieces: deque[list[Entry[ItemT]]] = deque()

    def __len__(self) -> int:
        waiting = sum(len(opened.entries) for opened in self._open.values())
        return waiting + sum(map(len, self._pieces))

    def add(
        self, batch: FormedBatch, ticket: int, items: Sequence[ItemT], lengths: Sequence[int], now: float
    ) -> None:
        """Add all items of one member."""
        entries = [
            Entry(ticket, index, length, item)
            for index, (item, length) in enumerate(zip(items, lengths, strict=True))
        ]
        opened = self._open.get(batch)
        if opened is None:
            patience = 0.0 if batch in self._closed else self._patience
            opened = self._open[batch] = _Open(now + patience)
        opened.num_members += 1
        opened.entries += entries

    def discard(self, ticket: int) -> None:
        """Drop what is left of one member; it still counts as having arrived."""
        for opened in self._open.values():
            opened.entries = [entry for entry in opened.entries if entry.ticket != ticket]
        kept = ([entry for entry in piece if entry.ticket != ticket] for piece in self._pieces)
        self._pieces = deque(piece for piece in kept if piece)

    def take(self, now: float) -> list[Entry[ItemT]]:
        """Remove and return the next engine batch, shortest item first; empty where none is ready."""
        while not self._pieces:
            ready = next((batch for batch in self._open if self._is_ready(batch, now)), None)
            if ready is None:
                return []
            self._pieces.extend(self._cut(self._open.pop(ready).entries))
            self._closed[ready] = None
            self._closed.move_to_end(ready)
            if len(self._closed) > MAX_REMEMBERED:
                self._closed.popitem(last=False)
        return self._pieces.popleft()

    @property
    def next_due(self) -> float | None:
        """When the batch that has waited longest runs as it is; None where none is open."""
        return min((opened.due for opened in self._open.values()), default=None)

    def _is_ready(self, batch: FormedBatch, now: float) -> bool:
        opened = self._open[batch]
        return opened.num_members >= batch.size or now >= opened.due

    def _cut(self, entries: list[Entry[ItemT]]) -> list[list[Entry[ItemT]]]:
        """Cut a batch that is larger than the engine's limits, neighbours in length together."""
        pieces: list[list[Entry[ItemT]]] = []
        for entry in sorted(entries, key=lambda entry: entry.length):
            piece = pieces[-1] if pieces else []
            size = len(piece) + 1
            if not piece or size > self._limits.max_items or size * entry.length > self._limits.max_padded:
                pieces.append([entry])
            else:
                piece.append(entry)
        return pieces
