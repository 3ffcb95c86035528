"""Durable work queues over JetStream: a work-queue stream, one durable pull consumer, a dead-letter stream."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from typing import Final

import structlog

from sage_bus.bus import NO_HEADERS, DeadLetter
from sage_bus.checks import check_target
from sage_bus.connection import Connection
from sage_bus.jetstream import ensure_consumer, ensure_stream, list_messages, store
from sage_bus.job import JOB_ID, REASON, DeadLetters, own_headers
from sage_bus.puller import JobPuller
from sage_core import BadRequest, BusUnavailable, Overloaded
from sage_wire import subjects

__all__ = ["NatsJobQueue", "open_job_queue"]

log = structlog.get_logger("sage_bus")

_CONSUMER: Final = "workers"
_SUBMIT_SECONDS: Final = 12.0
"""A cluster that lost its leader stalls publishing for 5 to 8 s; failing a durable job earlier is premature."""
_ATTEMPT_SECONDS: Final = 3.0
_DUPLICATE_SECONDS: Final = 120
_DEAD_DAYS: Final = 30
_MAX_DEAD: Final = 100_000
_MAX_LISTED: Final = 1000
_STREAM = re.compile(r"[A-Za-z0-9_-]{1,64}")


class NatsJobQueue:
    """See `JobQueue`."""

    def __init__(
        self, connection: Connection, stream: str, subject: bytes, *, ack_wait: float, max_deliver: int
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._subject = subject
        self._ack_wait = ack_wait
        self._max_deliver = max_deliver
        self._dead = DeadLetters(connection, stream)

    async def submit(self, job_id: str, payload: bytes, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """See `JobQueue.submit`."""
        sent = {**headers, JOB_ID: job_id}
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SUBMIT_SECONDS
        while True:
            try:
                # The same id on every attempt: an attempt whose answer was lost is stored once.
                answer = await store(
                    self._connection,
                    self._subject,
                    payload,
                    sent,
                    is_repeatable=True,
                    timeout=_ATTEMPT_SECONDS,
                )
                break
            except BusUnavailable as error:
                if self._connection.is_closed or loop.time() + _ATTEMPT_SECONDS > deadline:
                    raise
                log.info("job_submit_delayed", stream=self._stream, job_id=job_id, reason=error.message)
                await asyncio.sleep(0.25)
        if answer.error is not None:
            if answer.error.is_full:
                raise Overloaded(f"job queue {self._stream} is full", retry_after=1.0)
            raise BusUnavailable(f"job queue {self._stream}: {answer.error.description}")

    def pull(self, max_held: int) -> JobPuller:
        """See `JobQueue.pull`."""
        if max_held < 1:
            raise BadRequest(f"max_held is {max_held}; expected at least 1")
        return JobPuller(
            self._connection,
            stream=self._stream,
            consumer=_CONSUMER,
            max_held=max_held,
            ack_wait=self._ack_wait,
            max_deliver=self._max_deliver,
            dead=self._dead,
            ensure_consumer=self.ensure_consumer,
        )

    async def ensure_consumer(self) -> None:
        """Create the shared consumer unless it is there. Raises ConfigurationError, BusUnavailable."""
        await ensure_consumer(
            self._connection,
            self._stream,
            _CONSUMER,
            {
                "ack_policy": "explicit",
                "deliver_policy": "all",
                "ack_wait": int(self._ack_wait * 1e9),
                # Never given up by the server: an exhausted message would stay in the stream, invisible for
                # ever. The puller counts deliveries and moves the message to the dead letters instead.
                "max_deliver": -1,
                "max_ack_pending": 10_000,
            },
        )

    async def dead_letters(self) -> list[DeadLetter]:
        """See `JobQueue.dead_letters`."""
        stored = await list_messages(
            self._connection, self._dead.stream, subjects.dead_letters(self._stream), limit=_MAX_LISTED
        )
        return [
            DeadLetter(
                job_id=message.headers.get(JOB_ID, ""),
                payload=message.payload,
                headers=own_headers(message.headers),
                reason=message.headers.get(REASON, ""),
            )
            for message in stored
        ]


async def open_job_queue(
    connection: Connection, stream: str, subject: str, *, ack_wait: float, max_deliver: int, max_queued: int
) -> NatsJobQueue:
    """See `Bus.job_queue`. Raises ConfigurationError, BadRequest, BusUnavailable."""
    if _STREAM.fullmatch(stream) is None:
        raise BadRequest(f"job stream is {stream!r}; expected 1 to 64 of [A-Za-z0-9_-]")
    if not (math.isfinite(ack_wait) and ack_wait > 0 and max_deliver >= 1 and max_queued >= 1):
        raise BadRequest("ack_wait must be > 0 s, max_deliver and max_queued at least 1")
    target = check_target(subject)
    await ensure_stream(
        connection,
        stream,
        {
            "subjects": [subject],
            # Only here does an acknowledgement survive kill -9 of the server: it removes the message.
            "retention": "workqueue",
            "discard": "new",
            "max_msgs": max_queued,
            "storage": "file",
            "num_replicas": 1,
            "duplicate_window": _DUPLICATE_SECONDS * 10**9,
        },
    )
    await ensure_stream(
        connection,
        f"{stream}_DEAD",
        {
            "subjects": [subjects.dead_letters(stream)],
            "discard": "old",
            "max_msgs": _MAX_DEAD,
            "max_age": _DEAD_DAYS * 86400 * 10**9,
            "storage": "file",
            "num_replicas": 1,
            "allow_direct": True,
            "duplicate_window": _DUPLICATE_SECONDS * 10**9,
        },
    )
    queue = NatsJobQueue(connection, stream, target, ack_wait=ack_wait, max_deliver=max_deliver)
    await queue.ensure_consumer()
    return queue
