"""What an actor leaves behind for people: spans with the right parents, logs with ids, counters, recent spans."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from sage_actor import Actor, ActorRuntime, handles
from sage_actor.calls import Caller
from sage_bus import MemoryBroker
from sage_core import NotFound, Overloaded, SystemClock, TelemetrySettings
from sage_core.settings import ActorSettings
from sage_telemetry import Telemetry, configure, current_traceparent, metrics, new_root, semconv, use_parent
from sage_wire import CallHeaders, decode, encode, subjects
from sage_wire.messages import FindSpans, FoundSpans, Message

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = SAMPLED[3:35]


class Relay(Message):
    name: str = ""


class Lookup(Message):
    name: str = ""


class Found(Message):
    traceparent: str = ""


class Asked(Actor):
    """Answers `Lookup`; passes `Relay` on to actor `b` as a `Lookup`; logs what it is asked."""

    kind = "asked"

    @handles
    async def lookup(self, request: Lookup) -> Found:
        self.context.log.info("lookup_seen", text=request.name)
        if request.name == "missing":
            raise NotFound("no such thing")
        if request.name == "hold":
            await asyncio.Event().wait()
        return Found(traceparent=current_traceparent() or "")

    @handles
    async def relay(self, request: Relay) -> Found:
        return await self.context.ask(
            subjects.actor("b", "lookup"), Lookup(name=request.name), Found, budget=1.0
        )


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    made = configure("sage-asked", "a", TelemetrySettings(log_format="json"))
    yield made
    made.shutdown(1.0)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
async def ask(telemetry: Telemetry) -> Any:
    broker = MemoryBroker()
    runtimes = [
        ActorRuntime(
            Asked,
            actor_id=actor_id,
            bus=broker.connect(actor_id),
            control=broker.connect(f"{actor_id}-control"),
            settings=ActorSettings(max_slots=1, max_mailbox=1),
            telemetry=telemetry,
        )
        for actor_id in ("a", "b")
    ]
    for runtime in runtimes:
        await runtime.start()
    bus, caller = broker.connect("peer"), Caller("peer", SystemClock())

    async def call(verb: str, message: Message, parent: str | None = SAMPLED) -> Found:
        with use_parent(parent):
            return await caller.ask(bus, subjects.actor("a", verb), message, Found, 1.0)

    call.bus = bus  # type: ignore[attr-defined]
    yield call
    for runtime in runtimes:
        await runtime.stop(drain=False)


async def test_a_chain_of_asks_is_one_trace_with_one_span_per_ask(ask: Any, telemetry: Telemetry) -> None:
    reply = await ask("relay", Relay())
    spans = {span.name: span for span in telemetry.recent.find(TRACE_ID)}
    assert set(spans) == {"handle relay", "handle lookup"}
    assert spans["handle relay"].parent_id == SAMPLED[36:52]
    assert spans["handle lookup"].parent_id == spans["handle relay"].span_id
    assert reply.traceparent[36:52] == spans["handle lookup"].span_id
    attributes = spans["handle relay"].attributes
    assert attributes[semconv.MESSAGING_DESTINATION_NAME] == subjects.actor("a", "relay")
    assert float(attributes[semconv.MAILBOX_MS]) >= 0


async def test_an_unsampled_chain_forwards_its_header_and_records_nothing(
    ask: Any, telemetry: Telemetry
) -> None:
    parent = str(new_root(0.0))
    assert (await ask("relay", Relay(), parent)).traceparent == parent
    assert len(telemetry.recent) == 0
    assert (await ask("relay", Relay(), None)).traceparent == ""


async def test_a_refusal_marks_its_span_failed_with_the_code(ask: Any, telemetry: Telemetry) -> None:
    with pytest.raises(NotFound):
        await ask("lookup", Lookup(name="missing"))
    (span,) = telemetry.recent.find(TRACE_ID)
    assert span.is_error
    assert span.attributes[semconv.ERROR_TYPE] == "not_found"


async def test_every_actor_is_asked_for_its_recent_spans(ask: Any) -> None:
    await ask("relay", Relay())
    replies = await ask.bus.request_many(
        subjects.every("find_spans"),
        encode(FindSpans(trace_id=TRACE_ID)),
        timeout=1.0,
        max_replies=2,
        headers=CallHeaders(budget_ms=1000).encode(),
    )
    found = [decode(FoundSpans, reply.payload) for reply in replies]
    assert {one.actor_id for one in found} == {"a", "b"}
    assert {span.name for one in found for span in one.spans} == {"handle relay", "handle lookup"}


async def test_what_a_handler_logs_carries_call_trace_and_epoch_and_no_text(capsys: Any, ask: Any) -> None:
    capsys.readouterr()
    await ask("lookup", Lookup(name="a private question"))
    text = capsys.readouterr().err
    (line,) = [json.loads(one) for one in text.splitlines() if "lookup_seen" in one]
    assert line["trace_id"] == TRACE_ID
    assert line["call_id"] == "peer-1"
    assert line["verb"] == "lookup"
    assert line["service"] == "sage-asked"
    assert len(line["epoch"]) == 12
    assert "private" not in text


async def test_refusals_are_counted_but_logged_once_per_second(capsys: Any, ask: Any) -> None:
    capsys.readouterr()
    held = [asyncio.create_task(ask("lookup", Lookup(name="hold"))) for _ in range(2)]
    await asyncio.sleep(0.01)
    before = _count("refused_overloaded")
    for _ in range(20):
        with pytest.raises(Overloaded):
            await ask("lookup", Lookup())
    assert _count("refused_overloaded") - before == 20
    assert capsys.readouterr().err.count("calls_refused") == 1
    for call in held:
        call.cancel()
    await asyncio.gather(*held, return_exceptions=True)


def _count(outcome: str) -> float:
    labels = {"verb": "lookup", "outcome": outcome}
    return metrics.REGISTRY.get_sample_value("sage_actor_calls_total", labels) or 0.0
