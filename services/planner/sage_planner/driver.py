"""Drives one `PipelineRun`: commands become requests through the request port, replies become events of the run."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Final, Protocol

from msgspec import structs

from sage_core import Budget, Clock, Internal, SageError, SystemClock
from sage_pipeline import Call, Calls, PipelineRun, Plan, Reply, Resolve, Value, lower
from sage_pipeline.run import (
    Begin,
    CancelNode,
    Command,
    DeadlineReached,
    Fail,
    Forward,
    NodeDone,
    NodeFailed,
    NodeFinished,
    NodeStreamed,
    RunCancelled,
    RunEvent,
    StartNode,
    Succeed,
)
from sage_pipeline.values import Answer, Chunks, Hits, IndexReport, Prompt, Vector
from sage_planner.estimates import NodeTimes, node_targets
from sage_planner.metrics import NODE_SECONDS, RUNS
from sage_telemetry import get_logger, semconv, start_span
from sage_wire import raw
from sage_wire.messages import (
    Annotated,
    Completed,
    Event,
    Generate,
    Output,
    Retrieved,
    RunPipeline,
    SplitChunks,
    Targets,
    Tokens,
    Vectors,
    Work,
)

__all__ = ["Origin", "Replies", "RunDriver", "Submitter"]

GATHER_MS: Final = 250
"""How long text that only the next node reads may be held back, to come in fewer pieces."""

log = get_logger()


class Replies(Protocol):
    """The part of `RequestStream` that is used here."""

    async def next_batch(self) -> list[Event]:
        """Return every pending event. Raises the request's SageError, or StopAsyncIteration after the end."""
        ...

    async def aclose(self) -> None:
        """Cancel the request unless it has ended."""
        ...


class Submitter(Protocol):
    """The part of `RequestPort` that is used here."""

    def submit(
        self,
        pool: str,
        work: Work,
        *,
        budget: Budget | float,
        tenant: str,
        slo_class: str,
        priority: int,
        targets: Targets,
        route: str,
        traceparent: str | None,
    ) -> Replies:
        """Submit `work` to `pool`; never waits."""
        ...


@dataclass(frozen=True, slots=True)
class Origin:
    """On whose behalf a run's requests are made, and what it was promised when it reached this planner."""

    tenant: str = "default"
    slo_class: str = "interactive"
    priority: int = 0
    targets: Targets = field(default_factory=Targets)
    traceparent: str | None = None


@dataclass(slots=True)
class _NodeTask:
    attempt: int
    task: asyncio.Task[None]


@dataclass(slots=True)
class RunDriver:
    """One run. Iterate `events` once; closing the iterator or cancelling its reader cancels every node's request."""

    plan: Plan
    run: RunPipeline
    port: Submitter
    resolve: Resolve
    budget: Budget
    origin: Origin = field(default_factory=Origin)
    max_attempts: int = 3
    seed: int = field(default_factory=lambda: random.getrandbits(32))
    clock: Clock = field(default_factory=SystemClock)
    times: NodeTimes = field(default_factory=NodeTimes)
    _begun_at: float = 0.0
    _inbox: asyncio.Queue[RunEvent] = field(default_factory=asyncio.Queue)
    _tasks: dict[str, _NodeTask] = field(default_factory=dict)
    _ended: set[asyncio.Task[None]] = field(default_factory=set)
    _started: dict[str, float] = field(default_factory=dict)
    _spans: dict[str, str] = field(default_factory=dict)
    """The span of each node's latest attempt, where it is recorded."""

    def cancel(self, reason: str) -> None:
        """End the run; `events` raises Cancelled. No effect after its end."""
        self._inbox.put_nowait(RunCancelled(reason))

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield stages, sources, text and other values, last `Completed`. Raises the SageError of a failed run."""
        state = PipelineRun(
            self.plan, deadline=self.budget.deadline, max_attempts=self.max_attempts, seed=self.seed
        )
        outcome = "cancelled"
        self._begun_at = self.clock.now()
        try:
            event: RunEvent = Begin()
            while True:
                commands = state.handle(event, self.clock.now())
                for command in commands:
                    self._act(command)
                for command in commands:
                    if isinstance(command, Fail):
                        outcome = command.error.code
                    for visible in self._visible(command):
                        yield visible
                    if isinstance(command, Succeed):
                        outcome = "succeeded"
                        return
                event = await self._next_event()
        finally:
            RUNS.labels(self.plan.pipeline, outcome).inc()
            for command in state.handle(RunCancelled("the run was abandoned"), self.clock.now()):
                self._act(command)
            await asyncio.gather(
                *self._ended, *(node.task for node in self._tasks.values()), return_exceptions=True
            )

    async def _next_event(self) -> RunEvent:
        if not self._inbox.empty():
            return self._inbox.get_nowait()
        try:
            async with asyncio.timeout(self.budget.remaining):
                return await self._inbox.get()
        except TimeoutError:
            return DeadlineReached()

    def _act(self, command: Command) -> None:
        """Start and stop nodes at once, before anything is shown: the next stage does not wait for a slow reader."""
        match command:
            case StartNode(node_id=node_id, attempt=attempt):
                self._started.setdefault(node_id, self.clock.now())
                task = asyncio.create_task(self._run_node(command), name=f"node {node_id}/{attempt}")
                earlier = self._tasks.pop(node_id, None)
                if earlier is not None:
                    self._ended.add(earlier.task)
                    earlier.task.add_done_callback(self._ended.discard)
                self._tasks[node_id] = _NodeTask(attempt, task)
            case CancelNode(node_id=node_id):
                self._tasks[node_id].task.cancel()

    def _visible(self, command: Command) -> list[Event]:
        match command:
            case Forward(tokens):
                return [tokens]
            case NodeDone(node_id=node_id, value=value):
                elapsed = self.clock.now() - self._started[node_id]
                NODE_SECONDS.labels(self.plan.pipeline, node_id).observe(elapsed)
                self.times.finished(self.plan.pipeline, node_id, elapsed)
                stage = Annotated(stage=node_id, stage_ms=elapsed * 1000)
                if isinstance(value, Prompt) and value.sources:
                    return [stage, Annotated(sources=list(value.sources))]
                return [stage]
            case Succeed(value):
                return _final_events(value)
            case Fail(error):
                raise error
        return []

    async def _run_node(self, command: StartNode) -> None:
        """Run one attempt at a node and report how it ended."""
        node_id, attempt = command.node_id, command.attempt
        budget = Budget.of(command.budget_s, self.clock)
        try:
            if command.delay_s:
                await asyncio.sleep(command.delay_s)
            attributes: dict[str, str | int] = {
                semconv.PIPELINE: self.plan.pipeline,
                semconv.NODE: node_id,
                semconv.ATTEMPT: attempt,
            }
            span = start_span(
                f"{semconv.SPAN_NODE} {node_id}",
                parent=self.origin.traceparent,
                attributes=attributes,
                retry_of=self._spans.get(node_id),
            )
            if span.is_recording and span.traceparent is not None:
                self._spans[node_id] = span.traceparent
            with span:
                value = await self._value(command, budget, span.traceparent)
        except SageError as error:
            self._inbox.put_nowait(NodeFailed(node_id, attempt, error))
        except Exception as error:  # a bug costs this run alone
            log.exception("node_crashed", pipeline=self.plan.pipeline, node=node_id)
            failure = Internal(f"{type(error).__name__} in the planner; its log has the rest")
            self._inbox.put_nowait(NodeFailed(node_id, attempt, failure))
        else:
            self._inbox.put_nowait(NodeFinished(node_id, attempt, value))

    async def _value(self, command: StartNode, budget: Budget, traceparent: str | None) -> Value:
        step = self.plan.step(command.node_id)
        lowered = lower(self.plan, step, command.inputs, self.run, self.resolve)
        if not isinstance(lowered, Calls):
            return lowered
        replies: list[Reply] = [Reply() for _ in lowered.calls]
        waiting = iter(zip(lowered.calls, replies, strict=True))

        async def work_off() -> None:
            for call, reply in waiting:
                await self._request(command, call, reply, budget, traceparent)

        if len(lowered.calls) == 1:
            await work_off()
        else:
            await _together(work_off, min(lowered.max_parallel, len(lowered.calls)))
        return lowered.gather(replies)

    async def _request(
        self, command: StartNode, call: Call, reply: Reply, budget: Budget, traceparent: str | None
    ) -> None:
        step = self.plan.step(command.node_id)
        work = call.work
        if isinstance(work, Generate) and not step.is_streamed:
            work = structs.replace(work, gather_ms=GATHER_MS)
        stream = self.port.submit(
            call.pool,
            work,
            budget=budget,
            tenant=self.origin.tenant,
            slo_class=self.origin.slo_class,
            priority=self.origin.priority,
            targets=node_targets(
                self.plan, step, self.origin.targets, self.clock.now() - self._begun_at, self.times
            ),
            route=f"{self.plan.pipeline}/{step.id}",
            traceparent=traceparent,
        )
        is_silent = True
        try:
            while True:
                for event in await stream.next_batch():
                    reply.add(event)
                    if step.is_streamed and isinstance(event, Tokens):
                        if is_silent:
                            is_silent = False
                            elapsed = self.clock.now() - self._started[step.id]
                            self.times.spoke(self.plan.pipeline, step.id, elapsed)
                        self._inbox.put_nowait(NodeStreamed(command.node_id, command.attempt, event))
                    elif isinstance(event, Completed):
                        return
        except StopAsyncIteration:
            return
        finally:
            await stream.aclose()


async def _together(work_off: Callable[[], Coroutine[None, None, None]], num_tasks: int) -> None:
    """Run `num_tasks` of `work_off`; the first failure cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(num_tasks):
                group.create_task(work_off())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _final_events(value: Value) -> list[Event]:
    match value:
        case Answer():
            return [Completed(finish_reason=value.finish_reason, usage=value.usage)]
        case IndexReport():
            return [Output(value=raw(value.indexed)), Completed()]
        case Hits():
            return [Output(value=raw(Retrieved(hits=list(value.hits)))), Completed()]
        case Chunks():
            return [Output(value=raw(SplitChunks(chunks=list(value.chunks)))), Completed()]
        case Vector():
            return [Vectors(offset=0, dim=value.dim, data=value.data), Completed()]
    raise Internal(f"a pipeline cannot answer with {value.edge}")
