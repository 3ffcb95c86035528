"""The one long-lived puller of a process: asks for as many jobs as it may hold, notices silence, asks again.

nats-py's fetch is dead until its timeout once the server restarts or the consumer goes. Here every pull asks for
heartbeats; one that falls silent is given up and replaced, and what still arrives for it is not lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass

import msgspec
import structlog

from sage_bus.bus import BusEvent
from sage_bus.connection import Connection
from sage_bus.header_block import header_status, parse_headers
from sage_bus.job import DeadLetters, Delivery, NatsJob
from sage_core import BusUnavailable, ConfigurationError, Internal, Overloaded, SageError

__all__ = ["JobPuller"]

log = structlog.get_logger("sage_bus")

_EXPIRES_SECONDS = 30.0
_HEARTBEAT_SECONDS = 0.5
_MISSED_HEARTBEATS = 3
_RETRY_SECONDS = 0.25
_GIVE_BACK_SECONDS = 0.05
_MAX_OLD_PULLS = 64
_CLOSE_SECONDS = 2.0


@dataclass(eq=False, slots=True)
class _Pull:
    """One request for jobs. `num_open` is how many it may still bring."""

    num_open: int
    heard_at: float
    sid: int = 0


class JobPuller:
    """See `JobQueue.pull`. Nothing is asked of the server before the first read."""

    def __init__(
        self,
        connection: Connection,
        *,
        stream: str,
        consumer: str,
        max_held: int,
        ack_wait: float,
        max_deliver: int,
        dead: DeadLetters,
        ensure_consumer: Callable[[], Awaitable[None]],
    ) -> None:
        self._connection = connection
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}".encode("ascii")
        self._stream = stream
        self._max_held = max_held
        self._ack_wait = ack_wait
        self._max_deliver = max_deliver
        self._dead = dead
        self._ensure_consumer = ensure_consumer
        # A provisioned queue is opened without a look at its consumer: who only submits may not have one.
        self._is_consumer_gone = connection.is_provisioned
        self._fetched: deque[tuple[NatsJob, float]] = deque()
        self._held: dict[NatsJob, float] = {}  # until when, by this process's clock
        self._pulls: list[_Pull] = []
        self._old_pulls: deque[_Pull] = deque()
        self._arrived = asyncio.Event()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_started = False
        self._is_closed = False
        self._error: SageError | None = None

    def __aiter__(self) -> JobPuller:
        return self

    async def __anext__(self) -> NatsJob:
        if not self._is_started and not self._is_closed:
            self._is_started = True
            self._connection.add_listener(self._on_event)
            self._start(self._run(), f"bus-puller-{self._stream}")
        while not self._is_closed:
            job = self._take()
            if job is not None:
                return job
            self._arrived.clear()
            await self._arrived.wait()
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop pulling and give back what was not yielded; what was yielded stays held. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._arrived.set()
        if not self._is_started:
            return
        self._connection.remove_listener(self._on_event)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._fetched:
            self._fetched.popleft()[0].give_back(_GIVE_BACK_SECONDS)
        pulls = [*self._pulls, *self._old_pulls]
        self._pulls.clear()
        self._old_pulls.clear()
        await self._connection.stop_listening([pull.sid for pull in pulls], _CLOSE_SECONDS)

    # Reading

    def _take(self) -> NatsJob | None:
        now = asyncio.get_running_loop().time()
        while self._fetched and len(self._held) < self._max_held:
            job, fetched_at = self._fetched.popleft()
            if now - fetched_at > self._ack_wait * 0.9:
                self._wake.set()
                continue  # waited so long that the server delivers it again
            self._held[job] = fetched_at + self._ack_wait
            return job
        return None

    def on_done(self, job: NatsJob) -> None:
        """See `JobHolder`."""
        self._held.pop(job, None)
        self._arrived.set()
        self._wake.set()

    def on_progress(self, job: NatsJob) -> None:
        """See `JobHolder`."""
        if job in self._held:
            self._held[job] = asyncio.get_running_loop().time() + self._ack_wait

    # Pulling

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            now = loop.time()
            for pull in [pull for pull in self._pulls if self._is_silent(pull, now)]:
                log.info("job_pull_given_up", stream=self._stream, num_open=pull.num_open)
                self._retire(pull)
            for job in [job for job, until in self._held.items() if now > until]:
                self.on_done(job)  # the server delivers it again; it no longer counts as ours
            if self._is_consumer_gone:
                await self._restore_consumer()
            self._ask_for_more(loop.time())
            try:
                async with asyncio.timeout(_HEARTBEAT_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _restore_consumer(self) -> None:
        self._is_consumer_gone = False
        try:
            await self._ensure_consumer()
        except SageError as error:
            if self._connection.is_provisioned and isinstance(error, ConfigurationError):
                self._error = error
                self._is_closed = True
                self._arrived.set()
                return
            log.info("job_consumer_missing", stream=self._stream, reason=error.message)

    def _is_silent(self, pull: _Pull, now: float) -> bool:
        return now - pull.heard_at > _HEARTBEAT_SECONDS * _MISSED_HEARTBEATS

    def _ask_for_more(self, now: float) -> None:
        num_open = sum(pull.num_open for pull in self._pulls)
        num_free = self._max_held - len(self._held) - len(self._fetched) - num_open
        # In halves: one pull per finished job would cost a message each way for every job.
        if num_free <= 0 or (num_open > 0 and num_free * 2 < self._max_held):
            return
        pull = _Pull(num_open=num_free, heard_at=now)

        def handle(subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
            del subject
            self._on_message(pull, reply, payload, block)

        body = {
            "batch": num_free,
            "expires": int(_EXPIRES_SECONDS * 1e9),
            "idle_heartbeat": int(_HEARTBEAT_SECONDS * 1e9),
        }
        pull.sid, inbox = self._connection.listen(handle)
        self._pulls.append(pull)
        try:
            # Only while this pull still counts: one that waited for a reconnect has been replaced.
            self._connection.send(
                self._next, msgspec.json.encode(body), reply=inbox, is_wanted=lambda: pull in self._pulls
            )
        except (Overloaded, BusUnavailable):
            self._finish(pull)

    def _retire(self, pull: _Pull) -> None:
        """Count on it no more, but keep listening: what it still brings would else wait for its ack wait."""
        self._pulls.remove(pull)
        self._old_pulls.append(pull)
        if len(self._old_pulls) > _MAX_OLD_PULLS:
            self._connection.unsubscribe(self._old_pulls.popleft().sid)

    def _finish(self, pull: _Pull) -> None:
        self._connection.unsubscribe(pull.sid)
        if pull in self._pulls:
            self._pulls.remove(pull)
        elif pull in self._old_pulls:
            self._old_pulls.remove(pull)

    def _on_message(self, pull: _Pull, reply: bytes, payload: bytes, block: bytes) -> None:
        pull.heard_at = asyncio.get_running_loop().time()
        status = header_status(block)
        if not status:
            self._on_job(pull, reply, payload, block)
        elif status.startswith("100"):
            return
        elif status.startswith("503"):
            # Nobody answers for the consumer: the server is starting, or the consumer is gone.
            self._finish(pull)
            self._is_consumer_gone = True
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._wake.set)
        else:
            # 408 expired, 404 nothing, 409 consumer or leader changed: this pull brings no more.
            if not status.startswith(("404", "408")):
                log.info("job_pull_ended", stream=self._stream, status=status)
                self._is_consumer_gone = "deleted" in status.lower()
            self._finish(pull)
            asyncio.get_running_loop().call_later(
                0.0 if status.startswith("408") else _RETRY_SECONDS, self._wake.set
            )

    def _on_job(self, pull: _Pull, reply: bytes, payload: bytes, block: bytes) -> None:
        pull.num_open -= 1
        if pull.num_open <= 0:
            self._finish(pull)
        delivery = Delivery(reply)
        if self._is_still_held(delivery, pull.heard_at):
            return
        job = NatsJob(
            self._connection,
            delivery,
            payload=payload,
            headers=parse_headers(block),
            dead=self._dead,
            holder=self,
        )
        if self._is_closed or len(self._held) + len(self._fetched) >= self._max_held:
            job.give_back(_GIVE_BACK_SECONDS)
        elif delivery.num_delivered > self._max_deliver:
            self._held[job] = pull.heard_at + self._ack_wait
            self._start(self._bury(job), f"bus-bury-{delivery.sequence}")
        else:
            self._fetched.append((job, pull.heard_at))
            self._arrived.set()
            self._wake.set()

    def _is_still_held(self, delivery: Delivery, now: float) -> bool:
        """Forget an earlier delivery of the same job, unless it is being worked on within its ack wait.

        A server that was killed may have forgotten that it delivered a job, and deliver it again at once.
        """
        sequence = delivery.sequence
        self._fetched = deque(item for item in self._fetched if item[0].sequence != sequence)
        for job, until in self._held.items():
            if job.sequence == sequence:
                if now < until - self._ack_wait * 0.1:
                    job.redelivered(delivery)
                    return True
                self.on_done(job)
                break
        return False

    async def _bury(self, job: NatsJob) -> None:
        try:
            await job.dead_letter(f"delivered {job.num_delivered - 1} times without an ack")
        except SageError as error:
            log.warning("job_not_buried", stream=self._stream, reason=error.message)
            job.give_back(1.0)

    def _on_event(self, event: BusEvent, detail: str) -> None:
        del detail
        if event is BusEvent.RECONNECTED:
            for pull in tuple(self._pulls):
                self._retire(pull)
            self._wake.set()
        elif event is BusEvent.CLOSED:
            self._error = BusUnavailable("the connection ended while jobs were pulled")
            self._is_closed = True
            self._arrived.set()

    def _start(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("job_puller_failed", stream=self._stream, exc_info=task.exception())
            self._error = Internal(f"the puller of {self._stream} failed: {task.exception()!r}")
            self._is_closed = True
            self._arrived.set()
