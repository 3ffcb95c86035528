"""A job in hand: acknowledging, giving back, giving up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from sage_bus.connection import Connection
from sage_bus.header_block import one_line
from sage_bus.jetstream import store
from sage_core import BadRequest, BusUnavailable, DeadlineExceeded, SageError, Unavailable
from sage_wire import subjects

__all__ = ["JOB_ID", "REASON", "DeadLetters", "Delivery", "JobHolder", "NatsJob", "own_headers"]

JOB_ID: Final = "Nats-Msg-Id"
"""The header by which the server stores a job once."""
REASON: Final = "Sage-Dead-Reason"

_ACK_SECONDS: Final = 1.0
_ACK_ATTEMPTS: Final = 5


def own_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers a job was submitted with, without those that NATS and the dead letters add."""
    return {name: value for name, value in headers.items() if not name.startswith("Nats-") and name != REASON}


class DeadLetters:
    """Where a stream's jobs go that nobody could finish."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self.stream = subjects.dead_stream(stream)
        self._connection = connection
        self._subject = subjects.dead_letters(stream).encode("ascii")

    async def add(self, job_id: str, payload: bytes, headers: Mapping[str, str], reason: str) -> None:
        """Store a job with the reason; twice is once. Raises BusUnavailable."""
        kept = {**headers, REASON: one_line(reason), JOB_ID: job_id}
        answer = await store(self._connection, self._subject, payload, kept, is_repeatable=True)
        if answer.error is not None:
            raise BusUnavailable(f"dead letters {self.stream}: {answer.error.description}")


class Delivery:
    """What the server says about a delivered message, read from its acknowledgement subject.

    `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`, or with domain and
    account hash after ACK and a random token at the end.
    """

    __slots__ = ("ack_subject", "num_delivered", "sequence")

    def __init__(self, ack_subject: bytes) -> None:
        tokens = ack_subject.split(b".")
        if not ack_subject.startswith(b"$JS.ACK.") or len(tokens) not in (9, 11, 12):
            raise ValueError(f"not an acknowledgement subject: {ack_subject!r}")
        first = 4 if len(tokens) == 9 else 6
        self.ack_subject = ack_subject
        self.num_delivered = int(tokens[first])
        self.sequence = int(tokens[first + 1])


class JobHolder(Protocol):
    """Who counts held jobs: the puller."""

    def on_done(self, job: NatsJob) -> None:
        """The job is no longer held. Called once."""
        ...

    def on_progress(self, job: NatsJob) -> None:
        """The job's ack wait starts again."""
        ...


class NatsJob:
    """See `Job`."""

    def __init__(
        self,
        connection: Connection,
        delivery: Delivery,
        *,
        payload: bytes,
        headers: Mapping[str, str],
        dead: DeadLetters,
        holder: JobHolder,
    ) -> None:
        self.job_id = headers.get(JOB_ID, "")
        self.payload = payload
        self.headers = own_headers(headers)
        self.num_delivered = delivery.num_delivered
        self.sequence = delivery.sequence
        self._connection = connection
        self._ack_subject = delivery.ack_subject
        self._dead = dead
        self._holder: JobHolder | None = holder

    async def ack(self) -> None:
        """See `Job.ack`."""
        await self._answer(b"+ACK")
        self._finish()

    async def nak(self, delay: float) -> None:
        """See `Job.nak`."""
        if delay <= 0:
            raise BadRequest("nak needs a delay > 0 s; without one the job comes back in a hot loop")
        await self._answer(b"-NAK " + msgspec.json.encode({"delay": int(delay * 1e9)}))
        self._finish()

    async def in_progress(self) -> None:
        """See `Job.in_progress`."""
        await self._answer(b"+WPI")
        if self._holder is not None:
            self._holder.on_progress(self)

    async def dead_letter(self, reason: str) -> None:
        """See `Job.dead_letter`."""
        await self._dead.add(self.job_id, self.payload, self.headers, reason)
        await self.ack()

    def give_back(self, delay: float) -> None:
        """Like `nak`, without waiting for the server; a lost one costs the ack wait."""
        try:
            body = b"-NAK " + msgspec.json.encode({"delay": int(delay * 1e9)})
            self._connection.send(self._ack_subject, body)
        except SageError:
            pass  # closed or full: the ack wait gives it back
        self._finish()

    def _finish(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.on_done(self)

    def redelivered(self, delivery: Delivery) -> None:
        """The server, restarted, has forgotten that it delivered the job and did so again: answer that."""
        self._ack_subject = delivery.ack_subject

    async def _answer(self, body: bytes) -> None:
        # A server that has forgotten the delivery does not answer; after it delivered again, it does.
        for attempt in range(1, _ACK_ATTEMPTS + 1):
            try:
                await self._connection.ask(self._ack_subject, body, timeout=_ACK_SECONDS, is_repeatable=True)
                return
            except DeadlineExceeded as error:
                if attempt == _ACK_ATTEMPTS:
                    raise BusUnavailable(f"the server did not confirm: {error.message}") from None
            except BusUnavailable:
                raise
            except Unavailable:
                raise BusUnavailable("the job's consumer is gone") from None
