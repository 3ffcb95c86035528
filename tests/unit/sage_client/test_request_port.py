"""Requests from submit to end over a bus, with true workers: cancel, loss, drain, budget, errors, frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from sage_bus import BusEvent
from sage_client import RequestPort, RequestStream
from sage_client.request_state import Phase
from sage_core import (
    BadRequest,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    EngineError,
    Internal,
    NotFound,
    Overloaded,
    Unavailable,
)
from sage_wire import encode, subjects
from sage_wire.messages import (
    Announcement,
    Completed,
    Delta,
    Frame,
    Generate,
    Started,
    Targets,
    TextPrompt,
    Tokens,
    Usage,
)

POOL = "words"


def say(text: str) -> Generate:
    return Generate(model=POOL, prompt=TextPrompt(text=text))


async def text_of(stream: RequestStream) -> str:
    return "".join([event.text async for event in stream if isinstance(event, Tokens)])


async def test_a_request_is_answered_in_order_and_ends_with_completed(cluster) -> None:
    stream = cluster.port.submit(POOL, say("one two three"), budget=5)
    events = [event async for event in stream]
    assert [type(event) for event in events] == [Tokens, Tokens, Tokens, Completed]
    assert events[-1].usage == Usage(completion_tokens=3)
    assert stream.worker_id == "w1"
    assert stream.queue_ms == 1.5
    assert stream.attempt == 0
    assert cluster.port.num_open == 0
    await cluster.reports("first_token", "finished")
    assert cluster.scheduler.reports[-1].num_tokens == 3


async def test_next_batch_gives_all_that_is_pending_and_never_nothing(cluster) -> None:
    stream = cluster.port.submit(POOL, say("one two three four"), budget=5)
    events = []
    await cluster.until(lambda: stream.is_finished)
    batch = await stream.next_batch()
    events += batch
    assert [type(event) for event in events] == [Tokens] * 4 + [Completed]
    with pytest.raises(StopAsyncIteration):
        await stream.next_batch()


async def test_tokens_of_many_requests_share_frames(cluster) -> None:
    num_messages = 0

    def count(_: object) -> None:
        nonlocal num_messages
        num_messages += 1

    await cluster.broker.connect("spy").subscribe("sage.v1.frames.*.*", count)
    streams = [cluster.port.submit(POOL, say("w " * 50), budget=5) for _ in range(4)]
    texts = await asyncio.gather(*(text_of(stream) for stream in streams))
    assert texts == ["w " * 50] * 4
    # One message per turn for all four, and one more for each first token.
    assert num_messages <= 70


async def test_a_bad_request_fails_alone(cluster) -> None:
    cluster.script.error = BadRequest("no such voice", param="voice")
    stream = cluster.port.submit(POOL, say("a"), budget=5)
    with pytest.raises(BadRequest, match="no such voice") as raised:
        await text_of(stream)
    assert raised.value.param == "voice"
    await cluster.reports("failed")


async def test_a_bug_in_the_engine_fails_its_request_and_no_other(cluster) -> None:
    cluster.script.allowed = 1
    other = cluster.port.submit(POOL, say("a b"), budget=5)
    await anext(other)
    cluster.script.error = ZeroDivisionError("bug")
    cluster.script.allowed = 1000
    stream = cluster.port.submit(POOL, say("a"), budget=5)
    with pytest.raises(Internal, match="ZeroDivisionError"):
        await text_of(stream)
    cluster.script.error = None
    cluster.script.gate.set()
    assert await text_of(other) == "b "
    assert cluster.workers["w1"].state == "ready"


async def test_an_engine_error_is_not_tried_again(cluster) -> None:
    cluster.script.error = EngineError("out of memory")
    with pytest.raises(EngineError):
        await text_of(cluster.port.submit(POOL, say("a"), budget=5))
    assert len(cluster.scheduler.submits) == 1


async def test_overload_shows_when_to_come_back(cluster) -> None:
    cluster.scheduler.refusal = Overloaded("200 wait already", retry_after=7.0)
    with pytest.raises(Overloaded) as raised:
        await text_of(cluster.port.submit(POOL, say("a"), budget=5))
    assert raised.value.retry_after == 7.0
    assert len(cluster.scheduler.submits) == 1


async def test_an_unknown_pool_is_not_found(cluster) -> None:
    with pytest.raises(NotFound, match="known: words"):
        await text_of(cluster.port.submit("nothing", say("a"), budget=5))


async def test_no_scheduler_is_unavailable_after_the_patience(cluster) -> None:
    await cluster.scheduler.stop()
    with pytest.raises(Unavailable, match="no scheduler serves 'words'"):
        await text_of(cluster.port.submit(POOL, say("a"), budget=5))


async def test_a_scheduler_that_comes_back_in_time_is_not_noticed(cluster) -> None:
    await cluster.scheduler.stop()
    reading = asyncio.create_task(text_of(cluster.port.submit(POOL, say("a b"), budget=5)))
    await asyncio.sleep(0.005)
    await cluster.scheduler.start()
    assert await reading == "a b "


async def test_the_budget_ends_a_request_and_frees_its_worker(cluster) -> None:
    cluster.script.allowed = 1
    stream = cluster.port.submit(POOL, say("a b"), budget=0.03)
    assert (await anext(stream)).text == "a "
    with pytest.raises(DeadlineExceeded):
        await anext(stream)
    await cluster.until(lambda: bool(cluster.script.closed))


async def test_cancel_before_the_scheduler_was_asked(cluster) -> None:
    stream = cluster.port.submit(POOL, say("a"), budget=5)
    stream.cancel()
    with pytest.raises(Cancelled):
        await anext(stream)
    await asyncio.sleep(0.01)
    assert cluster.scheduler.submits == []


async def test_cancel_while_queued_tells_the_scheduler(cluster) -> None:
    cluster.scheduler.is_holding = True
    cluster.script.allowed = 0
    stream = cluster.port.submit(POOL, say("a"), budget=5)
    await asyncio.sleep(0.005)
    stream.cancel("no longer wanted")
    with pytest.raises(Cancelled, match="no longer wanted"):
        await anext(stream)
    await asyncio.sleep(0.005)
    assert [cancel.request_id for cancel in cluster.scheduler.cancels] == [stream.request_id]
    # The dispatch was on its way all the same: its slot is freed when it starts.
    cluster.scheduler.dispatch(cluster.scheduler.held[0])
    await cluster.reports("cancelled")


async def test_cancel_while_streaming_frees_the_slot_and_ends_the_generator(cluster) -> None:
    cluster.script.allowed = 1
    stream = cluster.port.submit(POOL, say("a b"), budget=5)
    await anext(stream)
    stream.cancel()
    stream.cancel()
    with pytest.raises(Cancelled):
        await anext(stream)
    await cluster.reports("first_token", "cancelled")
    assert cluster.script.closed == [f"{stream.request_id}/0"]
    assert len(cluster.scheduler.cancels) == 1


async def test_cancel_after_the_end_does_nothing(cluster) -> None:
    stream = cluster.port.submit(POOL, say("a"), budget=5)
    await text_of(stream)
    stream.cancel()
    await stream.aclose()
    await asyncio.sleep(0.005)
    assert cluster.scheduler.cancels == []


async def test_a_reader_that_is_cancelled_or_leaves_cancels_its_request(cluster) -> None:
    cluster.script.allowed = 1
    cancelled = cluster.port.submit(POOL, say("a b"), budget=5)
    reading = asyncio.create_task(text_of(cancelled))
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    async with cluster.port.submit(POOL, say("a b"), budget=5) as left:
        await anext(left)
    await cluster.reports("first_token", "cancelled")
    assert cluster.port.num_open == 0
    assert len(cluster.script.closed) == 2


async def test_a_worker_that_dies_mid_stream_is_replaced_with_exact_text(cluster) -> None:
    cluster.script.allowed = 2
    script_of_w2 = type(cluster.script)()
    await cluster.start_worker("w2", script_of_w2)
    stream = cluster.port.submit(POOL, say("one two three four"), budget=5)
    first = [(await anext(stream)).text, (await anext(stream)).text]
    cluster.lose("w1")
    rest = await text_of(stream)
    assert "".join(first) + rest == "one two three four "
    assert script_of_w2.resumed_after == ["one two "]
    assert (stream.attempt, stream.worker_id) == (1, "w2")
    # Should the lost worker still live, what it says is late.
    cluster.script.gate.set()
    await asyncio.sleep(0.01)
    assert cluster.port.num_open == 0


async def test_a_lost_frame_is_resumed_with_exact_text(cluster) -> None:
    cluster.script.allowed = 2
    stream = cluster.port.submit(POOL, say("one two three four"), budget=5)
    first = [(await anext(stream)).text, (await anext(stream)).text]
    forged = Delta(request_id=stream.request_id, attempt=0, seq=9, event=Tokens(text="LOST"))
    cluster.scheduler.bus.publish(subjects.frames("consumer-1"), encode(Frame(deltas=[forged])))
    cluster.script.gate.set()
    assert "".join(first) + await text_of(stream) == "one two three four "
    assert stream.attempt == 1


class GivenRoster:
    """A roster that holds what the test puts in."""

    def __init__(self, worker_id: str, in_flight: list[str]) -> None:
        announcement = Announcement(
            actor_id=worker_id, kind="k", epoch="e", sequence=0, state="ready", version="", host="", pid=0,
            interval_ms=10, in_flight=in_flight,
        )  # fmt: skip
        self.actors = {worker_id: announcement}

    def subscribe(self, _: object) -> Callable[[], None]:
        return lambda: None


async def port_with(cluster, *in_flight: str) -> RequestPort:
    roster = GivenRoster("w1", list(in_flight))
    port = RequestPort(cluster.broker.connect("c4"), roster=roster, rules=cluster.port._rules)
    await port.start()
    return port


async def test_a_lost_last_frame_is_found_by_what_the_worker_lists(cluster) -> None:
    port = await port_with(cluster)
    cluster.script.allowed = 1
    stream = port.submit(POOL, say("one two"), budget=5)
    await anext(stream)
    frames = cluster.workers["w1"].actor._frames
    publish, frames._publish = frames._publish, lambda *_: None
    cluster.script.gate.set()
    await cluster.reports("first_token", "finished")
    frames._publish = publish
    assert await text_of(stream) == "two "
    assert stream.attempt == 1
    await port.close()


async def test_a_silent_request_that_its_worker_lists_is_left_alone(cluster) -> None:
    port = await port_with(cluster, "r1/0")
    cluster.script.allowed = 1
    stream = port.submit(POOL, say("one two"), budget=5, request_id="r1")
    await anext(stream)
    port._on_bus_event(BusEvent.RECONNECTED, "")
    # Longer than the silence and the grace of this port's rules together.
    await asyncio.sleep(0.05)
    await asyncio.sleep(0.05)
    cluster.script.gate.set()
    assert await text_of(stream) == "two "
    assert stream.attempt == 0
    await port.close()


async def test_after_a_reconnect_without_a_roster_silence_is_resumed(cluster) -> None:
    port = RequestPort(cluster.broker.connect("c3"), rules=cluster.port._rules)
    await port.start()
    cluster.script.allowed = 1
    stream = port.submit(POOL, say("one two"), budget=5)
    first = (await anext(stream)).text
    cluster.script.allowed = 1000
    port._on_bus_event(BusEvent.RECONNECTED, "")
    assert first + await text_of(stream) == "one two "
    assert stream.attempt == 1
    await port.close()


async def test_draining_finishes_what_fits(cluster) -> None:
    cluster.script.allowed = 1
    stream = cluster.port.submit(POOL, say("one two"), budget=5)
    await anext(stream)
    stopping = asyncio.create_task(cluster.workers["w1"].stop())
    await asyncio.sleep(0.005)
    assert cluster.workers["w1"].state == "draining"
    cluster.script.gate.set()
    assert await text_of(stream) == "two "
    await stopping
    assert stream.attempt == 0


async def test_draining_hands_over_what_does_not_fit(cluster) -> None:
    cluster.script.allowed = 1
    await cluster.start_worker("w2", type(cluster.script)())
    stream = cluster.port.submit(POOL, say("one two three"), budget=5)
    first = (await anext(stream)).text
    cluster.scheduler.worker_id = "w2"
    await cluster.workers["w1"].stop()
    assert first + await text_of(stream) == "one two three "
    assert stream.worker_id == "w2"
    assert [report.event.value for report in cluster.scheduler.reports if report.worker_id == "w1"] == [
        "first_token",
        "failed",
    ]


async def test_a_draining_worker_refuses_new_work_so_that_it_starts_elsewhere(cluster) -> None:
    cluster.script.allowed = 1
    await cluster.start_worker("w2", type(cluster.script)())
    held = cluster.port.submit(POOL, say("one two"), budget=5)
    await anext(held)
    stopping = asyncio.create_task(cluster.workers["w1"].stop())
    await asyncio.sleep(0.005)
    stream = cluster.port.submit(POOL, say("a b"), budget=5, request_id="late")
    await cluster.until(lambda: len(cluster.scheduler.submits) == 2)
    cluster.scheduler.worker_id = "w2"
    assert await text_of(stream) == "a b "
    assert (stream.attempt, stream.worker_id) == (1, "w2")
    cluster.script.gate.set()
    await stopping
    await held.aclose()


async def test_closing_the_port_cancels_what_is_open(cluster) -> None:
    cluster.script.allowed = 1
    stream = cluster.port.submit(POOL, say("a b"), budget=5)
    await anext(stream)
    await cluster.port.close()
    with pytest.raises(Cancelled):
        await anext(stream)
    await cluster.reports("first_token", "cancelled")
    with pytest.raises(Unavailable):
        cluster.port.submit(POOL, say("a"), budget=5)


async def test_a_request_id_is_open_once(cluster) -> None:
    cluster.script.allowed = 0
    async with cluster.port.submit(POOL, say("a"), budget=5, request_id="r1"):
        with pytest.raises(Conflict):
            cluster.port.submit(POOL, say("a"), budget=5, request_id="r1")


async def test_malformed_frames_are_counted_and_disturb_nothing(cluster) -> None:
    cluster.scheduler.bus.publish(subjects.frames("consumer-1"), b"\xc1garbage")
    assert await text_of(cluster.port.submit(POOL, say("a"), budget=5)) == "a "
    assert cluster.port.num_malformed_frames == 1


async def test_one_subscription_serves_all_requests(cluster) -> None:
    bus = cluster.broker.connect("counted")
    subscribed: list[str] = []
    subscribe = bus.subscribe

    async def counted(subject, callback, *, queue=None):
        subscribed.append(subject)
        return await subscribe(subject, callback, queue=queue)

    bus.subscribe = counted
    port = RequestPort(bus, consumer_id="c2")
    await port.start()
    texts = await asyncio.gather(*(text_of(port.submit(POOL, say("a"), budget=5)) for _ in range(4)))
    assert texts == ["a "] * 4
    assert subscribed == ["sage.v1.frames.operator.c2"]
    await port.close()


async def test_an_unknown_request_that_starts_is_stopped_at_its_worker(cluster) -> None:
    heard: list[str] = []
    bus = cluster.broker.connect("spy")
    await bus.subscribe(subjects.worker_cancel("w7"), lambda received: heard.append(received.subject))
    started = Delta(request_id="gone", attempt=0, seq=0, event=Started(worker_id="w7", model="m"))
    bus.publish(subjects.frames("consumer-1"), encode(Frame(deltas=[started])))
    await asyncio.sleep(0.01)
    assert heard == [subjects.worker_cancel("w7")]


async def test_a_pool_that_nobody_announces_is_not_found_once_everybody_has_been_heard(cluster) -> None:
    await cluster.scheduler.stop()
    rules = replace(cluster.port._rules, discovery=0.05, patience=5.0)
    port = RequestPort(cluster.broker.connect("c5"), roster=cluster.roster, rules=rules)
    await port.start()
    young = port.submit("nobody", say("one"), budget=5)
    await cluster.until(lambda: young.attempt > 1)
    assert not young.is_finished, "not everybody has been heard yet"
    young.cancel()
    await asyncio.sleep(0.05)
    with pytest.raises(NotFound, match=f"nothing serves 'nobody'; served now: {POOL}"):
        await text_of(port.submit("nobody", say("one"), budget=5))
    led_by_nobody = port.submit(POOL, say("one"), budget=5)
    await cluster.until(lambda: led_by_nobody.attempt > 1)
    assert not led_by_nobody.is_finished, "its scheduler is awaited"
    await port.close()


async def test_a_pool_that_has_served_is_awaited_though_nobody_announces_it(cluster) -> None:
    rules = replace(cluster.port._rules, discovery=0.0, patience=5.0)
    port = RequestPort(cluster.broker.connect("c7"), roster=GivenRoster("w9", []), rules=rules)
    await port.start()
    assert await text_of(port.submit(POOL, say("a"), budget=5)) == "a "
    await cluster.scheduler.stop()
    stream = port.submit(POOL, say("b"), budget=5)
    await cluster.until(lambda: stream.attempt > 1)
    assert not stream.is_finished
    await cluster.scheduler.start()
    assert await text_of(stream) == "b "
    await port.close()


async def test_targets_route_and_size_travel_with_the_submit(cluster) -> None:
    targets = Targets(ttft_ms=500.0, started_ago_ms=40.0)
    await text_of(cluster.port.submit(POOL, say("one two"), budget=5, targets=targets, route="/v1/x"))
    (submit,) = cluster.scheduler.submits
    assert (submit.targets, submit.route) == (targets, "/v1/x")
    assert submit.size.num_prompt_tokens == 2


async def test_the_clock_of_the_targets_goes_on_over_attempts_until_something_was_delivered(cluster) -> None:
    port, scheduler = cluster.port, cluster.scheduler
    scheduler.is_holding = True
    stream = port.submit(POOL, say("one two"), budget=5, targets=Targets(started_ago_ms=100.0))
    await cluster.until(lambda: stream.request.state.phase is Phase.ACCEPTED)
    await asyncio.sleep(0.02)
    port._on_bus_event(BusEvent.RECONNECTED, "")
    await cluster.until(lambda: len(scheduler.held) == 2)
    assert scheduler.submits[-1].targets.started_ago_ms >= 120.0
    cluster.script.allowed = 1
    scheduler.dispatch(scheduler.held[-1])
    assert (await anext(stream)).text == "one "
    cluster.lose("w1")
    await cluster.until(lambda: len(scheduler.held) == 3)
    assert scheduler.submits[-1].targets.started_ago_ms == 100.0, "the next piece is waited for anew"
    stream.cancel()
