"""Runs a blocking batch function for many callers at once: one thread, batches by length, results per caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog

from sage_core import EngineError, LimitExceeded, Overloaded, SageError, Unavailable
from sage_worker.batch_queue import BatchLimits, BatchQueue, Entry
from sage_worker.formed_batches import FormedBatch, FormedBatches

__all__ = ["BatchLoop"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MAX_URGENT_IN_A_ROW: Final = 8
FORMED_PATIENCE: Final = 0.02
"""Seconds for which a batch that the scheduler formed waits for the last of its members."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Ticket(Generic[ResultT]):
    results: list[ResultT | None]
    num_missing: int
    done: asyncio.Future[list[ResultT]]


class BatchLoop(Generic[ItemT, ResultT]):
    """`submit` items from any number of tasks; `run` sees them in batches, in a thread of its own.

    `run` takes a list of items and returns as many results, in order. Items of a caller that was cancelled are
    dropped before they count towards a batch. Background items give way to all others and run in batches of half
    the size, so that what is urgent waits for half a batch at most; every ninth batch is theirs all the same. Callers
    that name one `batch` are computed together and with nobody else, in as few batches as the limits allow. Where a
    batch of several callers fails, each caller's part is run again alone, so that one bad item fails its own caller
    only.
    """

    def __init__(
        self,
        run: Callable[[list[ItemT]], Sequence[ResultT]],
        *,
        length: Callable[[ItemT], int],
        limits: BatchLimits | None = None,
        max_queued: int = 16384,
        name: str = "batches",
    ) -> None:
        self._run = run
        self._length = length
        limits = limits or BatchLimits()
        self._urgent: BatchQueue[ItemT] = BatchQueue(limits)
        self._background: BatchQueue[ItemT] = BatchQueue(limits.halved())
        self._formed: FormedBatches[ItemT] = FormedBatches(limits, patience=FORMED_PATIENCE)
        self._num_urgent_in_a_row = 0
        self._was_formed = False
        self._max_queued = max_queued
        self._name = name
        self._tickets: dict[int, _Ticket[ResultT]] = {}
        self._next_ticket = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self.num_batches = 0
        self.num_items = 0

    async def start(self) -> None:
        """Start the thread and the loop that feeds it."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        self._task = asyncio.create_task(self._feed(), name=self._name)

    async def stop(self) -> None:
        """Fail what waits with Unavailable; wait for the batch that runs. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for ticket_id in list(self._tickets):
            self._discard(ticket_id)
            self._fail(ticket_id, Unavailable("the model is being unloaded"))
        executor, self._executor = self._executor, None
        if executor is not None:
            # The thread may be inside a batch of a second or more; the event loop must not wait for it.
            await asyncio.get_running_loop().run_in_executor(None, executor.shutdown)

    async def submit(
        self, items: Sequence[ItemT], *, is_background: bool = False, batch: FormedBatch | None = None
    ) -> list[ResultT]:
        """Return one result per item, in order; an empty list for none.

        Raises Overloaded where too much waits, LimitExceeded for more items than may ever wait, what `run` raised
        as SageError, EngineError for anything else it raised. Cancelling the caller drops its items.
        """
        if not items:
            return []
        if self._task is None:
            raise Unavailable("the model is not loaded")
        if len(items) > self._max_queued:
            raise LimitExceeded(f"{len(items)} items were given; at most {self._max_queued} may wait")
        queue = self._background if is_background else self._urgent
        num_queued = len(queue) + len(self._formed)
        if num_queued + len(items) > self._max_queued:
            raise Overloaded(f"{num_queued} items wait already", retry_after=1.0)
        ticket_id = self._next_ticket
        self._next_ticket += 1
        future: asyncio.Future[list[ResultT]] = asyncio.get_running_loop().create_future()
        self._tickets[ticket_id] = _Ticket([None] * len(items), len(items), future)
        lengths = [self._length(item) for item in items]
        if batch is None:
            queue.add(ticket_id, items, lengths)
        else:
            self._formed.add(batch, ticket_id, items, lengths, asyncio.get_running_loop().time())
        self._wake.set()
        try:
            return await future
        finally:
            if self._tickets.pop(ticket_id, None) is not None:
                self._discard(ticket_id)

    @property
    def num_queued(self) -> int:
        """Items that wait for a batch."""
        return len(self._urgent) + len(self._background) + len(self._formed)

    async def _feed(self) -> None:
        while True:
            batch = self._take()
            if not batch:
                self._wake.clear()
                try:
                    async with asyncio.timeout_at(self._formed.next_due):
                        await self._wake.wait()
                except TimeoutError:
                    continue
                # Let every caller that is ready in this turn add its items before the first batch is cut.
                await asyncio.sleep(0)
                continue
            await self._run_batch(batch)

    def _take(self) -> list[Entry[ItemT]]:
        """Return the next batch: formed and loose ones by turns."""
        loose = self._take_loose() if self._was_formed else []
        if not loose:
            formed = self._formed.take(asyncio.get_running_loop().time())
            if formed:
                self._was_formed = True
                return formed
        self._was_formed = False
        return loose or self._take_loose()

    def _take_loose(self) -> list[Entry[ItemT]]:
        is_turn_of_background = self._num_urgent_in_a_row >= MAX_URGENT_IN_A_ROW
        batch = [] if is_turn_of_background else self._urgent.take()
        if batch:
            self._num_urgent_in_a_row += 1
            return batch
        self._num_urgent_in_a_row = 0
        return self._background.take() or self._urgent.take()

    async def _run_batch(self, batch: list[Entry[ItemT]]) -> None:
        try:
            results = await self._in_thread([entry.item for entry in batch])
        except Exception as error:  # a model may raise anything; it costs the callers of this batch alone
            parts: dict[int, list[Entry[ItemT]]] = {}
            for entry in batch:
                parts.setdefault(entry.ticket, []).append(entry)
            if len(parts) > 1:
                for ticket_id, part in parts.items():
                    if ticket_id in self._tickets:
                        await self._run_batch(part)
                return
            ticket_id = batch[0].ticket
            self._discard(ticket_id)
            if isinstance(error, SageError):
                self._fail(ticket_id, error)
            else:
                log.exception("batch_failed", num_items=len(batch))
                self._fail(ticket_id, EngineError(f"the model failed: {type(error).__name__}"))
            return
        self.num_batches += 1
        self.num_items += len(batch)
        for entry, result in zip(batch, results, strict=True):
            self._deliver(entry, result)

    async def _in_thread(self, items: list[ItemT]) -> Sequence[ResultT]:
        assert self._executor is not None
        results = await asyncio.get_running_loop().run_in_executor(self._executor, self._run, items)
        if len(results) != len(items):
            raise EngineError(f"the model gave {len(results)} results for {len(items)} items")
        return results

    def _discard(self, ticket_id: int) -> None:
        self._urgent.discard(ticket_id)
        self._background.discard(ticket_id)
        self._formed.discard(ticket_id)

    def _deliver(self, entry: Entry[ItemT], result: ResultT) -> None:
        ticket = self._tickets.get(entry.ticket)
        if ticket is None:
            return
        ticket.results[entry.index] = result
        ticket.num_missing -= 1
        if ticket.num_missing == 0 and not ticket.done.done():
            ticket.done.set_result(ticket.results)  # type: ignore[arg-type]  # nothing is missing any more

    def _fail(self, ticket_id: int, error: SageError) -> None:
        ticket = self._tickets.get(ticket_id)
        if ticket is not None and not ticket.done.done():
            ticket.done.set_exception(error)
