"""What one turn has for a subject leaves as one message, and whoever does not get through is told to its owner."""

from __future__ import annotations

import asyncio

from sage_bus import Gathering, MemoryBroker, MemoryBus
from sage_core import SageError
from sage_wire import decode, encode
from sage_wire.messages import Report, ReportEvent, Reports


class Sender:
    """Gathers reports, and keeps what came of them."""

    def __init__(self, bus: MemoryBus, *, max_bytes: int = 2**20, max_wait: float | None = None) -> None:
        self.refused: list[tuple[list[str], str]] = []
        self.unheard: list[str] = []
        self.unwanted: set[str] = set()
        self.gathering = Gathering[str](
            bus,
            "reports",
            refused=self.on_refused,
            unheard=self.unheard.extend,
            is_wanted=lambda note: note not in self.unwanted,
            max_wait=max_wait,
            max_bytes=max_bytes,
        )

    def on_refused(self, notes: list[str], error: SageError) -> None:
        self.refused.append((notes, error.code))

    def add(self, *names: str, subject: str = "a", padding: int = 0) -> None:
        for name in names:
            report = Report(
                worker_id="w" * padding, pool="p", request_id=name, attempt=0, event=ReportEvent.STARTED
            )
            self.gathering.add(subject, encode(report), name)


async def listening(bus: MemoryBus, subject: str) -> list[list[str]]:
    got: list[list[str]] = []
    await bus.subscribe(
        subject,
        lambda received: got.append([each.request_id for each in decode(Reports, received.payload).reports]),
    )
    return got


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def test_one_turn_makes_one_message_per_subject_in_order() -> None:
    bus = MemoryBroker().connect()
    a, b = await listening(bus, "a"), await listening(bus, "b")
    sender = Sender(bus)
    sender.add("1", "2")
    sender.add("3", subject="b")
    sender.add("4")
    await settle()
    sender.add("5")
    await settle()
    assert (a, b) == ([["1", "2", "4"], ["5"]], [["3"]])
    assert sender.unheard == []


async def test_what_nobody_wants_by_then_is_left_out() -> None:
    bus = MemoryBroker().connect()
    got = await listening(bus, "a")
    sender = Sender(bus)
    sender.add("1", "2")
    sender.unwanted = {"1"}
    await settle()
    sender.unwanted = {"3"}
    sender.add("3")
    await settle()
    assert got == [["2"]]


async def test_a_message_is_split_before_it_is_too_large_and_a_large_item_goes_alone() -> None:
    bus = MemoryBroker(max_payload=1000).connect()
    got = await listening(bus, "a")
    sender = Sender(bus, max_bytes=400)
    sender.add("1", "2", "3", padding=100)
    sender.add("4", padding=700)
    sender.add("5")
    sender.add("too large", padding=2000)
    sender.add("6")
    await settle()
    assert got == [["1", "2"], ["3"], ["4"], ["5"], ["6"]]
    assert sender.refused == [(["too large"], "limit_exceeded")]


async def test_what_nobody_hears_is_told_with_its_notes() -> None:
    bus = MemoryBroker().connect()
    got = await listening(bus, "a")
    sender = Sender(bus)
    sender.add("1")
    sender.add("2", "3", subject="nobody")
    await settle()
    assert (got, sender.unheard) == ([["1"]], ["2", "3"])


async def test_what_waits_too_long_for_a_connection_is_dropped_and_told() -> None:
    bus = MemoryBroker().connect()
    got = await listening(bus, "a")
    sender = Sender(bus, max_wait=0.01)
    bus.disconnect()
    sender.add("old")
    await asyncio.sleep(0.02)
    sender.add("new")
    await asyncio.sleep(0)
    bus.reconnect()
    await settle()
    assert (got, sender.unheard) == ([["new"]], ["old"])
