"""Requests are found by our id and by the client's own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from sage_bus import MemoryBroker, Received
from sage_bus.bus import Bus
from sage_cli import span_search
from sage_cli.runtime import Instance
from sage_cli.span_search import find_receipts
from sage_telemetry import semconv
from sage_wire import decode, encode, subjects
from sage_wire.messages import FindReceipt, FindSpans, FoundSpans, Receipt, Span

INSTANCE = Instance("one", 1, "nats://h:1", "http://h:2", 0.0, ["gateway", "scheduler"])


def receipt(request_id: str, decision: str) -> Receipt:
    return Receipt(
        request_id=request_id, attempt=0, pool="p", policy="x", decision=decision, reason="",
        queue_ms=0.0, num_queued=0,
    )  # fmt: skip


@pytest.fixture
async def peers(monkeypatch: pytest.MonkeyPatch) -> Bus:
    """A gateway that remembers the spans of two requests of one client's id, and a scheduler that placed them."""
    broker = MemoryBroker()
    bus = broker.connect("peers")

    def answer_receipt(message: Received) -> None:
        request_id = decode(FindReceipt, message.payload).request_id
        decision = "dispatched" if request_id in ("req-1", "req-2") else "unknown"
        assert message.reply is not None
        bus.publish(message.reply, encode(receipt(request_id, decision)))

    def answer_spans(message: Received) -> None:
        wanted = decode(FindSpans, message.payload).request_id
        made = [
            Span(
                trace_id="1" * 32, span_id=str(number), parent_id=None, name="n", service="gateway",
                start_ns=0, end_ns=1,
                attributes={semconv.REQUEST_ID: f"req-{number}", semconv.CLIENT_REQUEST_ID: "mine"},
            )
            for number in (1, 2)
        ]  # fmt: skip
        assert message.reply is not None
        bus.publish(message.reply, encode(FoundSpans(actor_id="g", spans=made if wanted == "mine" else [])))

    await bus.subscribe(subjects.RECEIPTS_FIND, answer_receipt)
    await bus.subscribe(subjects.every("find_spans"), answer_spans)

    @contextlib.asynccontextmanager
    async def open_bus(_instance: Instance) -> AsyncIterator[Bus]:
        yield broker.connect("cli")

    monkeypatch.setattr(span_search, "open_bus", open_bus)
    monkeypatch.setattr(span_search, "_ANSWER_TIME", 0.02)
    monkeypatch.setattr(span_search, "_LATE_SPANS_TIME", 0.0)
    return bus


@pytest.mark.parametrize(
    ("name", "found"), [("req-1", ["req-1"]), ("mine", ["req-1", "req-2"]), ("nobody", [])]
)
async def test_receipts_are_found_by_our_id_and_by_the_clients(
    peers: Bus, name: str, found: list[str]
) -> None:
    assert [each.request_id for each in await find_receipts(INSTANCE, name)] == found


async def test_a_standby_that_answers_first_does_not_hide_the_receipt(peers: Bus) -> None:
    def stand_by(message: Received) -> None:
        assert message.reply is not None
        request_id = decode(FindReceipt, message.payload).request_id
        for _ in range(2):
            peers.publish(message.reply, encode(receipt(request_id, "unknown")))

    alone = Instance("one", 1, "nats://h:1", "http://h:2", 0.0, ["scheduler"])
    await peers.subscribe(subjects.RECEIPTS_FIND, stand_by)
    for _ in range(3):
        assert [found.decision for found in await find_receipts(alone, "req-1")] == ["dispatched"]
