"""Requests without a reader: what their sinks are given, and what a turn's submits become."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import replace

import pytest

from sage_client import OpenRequest, RequestPort, RequestStream
from sage_client.request_state import Phase
from sage_core import (
    BadRequest,
    Cancelled,
    LimitExceeded,
    Overloaded,
    SageError,
)
from sage_wire import encode, subjects
from sage_wire.messages import (
    Completed,
    Delta,
    Event,
    Frame,
    Generate,
    Started,
    TextPrompt,
    Tokens,
)

POOL = "words"


def say(text: str) -> Generate:
    return Generate(model=POOL, prompt=TextPrompt(text=text))


async def text_of(stream: RequestStream) -> str:
    return "".join([event.text async for event in stream if isinstance(event, Tokens)])


class Kept:
    """A sink that keeps what it got, call by call."""

    def __init__(self) -> None:
        self.calls: list[list[Event]] = []
        self.ends: list[SageError | None] = []

    def deliver(self, events: list[Event]) -> None:
        assert not self.ends, "nothing comes after the end"
        self.calls.append(events)

    def finish(self, error: SageError | None) -> None:
        self.ends.append(error)


async def test_a_sink_is_called_once_per_frame_and_ended_once(cluster) -> None:
    sink = Kept()
    request = cluster.port.open(POOL, say("one two"), sink, budget=5)
    assert (sink.calls, request.is_finished) == ([], False)
    await cluster.until(lambda: bool(sink.ends))
    assert all(sink.calls)
    events = [event for call in sink.calls for event in call]
    assert [type(event) for event in events] == [Tokens, Tokens, Completed]
    assert sink.ends == [None]
    assert request.is_finished
    request.cancel()
    assert sink.ends == [None]


async def test_what_one_frame_brings_is_one_call(cluster) -> None:
    cluster.scheduler.is_silent = True
    sinks = [Kept(), Kept()]
    requests = [cluster.port.open(POOL, say("a"), sink, budget=5) for sink in sinks]
    deltas = []
    for seq, event in enumerate([Started(worker_id="w9", model=POOL), Tokens(text="a"), Tokens(text="b")]):
        deltas += [
            Delta(request_id=request.request_id, attempt=0, seq=seq, event=event) for request in requests
        ]
    deltas.append(Delta(request_id=requests[0].request_id, attempt=0, seq=3, event=Completed()))
    cluster.scheduler.bus.publish(subjects.frames("consumer-1"), encode(Frame(deltas=deltas)))
    await cluster.until(lambda: bool(sinks[1].calls))
    text = [Tokens(text="a"), Tokens(text="b")]
    assert sinks[0].calls == [[*text, Completed()]]
    assert sinks[1].calls == [text]
    assert (sinks[0].ends, sinks[1].ends) == ([None], [])
    requests[1].cancel("enough")
    assert [type(error) for error in sinks[1].ends] == [Cancelled]


async def test_a_sink_that_fails_costs_its_own_request_alone(cluster) -> None:
    class Broken(Kept):
        def deliver(self, events: list[Event]) -> None:
            raise ZeroDivisionError("bug")

    broken = Broken()
    cluster.port.open(POOL, say("a"), broken, budget=5)
    assert await text_of(cluster.port.submit(POOL, say("b"), budget=5)) == "b "
    await cluster.until(lambda: bool(broken.ends))
    assert cluster.port.num_open == 0


async def test_all_submits_of_a_turn_are_one_message_and_no_task(cluster) -> None:
    tasks = asyncio.all_tasks()
    sinks = [Kept() for _ in range(8)]
    for sink in sinks:
        cluster.port.open(POOL, say("a"), sink, budget=5)
    assert asyncio.all_tasks() == tasks
    await cluster.until(lambda: all(sink.ends for sink in sinks))
    assert cluster.scheduler.batches == [8]


async def test_of_a_batch_that_is_refused_in_part_the_rest_is_served(cluster) -> None:
    cluster.scheduler.refusals = {
        "full": Overloaded("200 wait already", retry_after=7.0),
        "bad": BadRequest("no such voice"),
    }
    sinks = {name: Kept() for name in ("first", "full", "bad", "last")}
    for name, sink in sinks.items():
        cluster.port.open(POOL, say("a"), sink, budget=5, request_id=name)
    await cluster.until(lambda: all(sink.ends for sink in sinks.values()))
    ends = {name: sink.ends for name, sink in sinks.items()}
    assert (ends["first"], ends["last"]) == ([None], [None])
    assert isinstance(ends["full"][0], Overloaded)
    assert isinstance(ends["bad"][0], BadRequest)
    assert cluster.scheduler.batches == [4]


async def test_large_submits_are_sent_in_several_messages_and_one_too_large_fails_alone(cluster) -> None:
    broker = cluster.broker
    broker.max_payload = 3 * 2**20
    port = RequestPort(broker.connect("large"), rules=replace(cluster.port._rules, answer=5.0))
    await port.start()
    streams = [port.submit(POOL, say("x" * 700_000), budget=5) for _ in range(3)]
    with pytest.raises(LimitExceeded):
        await text_of(port.submit(POOL, say("x" * 4 * 2**20), budget=5))
    for stream in streams:
        assert len(await text_of(stream)) == 700_001
    assert cluster.scheduler.batches == [1, 1, 1]
    await port.close()


async def test_a_lost_answer_is_asked_for_again_and_twice_is_once(cluster) -> None:
    scheduler = cluster.scheduler
    scheduler.is_silent = True
    stream = cluster.port.submit(POOL, say("a b"), budget=5)
    await cluster.until(lambda: len(scheduler.submits) == 2)
    first, second = scheduler.submits
    assert (first.request_id, first.attempt, first.work) == (second.request_id, second.attempt, second.work)
    assert second.budget_ms <= first.budget_ms
    for submit in (first, second):
        scheduler.answer(submit)
    await cluster.until(lambda: stream.request.state.phase is Phase.ACCEPTED)
    for submit in (first, second):
        scheduler.dispatch(submit)
    assert await text_of(stream) == "a b "
    assert stream.attempt == 0
    assert cluster.script.closed == [f"{stream.request_id}/0"], "it ran once"


async def test_a_scheduler_that_dies_between_submit_and_dispatch_loses_nothing(cluster) -> None:
    scheduler = cluster.scheduler
    scheduler.is_silent = True
    stream = cluster.port.submit(POOL, say("a b"), budget=5)
    await cluster.until(lambda: len(scheduler.submits) == 1)
    await scheduler.stop()
    await asyncio.sleep(0.06)
    scheduler.is_silent = False
    await scheduler.start()
    assert await text_of(stream) == "a b "
    assert len({submit.attempt for submit in scheduler.submits}) == len(scheduler.submits)


async def test_what_was_submitted_while_cut_off_is_submitted_anew(cluster) -> None:
    bus = cluster.broker.connect("c6")
    port = RequestPort(bus, rules=cluster.port._rules)
    await port.start()
    bus.disconnect()
    stream = port.submit(POOL, say("a"), budget=5)
    await asyncio.sleep(0.005)
    assert cluster.scheduler.submits == []
    bus.reconnect()
    assert await text_of(stream) == "a "
    await port.close()


class Knowing(Kept):
    """A sink that knows its request, as most do."""

    request: OpenRequest


async def test_requests_that_ended_leave_nothing_behind(cluster) -> None:
    gc.collect()
    gc.disable()
    try:
        sinks = [Knowing()]
        sinks[0].request = cluster.port.open(POOL, say("a"), sinks[0], budget=5)
        stream = cluster.port.submit(POOL, say("a"), budget=5)
        await text_of(stream)
        await cluster.until(lambda: bool(sinks[0].ends))
        left = [weakref.ref(sinks[0]), weakref.ref(stream)]
        del sinks[0], stream
        await asyncio.sleep(0)
        assert [each() for each in left] == [None, None], "no cycle is left to the garbage collector"
    finally:
        gc.enable()
