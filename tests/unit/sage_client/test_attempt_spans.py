"""A traced request's attempts: one span each, the next linked to the one before, nothing where it is not sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from sage_client import RequestStream
from sage_core import Overloaded
from sage_telemetry import Telemetry
from sage_wire.messages import Generate, Span, TextPrompt, Tokens
from span_recording import SAMPLED, TRACE_ID, UNSAMPLED, recording

POOL = "words"


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    with recording() as made:
        yield made


def say(text: str) -> Generate:
    return Generate(model=POOL, prompt=TextPrompt(text=text))


async def text_of(stream: RequestStream) -> str:
    return "".join([event.text async for event in stream if isinstance(event, Tokens)])


def attempts(telemetry: Telemetry) -> list[Span]:
    return [span for span in telemetry.recent.find(TRACE_ID) if span.name.startswith("submit ")]


async def test_an_attempt_is_a_client_span_that_the_submit_travels_under(
    telemetry: Telemetry, cluster
) -> None:
    stream = cluster.port.submit(POOL, say("one two"), budget=5, request_id="r", traceparent=SAMPLED)
    assert await text_of(stream) == "one two "
    (span,) = attempts(telemetry)
    assert (span.name, span.kind, span.parent_id) == ("submit words", "client", SAMPLED[36:52])
    assert not span.is_error
    assert span.attributes["sage.request.id"] == "r"
    assert span.attributes["sage.worker.id"] == "w1"
    assert cluster.scheduler.submits[0].traceparent == f"00-{TRACE_ID}-{span.span_id}-01"
    (performed,) = [one for one in telemetry.recent.find(TRACE_ID) if one.name == "perform"]
    assert performed.parent_id == span.span_id
    assert span.start_ns <= performed.start_ns <= performed.end_ns <= span.end_ns


async def test_an_attempt_after_a_lost_worker_links_to_the_lost_one(telemetry: Telemetry, cluster) -> None:
    await cluster.start_worker("w2")
    cluster.script.allowed = 1
    stream = cluster.port.submit(POOL, say("one two"), budget=5, traceparent=SAMPLED)
    await cluster.script.entered.wait()
    await cluster.until(lambda: "w1" in cluster.roster.actors and stream.worker_id == "w1")
    cluster.lose("w1")
    cluster.script.gate.set()
    assert await text_of(stream) == "one two "
    first, second = attempts(telemetry)
    assert (first.is_error, first.attributes["error.type"]) == (True, "worker_lost")
    assert (first.attributes["sage.worker.id"], second.attributes["sage.worker.id"]) == ("w1", "w2")
    assert second.links == [f"{TRACE_ID}-{first.span_id}"]
    assert first.parent_id == second.parent_id == SAMPLED[36:52]
    assert first.end_ns <= second.start_ns
    assert [submit.traceparent for submit in cluster.scheduler.submits] == [
        f"00-{TRACE_ID}-{span.span_id}-01" for span in (first, second)
    ]


async def test_a_submit_that_is_repeated_stays_the_same_attempt(telemetry: Telemetry, cluster) -> None:
    cluster.scheduler.is_silent = True
    stream = cluster.port.submit(POOL, say("one"), budget=5, traceparent=SAMPLED)
    await cluster.until(lambda: len(cluster.scheduler.submits) == 2)
    cluster.scheduler.is_silent = False
    cluster.scheduler.dispatch(cluster.scheduler.submits[-1])
    assert await text_of(stream) == "one "
    first, second = cluster.scheduler.submits
    assert first.traceparent == second.traceparent
    (span,) = attempts(telemetry)
    assert span.links == []


async def test_a_refused_request_says_why(telemetry: Telemetry, cluster) -> None:
    cluster.scheduler.refusal = Overloaded("full", retry_after=1.0)
    with pytest.raises(Overloaded):
        await text_of(cluster.port.submit(POOL, say("one"), budget=0.5, traceparent=SAMPLED))
    (span,) = attempts(telemetry)
    assert (span.is_error, span.attributes["error.type"]) == (True, "overloaded")


async def test_a_cancelled_request_ends_its_span(telemetry: Telemetry, cluster) -> None:
    cluster.script.allowed = 0
    stream = cluster.port.submit(POOL, say("one"), budget=5, traceparent=SAMPLED)
    await cluster.script.entered.wait()
    stream.cancel()
    (span,) = attempts(telemetry)
    assert span.attributes["error.type"] == "cancelled"


@pytest.mark.parametrize("header", [UNSAMPLED, None])
async def test_an_unsampled_request_is_forwarded_as_it_came_and_makes_no_span(
    telemetry: Telemetry, cluster, header: str | None
) -> None:
    texts = await asyncio.gather(
        *(text_of(cluster.port.submit(POOL, say("a"), budget=5, traceparent=header)) for _ in range(3))
    )
    assert texts == ["a "] * 3
    assert [submit.traceparent for submit in cluster.scheduler.submits] == [header] * 3
    assert len(telemetry.recent) == 0
