"""What the in-process bus can do beyond the promises every bus keeps: be cut off, and share a broker."""

from __future__ import annotations

import asyncio

import pytest

from sage_bus import Bus, BusEvent, MemoryBroker, MemoryBus, NatsBus
from sage_core import BusUnavailable, DeadlineExceeded


def conforms(bus: Bus) -> Bus:
    """Only the type checker reads this: both kinds are a `Bus`."""
    return bus


async def test_a_bus_without_a_broker_talks_to_itself_alone():
    bus, other = MemoryBus(), MemoryBus()
    conforms(bus)
    got: list[bytes] = []
    await bus.subscribe("a", lambda message: got.append(message.payload))
    other.publish("a", b"other")
    bus.publish("a", b"own")
    await other.round_trip()
    await asyncio.sleep(0.001)
    assert got == [b"own"]


async def test_what_is_published_while_cut_off_is_sent_later_and_what_others_sent_is_lost():
    broker = MemoryBroker()
    bus, other = broker.connect("one"), broker.connect("two")
    events: list[BusEvent] = []
    bus.on_event(lambda event, detail: events.append(event))
    got: list[bytes] = []
    await bus.subscribe("a", lambda message: got.append(message.payload))
    bus.disconnect()
    bus.disconnect()
    bus.publish("a", b"mine")
    other.publish("a", b"lost")
    await asyncio.sleep(0.001)
    with pytest.raises(BusUnavailable):
        await bus.round_trip()
    assert got == []
    bus.reconnect()
    bus.reconnect()
    await asyncio.sleep(0.001)
    assert got == [b"mine"]
    assert events == [BusEvent.DISCONNECTED, BusEvent.RECONNECTED]


async def test_a_request_that_timed_out_while_cut_off_never_runs():
    broker = MemoryBroker()
    bus, other = broker.connect("one"), broker.connect("two")
    ran: list[bytes] = []
    await other.subscribe("a", lambda message: ran.append(message.payload))
    bus.disconnect()
    with pytest.raises(DeadlineExceeded):
        await bus.request("a", b"request", timeout=0.001)
    bus.publish("a", b"expired", {"Sage-Budget-Ms": "1"})
    await asyncio.sleep(0.01)
    bus.publish("a", b"tell", {"Sage-Budget-Ms": "1000"})
    bus.reconnect()
    await asyncio.sleep(0.001)
    assert ran == [b"tell"]


async def test_stores_of_a_bus_that_is_cut_off_are_unavailable():
    bus = MemoryBus()
    values = await bus.key_value("bucket")
    queue = await bus.job_queue("S", "jobs.a")
    bus.disconnect()
    with pytest.raises(BusUnavailable):
        await values.put("key", b"")
    with pytest.raises(BusUnavailable):
        await queue.submit("job-1", b"")


async def test_a_broken_callback_is_counted():
    bus = MemoryBus()

    def broken(message: object) -> None:
        raise ValueError

    await bus.subscribe("a", broken)
    bus.publish("a", b"")
    await asyncio.sleep(0.001)
    assert bus.num_callback_errors == 1


def test_both_kinds_are_a_bus():
    assert all(
        hasattr(kind, name) for kind in (MemoryBus, NatsBus) for name in vars(Bus) if not name.startswith("_")
    )
