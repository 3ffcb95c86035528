"""The bus as everything above sees it. Two implementations pass one suite: `NatsBus` and `MemoryBus`.

Rules that the types enforce: a subscription's callback is a plain function, so it cannot wait; `publish`
never waits, it refuses; every wait has a timeout; payload and subject are checked before they reach a socket.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

__all__ = [
    "Bus",
    "BusEvent",
    "DeadLetter",
    "Entry",
    "Feed",
    "Job",
    "JobQueue",
    "KeyValue",
    "Lease",
    "Received",
    "Subscription",
]

NO_HEADERS: Mapping[str, str] = {}

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Received:
    """A message as it arrived. `reply` is the subject to answer on, already checked against our inbox alphabet."""

    subject: str
    payload: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    reply: str | None = None


class BusEvent(enum.StrEnum):
    """What happened to the connection. After RECONNECTED, messages of the gap are lost: resynchronise.

    CLOSED: it ended for good though nobody called `close` (credentials expired, a limit of the server); the
    process has to start again.
    """

    DISCONNECTED = "disconnected"
    RECONNECTED = "reconnected"
    CLOSED = "closed"
    SLOW_CONSUMER = "slow_consumer"
    PERMISSION_DENIED = "permission_denied"


class Subscription(Protocol):
    """A live subscription."""

    async def unsubscribe(self) -> None:
        """Stop delivery. Idempotent. After it returns the callback is not called again."""
        ...


class Feed(Protocol[T_co]):
    """An asynchronous iterator that ends with `aclose`. Cancelling a read loses nothing: read again."""

    def __aiter__(self) -> Feed[T_co]:
        """Return itself."""
        ...

    async def __anext__(self) -> T_co:
        """Wait for the next item."""
        ...

    async def aclose(self) -> None:
        """Stop. Idempotent."""
        ...


class KeyValue(Protocol):
    """A bucket of values with revisions. Values are bytes; keys use the subject alphabet."""

    async def get(self, key: str) -> Entry | None:
        """Return the entry, or None where the key is absent, deleted or expired."""
        ...

    async def put(self, key: str, value: bytes, *, ttl: float | None = None) -> int:
        """Write unconditionally; return the new revision. `ttl`: this value lives that many seconds, 1 or more."""
        ...

    async def create(self, key: str, value: bytes) -> int:
        """Write if the key is absent. Raises Conflict where it exists."""
        ...

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Write if the key is still at `revision`. Raises Conflict where it is not."""
        ...

    async def delete(self, key: str) -> None:
        """Delete; absent keys are no error."""
        ...

    async def list(self) -> dict[str, Entry]:
        """Return all live entries."""
        ...

    def watch(self) -> Feed[Entry]:
        """Yield every live entry, then every change; `Entry.value` is None for a deletion.

        Survives a server restart: the bucket is listed again and what changed or vanished meanwhile is yielded.
        Close the iterator to stop.
        """
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A value at a revision; revisions of one bucket grow.

    `stored_at` is when the server stored it, in Unix seconds of the server's clock; a watch does not tell it (0.0).
    """

    key: str
    value: bytes | None
    revision: int
    stored_at: float = 0.0


class Lease(Protocol):
    """Leadership by key with a time to live. `fence` grows with every holder, so late writes can be told apart."""

    @property
    def fence(self) -> int:
        """The fencing token: the revision at which the lease was acquired."""
        ...

    @property
    def is_held(self) -> bool:
        """False as soon as the time to live has passed without a renewal, whatever the server says."""
        ...

    async def renew(self) -> None:
        """Extend by one time to live. Raises Conflict once it is lost."""
        ...

    async def release(self) -> None:
        """Give it up at once. Idempotent."""
        ...


class Job(Protocol):
    """A message pulled from a work queue; held until it is acknowledged or its ack wait passes."""

    @property
    def job_id(self) -> str:
        """The id it was submitted under."""
        ...

    @property
    def payload(self) -> bytes:
        """The body."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers it was submitted with."""
        ...

    @property
    def num_delivered(self) -> int:
        """1 for the first delivery."""
        ...

    @property
    def sequence(self) -> int:
        """Its number in the queue: the same for each delivery, higher for whatever was submitted later."""
        ...

    async def ack(self) -> None:
        """Remove it for good; returns after the server confirmed (`ack_sync`). Raises BusUnavailable otherwise."""
        ...

    async def nak(self, delay: float) -> None:
        """Give it back, to be delivered again after `delay` > 0 seconds (0 would be a hot loop)."""
        ...

    async def in_progress(self) -> None:
        """Restart the ack wait."""
        ...

    async def dead_letter(self, reason: str) -> None:
        """Move it to the dead-letter stream with `reason` and remove it from the queue."""
        ...


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that was given up: moved by `Job.dead_letter` or delivered `max_deliver` times without an ack."""

    job_id: str
    payload: bytes
    headers: Mapping[str, str]
    reason: str


class JobQueue(Protocol):
    """A durable work queue: JetStream with work-queue retention, explicit acks, dead letters."""

    async def submit(self, job_id: str, payload: bytes, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Store a job; returns after the server's PubAck. The same `job_id` within two minutes is stored once.

        Raises Overloaded where the stream is full and BusUnavailable where no ack came.
        """
        ...

    def pull(self, max_held: int) -> Feed[Job]:
        """Yield jobs for ever, at most `max_held` unacknowledged at a time. One puller per consumer.

        Closing the iterator gives back what was fetched but not yielded.
        """
        ...

    async def dead_letters(self) -> list[DeadLetter]:
        """Return what was given up, oldest first, at most 1,000."""
        ...


class Bus(Protocol):
    """A connection to NATS. One per process and purpose; create with `connect`, end with `close`."""

    @property
    def max_payload(self) -> int:
        """Largest body plus headers, in bytes."""
        ...

    @property
    def is_connected(self) -> bool:
        """True while the server answers."""
        ...

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
        """Queue a message for sending; never waits.

        While disconnected, messages wait in a bounded queue; one that would wait for longer than `max_wait` seconds
        is dropped instead: nobody wants it any more. `unheard` is called, once and later, where it was dropped so, or
        where the server says that nobody listens on `subject`. Otherwise delivery is not confirmed: prove it with
        `request`. Raises BusError for a bad subject, LimitExceeded for a body over `max_payload`, Overloaded where the
        queue is full, BusUnavailable after close, ValueError where both `reply` and `unheard` are given.
        """
        ...

    def soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` once all that has arrived together was delivered; outside of that, in the next turn.

        So what many messages bring about can leave as one, no later than without it.
        """
        ...

    async def request(
        self, subject: str, payload: bytes, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> Received:
        """Publish and wait for one reply.

        Raises Unavailable at once where nobody listens, DeadlineExceeded after `timeout` seconds, and what
        `publish` raises. Cancelling the caller forgets the request at once.
        """
        ...

    async def request_many(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout: float,
        max_replies: int | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> list[Received]:
        """Publish and gather replies until `timeout` or `max_replies`. Nobody listening gives an empty list."""
        ...

    async def subscribe(
        self, subject: str, callback: Callable[[Received], None], *, queue: str | None = None
    ) -> Subscription:
        """Call `callback` for every message on `subject` (wildcards allowed), in order, from the event loop.

        Active at the server when this returns. `callback` must return at once; what it raises is counted, logged
        and never ends the subscription.
        """
        ...

    def on_event(self, listener: Callable[[BusEvent, str], None]) -> None:
        """Call `listener(event, detail)` for every connection event from now on."""
        ...

    async def key_value(
        self,
        bucket: str,
        *,
        ttl: float | None = None,
        is_durable: bool = True,
        max_bytes: int | None = None,
    ) -> KeyValue:
        """Open a bucket, creating it where this role may; `ttl` is how long values live, in seconds.

        What is not durable costs no disk write and is gone, bucket included, when the server restarts. A bucket with
        `max_bytes` is a cache: once it holds that much, the oldest values make room for new ones. Opening it with
        another size changes the size.
        """
        ...

    async def acquire_lease(self, name: str, owner: str, *, ttl: float) -> Lease:
        """Take the lease `name` for `ttl` >= 1 seconds. Raises Conflict, naming the holder, where it is held."""
        ...

    async def job_queue(
        self,
        stream: str,
        subject: str,
        *,
        ack_wait: float = 30.0,
        max_deliver: int = 5,
        max_queued: int = 100_000,
    ) -> JobQueue:
        """Open a work queue, creating stream, consumer and dead-letter stream where this role may.

        A job not acknowledged within `ack_wait` seconds is delivered again, `max_deliver` times in all, then
        dead-lettered; `max_queued` jobs may wait before `submit` refuses.
        """
        ...

    async def round_trip(self, timeout: float = 2.0) -> float:
        """Return seconds for a message of ours to come back through the server; proves both directions."""
        ...

    async def close(self, timeout: float = 5.0) -> None:
        """Unsubscribe all, write what is queued within `timeout`, close. Idempotent."""
        ...
