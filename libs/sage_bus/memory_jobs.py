"""Job queues of the in-process bus: work-queue retention, ack wait, limited deliveries, dead letters."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sage_bus.bus import NO_HEADERS, DeadLetter
from sage_bus.checks import check_size
from sage_bus.header_block import encode_headers, one_line
from sage_core import BadRequest, Overloaded

__all__ = ["MemoryJob", "MemoryJobFeed", "MemoryJobQueue", "MemoryJobs"]

_DEDUPLICATION_SECONDS = 120.0


@dataclass(eq=False, slots=True)
class _Stored:
    sequence: int
    job_id: str
    payload: bytes
    headers: Mapping[str, str]
    num_delivered: int = 0
    holder: MemoryJobFeed | None = None
    timer: asyncio.TimerHandle | None = None
    is_gone: bool = False


@dataclass(eq=False, slots=True)
class MemoryJobs:
    """One stream with its one consumer, shared by every client of the broker."""

    ack_wait: float
    max_deliver: int
    max_queued: int
    ready: deque[_Stored] = field(default_factory=deque)
    num_stored: int = 0
    last_sequence: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    feeds: list[MemoryJobFeed] = field(default_factory=list)
    seen: dict[str, float] = field(default_factory=dict)

    def add(self, job_id: str, payload: bytes, headers: Mapping[str, str]) -> None:
        """Store a job unless its id was stored within two minutes."""
        now = asyncio.get_running_loop().time()
        if now - self.seen.get(job_id, -_DEDUPLICATION_SECONDS) < _DEDUPLICATION_SECONDS:
            return
        if self.num_stored >= self.max_queued:
            raise Overloaded(f"the job queue holds {self.num_stored} jobs", retry_after=1.0)
        self.seen[job_id] = now
        self.num_stored += 1
        self.last_sequence += 1
        self.ready.append(_Stored(self.last_sequence, job_id, payload, headers))
        self.wake()

    def wake(self) -> None:
        """Let every puller look again."""
        for feed in self.feeds:
            feed.wake.set()

    def take(self, feed: MemoryJobFeed) -> _Stored | None:
        """Deliver the next job to `feed`, or None."""
        while self.ready:
            stored = self.ready.popleft()
            if stored.num_delivered >= self.max_deliver:
                self.bury(stored, f"delivered {stored.num_delivered} times without an ack")
                continue
            stored.num_delivered += 1
            stored.holder = feed
            feed.num_held += 1
            self.restart_ack_wait(stored)
            return stored
        return None

    def restart_ack_wait(self, stored: _Stored) -> None:
        """Count the ack wait from now."""
        self.let_go(stored, is_held=True)
        stored.timer = asyncio.get_running_loop().call_later(self.ack_wait, self.give_back, stored)

    def let_go(self, stored: _Stored, *, is_held: bool = False) -> None:
        """Stop the timer and, unless it stays held, free the holder's slot."""
        if stored.timer is not None:
            stored.timer.cancel()
            stored.timer = None
        if not is_held and stored.holder is not None:
            stored.holder.num_held -= 1
            stored.holder.wake.set()
            stored.holder = None

    def give_back(self, stored: _Stored) -> None:
        """Make it ready again, before newer jobs."""
        if stored.is_gone:
            return
        self.let_go(stored)
        self.ready.appendleft(stored)
        self.wake()

    def remove(self, stored: _Stored) -> None:
        """Forget it for good. Idempotent."""
        self.let_go(stored)
        if not stored.is_gone:
            stored.is_gone = True
            self.num_stored -= 1
            if stored in self.ready:
                self.ready.remove(stored)

    def bury(self, stored: _Stored, reason: str) -> None:
        """Move it to the dead letters. Idempotent."""
        if not stored.is_gone:
            self.dead.append(DeadLetter(stored.job_id, stored.payload, stored.headers, one_line(reason)))
            self.remove(stored)


class MemoryJob:
    """A held job. See `Job`."""

    def __init__(self, jobs: MemoryJobs, stored: _Stored, check_connected: Callable[[], None]) -> None:
        self._jobs = jobs
        self._stored = stored
        self._check_connected = check_connected
        self._num_delivered = stored.num_delivered

    @property
    def job_id(self) -> str:
        """See `Job.job_id`."""
        return self._stored.job_id

    @property
    def payload(self) -> bytes:
        """See `Job.payload`."""
        return self._stored.payload

    @property
    def headers(self) -> Mapping[str, str]:
        """See `Job.headers`."""
        return self._stored.headers

    @property
    def num_delivered(self) -> int:
        """See `Job.num_delivered`."""
        return self._num_delivered

    @property
    def sequence(self) -> int:
        """See `Job.sequence`."""
        return self._stored.sequence

    async def ack(self) -> None:
        """See `Job.ack`."""
        self._check_connected()
        self._jobs.remove(self._stored)

    async def nak(self, delay: float) -> None:
        """See `Job.nak`."""
        if delay <= 0:
            raise BadRequest("nak needs a delay > 0 s; without one the job comes back in a hot loop")
        self._check_connected()
        if self._is_mine:
            self._jobs.let_go(self._stored)
            self._stored.timer = asyncio.get_running_loop().call_later(
                delay, self._jobs.give_back, self._stored
            )

    async def in_progress(self) -> None:
        """See `Job.in_progress`."""
        self._check_connected()
        if self._is_mine:
            self._jobs.restart_ack_wait(self._stored)

    async def dead_letter(self, reason: str) -> None:
        """See `Job.dead_letter`."""
        self._check_connected()
        self._jobs.bury(self._stored, reason)

    @property
    def _is_mine(self) -> bool:
        stored = self._stored
        return stored.holder is not None and stored.num_delivered == self._num_delivered


class MemoryJobFeed:
    """Jobs for ever, at most `max_held` unacknowledged. Nothing is fetched before it is asked for."""

    def __init__(self, jobs: MemoryJobs, max_held: int, check_connected: Callable[[], None]) -> None:
        self.num_held = 0
        self.wake = asyncio.Event()
        self._jobs = jobs
        self._max_held = max_held
        self._check_connected = check_connected
        self._is_closed = False
        jobs.feeds.append(self)

    def __aiter__(self) -> MemoryJobFeed:
        return self

    async def __anext__(self) -> MemoryJob:
        while not self._is_closed:
            self.wake.clear()
            if self.num_held < self._max_held:
                stored = self._jobs.take(self)
                if stored is not None:
                    return MemoryJob(self._jobs, stored, self._check_connected)
            await self.wake.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop pulling; held jobs stay held until acknowledged or their ack wait passes. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._jobs.feeds.remove(self)
            self.wake.set()


class MemoryJobQueue:
    """One client's view of a job stream. See `JobQueue`."""

    def __init__(self, jobs: MemoryJobs, max_payload: int, check_connected: Callable[[], None]) -> None:
        self._jobs = jobs
        self._max_payload = max_payload
        self._check_connected = check_connected

    async def submit(self, job_id: str, payload: bytes, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """See `JobQueue.submit`."""
        self._check_connected()
        check_size(len(payload) + len(encode_headers(headers)), self._max_payload)
        self._jobs.add(job_id, bytes(payload), dict(headers))

    def pull(self, max_held: int) -> MemoryJobFeed:
        """See `JobQueue.pull`."""
        return MemoryJobFeed(self._jobs, max_held, self._check_connected)

    async def dead_letters(self) -> list[DeadLetter]:
        """See `JobQueue.dead_letters`."""
        self._check_connected()
        return self._jobs.dead[:1000]
