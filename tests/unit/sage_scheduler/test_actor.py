"""The scheduler actor on a bus: what reaches workers and consumers, with whose budget and whose trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sage_actor import ActorRuntime
from sage_bus import MemoryBroker, MemoryBus, Received
from sage_core import NotFound, Unavailable
from sage_core.settings import ActorSettings
from sage_scheduler import SchedulerActor, SchedulerSettings
from sage_wire import CallHeaders, decode, encode, raw, subjects
from sage_wire.headers import ERROR
from sage_wire.messages import (
    Announcement,
    Cancel,
    Dispatch,
    Embed,
    Failed,
    FindReceipt,
    Frame,
    Message,
    Receipt,
    Report,
    ReportEvent,
    ServedModel,
    Submit,
    WireError,
)

MODEL = "mini"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Peers:
    """A worker and a consumer, played by hand."""

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.dispatched: asyncio.Queue[Received] = asyncio.Queue()
        self.cancelled: asyncio.Queue[Received] = asyncio.Queue()
        self.frames: asyncio.Queue[Received] = asyncio.Queue()
        self.sequence = 0

    async def listen(self) -> None:
        await self.bus.subscribe(subjects.worker_dispatch("w1"), self.dispatched.put_nowait)
        await self.bus.subscribe(subjects.worker_cancel("w1"), self.cancelled.put_nowait)
        await self.bus.subscribe(subjects.frames("c"), self.frames.put_nowait)

    def announce(self, state: str = "ready", limit: int = 1, epoch: str = "e1") -> None:
        self.sequence += 1
        announcement = Announcement(
            actor_id="w1", kind="embedding-worker", epoch=epoch, sequence=self.sequence, state=state, version="0",
            host="h", pid=1, models=[ServedModel(name=MODEL, task="embed")], max_in_flight=limit,
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


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    broker = MemoryBroker()
    bus, control = broker.connect("scheduler"), broker.connect("scheduler-control")
    runtime = ActorRuntime(
        lambda context: SchedulerActor(context, SchedulerSettings()),
        actor_id="s1", bus=bus, control=control, settings=ActorSettings(announce_interval=0.05), kind="scheduler",
    )  # fmt: skip
    await runtime.start()
    made = Peers(broker.connect("peers"))
    await made.listen()
    yield made
    await runtime.stop(drain=False)
    for connection in (made.bus, bus, control):
        await connection.close()


async def test_a_request_reaches_its_worker_with_its_own_budget_and_trace(peers: Peers) -> None:
    peers.announce()
    await peers.submit("r", budget_ms=5000)
    dispatch, headers = await peers.dispatch()
    assert (dispatch.request_id, dispatch.reply_to) == ("r", subjects.frames("c"))
    assert headers.traceparent == TRACE
    assert headers.budget_ms is not None
    assert 0 < headers.budget_ms <= 5000


async def test_a_held_request_leaves_with_its_own_budget_when_another_ends(peers: Peers) -> None:
    peers.announce()
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
    peers.announce(limit=0)
    await peers.submit("r", budget_ms=30)
    assert (await peers.failure()).code == "deadline_exceeded"


async def test_an_unknown_pool_is_refused_by_name_once_every_worker_has_had_time_to_answer(
    peers: Peers,
) -> None:
    error = None
    while error is None or isinstance(error, Unavailable):
        assert error is None or error.retryable, "a scheduler that has just started does not know yet"
        reply = await peers.submit("r", pool="nobody")
        assert ERROR in reply.headers
        error = decode(WireError, reply.payload).raised()
    assert isinstance(error, NotFound)
    assert "nobody" in error.message


async def test_a_worker_that_comes_back_with_a_new_epoch_has_lost_its_work(peers: Peers) -> None:
    peers.announce()
    await peers.submit("r")
    await peers.dispatch()
    peers.announce(epoch="e2")
    error = await peers.failure()
    assert (error.code, error.retryable) == ("worker_lost", True)


async def test_a_draining_worker_gets_nothing_new(peers: Peers) -> None:
    peers.announce()
    peers.announce(state="draining")
    await peers.submit("r", budget_ms=50)
    assert (await peers.failure()).code == "deadline_exceeded"
    assert peers.dispatched.empty()


async def test_a_cancel_of_running_work_is_forwarded_to_its_worker(peers: Peers) -> None:
    peers.announce()
    await peers.submit("r")
    await peers.dispatch()
    peers.tell(subjects.pool_cancel(MODEL), Cancel(request_id="r", reason="the client went away"))
    received = await asyncio.wait_for(peers.cancelled.get(), 1.0)
    assert decode(Cancel, received.payload).request_id == "r"


async def test_the_receipt_of_a_request_can_be_asked_for(peers: Peers) -> None:
    peers.announce()
    await peers.submit("r")
    for request_id, decision in (("r", "dispatched"), ("never-seen", "unknown")):
        question = encode(FindReceipt(request_id=request_id))
        reply = await peers.bus.request(subjects.RECEIPTS_FIND, question, timeout=1.0)
        assert decode(Receipt, reply.payload).decision == decision


async def test_malformed_bodies_disturb_nothing(peers: Peers) -> None:
    for subject in (subjects.pool_submit(MODEL), subjects.pool_report(MODEL), subjects.pool_cancel(MODEL)):
        peers.bus.publish(subject, b"\xc1")
    peers.announce()
    await peers.submit("r")
    assert (await peers.dispatch())[0].request_id == "r"
