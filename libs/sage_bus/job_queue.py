"""Durable work queues over JetStream: a work-queue stream, one durable pull consumer, a dead-letter stream."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog

from sage_bus.bus import NO_HEADERS, DeadLetter
from sage_bus.checks import check_target
from sage_bus.connection import Connection
from sage_bus.jetstream import ensure_consumer, ensure_stream, list_messages, store
from sage_bus.job import JOB_ID, REASON, DeadLetters, own_headers
from sage_bus.puller import JobPuller
from sage_bus.stream_plan import consumer_plan, dead_letters_plan, queue_plan
from sage_core import BadRequest, BusUnavailable, Overloaded
from sage_wire import subjects
from sage_wire.stores import QUEUE_CONSUMER

__all__ = ["NatsJobQueue", "open_job_queue"]

log = structlog.get_logger("sage_bus")

_SUBMIT_SECONDS: Final = 12.0
"""A cluster that lost its leader stalls publishing for 5 to 8 s; failing a durable job earlier is premature."""
_ATTEMPT_SECONDS: Final = 3.0
_MAX_LISTED: Final = 1000


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
            consumer=QUEUE_CONSUMER,
            max_held=max_held,
            ack_wait=self._ack_wait,
            max_deliver=self._max_deliver,
            dead=self._dead,
            ensure_consumer=self.ensure_consumer,
        )

    async def ensure_consumer(self) -> None:
        """Create the shared consumer unless it is there. Raises ConfigurationError, BusUnavailable."""
        await ensure_consumer(self._connection, consumer_plan(self._stream, self._ack_wait))

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
    if max_deliver < 1:
        raise BadRequest(f"max_deliver is {max_deliver}; expected at least 1")
    queue = NatsJobQueue(
        connection, stream, check_target(subject), ack_wait=ack_wait, max_deliver=max_deliver
    )
    plans = [queue_plan(stream, subject, max_queued), dead_letters_plan(stream)]
    consumer = consumer_plan(stream, ack_wait)
    if connection.is_provisioned:
        # Who only submits may not look at the rest; who pulls looks at the consumer first.
        await ensure_stream(connection, plans[0])
        return queue
    for plan in plans:
        await ensure_stream(connection, plan)
    await ensure_consumer(connection, consumer)
    return queue
