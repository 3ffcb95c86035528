"""Each trap of raw nats-py or NATS beside its cure: the first half of a test shows nats-py misbehaving.

A first half that fails after an upgrade of nats-py means that the trap is gone and its cure may go too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import certifi
import nats as nats_py
import pytest
from nats.aio.client import Client
from nats.errors import ConnectionReconnectingError

from sage_bus import BusEvent, NatsBus, connect
from sage_bus.testing import NatsServer
from sage_core import (
    BusError,
    BusSettings,
    BusUnavailable,
    Conflict,
    DeadlineExceeded,
    LimitExceeded,
    Overloaded,
    new_id,
)

pytestmark = pytest.mark.integration


async def _ignore(error: Exception) -> None:
    """nats-py prints every error unless a callback takes it."""


@contextlib.asynccontextmanager
async def raw(server: NatsServer, **options: object) -> AsyncIterator[Client]:
    client = await nats_py.connect(server.url, error_cb=_ignore, reconnect_time_wait=0.1, **options)
    try:
        yield client
    finally:
        if client._transport is not None and client._transport._io_writer is not None:
            client._transport._io_writer.transport.abort()
        await client.close()


async def until(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - the condition may belong to nats-py
            await asyncio.sleep(0.01)


async def happens(condition: Callable[[], bool], within: float) -> bool:
    try:
        await until(condition, within)
    except TimeoutError:
        return False
    return True


async def test_a_callback_that_raises_cancelled_error_ends_a_subscription(nats):
    async with raw(nats.server) as client:
        raw_got: list[bytes] = []

        async def callback(message) -> None:
            raw_got.append(message.data)
            raise asyncio.CancelledError

        await client.subscribe("tests.cancelled", cb=callback)
        for _ in range(3):
            await client.publish("tests.cancelled", b"")
        await client.flush()
        assert not await happens(lambda: len(raw_got) > 1, 0.2)

    bus = await nats.connect()
    got: list[bytes] = []

    def plain(message) -> None:
        got.append(message.payload)
        raise asyncio.CancelledError

    await bus.subscribe("tests.cancelled", plain)
    for _ in range(3):
        bus.publish("tests.cancelled", b"")
    await until(lambda: len(got) == 3)
    assert bus.statistics.num_callback_errors == 3


async def test_a_slow_callback_drops_messages(nats):
    async with raw(nats.server) as client:
        raw_got: list[bytes] = []

        async def callback(message) -> None:
            raw_got.append(message.data)
            await asyncio.sleep(0.01)

        await client.subscribe("tests.slow", cb=callback, pending_msgs_limit=10)
        for _ in range(100):
            await client.publish("tests.slow", b"")
        await client.flush()
        await asyncio.sleep(0.3)
        assert len(raw_got) < 50

    # Ours has no queue to overflow: the callback is run from the read loop, and only enqueues.
    bus = await nats.connect()
    got: list[bytes] = []
    await bus.subscribe("tests.slow", lambda message: got.append(message.payload))
    for _ in range(50_000):
        bus.publish("tests.slow", b"")
    await until(lambda: len(got) == 50_000)


async def test_publish_on_a_full_buffer_swallows_cancellation(nats):
    async with raw(nats.server, pending_size=2**20) as client:
        nats.server.freeze()

        is_over = False

        async def flood() -> None:
            while not is_over:
                await client.publish("tests.flood", bytes(2**19))

        flooding = asyncio.create_task(flood())
        await asyncio.sleep(0.3)
        flooding.cancel()
        done, _ = await asyncio.wait([flooding], timeout=0.3)
        assert not done  # a timeout around publish would never fire
        is_over = True
        nats.server.thaw()
        await asyncio.wait_for(flooding, 5)

    bus = await nats.connect()
    nats.server.freeze()
    try:
        started = time.perf_counter()
        with pytest.raises(Overloaded):
            _flood(bus)
        assert time.perf_counter() - started < 2
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await bus.subscribe("tests.flood.x", lambda message: None)
    finally:
        nats.server.thaw()
    await until(lambda: bus.statistics.num_queued == 0)
    await bus.round_trip()


def _flood(bus: NatsBus) -> None:
    while True:
        bus.publish("tests.flood", bytes(2**19))


async def test_a_ping_answered_after_its_timeout_ends_the_read_loop(nats):
    async with raw(nats.server) as client:
        raw_got: list[bytes] = []

        async def callback(message) -> None:
            raw_got.append(message.data)

        await client.subscribe("tests.pong", cb=callback)
        await client.flush()
        nats.server.freeze()
        with pytest.raises(nats_py.errors.TimeoutError):
            await client.rtt(timeout=0.1)
        nats.server.thaw()
        await asyncio.sleep(0.1)
        await client.publish("tests.pong", b"")
        assert not await happens(lambda: bool(raw_got), 0.3)
        assert client.is_connected

    bus = await nats.connect()
    got: list[bytes] = []
    await bus.subscribe("tests.pong", lambda message: got.append(message.payload))
    nats.server.freeze()
    with pytest.raises(BusUnavailable):
        await bus.round_trip(0.1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bus.subscribe("tests.other", lambda message: None), 0.1)
    nats.server.thaw()
    bus.publish("tests.pong", b"")
    await until(lambda: got == [b""])


async def test_a_drain_while_reconnecting_raises(nats):
    async with raw(nats.server) as client:
        bus = await nats.connect()
        nats.server.kill()
        await until(lambda: client.is_reconnecting and not bus.is_connected)
        with pytest.raises(ConnectionReconnectingError):
            await client.drain()
        await bus.close(0.2)


async def test_headers_that_push_a_message_over_the_limit_close_the_connection_for_good(nats):
    async with raw(nats.server) as client:
        await client.publish("tests.size", bytes(client.max_payload), headers={"Name": "x" * 100})
        await until(lambda: client.is_closed)

    bus = await nats.connect()
    with pytest.raises(LimitExceeded):
        bus.publish("tests.size", bytes(bus.max_payload), {"Name": "x" * 100})
    await bus.round_trip()


async def test_a_long_subject_closes_the_connection_for_good(nats):
    async with raw(nats.server) as client:
        await client.publish("x" * 5000, b"")
        await until(lambda: client.is_closed)

    bus = await nats.connect()
    with pytest.raises(BusError):
        bus.publish("x" * 5000, b"")
    await bus.round_trip()


async def test_a_client_gives_up_reconnecting(nats):
    # 60 attempts by default; three show the same in a second.
    async with raw(nats.server, max_reconnect_attempts=3) as client:
        bus = await nats.connect()
        events: list[BusEvent] = []
        bus.on_event(lambda event, detail: events.append(event))
        nats.server.kill()
        await until(lambda: client.is_closed)
        nats.server.start()
        await until(lambda: BusEvent.RECONNECTED in events)
        assert client.is_closed
        await bus.round_trip()


async def test_a_frozen_server_goes_unnoticed_and_unsent_bytes_hold_the_reconnect(nats):
    async with raw(nats.server) as client:
        bus = await nats.connect(ping_interval=0.2)
        events: list[BusEvent] = []
        bus.on_event(lambda event, detail: events.append(event))
        nats.server.freeze()
        for _ in range(20):
            bus.publish("tests.frozen", bytes(2**20))
        await until(lambda: BusEvent.DISCONNECTED in events, 3)
        assert client.is_connected
        nats.server.thaw()
        await until(lambda: BusEvent.RECONNECTED in events)
        await bus.round_trip()


async def test_a_request_runs_after_a_reconnect_though_its_caller_has_gone(nats):
    ran: list[str] = []
    async with raw(nats.server) as client, raw(nats.server) as responder:

        async def respond(message) -> None:
            ran.append(message.data.decode())

        await responder.subscribe("tests.stale", cb=respond)
        await responder.flush()
        bus = await nats.connect()
        nats.server.kill()
        await until(lambda: client.is_reconnecting and responder.is_reconnecting and not bus.is_connected)
        with pytest.raises(nats_py.errors.TimeoutError):
            await client.request("tests.stale", b"raw request", timeout=0.05)
        with pytest.raises(DeadlineExceeded):
            await bus.request("tests.stale", b"our request", timeout=0.05)
        bus.publish("tests.stale", b"our expired tell", {"Sage-Budget-Ms": "50"})
        bus.publish("tests.stale", b"our tell", {"Sage-Budget-Ms": "60000"})
        await asyncio.sleep(0.1)
        # The responder must be back first, or nobody would run anything.
        held = _hold_reconnect(bus), _hold_reconnect_raw(client)
        nats.server.start()
        await until(lambda: responder.is_connected)
        await responder.flush()
        for release in held:
            release()
        await until(lambda: {"raw request", "our tell"} <= set(ran))
        await bus.round_trip()
        assert sorted(ran) == ["our tell", "raw request"]


def _hold_reconnect(bus: NatsBus) -> Callable[[], None]:
    return _hold_reconnect_raw(bus._connection.client)


def _hold_reconnect_raw(client: Client) -> Callable[[], None]:
    gate = asyncio.Event()
    original: Callable[..., Awaitable[None]] = client._connect_to_server

    async def held(server) -> None:
        await gate.wait()
        await original(server)

    client._connect_to_server = held
    return gate.set


async def test_a_response_echoes_the_headers_of_the_request(nats):
    async with raw(nats.server) as client:

        async def callback(message) -> None:
            await message.respond(b"")

        await client.subscribe("tests.echo", cb=callback)
        reply = await client.request("tests.echo", b"", headers={"Authorization": "secret"})
        assert (reply.headers or {}).get("Authorization") == "secret"

    bus = await nats.connect()
    await bus.subscribe("tests.echo", lambda message: bus.publish(message.reply or "", b""))
    assert (
        await bus.request("tests.echo", b"", timeout=1, headers={"Authorization": "secret"})
    ).headers == {}


async def test_a_reply_subject_can_make_a_service_publish_where_its_caller_may_not(nats):
    bus = await nats.connect()
    victim: list[bytes] = []
    await bus.subscribe("sagejobs.v1.submit", lambda message: victim.append(message.payload))
    async with raw(nats.server) as client:

        async def callback(message) -> None:
            await message.respond(b"forged")

        await client.subscribe("tests.deputy", cb=callback)
        await client.publish("tests.deputy", b"", reply="sagejobs.v1.submit")
        await until(lambda: victim == [b"forged"])

    replies: list[str | None] = []
    await bus.subscribe("tests.deputy", lambda message: replies.append(message.reply))
    bus.publish("tests.deputy", b"", reply="sagejobs.v1.submit")
    await until(lambda: replies == [None])


PERMISSIONS = """
authorization {
  users = [
    { user: limited, password: limited, permissions: {
        publish: ["allowed.>", "_INBOX.>", "_INBOX_limited.>"]
        subscribe: ["allowed.>", "_INBOX.>", "_INBOX_limited.>"]
    } }
  ]
}
"""


async def test_a_denied_publish_or_subscribe_raises_nothing():
    with NatsServer(extra_config=PERMISSIONS) as server:
        url = server.url.replace("nats://", "nats://limited:limited@")
        client = await nats_py.connect(url, error_cb=_ignore)
        await client.publish("denied.a", b"")
        await client.subscribe("denied.b")
        await client.flush()
        assert client.is_connected
        await client.close()

        bus = await connect(BusSettings(url=url), name="limited", role="limited")
        events: list[tuple[BusEvent, str]] = []
        bus.on_event(lambda event, detail: events.append((event, detail)))
        with pytest.raises(BusError, match=r"may not subscribe to denied\.b"):
            await bus.subscribe("denied.b", lambda message: None)
        async with asyncio.timeout(1):
            with pytest.raises(BusError, match=r"may not publish on denied\.a"):
                await bus.request("denied.a", b"", timeout=30)
        bus.publish("denied.c", b"")
        await until(lambda: bus.statistics.num_permission_errors == 3)
        assert events[-1] == (BusEvent.PERMISSION_DENIED, "publish denied.c")
        await bus.subscribe("allowed.a", lambda message: bus.publish(message.reply or "", b""))
        await bus.request("allowed.a", b"", timeout=1)
        await bus.close()


async def test_a_client_goes_on_in_plain_text_where_the_server_offers_no_tls(nats):
    async with raw(nats.server, tls=ssl.create_default_context()) as client:
        await client.flush()
        assert client.is_connected

    settings = BusSettings(url=nats.server.url, tls_ca_file=certifi.where(), connect_timeout=0.5)
    with pytest.raises(BusUnavailable, match="TLS is required"):
        await connect(settings, name="encrypted")


async def test_a_fetch_over_a_restart_is_dead_until_its_timeout(nats):
    bus = await nats.connect()
    stream, subject = f"S{new_id()}", f"jobs.{new_id()}"
    queue = await bus.job_queue(stream, subject)
    async with raw(nats.server) as client:
        js = client.jetstream()
        subscription = await js.pull_subscribe_bind("workers", stream)
        fetching = asyncio.create_task(subscription.fetch(1, timeout=3))
        await asyncio.sleep(0.1)
        nats.server.kill()
        nats.server.start()
        await until(lambda: client.is_connected and bus.is_connected)
        await queue.submit("job-1", b"")
        assert not await happens(fetching.done, 1.5)

        jobs = queue.pull(1)
        waiting = asyncio.create_task(jobs.__anext__())
        first = await asyncio.wait_for(waiting, 2)
        await first.ack()
        waiting = asyncio.create_task(jobs.__anext__())
        await asyncio.sleep(0.1)
        nats.server.kill()
        nats.server.start()
        await queue.submit("job-2", b"")
        await (await asyncio.wait_for(waiting, 2)).ack()
        await jobs.aclose()
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)


async def test_cancelling_a_reader_loses_a_message(nats):
    async with raw(nats.server) as client:
        subscription = await client.subscribe("tests.reader")
        num_lost = 0
        for num_turns in range(6):
            await client.publish("tests.reader", b"")
            await client.flush()
            reading = asyncio.create_task(subscription.messages.__anext__())
            for _ in range(num_turns):
                await asyncio.sleep(0)
            if reading.done():
                break
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            for _ in range(3):
                await asyncio.sleep(0)
            num_lost += 1 - subscription.pending_msgs
            while subscription.pending_msgs:
                await subscription.next_msg()
        assert num_lost > 0

    bus = await nats.connect()
    values = await bus.key_value(f"b{new_id()}")
    watch = values.watch()
    await values.put("key", b"0")
    await watch.__anext__()
    for num_turns in range(6):
        revision = await values.put("key", str(num_turns).encode())
        await bus.round_trip()
        reading = asyncio.create_task(watch.__anext__())
        for _ in range(num_turns):
            await asyncio.sleep(0)
        if not reading.done():
            reading.cancel()
        outcome = (await asyncio.gather(reading, return_exceptions=True))[0]
        if isinstance(outcome, asyncio.CancelledError):
            outcome = await asyncio.wait_for(watch.__anext__(), 1)
        assert outcome.revision == revision
    await watch.aclose()


async def test_renewing_a_key_drops_its_time_to_live(nats):
    async with raw(nats.server) as client:
        js = client.jetstream()
        config = nats_py.js.api.KeyValueConfig(bucket="locks", limit_marker_ttl=1)
        locks = await js.create_key_value(config)
        revision = await locks.create("lock", b"holder", msg_ttl=1)
        await locks.update("lock", b"holder", last=revision)
        await asyncio.sleep(2.2)
        assert (await locks.get("lock")).value == b"holder"  # a dead holder's lock, for ever

    bus, other = await nats.connect(), await nats.connect()
    lease = await bus.acquire_lease("lock", "first", ttl=1)
    await lease.renew()
    deadline = time.perf_counter() + 4
    while True:
        try:
            await other.acquire_lease("lock", "second", ttl=1)
            break
        except Conflict:
            assert time.perf_counter() < deadline
            await asyncio.sleep(0.05)


async def test_the_server_cuts_fractions_of_a_time_to_live_off(nats):
    async with raw(nats.server) as client:
        bus = await nats.connect()
        await bus.key_value("ttl")
        acknowledged = await client.request("$KV.ttl.key", b"x", headers={"Nats-TTL": "1900ms"})
        assert "error" not in json.loads(acknowledged.data)
        values = await bus.key_value("ttl")
        started = time.perf_counter()
        while await values.get("key") is not None:  # noqa: ASYNC110 - a watch would be told, not see
            await asyncio.sleep(0.02)
        assert time.perf_counter() - started < 1.7

    # A holder that believes in 1.9 s while the server has given it away after 1 s would be two leaders.
    other = await nats.connect()
    lease = await bus.acquire_lease("fraction", "first", ttl=1.9)
    while lease.is_held:
        with pytest.raises(Conflict):
            await other.acquire_lease("fraction", "second", ttl=1)
        await asyncio.sleep(0.05)


async def test_a_header_value_that_is_no_text_breaks_publish_with_an_unrelated_error(nats):
    async with raw(nats.server) as client:
        with pytest.raises(AttributeError):
            await client.publish("tests.header", b"", headers={"Attempt": 1})
    bus = await nats.connect()
    with pytest.raises(BusError, match="must be text"):
        bus.publish("tests.header", b"", {"Attempt": 1})


async def test_a_watch_of_raw_nats_py_misses_a_deletion_over_a_restart(nats):
    bus = await nats.connect()
    values = await bus.key_value("watched")
    await values.put("key", b"1")
    async with raw(nats.server) as client:
        raw_watch = await (await client.jetstream().key_value("watched")).watchall()
        assert (await raw_watch.updates(timeout=1)).value == b"1"
        watch = values.watch()
        assert (await watch.__anext__()).value == b"1"
        nats.server.kill()
        nats.server.start()
        await until(lambda: client.is_connected and bus.is_connected)
        await values.delete("key")
        assert (await asyncio.wait_for(watch.__anext__(), 2)).value is None
        raw_saw = []
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1.5):
                while True:
                    raw_saw.append(await raw_watch.updates(timeout=1.5))
        assert not any(entry is not None and entry.operation == "DEL" for entry in raw_saw)
        await watch.aclose()
