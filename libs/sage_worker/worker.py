"""The base of every worker: takes dispatches, runs `perform` for each, and tells consumer and scheduler.

Whatever happens, a consumer that got `Started` gets exactly one `Completed` or `Failed`, and the scheduler gets one
report that frees the slot. What runs where is the scheduler's business, how it is computed the subclass's.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Final

from sage_actor import Actor, ActorContext, Alarms, Presence, handles
from sage_core import (
    BadRequest,
    Budget,
    Cancelled,
    DeadlineExceeded,
    Internal,
    SageError,
    Unavailable,
    WorkerLost,
)
from sage_telemetry import is_sampled, use_parent
from sage_wire import decode_work, encode, subjects
from sage_wire.messages import (
    Cancel,
    Completed,
    Delta,
    Dispatch,
    Dispatches,
    Event,
    Failed,
    Generate,
    Lead,
    Report,
    ReportEvent,
    ServedModel,
    Started,
    Telemetry,
    Tokens,
    WireError,
)
from sage_worker.assigned import Assigned, Held
from sage_worker.formed_batches import FormedBatch
from sage_worker.frame_writer import FrameWriter
from sage_worker.ledger import DispatchLedger, Key, Verdict
from sage_worker.perform_trace import PerformTrace
from sage_worker.reporter import Reporter

__all__ = ["Worker"]

HEADROOM_BYTES: Final = 4096
OUT_OF_BAND: Final = -1


class Worker(Actor, ABC):
    """Performs dispatched requests. A subclass gives `perform`, `models` and `max_in_flight`.

    Twice `max_in_flight` may be held, as a scheduler that starts anew may count wrongly for a moment; what goes
    beyond is refused. Every attempt runs in its own task; what one raises ends that one alone.
    """

    max_in_flight: int = 1

    def __init__(self, context: ActorContext) -> None:
        super().__init__(context)
        self._frames = FrameWriter(
            context.bus.publish, max_delta_bytes=context.bus.max_payload - HEADROOM_BYTES
        )
        self._reporter = Reporter(context.control)
        self._alarms = Alarms[Held](context.clock, Held.expire)
        self._ledger = DispatchLedger()
        self._held: dict[Key, Held] = {}

    @abstractmethod
    def perform(self, request: Assigned) -> AsyncIterator[Event]:
        """Yield the events of `request`, the last one `Completed`; implement as an async generator.

        `Started` is sent before it is called. A SageError it raises becomes `Failed`; any other exception becomes
        `Failed(internal)` and is logged. It is cancelled when the caller gives up, when the budget is spent, and
        at the end of a drain. Events after `Completed` are not asked for.
        """
        ...

    @abstractmethod
    def models(self) -> list[ServedModel]:
        """Return the pools this worker serves, for announcements. Cheap; may change over time."""
        ...

    def health(self) -> str:
        """Return `ok`, or in a few words what is wrong, for announcements."""
        return "ok"

    def telemetry(self) -> list[Telemetry]:
        """Return what the engines say of themselves, for announcements; cheap. None where there is nothing to say."""
        return []

    def presence(self) -> Presence:
        """Announce models, load, what runs and how far it is."""
        num_held = self._ledger.num_running
        running = self._ledger.running
        return Presence(
            models=tuple(self.models()),
            max_in_flight=self.max_in_flight,
            num_in_flight=min(num_held, self.max_in_flight),
            num_queued=max(0, num_held - self.max_in_flight),
            in_flight=tuple(str(key) for key in running),
            num_tokens=tuple(self._num_tokens(key) for key in running),
            telemetry=tuple(self.telemetry()),
            health=self.health(),
        )

    async def on_drain(self) -> None:
        """Refuse new work and let what runs finish; what the limit cuts is handed over by `Failed(worker_lost)`."""
        self._ledger.is_draining = True
        while tasks := [held.task for held in self._held.values() if held.task is not None]:
            await asyncio.wait(tasks)
        self._flush()

    @handles(subject=lambda actor: subjects.worker_dispatch(actor.context.actor_id))
    def dispatch(self, request: Dispatches) -> None:
        """Start requests, or say at once why not."""
        now = self.context.clock.now()
        for dispatch in request.dispatches:
            self._dispatch(dispatch, now)

    def _dispatch(self, request: Dispatch, now: float) -> None:
        key = Key(request.request_id, request.attempt)
        admission = self._ledger.dispatched(request, now, max_held=2 * self.max_in_flight)
        if admission.superseded is not None and admission.superseded in self._held:
            self._held[admission.superseded].cancel("a later attempt took its place")
        outlet = self._frames.open(request.request_id, request.attempt, request.reply_to)
        match admission.verdict:
            case Verdict.REPEATED:
                return
            case Verdict.STALE:
                self._refuse_stale(request)
                return
            case Verdict.START:
                refusal: SageError | None = None
            case Verdict.CANCELLED:
                refusal = Cancelled("the request was cancelled before it started")
            case Verdict.DRAINING:
                refusal = WorkerLost(f"worker {self.context.actor_id} is draining")
            case Verdict.FULL:
                refusal = Unavailable(f"worker {self.context.actor_id} holds all it can")
        try:
            work = decode_work(request.work)
        except BadRequest as error:
            self._ledger.ended(key)
            refusal = refusal or error
        if refusal is not None:
            outlet.emit(Failed(error=WireError.of(refusal)))
            event = ReportEvent.CANCELLED if isinstance(refusal, Cancelled) else ReportEvent.FAILED
            self._report(request.pool, key, event, error=refusal)
            return
        seconds = request.budget_ms / 1000 if request.budget_ms else self.context.settings.default_budget
        assigned = Assigned(
            request_id=request.request_id,
            attempt=request.attempt,
            pool=request.pool,
            work=work,
            tenant=request.tenant,
            priority=request.priority,
            budget=Budget.of(seconds, self.context.clock),
            traceparent=request.traceparent,
            queue_ms=request.queue_ms,
            slo_class=request.slo_class,
            targets=request.targets,
            batch=FormedBatch(request.fence, request.batch, request.batch_size) if request.batch else None,
        )
        if type(work) is Generate:
            outlet.gather = work.gather_ms / 1000
        held = self._held[key] = Held(key, assigned, outlet, now)
        outlet.start(Started(worker_id=self.context.actor_id, model=request.pool, queue_ms=request.queue_ms))
        self._report(request.pool, key, ReportEvent.STARTED)
        self._alarms.set(held, now + seconds)
        held.task = self.context.spawn(self._run(held), name=f"perform {key}")
        held.task.add_done_callback(lambda _: self._on_task_done(held))

    @handles(subject=lambda actor: subjects.worker_lead(actor.context.actor_id), is_control=True)
    async def lead(self, request: Lead) -> None:
        """Refuse what earlier leaders of a pool sent, from now on."""
        self._ledger.led(request.pool, request.fence)

    @handles(subject=lambda actor: subjects.worker_cancel(actor.context.actor_id), is_control=True)
    async def cancel(self, request: Cancel) -> None:
        """Stop a request in whatever phase it is; one that is still on its way here is stopped on arrival."""
        key = self._ledger.cancelled(request, self.context.clock.now())
        if key is not None and key in self._held:
            self._held[key].cancel(request.reason)

    async def _run(self, held: Held) -> None:
        assigned = held.assigned
        error: SageError | None = None
        try:
            if is_sampled(assigned.traceparent):
                await self._perform_traced(held)
            else:
                with use_parent(assigned.traceparent):
                    await self._perform(held)
        except asyncio.CancelledError:
            error = self._why_cancelled(held)
            if isinstance(error, WorkerLost):
                self._end(held, error)
                self._flush()
                raise
        except SageError as raised:
            error = raised
        except Exception as raised:  # a bug in one request ends that request alone
            self.context.log.exception(
                "perform_failed", request_id=assigned.request_id, attempt=assigned.attempt, pool=assigned.pool
            )
            error = Internal(
                f"{type(raised).__name__} in worker {self.context.actor_id}; its log has the rest"
            )
        self._end(held, error)

    async def _perform_traced(self, held: Held) -> None:
        trace = held.trace = PerformTrace(held.assigned, self.context.actor_id)
        with trace.span:
            try:
                await self._perform(held)
            except asyncio.CancelledError:
                trace.fail(self._why_cancelled(held))
                raise
            except SageError as error:
                trace.fail(error)
                raise

    def _flush(self) -> None:
        """Send what was gathered, as no further turn may come."""
        self._frames.flush()
        self._reporter.flush()

    async def _perform(self, held: Held) -> None:
        outlet, frames = held.outlet, self._frames
        events = self.perform(held.assigned)
        try:
            async for event in events:
                kind = type(event)
                if kind is Started:
                    continue
                # An echoed prompt is nothing that was generated.
                if type(event) is Tokens and not event.is_prompt:
                    held.num_tokens += event.num_tokens
                    if held.trace is not None:
                        held.trace.note(event)
                    if not held.has_token:
                        held.has_token = True
                        held.num_cached = event.num_cached
                        self._report(held.assigned.pool, held.key, ReportEvent.FIRST_TOKEN, held=held)
                elif kind is Completed or kind is Failed:
                    self._conclude(held, event)
                    return
                outlet.emit(event)
                if frames.is_blocked:
                    await frames.writable()
        finally:
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()
        raise Internal(f"worker {self.context.actor_id} ended the request without a result")

    def _conclude(self, held: Held, event: Event) -> None:
        """Send the last event and free the slot in the same turn."""
        if type(event) is Failed:
            raise event.error.raised()
        if type(event) is Completed:
            held.num_cached = held.num_cached or event.usage.cached_tokens
            if held.trace is not None:
                held.trace.complete(event)
        held.outlet.emit(event)
        self._release(held, ReportEvent.FINISHED, None)

    def _end(self, held: Held, error: SageError | None) -> None:
        """Send `Failed` where nothing ended the request yet. Idempotent."""
        if held.key not in self._held:
            return
        error = error or Internal(f"worker {self.context.actor_id} ended the request without a result")
        held.outlet.emit(Failed(error=WireError.of(error)))
        is_cancelled = isinstance(error, Cancelled)
        self._release(held, ReportEvent.CANCELLED if is_cancelled else ReportEvent.FAILED, error)

    def _release(self, held: Held, event: ReportEvent, error: SageError | None) -> None:
        del self._held[held.key]
        self._ledger.ended(held.key)
        self._report(held.assigned.pool, held.key, event, held=held, error=error)

    def _on_task_done(self, held: Held) -> None:
        """Covers a task that was cancelled before its first step, whose own code never ran."""
        if held.key in self._held:
            self._end(held, self._why_cancelled(held))
            self._flush()

    def _why_cancelled(self, held: Held) -> SageError:
        """Return what a consumer is told: WorkerLost where it is to continue elsewhere, as this worker stops."""
        if held.is_expired:
            return DeadlineExceeded("the request's budget ran out at its worker")
        if held.cancel_reason is not None:
            return Cancelled(f"the request was cancelled: {held.cancel_reason}")
        return WorkerLost(f"worker {self.context.actor_id} stopped before it was done")

    def _num_tokens(self, key: Key) -> int:
        held = self._held.get(key)
        return 0 if held is None else held.num_tokens

    def _refuse_stale(self, request: Dispatch) -> None:
        """Tell the consumer, out of band: should the true leader dispatch the same attempt, it is run."""
        self.context.log.warning("stale_dispatch_refused", request_id=request.request_id, fence=request.fence)
        error = WireError.of(Unavailable("the scheduler that sent the request is no longer the leader"))
        delta = Delta(
            request_id=request.request_id,
            attempt=request.attempt,
            seq=OUT_OF_BAND,
            event=Failed(error=error),
        )
        self._frames.add(request.reply_to, encode(delta))

    def _report(
        self,
        pool: str,
        key: Key,
        event: ReportEvent,
        *,
        held: Held | None = None,
        error: SageError | None = None,
    ) -> None:
        elapsed = 0.0 if held is None else self.context.clock.now() - held.started
        self._reporter.tell(
            Report(
                worker_id=self.context.actor_id,
                pool=pool,
                request_id=key.request_id,
                attempt=key.attempt,
                event=event,
                num_tokens=0 if held is None else held.num_tokens,
                elapsed_ms=elapsed * 1000,
                error=None if error is None else WireError.of(error),
                num_cached=0 if held is None else held.num_cached,
            )
        )
