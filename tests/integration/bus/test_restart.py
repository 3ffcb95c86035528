"""A server that is killed, frozen or restarted: what comes back by itself, and what is never lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from sage_bus import BusEvent, NatsBus
from sage_core import BusUnavailable, SageError, new_id

pytestmark = pytest.mark.integration


class Events:
    """Connection events as they come."""

    def __init__(self, bus: NatsBus) -> None:
        self.seen: list[BusEvent] = []
        self._arrived = asyncio.Event()
        bus.on_event(self._on_event)

    def _on_event(self, event: BusEvent, detail: str) -> None:
        self.seen.append(event)
        self._arrived.set()

    async def wait(self, event: BusEvent, timeout: float = 10.0) -> None:
        async with asyncio.timeout(timeout):
            while event not in self.seen:
                self._arrived.clear()
                await self._arrived.wait()


async def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - any condition
            await asyncio.sleep(0.01)


async def test_after_kill_and_restart_subscriptions_work_and_what_was_queued_is_sent(nats):
    sender, receiver = await nats.connect(), await nats.connect()
    sender_events, receiver_events = Events(sender), Events(receiver)
    got: list[bytes] = []
    await receiver.subscribe("tests.restart", lambda message: got.append(message.payload))
    nats.server.kill()
    await sender_events.wait(BusEvent.DISCONNECTED)
    await receiver_events.wait(BusEvent.DISCONNECTED)
    assert not sender.is_connected
    started = time.perf_counter()
    nats.server.start()
    await receiver_events.wait(BusEvent.RECONNECTED)
    sender.publish("tests.restart", b"after")
    await sender_events.wait(BusEvent.RECONNECTED)
    await until(lambda: got == [b"after"])
    assert time.perf_counter() - started < 5
    assert sender_events.seen == [BusEvent.DISCONNECTED, BusEvent.RECONNECTED]
    assert sender.statistics.num_reconnects == 1


async def test_messages_published_while_the_server_is_away_wait_in_order(nats):
    bus = await nats.connect()
    events = Events(bus)
    got: list[bytes] = []
    await bus.subscribe("tests.away", lambda message: got.append(message.payload))
    nats.server.kill()
    await events.wait(BusEvent.DISCONNECTED)
    for number in range(100):
        bus.publish("tests.away", str(number).encode())
    assert bus.statistics.num_queued == 100
    nats.server.start()
    await until(lambda: len(got) == 100)
    assert got == [str(number).encode() for number in range(100)]


async def test_a_subscription_made_while_the_server_is_away_becomes_active(nats):
    bus = await nats.connect()
    events = Events(bus)
    nats.server.kill()
    await events.wait(BusEvent.DISCONNECTED)
    got: list[bytes] = []
    subscribing = asyncio.create_task(
        bus.subscribe("tests.late", lambda message: got.append(message.payload))
    )
    await asyncio.sleep(0.05)
    assert not subscribing.done()
    nats.server.start()
    await asyncio.wait_for(subscribing, 10)
    bus.publish("tests.late", b"x")
    await until(lambda: got == [b"x"])


async def test_close_while_the_server_is_away_ends_within_its_limit(nats):
    bus = await nats.connect()
    events = Events(bus)
    nats.server.kill()
    await events.wait(BusEvent.DISCONNECTED)
    bus.publish("tests.lost", b"")
    started = time.perf_counter()
    await bus.close(0.5)
    assert time.perf_counter() - started < 2
    assert BusEvent.CLOSED not in events.seen


async def test_close_towards_a_frozen_server_ends_within_its_limit(nats):
    bus = await nats.connect()
    nats.server.freeze()
    try:
        for _ in range(20):
            bus.publish("tests.frozen", bytes(2**20))
        started = time.perf_counter()
        await bus.close(0.3)
        assert time.perf_counter() - started < 2
    finally:
        nats.server.thaw()


async def test_a_watch_learns_what_changed_and_what_vanished_while_the_server_was_away(nats):
    watcher, writer = await nats.connect(), await nats.connect()
    events = Events(watcher)
    bucket = f"b{new_id()}"
    values, others = await watcher.key_value(bucket), await writer.key_value(bucket)
    for key in ("stays", "changes", "vanishes"):
        await values.put(key, b"1")
    watch = values.watch()
    for _ in range(3):
        await asyncio.wait_for(watch.__anext__(), 5)
    # The watcher alone is cut off: what the other does meanwhile, it can only learn by listing.
    watcher._connection._ping_interval = 60  # its watchdog shall not interfere
    client = watcher._connection.client
    original = client._connect_to_server

    async def refused(server):
        raise OSError("cut off by the test")

    client._connect_to_server = refused
    client.socket.abort()
    await events.wait(BusEvent.DISCONNECTED)
    await others.put("changes", b"2")
    await others.delete("vanishes")
    await others.put("appears", b"1")
    client._connect_to_server = original
    await events.wait(BusEvent.RECONNECTED)
    seen = [await asyncio.wait_for(watch.__anext__(), 5) for _ in range(3)]
    assert {entry.key: entry.value for entry in seen} == {"changes": b"2", "vanishes": None, "appears": b"1"}
    await others.put("stays", b"2")
    assert (await asyncio.wait_for(watch.__anext__(), 5)).key == "stays"
    await watch.aclose()


async def test_a_watch_goes_on_after_kill_and_restart(nats):
    bus = await nats.connect()
    events = Events(bus)
    values = await bus.key_value(f"b{new_id()}")
    await values.put("key", b"1")
    watch = values.watch()
    assert (await asyncio.wait_for(watch.__anext__(), 5)).value == b"1"
    nats.server.kill()
    await events.wait(BusEvent.DISCONNECTED)
    nats.server.start()
    await events.wait(BusEvent.RECONNECTED)
    started = time.perf_counter()
    await values.put("key", b"2")
    assert (await asyncio.wait_for(watch.__anext__(), 5)).value == b"2"
    assert time.perf_counter() - started < 3
    await watch.aclose()


async def test_a_waiting_puller_gets_jobs_again_soon_after_kill_and_restart(nats):
    worker, submitter = await nats.connect(), await nats.connect()
    stream, subject = f"S{new_id()}", f"jobs.{new_id()}"
    jobs = (await worker.job_queue(stream, subject)).pull(4)
    queue = await submitter.job_queue(stream, subject)
    waiting = asyncio.create_task(jobs.__anext__())
    await asyncio.sleep(0.1)
    nats.server.kill()
    nats.server.start()
    started = time.perf_counter()
    await queue.submit("job-1", b"")
    job = await asyncio.wait_for(waiting, 5)
    assert time.perf_counter() - started < 3
    await job.ack()
    await jobs.aclose()


async def test_a_puller_whose_consumer_was_deleted_makes_it_again(nats):
    bus = await nats.connect()
    stream, subject = f"S{new_id()}", f"jobs.{new_id()}"
    queue = await bus.job_queue(stream, subject)
    jobs = queue.pull(1)
    waiting = asyncio.create_task(jobs.__anext__())
    await asyncio.sleep(0.1)
    connection = bus._connection
    await connection.ask(f"$JS.API.CONSUMER.DELETE.{stream}.workers".encode(), b"", timeout=2)
    await queue.submit("job-1", b"")
    await (await asyncio.wait_for(waiting, 5)).ack()
    await jobs.aclose()


async def test_no_confirmed_job_is_lost_and_no_finished_job_comes_back_over_kills(nats):
    worker, submitter = await nats.connect(), await nats.connect()
    stream, subject = f"S{new_id()}", f"jobs.{new_id()}"
    jobs = (await worker.job_queue(stream, subject, ack_wait=2.0)).pull(8)
    queue = await submitter.job_queue(stream, subject)
    confirmed: set[str] = set()
    finished: list[str] = []
    come_back: list[str] = []

    async def submit() -> None:
        for number in range(150):
            job_id = f"job-{number}"
            await queue.submit(job_id, b"x" * 100)
            confirmed.add(job_id)
            await asyncio.sleep(0.005)

    async def work() -> None:
        async for job in jobs:
            if job.job_id in finished:
                come_back.append(job.job_id)
            try:
                await job.ack()
            except BusUnavailable:
                continue  # not confirmed: it will come again
            finished.append(job.job_id)

    working = asyncio.create_task(work())
    submitting = asyncio.create_task(submit())
    for _ in range(2):
        await asyncio.sleep(0.3)
        nats.server.kill()
        nats.server.start()
    await asyncio.wait_for(submitting, 20)
    await until(lambda: confirmed <= set(finished), 20)
    await asyncio.sleep(0.2)
    working.cancel()
    await jobs.aclose()
    assert len(confirmed) == 150
    assert come_back == []


async def test_a_lease_survives_a_restart_shorter_than_its_time_to_live(nats):
    bus, other = await nats.connect(), await nats.connect()
    events, other_events = Events(bus), Events(other)
    lease = await bus.acquire_lease("leader", "first", ttl=5)
    nats.server.kill()
    await events.wait(BusEvent.DISCONNECTED)
    await other_events.wait(BusEvent.DISCONNECTED)
    nats.server.start()
    await events.wait(BusEvent.RECONNECTED)
    await lease.renew()
    with pytest.raises(SageError, match="first"):
        await other.acquire_lease("leader", "second", ttl=5)
