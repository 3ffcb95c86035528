"""An in-process bus: the public test double of `NatsBus`, held to the same promises by the same suite.

One `MemoryBroker` stands for one server; `connect` gives it another client. Delivery is asynchronous and in
order per sender, exactly as over a socket: no callback runs inside `publish`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from sage_bus.bus import NO_HEADERS, BusEvent, Received
from sage_bus.checks import (
    DEFAULT_MAX_PAYLOAD,
    check_pattern,
    check_size,
    check_target,
    is_inbox,
)
from sage_bus.header_block import age_headers, encode_headers
from sage_bus.memory_jobs import MemoryJobQueue, MemoryJobs
from sage_bus.memory_store import MemoryBucket, MemoryKeyValue, MemoryLease, acquire
from sage_bus.routing import RoutingTable
from sage_core import BusUnavailable, DeadlineExceeded, Overloaded, Unavailable, new_id
from sage_wire import subjects

__all__ = ["MemoryBroker", "MemoryBus"]

log = structlog.get_logger("sage_bus")


@dataclass(eq=False, slots=True)
class _Subscriber:
    bus: MemoryBus
    pattern: str
    callback: Callable[[Received], None]
    queue: str | None
    is_active: bool = True

    async def unsubscribe(self) -> None:
        self.is_active = False
        self.bus.broker.routes.remove(self.pattern, self)


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request without its answers yet."""

    max_replies: int | None
    replies: list[Received] = field(default_factory=list)
    is_unheard: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """A message that waits to be sent; `token` is that of the request it asks."""

    message: Received
    token: str | None
    queued_at: float
    max_wait: float | None
    unheard: Callable[[], None] | None


class MemoryBroker:
    """The server's part: routes, queue groups, buckets, job streams. One event loop per broker.

    `wall` is the server's clock: Unix seconds, shown by the entries of buckets.
    """

    def __init__(
        self, *, max_payload: int = DEFAULT_MAX_PAYLOAD, wall: Callable[[], float] = time.time
    ) -> None:
        self.max_payload = max_payload
        self._wall = wall
        self.routes: RoutingTable[_Subscriber] = RoutingTable()
        self.buckets: dict[str, MemoryBucket] = {}
        self.jobs: dict[str, MemoryJobs] = {}

    def connect(self, name: str = "memory", *, max_outbound: int = 65536) -> MemoryBus:
        """Return another client of this broker."""
        return MemoryBus(self, name=name, max_outbound=max_outbound)

    def bucket(self, name: str, ttl: float | None = None) -> MemoryBucket:
        """Return the bucket, created at first use."""
        if name not in self.buckets:
            self.buckets[name] = MemoryBucket(name, ttl, wall=self._wall)
        return self.buckets[name]

    def deliver(self, message: Received) -> bool:
        """Hand the message to every plain subscriber and one member of each queue group; False for nobody."""
        groups: dict[str, list[_Subscriber]] = {}
        is_heard = False
        for subscriber in self.routes.find(message.subject):
            if not subscriber.bus.is_connected:
                continue
            is_heard = True
            if subscriber.queue is None:
                subscriber.bus.receive(subscriber, message)
            else:
                groups.setdefault(subscriber.queue, []).append(subscriber)
        for members in groups.values():
            member = random.choice(members)
            member.bus.receive(member, message)
        return is_heard


class MemoryBus:
    """A client of a `MemoryBroker`; without one it gets its own."""

    def __init__(
        self, broker: MemoryBroker | None = None, *, name: str = "memory", max_outbound: int = 65536
    ) -> None:
        self.broker = broker if broker is not None else MemoryBroker()
        self.name = name
        self.num_callback_errors = 0
        self._max_outbound = max_outbound
        self._inbox = f"_INBOX_{new_id()}"
        self._waiting: dict[str, _Waiting] = {}
        self._outbound: deque[_Outgoing] = deque()
        self._is_flush_due = False
        self._listeners: list[Callable[[BusEvent, str], None]] = []
        self._is_closed = False
        self._is_connected = True
        self._mux: _Subscriber | None = _Subscriber(self, f"{self._inbox}.*", self._on_reply, None)
        self.broker.routes.add(self._mux.pattern, self._mux)

    @property
    def max_payload(self) -> int:
        """See `Bus.max_payload`."""
        return self.broker.max_payload

    @property
    def is_connected(self) -> bool:
        """See `Bus.is_connected`."""
        return self._is_connected and not self._is_closed

    def publish(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] = NO_HEADERS,
        reply: str | None = None,
        *,
        max_wait: float | None = None,
        unheard: Callable[[], None] | None = None,
    ) -> None:
        """See `Bus.publish`."""
        if reply is not None and unheard is not None:
            raise ValueError("a message with a reply subject of its own cannot be told of as unheard")
        self._enqueue(subject, payload, headers, reply, None, max_wait, unheard)

    def soon(self, callback: Callable[[], None]) -> None:
        """See `Bus.soon`."""
        asyncio.get_running_loop().call_soon(callback)

    def _enqueue(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str],
        reply: str | None,
        token: str | None,
        max_wait: float | None = None,
        unheard: Callable[[], None] | None = None,
    ) -> None:
        if self._is_closed:
            raise BusUnavailable("the bus is closed")
        check_target(subject)
        if reply is not None:
            check_target(reply)
        check_size(len(payload) + len(encode_headers(headers)), self.max_payload)
        if len(self._outbound) >= self._max_outbound:
            raise Overloaded(f"{self._max_outbound} messages wait to be sent", retry_after=0.1)
        checked_reply = reply if reply is not None and is_inbox(reply) else None
        message = Received(subject, bytes(payload), dict(headers), checked_reply)
        queued_at = asyncio.get_running_loop().time()
        self._outbound.append(_Outgoing(message, token, queued_at, max_wait, unheard))
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._is_flush_due and self.is_connected:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        # What callbacks publish meanwhile goes out in the next turn, so that two chatty actors cannot
        # keep this one for ever.
        for _ in range(len(self._outbound)):
            if not self._is_connected or not self._outbound:
                return
            outgoing = self._outbound.popleft()
            message, token = outgoing.message, outgoing.token
            waited = asyncio.get_running_loop().time() - outgoing.queued_at
            headers = age_headers(message.headers, waited)
            if headers is None or (token is not None and token not in self._waiting):
                continue  # its caller has gone; a late request must not run
            message = replace(message, headers=headers)
            is_in_time = outgoing.max_wait is None or waited <= outgoing.max_wait
            if is_in_time and self.broker.deliver(message):
                continue
            if outgoing.unheard is not None:
                asyncio.get_running_loop().call_soon(outgoing.unheard)
            if token is not None:
                waiting = self._waiting[token]
                waiting.is_unheard = True
                waiting.done.set()
        if self._outbound:
            self._flush_soon()

    def receive(self, subscriber: _Subscriber, message: Received) -> None:
        """Called by the broker: run the callback in a later loop turn, as a socket would."""
        asyncio.get_running_loop().call_soon(self._call, subscriber, message)

    def _call(self, subscriber: _Subscriber, message: Received) -> None:
        if not subscriber.is_active or self._is_closed:
            return
        try:
            subscriber.callback(message)
        except (Exception, asyncio.CancelledError):
            self.num_callback_errors += 1
            log.exception("bus_callback_failed", subject=message.subject)

    def _on_reply(self, message: Received) -> None:
        waiting = self._waiting.get(message.subject.rpartition(".")[2])
        if waiting is None or waiting.done.is_set():
            return
        waiting.replies.append(message)
        if waiting.max_replies is not None and len(waiting.replies) >= waiting.max_replies:
            waiting.done.set()

    async def _ask(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str],
        timeout: float,
        max_replies: int | None,
    ) -> _Waiting:
        token = new_id()
        waiting = _Waiting(max_replies)
        self._waiting[token] = waiting
        try:
            self._enqueue(subject, payload, headers, f"{self._inbox}.{token}", token)
            async with asyncio.timeout(timeout):
                await waiting.done.wait()
        except TimeoutError:
            pass
        finally:
            del self._waiting[token]
        return waiting

    async def request(
        self, subject: str, payload: bytes, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> Received:
        """See `Bus.request`."""
        waiting = await self._ask(subject, payload, headers, timeout, 1)
        if waiting.replies:
            return waiting.replies[0]
        if waiting.is_unheard:
            raise Unavailable(f"nobody listens on {subject}")
        if self._is_closed:
            raise BusUnavailable("the bus was closed while a request waited")
        raise DeadlineExceeded(f"no reply on {subject} within {timeout:g} s")

    async def request_many(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout: float,
        max_replies: int | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> list[Received]:
        """See `Bus.request_many`."""
        return (await self._ask(subject, payload, headers, timeout, max_replies)).replies

    async def subscribe(
        self, subject: str, callback: Callable[[Received], None], *, queue: str | None = None
    ) -> _Subscriber:
        """See `Bus.subscribe`."""
        self._check_open()
        subscriber = _Subscriber(self, check_pattern(subject), callback, queue)
        self.broker.routes.add(subject, subscriber)
        return subscriber

    def on_event(self, listener: Callable[[BusEvent, str], None]) -> None:
        """See `Bus.on_event`."""
        self._listeners.append(listener)

    def _emit(self, event: BusEvent, detail: str) -> None:
        for listener in tuple(self._listeners):
            listener(event, detail)

    async def key_value(
        self,
        bucket: str,
        *,
        ttl: float | None = None,
        is_durable: bool = True,  # noqa: ARG002 - nothing here outlives the process
        max_bytes: int | None = None,
    ) -> MemoryKeyValue:
        """See `Bus.key_value`."""
        self._check_open()
        found = self.broker.bucket(bucket, ttl)
        found.max_bytes = max_bytes
        return MemoryKeyValue(found, self._check_connected)

    async def acquire_lease(self, name: str, owner: str, *, ttl: float) -> MemoryLease:
        """See `Bus.acquire_lease`."""
        self._check_connected()
        return acquire(self.broker.bucket(subjects.LEASES_BUCKET), name, owner, ttl, self._check_connected)

    async def job_queue(
        self,
        stream: str,
        subject: str,
        *,
        ack_wait: float = 30.0,
        max_deliver: int = 5,
        max_queued: int = 100_000,
    ) -> MemoryJobQueue:
        """See `Bus.job_queue`."""
        self._check_connected()
        check_target(subject)
        jobs = self.broker.jobs.get(stream)
        if jobs is None:
            jobs = self.broker.jobs[stream] = MemoryJobs(ack_wait, max_deliver, max_queued)
        return MemoryJobQueue(jobs, self.max_payload, self._check_connected)

    async def round_trip(self, timeout: float = 2.0) -> float:  # noqa: ARG002 - nothing here can hang
        """See `Bus.round_trip`."""
        loop = asyncio.get_running_loop()
        self._check_open()
        if not self._is_connected:
            raise BusUnavailable("the bus is disconnected")
        start = loop.time()
        await asyncio.sleep(0)
        return loop.time() - start

    def disconnect(self, detail: str = "cut by the test") -> None:
        """Cut this client off: nothing arrives, what it publishes waits in its bounded queue."""
        if self._is_connected:
            self._is_connected = False
            self._emit(BusEvent.DISCONNECTED, detail)

    def reconnect(self) -> None:
        """Undo `disconnect`: what waited is sent, what others sent meanwhile is lost."""
        if not self._is_connected and not self._is_closed:
            self._is_connected = True
            self._flush_soon()
            self._emit(BusEvent.RECONNECTED, self.name)

    async def close(self, timeout: float = 5.0) -> None:  # noqa: ARG002 - nothing here can hang
        """See `Bus.close`."""
        if self._is_closed:
            return
        for subscriber in [entry for entry in self.broker.routes.items() if entry.bus is self]:
            await subscriber.unsubscribe()
        while self._outbound and self._is_connected:
            self._flush()
        self._is_closed = True
        for waiting in self._waiting.values():
            waiting.done.set()

    def _check_open(self) -> None:
        if self._is_closed:
            raise BusUnavailable("the bus is closed")

    def _check_connected(self) -> None:
        if not self.is_connected:
            raise BusUnavailable("the bus is closed" if self._is_closed else "the bus is disconnected")
