"""`NatsBus`: the `Bus` over a real nats-server, and `connect`, the only way to get one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
from nats import errors

from sage_bus.bus import NO_HEADERS, BusEvent, Received
from sage_bus.checks import check_pattern, check_target, is_from_stream
from sage_bus.connection import Connection
from sage_bus.job_queue import NatsJobQueue, open_job_queue
from sage_bus.key_value import NatsKeyValue, open_bucket
from sage_bus.lease import NatsLease, acquire_lease
from sage_bus.nats_client import NatsClient
from sage_bus.nkey import public_key
from sage_bus.provisioning import Provisioned, provision
from sage_bus.requests import ReplyInbox, received
from sage_bus.self_test import check_provisioned, check_rights
from sage_bus.tls import tls_context
from sage_core import BusError, BusSettings, BusUnavailable, ConfigurationError, new_id
from sage_wire import subjects
from sage_wire.roles import Role

__all__ = ["BusStatistics", "NatsBus", "connect"]

log = structlog.get_logger("sage_bus")

OLDEST_SERVER = (2, 14, 3)
_SUBSCRIBE_SECONDS = 10.0
_QUEUE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class BusStatistics:
    """What a bus has done since it was opened, and what waits to be sent now."""

    num_queued: int
    queued_bytes: int
    num_refused: int
    num_callback_errors: int
    num_reconnects: int
    num_permission_errors: int
    num_from_streams: int


class NatsSubscription:
    """A live subscription. See `Subscription`."""

    def __init__(self, connection: Connection, sid: int) -> None:
        self._connection = connection
        self._sid: int | None = sid

    async def unsubscribe(self) -> None:
        """See `Subscription.unsubscribe`."""
        sid, self._sid = self._sid, None
        if sid is not None:
            self._connection.unsubscribe(sid)


class NatsBus:
    """See `Bus`. Made by `connect`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def max_payload(self) -> int:
        """See `Bus.max_payload`."""
        return self._connection.client.max_payload

    @property
    def is_connected(self) -> bool:
        """See `Bus.is_connected`."""
        return self._connection.client.can_write and not self._connection.is_closed

    @property
    def inbox_prefix(self) -> str:
        """Where replies to this bus arrive: `<prefix>.*`."""
        return self._connection.inbox.prefix

    @property
    def statistics(self) -> BusStatistics:
        """Counters for metrics."""
        connection = self._connection
        return BusStatistics(
            num_queued=len(connection.outbound),
            queued_bytes=connection.outbound.num_bytes,
            num_refused=connection.outbound.num_refused,
            num_callback_errors=connection.client.num_callback_errors,
            num_reconnects=connection.num_reconnects,
            num_permission_errors=connection.denials.num_denied,
            num_from_streams=connection.denials.num_from_streams,
        )

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
        target = check_target(subject)
        answer_on = check_target(reply) if reply is not None else b""
        if max_wait is None and unheard is None:
            self._connection.send(target, payload, headers, answer_on)
        else:
            self._connection.send_or_tell(target, payload, headers, answer_on, max_wait, unheard)

    def soon(self, callback: Callable[[], None]) -> None:
        """See `Bus.soon`."""
        self._connection.client.soon(callback)

    async def request(
        self, subject: str, payload: bytes, *, timeout: float, headers: Mapping[str, str] = NO_HEADERS
    ) -> Received:
        """See `Bus.request`."""
        answer = await self._connection.ask(check_target(subject), payload, headers, timeout=timeout)
        return received(answer.subject, answer.reply, answer.payload, answer.block)

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
        answers = await self._connection.gather(check_target(subject), payload, headers, timeout, max_replies)
        return [
            received(answer.subject, answer.reply, answer.payload, answer.block)
            for answer in answers.received
        ]

    async def subscribe(
        self, subject: str, callback: Callable[[Received], None], *, queue: str | None = None
    ) -> NatsSubscription:
        """See `Bus.subscribe`."""
        check_pattern(subject)
        if queue is not None and _QUEUE_NAME.fullmatch(queue) is None:
            raise ConfigurationError(f"queue group is {queue!r}; expected 1 to 64 of [A-Za-z0-9_-]")

        def handle(subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
            if (reply or block) and is_from_stream(reply, block):
                self._connection.denials.refused_stream(subject)
                return
            callback(received(subject, reply, payload, block))

        sid = await self._connection.subscribe(subject, queue or "", handle, timeout=_SUBSCRIBE_SECONDS)
        return NatsSubscription(self._connection, sid)

    def on_event(self, listener: Callable[[BusEvent, str], None]) -> None:
        """See `Bus.on_event`."""
        self._connection.add_listener(listener)

    async def key_value(
        self,
        bucket: str,
        *,
        ttl: float | None = None,
        is_durable: bool = True,
        max_bytes: int | None = None,
    ) -> NatsKeyValue:
        """See `Bus.key_value`."""
        return await open_bucket(self._connection, bucket, ttl, is_durable=is_durable, max_bytes=max_bytes)

    async def acquire_lease(self, name: str, owner: str, *, ttl: float) -> NatsLease:
        """See `Bus.acquire_lease`."""
        return await acquire_lease(self._connection, name, owner, ttl)

    async def job_queue(
        self,
        stream: str,
        subject: str,
        *,
        ack_wait: float = 30.0,
        max_deliver: int = 5,
        max_queued: int = 100_000,
    ) -> NatsJobQueue:
        """See `Bus.job_queue`."""
        return await open_job_queue(
            self._connection,
            stream,
            subject,
            ack_wait=ack_wait,
            max_deliver=max_deliver,
            max_queued=max_queued,
        )

    async def provision(self, *, responses_bytes: int, job_ack_wait: float) -> Provisioned:
        """See `sage_bus.provisioning.provision`. Needs the rights of the provisioner."""
        return await provision(self._connection, responses_bytes=responses_bytes, job_ack_wait=job_ack_wait)

    async def round_trip(self, timeout: float = 2.0) -> float:
        """See `Bus.round_trip`."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        arrived: asyncio.Future[None] = loop.create_future()

        def arrive(subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
            del subject, reply, payload, block
            if not arrived.done():
                arrived.set_result(None)

        inbox = self._connection.inbox
        target = inbox.open(arrive)
        try:
            self._connection.send(target, b"", is_wanted=lambda: inbox.is_open(target))
            async with asyncio.timeout(timeout):
                await arrived
        except TimeoutError:
            raise BusUnavailable(f"a message of ours did not come back within {timeout:g} s") from None
        finally:
            inbox.close(target)
        return loop.time() - start

    async def close(self, timeout: float = 5.0) -> None:
        """See `Bus.close`."""
        await self._connection.close(timeout)


async def connect(
    settings: BusSettings, *, name: str, role: str | None = None, ping_interval: float = 2.0
) -> NatsBus:
    """Connect to NATS, prove both directions and, for a `role` with a seed, its rights.

    `name` shows in the server's monitoring. Replies arrive under the inbox of the role; without one, under a random
    one. A server that says nothing for 2.5 `ping_interval` counts as dead. Raises BusUnavailable where no server
    answers within `settings.connect_timeout`, naming the last error, and ConfigurationError for settings that can
    never work, a right that the role lacks, and what is missing on a provisioned server.
    """
    servers = [url.strip() for url in settings.url.split(",") if url.strip()]
    if not servers:
        raise ConfigurationError("bus.url is empty; expected nats://host:port")
    if settings.nkey_seed_file is not None:
        _check_seed(settings.nkey_seed_file)
    connection = Connection(
        NatsClient(requires_tls=settings.tls_ca_file is not None),
        inbox=ReplyInbox(f"{subjects.inbox(role)}.{new_id()}" if role is not None else f"_INBOX_{new_id()}"),
        ping_interval=ping_interval,
        max_messages=settings.max_outbound,
        max_bytes=settings.max_outbound_bytes,
        role=role or "",
        is_provisioned=settings.is_provisioned,
    )
    try:
        async with asyncio.timeout(settings.connect_timeout):
            await connection.open(
                servers, name=name, tls=tls_context(settings), seed_file=settings.nkey_seed_file
            )
        await _check_role(connection, settings, role)
    except TimeoutError:
        await connection.close(0.1)
        reason = f": {connection.last_error}" if connection.last_error else ""
        raise BusUnavailable(
            f"no NATS server at {_without_secrets(settings.url)} answered within {settings.connect_timeout:g} s{reason}"
        ) from None
    except BusError as error:  # of its own inbox
        await connection.close(0.1)
        raise ConfigurationError(error.message) from None
    except errors.Error as error:
        await connection.close(0.1)
        raise ConfigurationError(f"bus.url = {_without_secrets(settings.url)!r}: {error}") from None
    except BaseException:
        await connection.close(0.1)
        raise
    if connection.client.server_version < OLDEST_SERVER:
        found = ".".join(str(part) for part in connection.client.server_version)
        await connection.close(0.1)
        raise ConfigurationError(
            f"nats-server at {_without_secrets(settings.url)} is {found}; SAGE needs 2.14.3 or newer"
        )
    return NatsBus(connection)


def _check_seed(file: Path) -> None:
    try:
        public_key(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"bus.nkey_seed_file: cannot read {file}: {error.strerror}") from None
    except (ConfigurationError, UnicodeDecodeError) as error:
        reason = error.message if isinstance(error, ConfigurationError) else "it is not text"
        raise ConfigurationError(f"bus.nkey_seed_file: {file}: {reason}") from None


async def _check_role(connection: Connection, settings: BusSettings, role: str | None) -> None:
    if role not in frozenset(Role):
        return
    if settings.nkey_seed_file is not None:
        await check_rights(connection, Role(role))
    if settings.is_provisioned:
        await check_provisioned(connection, Role(role))


def _without_secrets(url: str) -> str:
    """Return the URLs as a log may show them: a password or token before the host becomes `***`."""
    return re.sub(r"(?<=//)[^/@,]*@", "***@", url)
