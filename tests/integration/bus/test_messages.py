"""What a bus promises of messages, requests and its end. Every test runs in process and on a real nats-server."""

from __future__ import annotations

import asyncio

import pytest

from bus_doubles import Inbox, answers
from sage_bus import Received
from sage_core import (
    BusError,
    BusUnavailable,
    DeadlineExceeded,
    LimitExceeded,
    Overloaded,
    Unavailable,
    new_id,
)

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
            bus.publish("tests.full", b"x" * 100_000)
    assert refused.value.retry_after
    await inbox.wait(64)
    bus.publish("tests.full", b"y")
    while inbox.messages[-1].payload != b"y":
        await inbox.wait(len(inbox.messages) + 1)


async def test_whoever_publishes_may_be_told_that_nobody_listens(cluster):
    sender, receiver = await cluster.connect(), await cluster.connect()
    inbox, told = Inbox(), asyncio.Queue()
    await receiver.subscribe("tests.heard", inbox)
    for number in range(3):
        sender.publish("tests.heard", b"", unheard=lambda: told.put_nowait("heard"))
        sender.publish("tests.nobody", b"", unheard=lambda number=number: told.put_nowait(number))
    assert [await asyncio.wait_for(told.get(), 2) for _ in range(3)] == [0, 1, 2]
    await inbox.wait(3)
    await sender.round_trip()
    assert told.empty()
    assert [message.headers for message in inbox.messages] == [{}] * 3


async def test_a_message_has_a_reply_subject_or_is_told_as_unheard(cluster):
    bus = await cluster.connect()
    with pytest.raises(ValueError, match="reply"):
        bus.publish("tests.both", b"", reply="_INBOX.1", unheard=lambda: None)


async def test_what_arrives_together_is_answered_together(cluster):
    sender, receiver = await cluster.connect(), await cluster.connect()
    inbox, waiting = Inbox(), list[bytes]()

    def answer() -> None:
        receiver.publish("tests.answers", b",".join(waiting))
        waiting.clear()

    def hear(message: Received) -> None:
        if not waiting:
            receiver.soon(answer)
        waiting.append(message.payload)

    await receiver.subscribe("tests.asked", hear)
    await sender.subscribe("tests.answers", inbox)
    for number in range(50):
        sender.publish("tests.asked", str(number).encode())
    async with asyncio.timeout(5):
        while sum(len(message.payload.split(b",")) for message in inbox.messages) < 50:
            await inbox.wait(len(inbox.messages) + 1)
    numbers = b",".join(message.payload for message in inbox.messages).split(b",")
    assert numbers == [str(number).encode() for number in range(50)]


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
