"""The scheduler actor on a bus: what reaches workers and consumers, with whose budget and whose trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sage_actor import ActorRuntime
from sage_bus import MemoryBroker, MemoryBus, Received
from sage_core import Paths, Unavailable
from sage_core.settings import ActorSettings
from sage_policy import Dispatch as DispatchCommand
from sage_policy.event_log import read_log
from sage_scheduler import SchedulerActor, SchedulerSettings
from sage_scheduler.settings import SchedulerSection
from sage_wire import CallHeaders, decode, encode, raw, subjects
from sage_wire.messages import (
    Announcement,
    Cancel,
    Dispatch,
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
    ServedModel,
    Submit,
    WireError,
)

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

    async def submit(self, request_id: str, *, budget_ms: int = 5000, pool: str = MODEL) -> Received:
        submit = Submit(
            request_id=request_id, attempt=0, pool=pool, reply_to=subjects.frames("c"),
            work=raw(Embed(model=pool, texts=["x"])),
        )  # fmt: skip
        headers = CallHeaders(budget_ms=budget_ms, traceparent=TRACE).encode()
        return await self.bus.request(
            subjects.pool_submit(pool), encode(submit), timeout=1.0, headers=headers
        )

    async def dispatch(self) -> tuple[Dispatch, CallHeaders]:
        received = await asyncio.wait_for(self.dispatched.get(), 1.0)
        return decode(Dispatch, received.payload), CallHeaders.decode(received.headers)

    async def failure(self) -> WireError:
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
    await peers.submit("r", budget_ms=5000)
    dispatch, headers = await peers.dispatch()
    assert (dispatch.request_id, dispatch.reply_to) == ("r", subjects.frames("c"))
    assert headers.traceparent == TRACE
    assert headers.budget_ms is not None
    assert 0 < headers.budget_ms <= 5000


async def test_a_held_request_leaves_with_its_own_budget_when_another_ends(peers: Peers) -> None:
    await peers.led()
    await peers.submit("a")
    await peers.submit("b", budget_ms=4000)
    await peers.dispatch()
    finished = Report(worker_id="w1", pool=MODEL, request_id="a", attempt=0, event=ReportEvent.FINISHED)
    peers.bus.publish(subjects.pool_report(MODEL), encode(finished), CallHeaders(budget_ms=50).encode())
    dispatch, headers = await peers.dispatch()
    assert dispatch.request_id == "b"
    assert headers.budget_ms is not None
    assert 3000 < headers.budget_ms <= 4000, "not the fifty milliseconds of the report"


async def test_a_request_whose_budget_ends_in_the_queue_fails_then_and_there(peers: Peers) -> None:
    await peers.led()
    peers.announce(limit=0)
    await peers.submit("r", budget_ms=30)
    assert (await peers.failure()).code == "deadline_exceeded"


async def test_nobody_listens_for_a_pool_that_no_worker_serves(peers: Peers) -> None:
    with pytest.raises(Unavailable, match="nobody listens"):
        await peers.submit("r", pool="nobody")


async def test_a_worker_that_comes_back_with_a_new_epoch_has_lost_its_work(peers: Peers) -> None:
    await peers.led()
    await peers.submit("r")
    await peers.dispatch()
    peers.announce(epoch="e2")
    error = await peers.failure()
    assert (error.code, error.retryable) == ("worker_lost", True)


async def test_a_draining_worker_gets_nothing_new(peers: Peers) -> None:
    await peers.led()
    peers.announce(state="draining")
    await peers.submit("r", budget_ms=50)
    assert (await peers.failure()).code == "deadline_exceeded"
    assert peers.dispatched.empty()


async def test_a_cancel_of_running_work_is_forwarded_to_its_worker(peers: Peers) -> None:
    await peers.led()
    await peers.submit("r")
    await peers.dispatch()
    peers.tell(subjects.pool_cancel(MODEL), Cancel(request_id="r", reason="the client went away"))
    received = await asyncio.wait_for(peers.cancelled.get(), 1.0)
    assert decode(Cancel, received.payload).request_id == "r"


async def test_the_receipt_of_a_request_can_be_asked_for(peers: Peers) -> None:
    await peers.led()
    await peers.submit("r")
    for request_id, decision in (("r", "dispatched"), ("never-seen", "unknown")):
        question = encode(FindReceipt(request_id=request_id))
        reply = await peers.bus.request(subjects.RECEIPTS_FIND, question, timeout=1.0)
        assert decode(Receipt, reply.payload).decision == decision


async def test_malformed_bodies_disturb_nothing(peers: Peers) -> None:
    await peers.led()
    for subject in (subjects.pool_submit(MODEL), subjects.pool_report(MODEL), subjects.pool_cancel(MODEL)):
        peers.bus.publish(subject, b"\xc1")
    await peers.submit("r")
    assert (await peers.dispatch())[0].request_id == "r"


async def test_a_standby_leads_at_once_when_the_leader_stops_and_what_waited_is_sent_back(
    broker: MemoryBroker, peers: Peers
) -> None:
    await peers.led()
    async with scheduler(broker, "s2"):
        peers.announce(limit=0)
        await peers.submit("waits")
        first = decode(Lead, (await asyncio.wait_for(peers.leads.get(), 1.0)).payload)
        peers.tell(subjects.actor("s1", "drain"), Drain(timeout_ms=100))
        error = await peers.failure()
        assert (error.code, error.retryable) == ("unavailable", True)
        second = decode(Lead, (await asyncio.wait_for(peers.leads.get(), 1.0)).payload)
        assert (first.scheduler_id, second.scheduler_id) == ("s1", "s2")
        assert second.fence > first.fence
        peers.announce(limit=1)
        while True:
            try:
                await peers.submit("again")
                break
            except Unavailable:
                await asyncio.sleep(0)
        dispatch, _ = await peers.dispatch()
        assert (dispatch.request_id, dispatch.fence) == ("again", second.fence)


async def test_a_standby_does_not_answer_for_a_pool_that_another_leads(
    broker: MemoryBroker, peers: Peers
) -> None:
    await peers.led()
    async with scheduler(broker, "s2"):
        peers.announce(limit=8)
        for number in range(8):
            await peers.submit(f"r{number}")
        leads = {(await peers.dispatch())[0].fence for _ in range(8)}
    assert len(leads) == 1
    assert peers.dispatched.empty()


async def test_the_event_log_holds_what_was_decided(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    peers = Peers(broker.connect("peers"))
    await peers.listen()
    async with scheduler(broker, "s1", SchedulerSettings()):
        await peers.led()
        await peers.submit("r")
        await peers.dispatch()
    await peers.bus.close()
    log = read_log((Paths.for_instance("default").state / "events" / "s1.log").read_bytes())
    assert (log.header.policy, log.header.scheduler_id) == ("hybrid", "s1")
    assert any(DispatchCommand.__name__.encode() in record.commands for record in log.records)
