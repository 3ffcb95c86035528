"""The scheduler actor on a bus: what reaches workers and consumers, with whose budget and whose trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sage_actor import ActorRuntime
from sage_bus import MemoryBroker, MemoryBus, Received
from sage_core import Paths
from sage_core.settings import ActorSettings
from sage_policy import Dispatch as DispatchCommand
from sage_policy.event_log import read_log
from sage_scheduler import SchedulerActor, SchedulerSettings
from sage_scheduler.settings import SchedulerSection
from sage_wire import decode, encode, raw, subjects
from sage_wire.messages import (
    Announcement,
    Answer,
    Cancel,
    Dispatch,
    Dispatches,
    Drain,
    Embed,
    Failed,
    FindReceipt,
    Frame,
    Lead,
    Message,
    Receipt,
    Report,
    ReportEvent,
    Reports,
    ServedModel,
    Submit,
    Submits,
    WireError,
)
from span_recording import SAMPLED, TRACE_ID, UNSAMPLED, recording

MODEL = "mini"
SETTINGS = SchedulerSettings(scheduler=SchedulerSection(event_log=False))
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Peers:
    """A worker and a consumer, played by hand."""

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.dispatched: asyncio.Queue[Received] = asyncio.Queue()
        self.cancelled: asyncio.Queue[Received] = asyncio.Queue()
        self.frames: asyncio.Queue[Received] = asyncio.Queue()
        self.leads: asyncio.Queue[Received] = asyncio.Queue()
        self.announced: asyncio.Queue[Received] = asyncio.Queue()
        self.unheard: asyncio.Queue[str] = asyncio.Queue()
        self.sequence = 0

    async def listen(self) -> None:
        await self.bus.subscribe(subjects.worker_dispatch("w1"), self.dispatched.put_nowait)
        await self.bus.subscribe(subjects.worker_cancel("w1"), self.cancelled.put_nowait)
        await self.bus.subscribe(subjects.frames("c"), self.frames.put_nowait)
        await self.bus.subscribe(subjects.worker_lead("w1"), self.leads.put_nowait)
        await self.bus.subscribe(subjects.announce("scheduler", "s1"), self.announced.put_nowait)

    async def led(self) -> None:
        """Announce the worker, and return once its pool is led."""
        self.announce()
        leads: list[str] = []
        while MODEL not in leads:
            received = await asyncio.wait_for(self.announced.get(), 1.0)
            leads = decode(Announcement, received.payload).leads

    def announce(self, state: str = "ready", limit: int = 1, epoch: str = "e1") -> None:
        self.sequence += 1
        announcement = Announcement(
            actor_id="w1", kind="embedding-worker", epoch=epoch, sequence=self.sequence, state=state, version="0",
            host="h", pid=1, models=[ServedModel(name=MODEL, task="generate")], max_in_flight=limit,
        )  # fmt: skip
        self.tell(subjects.announce("embedding-worker", "w1"), announcement)

    def tell(self, subject: str, message: Message) -> None:
        self.bus.publish(subject, encode(message))

    def submit(
        self, *request_ids: str, budget_ms: int = 5000, pool: str = MODEL, traceparent: str = TRACE
    ) -> None:
        submits = [
            Submit(
                request_id=request_id, attempt=0, pool=pool, reply_to=subjects.frames("c"),
                work=raw(Embed(model=pool, texts=["x"])), budget_ms=budget_ms, traceparent=traceparent,
            )
            for request_id in request_ids
        ]  # fmt: skip
        message = encode(Submits(submits=submits))
        self.bus.publish(subjects.pool_submit(pool), message, unheard=lambda: self.unheard.put_nowait(pool))

    async def dispatches(self) -> list[Dispatch]:
        received = await asyncio.wait_for(self.dispatched.get(), 1.0)
        return decode(Dispatches, received.payload).dispatches

    async def dispatch(self) -> Dispatch:
        (dispatch,) = await self.dispatches()
        return dispatch

    async def answers(self) -> list[Answer]:
        return decode(Frame, (await asyncio.wait_for(self.frames.get(), 1.0)).payload).answers

    async def failure(self) -> WireError:
        frame = Frame()
        while not frame.deltas:
            frame = decode(Frame, (await asyncio.wait_for(self.frames.get(), 1.0)).payload)
        event = frame.deltas[0].event
        assert isinstance(event, Failed)
        return event.error


@asynccontextmanager
async def scheduler(
    broker: MemoryBroker, actor_id: str, settings: SchedulerSettings = SETTINGS
) -> AsyncIterator[ActorRuntime]:
    bus, control = broker.connect(actor_id), broker.connect(f"{actor_id}-control")
    runtime = ActorRuntime(
        lambda context: SchedulerActor(context, settings),
        actor_id=actor_id, bus=bus, control=control, kind="scheduler",
        settings=ActorSettings(announce_interval=0.05, drain_timeout=0.2),
    )  # fmt: skip
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.stop(drain=False)
        for connection in (bus, control):
            await connection.close()


@pytest.fixture
async def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
async def peers(broker: MemoryBroker) -> AsyncIterator[Peers]:
    async with scheduler(broker, "s1"):
        made = Peers(broker.connect("peers"))
        await made.listen()
        yield made
        await made.bus.close()


async def test_a_request_reaches_its_worker_with_its_own_budget_and_trace(peers: Peers) -> None:
    await peers.led()
    peers.submit("r", budget_ms=5000)
    dispatch = await peers.dispatch()
    assert (dispatch.request_id, dispatch.reply_to) == ("r", subjects.frames("c"))
    assert dispatch.traceparent == TRACE
    assert 0 < dispatch.budget_ms <= 5000


async def test_submits_of_one_message_leave_as_one_dispatch_and_one_frame_of_answers(peers: Peers) -> None:
    await peers.led()
    peers.announce(limit=2)
    peers.submit("a", "b", "c", "d")
    assert [dispatch.request_id for dispatch in await peers.dispatches()] == ["a", "b"]
    answers = await peers.answers()
    assert [(answer.request_id, answer.scheduler_id, answer.error) for answer in answers] == [
        ("c", "s1", None),
        ("d", "s1", None),
    ]
    ended = [
        Report(worker_id="w1", pool=MODEL, request_id=request_id, attempt=0, event=ReportEvent.FINISHED)
        for request_id in ("a", "b")
    ]
    peers.tell(subjects.pool_report(MODEL), Reports(reports=ended))
    assert [dispatch.request_id for dispatch in await peers.dispatches()] == ["c", "d"]
    assert peers.frames.empty()


async def test_a_submit_that_is_refused_costs_the_others_of_its_message_nothing(peers: Peers) -> None:
    await peers.led()
    peers.tell(subjects.pool_cancel(MODEL), Cancel(request_id="unwanted"))
    await asyncio.sleep(0.005)
    peers.submit("unwanted", "wanted")
    assert (await peers.dispatch()).request_id == "wanted"
    (answer,) = await peers.answers()
    assert answer.request_id == "unwanted"
    assert answer.error is not None
    assert answer.error.code == "cancelled"


async def test_a_held_request_leaves_with_its_own_budget_when_another_ends(peers: Peers) -> None:
    await peers.led()
    peers.submit("a")
    peers.submit("b", budget_ms=4000)
    await peers.dispatch()
    finished = Report(worker_id="w1", pool=MODEL, request_id="a", attempt=0, event=ReportEvent.FINISHED)
    peers.tell(subjects.pool_report(MODEL), Reports(reports=[finished]))
    dispatch = await peers.dispatch()
    assert dispatch.request_id == "b"
    assert 3000 < dispatch.budget_ms <= 4000


async def test_a_request_whose_budget_ends_in_the_queue_fails_then_and_there(peers: Peers) -> None:
    await peers.led()
    peers.announce(limit=0)
    peers.submit("r", budget_ms=30)
    assert (await peers.failure()).code == "deadline_exceeded"


async def test_nobody_listens_for_a_pool_that_no_worker_serves(peers: Peers) -> None:
    peers.submit("r", pool="nobody")
    assert await asyncio.wait_for(peers.unheard.get(), 1.0) == "nobody"


@pytest.mark.parametrize("traceparent", [SAMPLED, UNSAMPLED])
async def test_the_wait_of_a_sampled_request_is_in_its_trace_whether_a_worker_took_it_or_not(
    peers: Peers, traceparent: str
) -> None:
    with recording() as telemetry:
        await peers.led()
        peers.submit("taken", traceparent=traceparent)
        await peers.dispatch()
        peers.submit("shed", budget_ms=30, traceparent=traceparent)
        await peers.failure()
        spans = telemetry.recent.find(TRACE_ID)
    found = [(span.name, span.attributes["sage.request.id"], span.is_error) for span in spans]
    expected = [("queue", "taken", False), ("dispatch", "taken", False), ("queue", "shed", True)]
    assert found == (expected if traceparent == SAMPLED else [])


async def test_a_worker_that_comes_back_with_a_new_epoch_has_lost_its_work(peers: Peers) -> None:
    await peers.led()
    peers.submit("r")
    await peers.dispatch()
    peers.announce(epoch="e2")
    error = await peers.failure()
    assert (error.code, error.retryable) == ("worker_lost", True)


async def test_a_draining_worker_gets_nothing_new(peers: Peers) -> None:
    await peers.led()
    peers.announce(state="draining")
    peers.submit("r", budget_ms=50)
    assert (await peers.failure()).code == "deadline_exceeded"
    assert peers.dispatched.empty()


async def test_a_cancel_of_running_work_is_forwarded_to_its_worker(peers: Peers) -> None:
    await peers.led()
    peers.submit("r")
    await peers.dispatch()
    peers.tell(subjects.pool_cancel(MODEL), Cancel(request_id="r", reason="the client went away"))
    received = await asyncio.wait_for(peers.cancelled.get(), 1.0)
    assert decode(Cancel, received.payload).request_id == "r"


async def test_the_receipt_of_a_request_can_be_asked_for(peers: Peers) -> None:
    await peers.led()
    peers.submit("r")
    for request_id, decision in (("r", "dispatched"), ("never-seen", "unknown")):
        question = encode(FindReceipt(request_id=request_id))
        reply = await peers.bus.request(subjects.RECEIPTS_FIND, question, timeout=1.0)
        assert decode(Receipt, reply.payload).decision == decision


async def test_malformed_bodies_disturb_nothing(peers: Peers) -> None:
    await peers.led()
    for subject in (subjects.pool_submit(MODEL), subjects.pool_report(MODEL), subjects.pool_cancel(MODEL)):
        peers.bus.publish(subject, b"\xc1")
    peers.submit("r")
    assert (await peers.dispatch()).request_id == "r"


async def test_a_standby_leads_at_once_when_the_leader_stops_and_what_waited_is_sent_back(
    broker: MemoryBroker, peers: Peers
) -> None:
    await peers.led()
    async with scheduler(broker, "s2"):
        peers.announce(limit=0)
        peers.submit("waits")
        first = decode(Lead, (await asyncio.wait_for(peers.leads.get(), 1.0)).payload)
        peers.tell(subjects.actor("s1", "drain"), Drain(timeout_ms=100))
        error = await peers.failure()
        assert (error.code, error.retryable) == ("unavailable", True)
        second = decode(Lead, (await asyncio.wait_for(peers.leads.get(), 1.0)).payload)
        assert (first.scheduler_id, second.scheduler_id) == ("s1", "s2")
        assert second.fence > first.fence
        peers.announce(limit=1)
        peers.submit("again")
        while peers.dispatched.empty():
            await asyncio.sleep(0)
            if not peers.unheard.empty():
                peers.unheard.get_nowait()
                peers.submit("again")
        dispatch = await peers.dispatch()
        assert (dispatch.request_id, dispatch.fence) == ("again", second.fence)


async def test_a_standby_does_not_answer_for_a_pool_that_another_leads(
    broker: MemoryBroker, peers: Peers
) -> None:
    await peers.led()
    async with scheduler(broker, "s2"):
        peers.announce(limit=8)
        for number in range(8):
            peers.submit(f"r{number}")
        sent: list[Dispatch] = []
        while len(sent) < 8:
            sent += await peers.dispatches()
    assert len({dispatch.fence for dispatch in sent}) == 1
    assert peers.dispatched.empty()


async def test_the_event_log_holds_what_was_decided(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    peers = Peers(broker.connect("peers"))
    await peers.listen()
    async with scheduler(broker, "s1", SchedulerSettings()):
        await peers.led()
        peers.submit("r")
        await peers.dispatch()
    await peers.bus.close()
    log = read_log((Paths.for_instance("default").state / "events" / "s1.log").read_bytes())
    assert (log.header.policy, log.header.scheduler_id) == ("hybrid", "s1")
    assert any(DispatchCommand.__name__.encode() in record.commands for record in log.records)
