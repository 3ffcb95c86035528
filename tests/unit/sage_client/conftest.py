"""A cluster in one process: a scheduler that dispatches at once, true workers, one consumer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from sage_actor import ActorContext, ActorRuntime, ChangeKind, Roster, RosterChange
from sage_bus import MemoryBroker, Received
from sage_client import RequestPort, RetryRules
from sage_core import NotFound, SageError
from sage_core.settings import ActorSettings
from sage_wire import decode, encode, subjects
from sage_wire.messages import (
    Answer,
    Cancel,
    Completed,
    Dispatch,
    Dispatches,
    Event,
    Frame,
    Generate,
    Report,
    Reports,
    ServedModel,
    Submit,
    Submits,
    TextPrompt,
    Tokens,
    Usage,
    WireError,
)
from sage_worker import Assigned, Worker

POOL = "words"
RULES = RetryRules(backoff=0.002, max_backoff=0.01, patience=0.1, answer=0.05, silence=0.03, grace=0.03)


async def until(is_true: Callable[[], bool]) -> None:
    """Return once `is_true` holds; fail after a second."""
    async with asyncio.timeout(1):
        while not is_true():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)


@dataclass
class Script:
    """How the workers of a test behave; `allowed` words flow before the gate must open."""

    allowed: int = 1000
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    closed: list[str] = field(default_factory=list)
    resumed_after: list[str] = field(default_factory=list)
    error: Exception | None = None


class WordWorker(Worker):
    """Says the prompt word by word, a turn of the loop for each."""

    kind = "word-worker"
    max_in_flight = 4

    def __init__(self, context: ActorContext, script: Script) -> None:
        super().__init__(context)
        self._script = script

    def models(self) -> list[ServedModel]:
        return [ServedModel(name=POOL, task="generate")]

    async def perform(self, request: Assigned) -> AsyncIterator[Event]:
        work = request.work
        assert isinstance(work, Generate)
        assert isinstance(work.prompt, TextPrompt)
        script = self._script
        script.entered.set()
        done = "" if work.resume is None else work.resume.text
        script.resumed_after.append(done)
        words = [f"{word} " for word in work.prompt.text.split()][len(done.split()) :]
        try:
            for index, word in enumerate(words):
                if index >= script.allowed:
                    await script.gate.wait()
                if script.error is not None:
                    raise script.error
                await asyncio.sleep(0)
                yield Tokens(text=word)
            yield Completed(usage=Usage(completion_tokens=len(words)))
        finally:
            script.closed.append(f"{request.request_id}/{request.attempt}")


class ForwardingScheduler:
    """Dispatches every submit at once to `worker_id`; what it heard is kept."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.bus = broker.connect("scheduler")
        self.worker_id = "w1"
        self.pools = {POOL}
        self.epoch = "e1"
        self.is_holding = False
        self.refusal: SageError | None = None
        self.refusals: dict[str, SageError] = {}
        self.batches: list[int] = []
        self.submits: list[Submit] = []
        self.cancels: list[Cancel] = []
        self.reports: list[Report] = []
        self.held: list[Submit] = []
        self.is_silent = False

    async def start(self) -> None:
        self.subscriptions = [
            await self.bus.subscribe(subjects.ALL_SUBMITS, self._on_submits),
            await self.bus.subscribe(subjects.ALL_CANCELS, self._on_cancel),
            await self.bus.subscribe(subjects.ALL_REPORTS, self._on_reports),
        ]

    async def stop(self) -> None:
        for subscription in self.subscriptions:
            await subscription.unsubscribe()

    def dispatch(self, submit: Submit) -> None:
        dispatch = Dispatch(
            request_id=submit.request_id,
            attempt=submit.attempt,
            pool=submit.pool,
            reply_to=submit.reply_to,
            work=submit.work,
            queue_ms=1.5,
            budget_ms=submit.budget_ms,
            traceparent=submit.traceparent,
        )
        message = Dispatches(dispatches=[dispatch])
        self.bus.publish(subjects.worker_dispatch(self.worker_id), encode(message))

    def answer(self, submit: Submit, error: SageError | None = None) -> None:
        wire_error = None if error is None else WireError.of(error)
        answer = Answer(
            request_id=submit.request_id,
            attempt=submit.attempt,
            scheduler_id="s1",
            epoch=self.epoch,
            error=wire_error,
        )
        self.bus.publish(submit.reply_to, encode(Frame(answers=[answer])))

    def _on_submits(self, received: Received) -> None:
        submits = decode(Submits, received.payload).submits
        self.batches.append(len(submits))
        for submit in submits:
            self.submits.append(submit)
            if not self.is_silent:
                self._take(submit)

    def _take(self, submit: Submit) -> None:
        refusal = self.refusals.get(submit.request_id, self.refusal)
        if submit.pool not in self.pools:
            refusal = NotFound(f"no pool {submit.pool!r}; known: {', '.join(self.pools)}")
        if refusal is not None:
            self.answer(submit, refusal)
        elif self.is_holding:
            self.answer(submit)
            self.held.append(submit)
        else:
            self.dispatch(submit)

    def _on_cancel(self, received: Received) -> None:
        self.cancels.append(decode(Cancel, received.payload))

    def _on_reports(self, received: Received) -> None:
        self.reports += decode(Reports, received.payload).reports


class Cluster:
    """What a test holds in its hand."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.scheduler = ForwardingScheduler(self.broker)
        self.script = Script()
        self.workers: dict[str, ActorRuntime] = {}
        self.roster = Roster(self.broker.connect("consumer-control"))
        self.port = RequestPort(
            self.broker.connect("consumer"),
            consumer_id="consumer-1",
            roster=self.roster,
            rules=RULES,
        )
        self.num_frames = 0

    async def start_worker(self, worker_id: str, script: Script | None = None) -> ActorRuntime:
        settings = ActorSettings(drain_timeout=0.05)
        runtime = ActorRuntime(
            lambda context: WordWorker(context, script or self.script),
            actor_id=worker_id,
            bus=self.broker.connect(worker_id),
            control=self.broker.connect(f"{worker_id}-control"),
            settings=settings,
        )
        self.workers[worker_id] = runtime
        await runtime.start()
        return runtime

    async def start(self) -> None:
        await self.scheduler.start()
        await self.start_worker("w1")
        await self.roster.start()
        await self.port.start()

    async def stop(self) -> None:
        await self.port.close()
        await self.roster.stop()
        for runtime in self.workers.values():
            await runtime.stop(drain=False)

    def lose(self, worker_id: str) -> None:
        """Let the roster find the worker silent; its successor is w2."""
        announcement = self.roster.actors[worker_id]
        self.scheduler.worker_id = "w2"
        self.port._on_roster_change(RosterChange(ChangeKind.DOWN, announcement, is_lost=True))

    async def until(self, is_true: Callable[[], bool]) -> None:
        """See `until`."""
        await until(is_true)

    async def reports(self, *events: str) -> None:
        """Return once the scheduler heard exactly these last events."""
        await until(
            lambda: [report.event.value for report in self.scheduler.reports][-len(events) :] == list(events)
        )


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    await cluster.start()
    yield cluster
    await cluster.stop()
