"""What a bus promises. Every test runs over the in-process bus and over a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import pytest

from sage_bus import Bus, Feed, Received
from sage_core import (
    BadRequest,
    BusError,
    BusUnavailable,
    Conflict,
    DeadlineExceeded,
    LimitExceeded,
    Overloaded,
    Unavailable,
    new_id,
)

T = TypeVar("T")


class Inbox:
    """A callback that keeps what it got."""

    def __init__(self) -> None:
        self.messages: list[Received] = []
        self._arrived = asyncio.Event()

    def __call__(self, message: Received) -> None:
        self.messages.append(message)
        self._arrived.set()

    async def wait(self, count: int) -> list[Received]:
        async with asyncio.timeout(5):
            while len(self.messages) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.messages


async def read(feed: Feed[T], timeout: float = 5.0) -> T:
    async with asyncio.timeout(timeout):
        return await feed.__anext__()


def answers(bus: Bus, payload: bytes = b"pong") -> Callable[[Received], None]:
    def answer(message: Received) -> None:
        assert message.reply is not None
        bus.publish(message.reply, payload)

    return answer


# Publish and subscribe


async def test_messages_arrive_in_order_with_their_headers(cluster):
    sender, receiver = await cluster.connect(), await cluster.connect()
    inbox = Inbox()
    await receiver.subscribe("tests.order", inbox)
    for number in range(500):
        sender.publish("tests.order", str(number).encode(), {"Number": str(number), "Name": "größe"})
    messages = await inbox.wait(500)
    assert [int(message.payload) for message in messages] == list(range(500))
    assert messages[7].headers == {"Number": "7", "Name": "größe"}
    assert messages[7].subject == "tests.order"
    assert messages[7].reply is None


async def test_a_subscription_is_active_when_subscribe_returns(cluster):
    sender, receiver = await cluster.connect(), await cluster.connect()
    for _ in range(20):
        inbox = Inbox()
        subject = f"tests.active.{new_id()}"
        await receiver.subscribe(subject, inbox)
        sender.publish(subject, b"x")
        await inbox.wait(1)


async def test_wildcards_cover_one_token_or_all_that_follow(cluster):
    bus = await cluster.connect()
    one, rest = Inbox(), Inbox()
    await bus.subscribe("tests.*.wild", one)
    await bus.subscribe("tests.deep.>", rest)
    for subject in ("tests.a.wild", "tests.a.b.wild", "tests.deep", "tests.deep.x", "tests.deep.x.y"):
        bus.publish(subject, b"")
    await bus.round_trip()
    await rest.wait(2)
    assert [message.subject for message in one.messages] == ["tests.a.wild"]
    assert [message.subject for message in rest.messages] == ["tests.deep.x", "tests.deep.x.y"]


@pytest.mark.parametrize("error", [ValueError("broken"), asyncio.CancelledError()])
async def test_a_callback_that_raises_does_not_end_its_subscription(cluster, error):
    bus = await cluster.connect()
    inbox = Inbox()

    def callback(message: Received) -> None:
        inbox(message)
        raise error

    await bus.subscribe("tests.raises", callback)
    for _ in range(3):
        bus.publish("tests.raises", b"")
    await inbox.wait(3)


async def test_after_unsubscribe_the_callback_is_not_called_again(cluster):
    bus = await cluster.connect()
    inbox = Inbox()
    subscription = await bus.subscribe("tests.unsubscribe", inbox)
    bus.publish("tests.unsubscribe", b"first")
    await inbox.wait(1)
    bus.publish("tests.unsubscribe", b"second")
    await subscription.unsubscribe()
    await subscription.unsubscribe()
    bus.publish("tests.unsubscribe", b"third")
    await bus.round_trip()
    assert [message.payload for message in inbox.messages] == [b"first"]


async def test_one_member_of_a_queue_group_gets_each_message(cluster):
    bus = await cluster.connect()
    inboxes = [Inbox(), Inbox(), Inbox()]
    everything = Inbox()
    for inbox in inboxes:
        await bus.subscribe("tests.group", inbox, queue="group")
    await bus.subscribe("tests.group", everything)
    for _ in range(60):
        bus.publish("tests.group", b"")
    await everything.wait(60)
    await bus.round_trip()
    assert sum(len(inbox.messages) for inbox in inboxes) == 60
    assert sum(bool(inbox.messages) for inbox in inboxes) > 1


async def test_no_callback_runs_inside_publish(cluster):
    bus = await cluster.connect()
    inbox = Inbox()
    await bus.subscribe("tests.later", inbox)
    bus.publish("tests.later", b"")
    assert inbox.messages == []
    await inbox.wait(1)


async def test_publish_never_waits_and_refuses_where_the_queue_is_full(cluster):
    bus = await cluster.connect(max_outbound=64)
    inbox = Inbox()
    await bus.subscribe("tests.full", inbox)
    with pytest.raises(Overloaded) as refused:  # noqa: PT012 - which one is refused is not promised
        for _ in range(1000):
            bus.publish("tests.full", b"x")
    assert refused.value.retry_after
    await inbox.wait(64)
    bus.publish("tests.full", b"y")
    await inbox.wait(65)


@pytest.mark.parametrize(
    "subject", ["", "has space", "a..b", ".a", "a.", "a.*", "a.>", "größe", "x" * 300, "a\r\nPING", "$SYS.x"]
)
async def test_a_subject_outside_the_alphabet_is_refused_and_costs_nothing_else(cluster, subject):
    bus = await cluster.connect()
    with pytest.raises(BusError):
        bus.publish(subject, b"")
    with pytest.raises(BusError):
        await bus.request(subject, b"", timeout=1)
    await bus.round_trip()


@pytest.mark.parametrize("headers", [{"A": 1}, {"A": "x\r\ny"}, {"": "x"}, {"A b": "x"}, {"A:": "x"}])
async def test_a_header_that_cannot_be_sent_is_refused_and_costs_nothing_else(cluster, headers):
    bus = await cluster.connect()
    with pytest.raises(BusError):
        bus.publish("tests.headers", b"", headers)
    await bus.round_trip()


async def test_body_plus_headers_over_the_limit_are_refused_and_cost_nothing_else(cluster):
    bus = await cluster.connect()
    inbox = Inbox()
    await bus.subscribe("tests.size", inbox)
    with pytest.raises(LimitExceeded):
        bus.publish("tests.size", bytes(bus.max_payload + 1))
    with pytest.raises(LimitExceeded):
        bus.publish("tests.size", bytes(bus.max_payload - 10), {"Name": "value"})
    bus.publish("tests.size", bytes(bus.max_payload))
    await inbox.wait(1)
    assert len(inbox.messages[0].payload) == bus.max_payload


# Requests


async def test_a_request_gets_its_reply(cluster):
    asking, answering = await cluster.connect(), await cluster.connect()

    def answer(message: Received) -> None:
        assert message.reply is not None
        answering.publish(message.reply, b"re:" + message.payload, {"Kind": "reply"})

    await answering.subscribe("tests.ask", answer)
    replies = await asyncio.gather(
        *(asking.request("tests.ask", str(number).encode(), timeout=5) for number in range(100))
    )
    assert [reply.payload for reply in replies] == [f"re:{number}".encode() for number in range(100)]
    assert replies[0].headers == {"Kind": "reply"}


async def test_a_request_nobody_listens_to_fails_at_once(cluster):
    bus = await cluster.connect()
    async with asyncio.timeout(1):
        with pytest.raises(Unavailable, match=r"nobody listens on tests\.nobody"):
            await bus.request("tests.nobody", b"", timeout=30)


async def test_a_request_without_an_answer_ends_with_its_timeout(cluster):
    bus = await cluster.connect()
    await bus.subscribe("tests.silent", Inbox())
    with pytest.raises(DeadlineExceeded):
        await bus.request("tests.silent", b"", timeout=0.05)


async def test_a_reply_after_a_cancelled_request_is_ignored(cluster):
    bus = await cluster.connect()
    inbox = Inbox()
    await bus.subscribe("tests.late", inbox)
    asking = asyncio.create_task(bus.request("tests.late", b"", timeout=30))
    (message,) = await inbox.wait(1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert message.reply is not None
    bus.publish(message.reply, b"too late")
    await bus.round_trip()


async def test_request_many_gathers_what_comes_in_time(cluster):
    bus = await cluster.connect()
    for name in (b"a", b"b", b"c"):
        await bus.subscribe("tests.many", answers(bus, name))
    everyone = await bus.request_many("tests.many", b"", timeout=0.1)
    assert sorted(reply.payload for reply in everyone) == [b"a", b"b", b"c"]
    async with asyncio.timeout(1):
        assert len(await bus.request_many("tests.many", b"", timeout=30, max_replies=2)) == 2
        assert await bus.request_many("tests.many.nobody", b"", timeout=30) == []


async def test_a_reply_subject_that_is_no_inbox_is_not_handed_on(cluster):
    bus = await cluster.connect()
    inbox = Inbox()
    await bus.subscribe("tests.deputy", inbox)
    bus.publish("tests.deputy", b"", reply="sagejobs.v1.submit")
    bus.publish("tests.deputy", b"", reply="_INBOX_somebody.1")
    messages = await inbox.wait(2)
    assert [message.reply for message in messages] == [None, "_INBOX_somebody.1"]


async def test_round_trip_measures_seconds(cluster):
    bus = await cluster.connect()
    assert 0 <= await bus.round_trip() < 1


# Closing


async def test_close_sends_what_is_queued_and_nothing_works_afterwards(cluster):
    sender, receiver = await cluster.connect(), await cluster.connect()
    inbox = Inbox()
    await receiver.subscribe("tests.close", inbox)
    for _ in range(1000):
        sender.publish("tests.close", b"x" * 100)
    await sender.close()
    await sender.close()
    await inbox.wait(1000)
    assert not sender.is_connected
    with pytest.raises(BusUnavailable):
        sender.publish("tests.close", b"")
    with pytest.raises(BusUnavailable):
        await sender.request("tests.close", b"", timeout=1)
    with pytest.raises(BusUnavailable):
        await sender.subscribe("tests.close", Inbox())


async def test_close_wakes_a_waiting_request(cluster):
    bus, other = await cluster.connect(), await cluster.connect()
    inbox = Inbox()
    await other.subscribe("tests.waiting", inbox)
    asking = asyncio.create_task(bus.request("tests.waiting", b"", timeout=30))
    await inbox.wait(1)
    await bus.close()
    with pytest.raises(BusUnavailable):
        await asking


# Key-value


async def test_key_value_reads_its_own_writes_with_growing_revisions(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}")
    assert await values.get("absent") is None
    first = await values.put("a.b", b"1")
    second = await values.put("a.b", b"2")
    found = await values.get("a.b")
    assert found is not None
    assert (found.key, found.value, found.revision) == ("a.b", b"2", second)
    assert second > first


async def test_create_wins_once_and_again_after_a_delete(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}")
    first = await values.create("key", b"1")
    with pytest.raises(Conflict):
        await values.create("key", b"2")
    await values.delete("key")
    await values.delete("key")
    assert await values.get("key") is None
    assert await values.create("key", b"3") > first


async def test_update_needs_the_current_revision(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}")
    first = await values.put("key", b"1")
    second = await values.update("key", b"2", first)
    with pytest.raises(Conflict):
        await values.update("key", b"3", first)
    found = await values.get("key")
    assert found is not None
    assert (found.value, found.revision) == (b"2", second)


async def test_of_many_concurrent_updates_one_wins(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}")
    revision = await values.put("key", b"0")
    outcomes = await asyncio.gather(
        *(values.update("key", str(number).encode(), revision) for number in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19


async def test_list_returns_every_live_entry_also_of_a_large_bucket(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}")
    await asyncio.gather(*(values.put(f"key.{number}", b"x") for number in range(1500)))
    await values.delete("key.3")
    entries = await values.list()
    assert len(entries) == 1499
    assert "key.3" not in entries
    assert entries["key.7"].value == b"x"


async def test_watch_yields_what_is_there_then_every_change(cluster):
    bus, other = await cluster.connect(), await cluster.connect()
    name = f"b{new_id()}"
    values, others = await bus.key_value(name), await other.key_value(name)
    await values.put("a", b"1")
    await values.put("b", b"1")
    await values.delete("b")
    watch = values.watch()
    first = await read(watch)
    assert (first.key, first.value) == ("a", b"1")
    await others.put("c", b"2")
    await others.put("a", b"3")
    await others.delete("c")
    seen = [await read(watch) for _ in range(3)]
    assert [(entry.key, entry.value) for entry in seen] == [("c", b"2"), ("a", b"3"), ("c", None)]
    assert [entry.revision for entry in seen] == sorted(entry.revision for entry in seen)
    await watch.aclose()
    await watch.aclose()


async def test_cancelling_a_read_of_a_watch_loses_nothing(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}")
    watch = values.watch()
    seen = []
    for number in range(20):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.__anext__(), 0.005)
        await values.put("key", str(number).encode())
        seen.append((await read(watch)).value)
    assert seen == [str(number).encode() for number in range(20)]
    await watch.aclose()


async def test_values_of_a_bucket_with_a_time_to_live_expire_and_watchers_are_told(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}", ttl=1)
    watch = values.watch()
    first = await values.put("key", b"1")
    assert (await read(watch)).value == b"1"
    assert (await read(watch)).value is None
    assert await values.get("key") is None
    assert await values.list() == {}
    assert await values.create("key", b"2") > first
    await watch.aclose()


# Leases


async def test_a_lease_has_one_holder_and_names_it(cluster):
    bus, other = await cluster.connect(), await cluster.connect()
    name = new_id("lease")
    lease = await bus.acquire_lease(name, "first", ttl=5)
    assert lease.is_held
    with pytest.raises(Conflict, match="first"):
        await other.acquire_lease(name, "second", ttl=5)
    await lease.release()
    await lease.release()
    assert not lease.is_held
    taken = await other.acquire_lease(name, "second", ttl=5)
    assert taken.fence > lease.fence
    with pytest.raises(Conflict):
        await lease.renew()
    await taken.release()


async def test_a_lease_without_renewal_is_lost_and_the_next_fence_is_higher(cluster):
    bus, other = await cluster.connect(), await cluster.connect()
    name = new_id("lease")
    lease = await bus.acquire_lease(name, "first", ttl=1)
    watch = asyncio.create_task(_acquire_soon(other, name))
    taken = await asyncio.wait_for(watch, 5)
    assert not lease.is_held
    assert taken.fence > lease.fence
    with pytest.raises(Conflict):
        await lease.renew()
    await lease.release()
    assert taken.is_held


async def _acquire_soon(bus, name):
    while True:
        try:
            return await bus.acquire_lease(name, "second", ttl=5)
        except Conflict:
            await asyncio.sleep(0.05)


async def test_a_renewed_lease_is_held_past_its_time_to_live_and_keeps_its_fence(cluster):
    bus, other = await cluster.connect(), await cluster.connect()
    name = new_id("lease")
    lease = await bus.acquire_lease(name, "first", ttl=1)
    fence = lease.fence
    for _ in range(4):
        await asyncio.sleep(0.4)
        await lease.renew()
    assert lease.is_held
    assert lease.fence == fence
    with pytest.raises(Conflict):
        await other.acquire_lease(name, "second", ttl=1)
    await lease.release()


async def test_a_time_to_live_under_a_second_is_refused(cluster):
    with pytest.raises(BadRequest):
        await (await cluster.connect()).acquire_lease("short", "me", ttl=0.5)


# Jobs


async def open_queue(bus: Bus, **options):
    return await bus.job_queue(f"S{new_id()}", f"jobs.{new_id()}", **options)


async def test_a_job_is_delivered_once_and_gone_after_its_ack(cluster):
    queue = await open_queue(await cluster.connect(), ack_wait=0.3)
    await queue.submit("job-1", b"body", {"Tenant": "a"})
    jobs = queue.pull(4)
    job = await read(jobs)
    assert (job.job_id, job.payload, job.num_delivered) == ("job-1", b"body", 1)
    assert job.headers == {"Tenant": "a"}
    await job.ack()
    await job.ack()
    with pytest.raises(TimeoutError):
        await read(jobs, 0.6)
    await jobs.aclose()


async def test_the_same_job_id_is_stored_once(cluster):
    queue = await open_queue(await cluster.connect())
    for _ in range(3):
        await queue.submit("job-1", b"body")
    await queue.submit("job-2", b"body")
    jobs = queue.pull(10)
    assert [(await read(jobs)).job_id for _ in range(2)] == ["job-1", "job-2"]
    with pytest.raises(TimeoutError):
        await read(jobs, 0.1)
    await jobs.aclose()


async def test_a_puller_never_holds_more_than_it_may(cluster):
    queue = await open_queue(await cluster.connect())
    for number in range(10):
        await queue.submit(f"job-{number}", b"")
    jobs = queue.pull(3)
    held = [await read(jobs) for _ in range(3)]
    with pytest.raises(TimeoutError):
        await read(jobs, 0.1)
    await held[0].ack()
    held.append(await read(jobs))
    with pytest.raises(TimeoutError):
        await read(jobs, 0.1)
    await jobs.aclose()


async def test_every_job_is_delivered_to_one_of_two_pullers(cluster):
    bus, other = await cluster.connect(), await cluster.connect()
    stream, subject = f"S{new_id()}", f"jobs.{new_id()}"
    queues = [await bus.job_queue(stream, subject), await other.job_queue(stream, subject)]
    for number in range(60):
        await queues[0].submit(f"job-{number}", b"")
    seen: list[str] = []

    async def work(queue) -> None:
        jobs = queue.pull(2)
        async for job in jobs:
            seen.append(job.job_id)
            await job.ack()

    workers = [asyncio.create_task(work(queue)) for queue in queues]
    async with asyncio.timeout(5):
        while len(seen) < 60:  # noqa: ASYNC110 - two workers fill it
            await asyncio.sleep(0.01)
    for worker in workers:
        worker.cancel()
    assert sorted(seen) == sorted(f"job-{number}" for number in range(60))


async def test_a_job_given_back_comes_again_after_the_delay(cluster):
    queue = await open_queue(await cluster.connect())
    await queue.submit("job-1", b"")
    jobs = queue.pull(1)
    job = await read(jobs)
    with pytest.raises(BadRequest):
        await job.nak(0)
    await job.nak(0.3)
    with pytest.raises(TimeoutError):
        await read(jobs, 0.15)
    assert (await read(jobs)).num_delivered == 2
    await jobs.aclose()


async def test_a_job_without_an_ack_comes_again_unless_progress_is_reported(cluster):
    queue = await open_queue(await cluster.connect(), ack_wait=0.4)
    await queue.submit("job-1", b"")
    jobs = queue.pull(1)
    job = await read(jobs)
    for _ in range(4):
        await asyncio.sleep(0.2)
        await job.in_progress()
    again = await read(jobs)
    assert again.num_delivered == 2
    await again.ack()
    await jobs.aclose()


async def test_a_job_that_nobody_finishes_becomes_a_dead_letter(cluster):
    queue = await open_queue(await cluster.connect(), max_deliver=2)
    await queue.submit("poison", b"body", {"Tenant": "a"})
    await queue.submit("fine", b"")
    jobs = queue.pull(2)
    outcomes = []
    for _ in range(3):
        job = await read(jobs)
        outcomes.append((job.job_id, job.num_delivered))
        if job.job_id == "fine":
            await job.ack()
        else:
            await job.nak(0.01)
    assert sorted(outcomes) == [("fine", 1), ("poison", 1), ("poison", 2)]
    with pytest.raises(TimeoutError):
        await read(jobs, 0.3)
    (dead,) = await queue.dead_letters()
    assert (dead.job_id, dead.payload, dict(dead.headers)) == ("poison", b"body", {"Tenant": "a"})
    assert dead.reason == "delivered 2 times without an ack"
    await jobs.aclose()


async def test_a_dead_letter_keeps_its_reason_and_leaves_the_queue(cluster):
    queue = await open_queue(await cluster.connect(), ack_wait=0.2)
    assert await queue.dead_letters() == []
    await queue.submit("job-1", b"body")
    jobs = queue.pull(1)
    await (await read(jobs)).dead_letter("the pipeline\r\nis gone")
    with pytest.raises(TimeoutError):
        await read(jobs, 0.4)
    (dead,) = await queue.dead_letters()
    assert (dead.job_id, dead.payload, dead.reason) == ("job-1", b"body", "the pipeline is gone")
    await jobs.aclose()


async def test_closing_a_puller_gives_back_what_was_fetched_but_not_yielded(cluster):
    queue = await open_queue(await cluster.connect())
    for number in range(4):
        await queue.submit(f"job-{number}", b"")
    jobs = queue.pull(4)
    held = await read(jobs)
    await jobs.aclose()
    await jobs.aclose()
    with pytest.raises(StopAsyncIteration):
        await jobs.__anext__()
    again = queue.pull(4)
    seen = {(await read(again)).job_id for _ in range(3)}
    assert seen == {f"job-{number}" for number in range(4)} - {held.job_id}
    await again.aclose()


async def test_cancelling_a_read_of_a_puller_loses_no_job(cluster):
    queue = await open_queue(await cluster.connect())
    jobs = queue.pull(2)
    seen = []
    for number in range(20):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(jobs.__anext__(), 0.005)
        await queue.submit(f"job-{number}", b"")
        job = await read(jobs)
        seen.append((job.job_id, job.num_delivered))
        await job.ack()
    assert seen == [(f"job-{number}", 1) for number in range(20)]
    await jobs.aclose()


async def test_a_full_job_queue_refuses(cluster):
    queue = await open_queue(await cluster.connect(), max_queued=2)
    await queue.submit("job-1", b"")
    await queue.submit("job-2", b"")
    with pytest.raises(Overloaded):
        await queue.submit("job-3", b"")
    jobs = queue.pull(1)
    await (await read(jobs)).ack()
    await queue.submit("job-3", b"")
    await jobs.aclose()


async def test_a_job_with_an_oversized_body_is_refused(cluster):
    bus = await cluster.connect()
    queue = await open_queue(bus)
    with pytest.raises(LimitExceeded):
        await queue.submit("job-1", bytes(bus.max_payload + 1))
