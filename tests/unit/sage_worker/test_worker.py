"""The worker's side of a request: what consumer and scheduler are told, dispatch by dispatch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from sage_actor import ActorContext, ActorRuntime
from sage_bus import MemoryBroker
from sage_core.settings import ActorSettings
from sage_wire import decode, encode, raw, subjects
from sage_wire.messages import (
    Announcement,
    Cancel,
    Completed,
    Delta,
    Dispatch,
    Dispatches,
    Event,
    Failed,
    Frame,
    Generate,
    Lead,
    Report,
    Reports,
    ServedModel,
    Started,
    Targets,
    Telemetry,
    TextPrompt,
    Tokens,
)
from sage_worker import Assigned, FormedBatch, Worker

WORK = raw(Generate(model="p", prompt=TextPrompt(text="go")))


class Stage(Worker):
    """Performs what the test says."""

    kind = "stage"
    max_in_flight = 2

    def __init__(self, context: ActorContext) -> None:
        super().__init__(context)
        self.assigned: list[Assigned] = []
        self.closed = 0
        self.gate = asyncio.Event()
        self.load: list[Telemetry] = []
        self.act: Callable[[Assigned], AsyncIterator[Event]] = self.wait

    def models(self) -> list[ServedModel]:
        return [ServedModel(name="p", task="generate")]

    def telemetry(self) -> list[Telemetry]:
        return self.load

    async def perform(self, request: Assigned) -> AsyncIterator[Event]:
        self.assigned.append(request)
        try:
            async for event in self.act(request):
                yield event
        finally:
            self.closed += 1

    async def wait(self, _: Assigned) -> AsyncIterator[Event]:
        yield Tokens(text="a")
        await self.gate.wait()
        yield Completed()

    async def after_the_end(self, _: Assigned) -> AsyncIterator[Event]:
        yield Started(worker_id="forged", model="forged")
        yield Completed()
        yield Tokens(text="late")

    async def silent(self, _: Assigned) -> AsyncIterator[Event]:
        if self.closed < 0:
            yield Completed()


class Bench:
    """A worker, and everything it sends."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.bus = self.broker.connect("bench")
        self.deltas: list[Delta] = []
        self.reports: list[Report] = []
        self.announcements: list[Announcement] = []
        self.runtime = ActorRuntime(
            Stage,
            actor_id="w1",
            bus=self.broker.connect("w1"),
            control=self.broker.connect("w1-control"),
            settings=ActorSettings(announce_interval=0.01, drain_timeout=0.03),
        )

    async def start(self) -> None:
        await self.bus.subscribe(
            "sage.v1.frames.c", lambda received: self.deltas.extend(decode(Frame, received.payload).deltas)
        )
        await self.bus.subscribe(
            subjects.ALL_REPORTS,
            lambda received: self.reports.extend(decode(Reports, received.payload).reports),
        )
        await self.bus.subscribe(
            subjects.ALL_ANNOUNCEMENTS,
            lambda received: self.announcements.append(decode(Announcement, received.payload)),
        )
        await self.runtime.start()

    @property
    def stage(self) -> Stage:
        assert isinstance(self.runtime.actor, Stage)
        return self.runtime.actor

    def dispatch(
        self, request_id: str = "r", attempt: int = 0, *, budget_ms: int = 5000, fence: int = 0
    ) -> None:
        message = Dispatch(
            request_id=request_id,
            attempt=attempt,
            pool="p",
            reply_to="sage.v1.frames.c",
            work=WORK,
            fence=fence,
            budget_ms=budget_ms,
        )
        self.send(message)

    def send(self, *messages: Dispatch) -> None:
        self.bus.publish(subjects.worker_dispatch("w1"), encode(Dispatches(dispatches=list(messages))))

    def cancel(self, request_id: str = "r", attempt: int | None = None) -> None:
        self.bus.publish(subjects.worker_cancel("w1"), encode(Cancel(request_id=request_id, attempt=attempt)))

    def events(self, request_id: str = "r", attempt: int = 0) -> list[Event]:
        deltas = [
            delta for delta in self.deltas if (delta.request_id, delta.attempt) == (request_id, attempt)
        ]
        in_band = [delta.seq for delta in deltas if delta.seq >= 0]
        assert in_band == list(range(len(in_band)))
        return [delta.event for delta in deltas]

    async def told(self, *names: str) -> None:
        """Return once the scheduler was told exactly this."""
        async with asyncio.timeout(1):
            while [report.event.value for report in self.reports] != list(names):  # noqa: ASYNC110
                await asyncio.sleep(0)
        await asyncio.sleep(0.001)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.start()
    yield bench
    await bench.runtime.stop(drain=False)


def code(event: Event) -> str:
    assert isinstance(event, Failed)
    return event.error.code


async def test_started_comes_first_and_the_last_event_frees_the_slot(bench: Bench) -> None:
    bench.dispatch()
    await bench.told("first_token")
    assert bench.events() == [Started(worker_id="w1", model="p"), Tokens(text="a")]
    bench.stage.gate.set()
    await bench.told("first_token", "finished")
    assert bench.events()[-1] == Completed()
    assert bench.reports[-1].num_tokens == 1
    assert bench.stage.assigned[0].work == Generate(model="p", prompt=TextPrompt(text="go"))
    assert bench.stage.presence().num_in_flight == 0


async def test_what_comes_after_completed_or_claims_to_start_is_not_sent(bench: Bench) -> None:
    bench.stage.act = bench.stage.after_the_end
    bench.dispatch()
    await bench.told("finished")
    assert bench.events() == [Started(worker_id="w1", model="p"), Completed()]


async def test_ending_without_a_result_is_a_failure(bench: Bench) -> None:
    bench.stage.act = bench.stage.silent
    bench.dispatch()
    await bench.told("failed")
    assert code(bench.events()[-1]) == "internal"


async def test_an_attempt_that_says_nothing_for_a_moment_has_started_all_the_same(bench: Bench) -> None:
    async def slow(_: Assigned) -> AsyncIterator[Event]:
        await bench.stage.gate.wait()
        yield Completed()

    bench.stage.act = slow
    bench.dispatch()
    await asyncio.sleep(0)
    assert bench.events() == []
    await bench.told("started")
    assert bench.events() == [Started(worker_id="w1", model="p")]
    bench.stage.gate.set()
    await bench.told("started", "finished")
    assert bench.events() == [Started(worker_id="w1", model="p"), Completed()]


async def test_of_what_one_turn_brings_only_the_last_report_leaves(bench: Bench) -> None:
    async def at_once(_: Assigned) -> AsyncIterator[Event]:
        yield Tokens(text="a")
        yield Completed()

    bench.stage.act = at_once
    bench.dispatch()
    await bench.told("finished")
    assert bench.reports[0].num_tokens == 1
    assert len(bench.events()) == 3


async def test_the_dispatches_of_a_message_are_taken_in_order_and_refused_one_by_one(bench: Bench) -> None:
    def dispatch(request_id: str, work: msgspec.Raw = WORK, fence: int = 0) -> Dispatch:
        return Dispatch(
            request_id=request_id,
            attempt=0,
            pool="p",
            reply_to="sage.v1.frames.c",
            work=work,
            fence=fence,
            budget_ms=5000,
        )

    unknown = msgspec.Raw(msgspec.msgpack.encode({"type": "levitate"}))
    bench.send(
        dispatch("a", fence=5),
        dispatch("b", unknown, fence=5),
        dispatch("c", fence=4),
        dispatch("d", fence=5),
    )
    await bench.told("failed", "first_token", "first_token")
    assert [assigned.request_id for assigned in bench.stage.assigned] == ["a", "d"]
    assert code(bench.events("b")[0]) == "bad_request"
    assert code(bench.events("c")[0]) == "unavailable"


async def test_reports_of_one_turn_share_a_message(bench: Bench) -> None:
    num_messages = 0

    def count(_: object) -> None:
        nonlocal num_messages
        num_messages += 1

    await bench.bus.subscribe(subjects.ALL_REPORTS, count)
    bench.stage.max_in_flight = 8
    for index in range(8):
        bench.dispatch(f"r{index}")
    async with asyncio.timeout(1):
        while len(bench.reports) < 8:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert num_messages <= 2


async def test_the_same_attempt_twice_runs_once(bench: Bench) -> None:
    bench.dispatch()
    bench.dispatch()
    await bench.told("first_token")
    assert len(bench.stage.assigned) == 1


async def test_a_later_attempt_takes_the_place_of_the_earlier(bench: Bench) -> None:
    bench.dispatch(attempt=0)
    await bench.told("first_token")
    bench.dispatch(attempt=1)
    async with asyncio.timeout(1):
        while len(bench.reports) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert code(bench.events(attempt=0)[-1]) == "cancelled"
    assert bench.stage.presence().in_flight == ("r/1",)


async def test_a_cancel_before_the_dispatch_stops_it_on_arrival(bench: Bench) -> None:
    bench.cancel()
    await asyncio.sleep(0.005)
    bench.dispatch()
    await bench.told("cancelled")
    assert [code(event) for event in bench.events()] == ["cancelled"]
    assert bench.stage.assigned == []


async def test_a_cancel_in_the_turn_of_the_dispatch_still_ends_it_properly(bench: Bench) -> None:
    bench.dispatch()
    bench.cancel()
    async with asyncio.timeout(1):
        while not bench.reports or bench.reports[-1].event != "cancelled":  # noqa: ASYNC110
            await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    assert code(bench.events()[-1]) == "cancelled"
    assert bench.stage.presence().num_in_flight == 0


async def test_a_cancel_while_streaming_closes_the_generator(bench: Bench) -> None:
    bench.dispatch()
    await bench.told("first_token")
    bench.cancel()
    await bench.told("first_token", "cancelled")
    assert code(bench.events()[-1]) == "cancelled"
    assert bench.stage.closed == 1


async def test_a_cancel_after_the_end_does_nothing(bench: Bench) -> None:
    bench.stage.gate.set()
    bench.dispatch()
    await bench.told("finished")
    bench.cancel()
    await asyncio.sleep(0.005)
    assert bench.events()[-1] == Completed()


async def test_a_spent_budget_fails_the_request_and_closes_the_generator(bench: Bench) -> None:
    bench.dispatch(budget_ms=20)
    await bench.told("first_token", "failed")
    assert code(bench.events()[-1]) == "deadline_exceeded"
    assert bench.stage.closed == 1


async def test_a_scheduler_that_lost_its_lease_is_refused_out_of_band(bench: Bench) -> None:
    bench.dispatch("a", fence=5)
    bench.dispatch("b", fence=4)
    await bench.told("first_token")
    assert [code(event) for event in bench.events("b")] == ["unavailable"]
    assert [delta.seq for delta in bench.deltas if delta.request_id == "b"] == [-1]
    bench.dispatch("b", fence=5)
    await bench.told("first_token", "first_token")


async def test_once_a_leader_has_introduced_itself_the_one_before_is_refused(bench: Bench) -> None:
    lead = Lead(pool="p", scheduler_id="s2", fence=9)
    bench.bus.publish(subjects.worker_lead("w1"), encode(lead))
    await asyncio.sleep(0.001)
    bench.dispatch("late", fence=8)
    bench.dispatch("true", fence=9)
    await bench.told("first_token")
    assert [code(event) for event in bench.events("late")] == ["unavailable"]


async def test_class_targets_and_batch_reach_whoever_performs(bench: Bench) -> None:
    targets = Targets(ttft_ms=500.0, started_ago_ms=20.0)
    message = Dispatch(
        request_id="r", attempt=0, pool="p", reply_to="sage.v1.frames.c", work=WORK, fence=3, batch=2,
        batch_size=4, slo_class="normal", targets=targets,
    )  # fmt: skip
    bench.send(message)
    await bench.told("first_token")
    (assigned,) = bench.stage.assigned
    assert assigned.batch == FormedBatch(fence=3, number=2, size=4)
    assert (assigned.slo_class, assigned.targets) == ("normal", targets)


async def test_what_was_cached_is_reported_with_the_first_token_and_at_the_end(bench: Bench) -> None:
    async def cached(_: Assigned) -> AsyncIterator[Event]:
        yield Tokens(text="a", num_cached=128)
        await asyncio.sleep(0)
        yield Tokens(text="b")
        yield Completed()

    bench.stage.act = cached
    bench.dispatch()
    await bench.told("first_token", "finished")
    assert [report.num_cached for report in bench.reports] == [128, 128]


async def test_announcements_say_how_far_each_request_is_and_what_the_engine_says(bench: Bench) -> None:
    bench.stage.load = [Telemetry(pool="p", num_running=1, kv_used=0.5)]
    bench.dispatch("a")
    bench.dispatch("b")
    async with asyncio.timeout(1):
        while bench.announcements[-1].num_tokens != [1, 1]:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    last = bench.announcements[-1]
    assert last.in_flight == ["a/0", "b/0"]
    assert last.telemetry == bench.stage.load


async def test_more_than_twice_the_limit_is_refused(bench: Bench) -> None:
    for index in range(5):
        bench.dispatch(f"r{index}")
    async with asyncio.timeout(1):
        while len(bench.reports) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    assert code(bench.events("r4")[0]) == "unavailable"
    presence = bench.stage.presence()
    assert (presence.num_in_flight, presence.num_queued) == (2, 2)


async def test_work_that_cannot_be_read_is_a_bad_request(bench: Bench) -> None:
    bench.send(
        Dispatch(
            request_id="r",
            attempt=0,
            pool="p",
            reply_to="sage.v1.frames.c",
            work=msgspec.Raw(msgspec.msgpack.encode({"type": "levitate"})),
        )
    )
    await bench.told("failed")
    assert code(bench.events()[0]) == "bad_request"
    assert bench.stage.presence().num_in_flight == 0


async def test_a_dispatch_without_a_budget_gets_the_workers_own(bench: Bench) -> None:
    bench.dispatch(budget_ms=0)
    await bench.told("first_token")
    assert bench.stage.assigned[0].budget.remaining > 1


async def test_what_runs_is_announced(bench: Bench) -> None:
    bench.dispatch()
    await bench.told("first_token")
    async with asyncio.timeout(1):
        while bench.announcements[-1].in_flight != ["r/0"]:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert bench.announcements[-1].models == [ServedModel(name="p", task="generate")]


async def test_a_drain_hands_over_what_does_not_end_in_time(bench: Bench) -> None:
    bench.dispatch()
    await bench.told("first_token")
    await bench.runtime.stop()
    last = bench.events()[-1]
    assert isinstance(last, Failed)
    assert (last.error.code, last.error.retryable) == ("worker_lost", True)
    assert [report.event.value for report in bench.reports] == ["first_token", "failed"]
    assert bench.announcements[-1].state == "stopped"


async def test_a_crash_hands_over_what_ran(bench: Bench) -> None:
    bench.dispatch()
    await bench.told("first_token")
    stage = bench.stage

    async def crash() -> None:
        raise RuntimeError("crash")

    stage.context.spawn(crash(), name="crash")
    await bench.told("first_token", "failed")
    assert code(bench.events()[-1]) == "worker_lost"
