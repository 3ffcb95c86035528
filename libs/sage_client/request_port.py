"""Where a process puts requests in and gets their frames back: one subscription for all of them.

Thin: bus and timers become events of `RequestState`, its commands become messages. A frame is decoded once; an event
in order costs two dictionary look-ups and no task.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import msgspec
import structlog

from sage_actor import Alarms, ChangeKind, Roster, RosterChange
from sage_bus import Bus, BusEvent, Gathering, Received, Subscription
from sage_client.attempt_spans import begin_attempt, end_attempt
from sage_client.open_request import OpenRequest, RequestSink, Terms
from sage_client.request_events import (
    Answered,
    Command,
    Finish,
    Input,
    Opened,
    Probe,
    ReaderCancelled,
    Refused,
    Resynchronised,
    SchedulerGone,
    SendCancel,
    SendSubmit,
    SetTimer,
    Timer,
    WorkerGone,
    WorkerListed,
)
from sage_client.request_state import RequestState, RetryRules
from sage_client.request_stream import RequestStream
from sage_client.work_size import measure
from sage_core import (
    BadRequest,
    Budget,
    Clock,
    Conflict,
    NotFound,
    SageError,
    SystemClock,
    Unavailable,
    new_id,
)
from sage_telemetry import current_traceparent, is_sampled
from sage_wire import decode, encode, raw, subjects
from sage_wire.messages import Answer, Cancel, Delta, Event, Frame, Started, Submit, Targets, Work
from sage_wire.roles import Role

__all__ = ["RequestPort"]

T = TypeVar("T")

SUBMIT_WAIT: Final = 0.5
"""Seconds that a submit may wait for a connection: after that its budget would be wrong, and it is made anew."""

_CLASS_TARGETS: Final = Targets()
_Sent = tuple[str, int]
"""The id of a request and the attempt that was submitted. The id alone: the bus keeps it for seconds after the end."""
log = structlog.get_logger(__name__)


class _Nobody:
    """The sink of a request that has ended."""

    def deliver(self, events: list[Event]) -> None:
        """Nothing comes any more."""

    def finish(self, error: SageError | None) -> None:
        """Nothing comes any more."""


_NOBODY: Final = _Nobody()


class RequestPort:
    """Submits work to pools and follows it to its end. One per process; used from one event loop.

    With a started `roster`, a worker that dies is noticed by its silence there; without one, by the scheduler's word.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        consumer_id: str | None = None,
        role: Role = Role.OPERATOR,
        clock: Clock | None = None,
        roster: Roster | None = None,
        rules: RetryRules | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.consumer_id = consumer_id or new_id("consumer")
        self.num_frames = 0
        self.num_malformed_frames = 0
        self.num_resubmitted = 0
        self._bus = bus
        self._clock = clock or SystemClock()
        self._roster = roster
        self._rules = rules or RetryRules()
        self._jitter = jitter
        self._reply_to = subjects.frames(self.consumer_id, role)
        self._subscription: Subscription | None = None
        self._requests: dict[str, OpenRequest] = {}
        self._by_worker: dict[str, dict[str, OpenRequest]] = {}
        self._known_pools: set[str] = set()
        self._started_at = 0.0
        self._leave_roster: Callable[[], None] = lambda: None
        self._submits = Gathering[_Sent](
            bus,
            "submits",
            refused=self._on_refused,
            unheard=self._on_unheard,
            is_wanted=self._is_awaited,
            max_wait=SUBMIT_WAIT,
        )
        self._alarms = Alarms[OpenRequest](self._clock, self._on_alarm)
        self._execute: dict[type, Callable[..., None]] = {
            SendSubmit: self._send_submit,
            SendCancel: self._send_cancel,
            SetTimer: self._set_timer,
            Probe: self._probe,
            Finish: self._finish,
        }

    async def start(self) -> None:
        """Listen for frames. Nothing may be submitted before it returned."""
        self._subscription = await self._bus.subscribe(self._reply_to, self._on_frame)
        self._bus.on_event(self._on_bus_event)
        self._started_at = self._clock.now()
        if self._roster is not None:
            self._leave_roster = self._roster.subscribe(self._on_roster_change)

    async def close(self) -> None:
        """Cancel every open request, stop listening. Idempotent."""
        for request in list(self._requests.values()):
            request.cancel("the consumer is closing")
        self._leave_roster()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()
        self._alarms.close()

    @property
    def num_open(self) -> int:
        """Requests without an end yet."""
        return len(self._requests)

    def submit(
        self,
        pool: str,
        work: Work,
        *,
        budget: Budget | float,
        request_id: str | None = None,
        tenant: str = "default",
        slo_class: str = "interactive",
        priority: int = 0,
        targets: Targets = _CLASS_TARGETS,
        route: str = "",
        traceparent: str | None = None,
        max_attempts: int | None = None,
    ) -> RequestStream:
        """Open a request and return its events as a stream; see `open`. Every failure arrives through the stream."""
        return RequestStream(
            lambda sink: self.open(
                pool,
                work,
                sink,
                budget=budget,
                request_id=request_id,
                tenant=tenant,
                slo_class=slo_class,
                priority=priority,
                targets=targets,
                route=route,
                traceparent=traceparent,
                max_attempts=max_attempts,
            )
        )

    def open(
        self,
        pool: str,
        work: Work,
        sink: RequestSink,
        *,
        budget: Budget | float,
        request_id: str | None = None,
        tenant: str = "default",
        slo_class: str = "interactive",
        priority: int = 0,
        targets: Targets = _CLASS_TARGETS,
        route: str = "",
        traceparent: str | None = None,
        max_attempts: int | None = None,
    ) -> OpenRequest:
        """Submit `work` to `pool`, and hand what comes of it to `sink`; never waits and makes no task.

        Output lengths are learned by `route`. It is traced under `traceparent`, or under the caller's current span
        where that is None. `budget` bounds the whole request: when it is spent the sink gets DeadlineExceeded and
        whatever runs is cancelled. Every failure arrives at the sink, e.g. NotFound, Overloaded with `retry_after`,
        Unavailable where no scheduler answers. Raises Conflict where `request_id` is open here already, and
        Unavailable before `start` or after `close`.
        """
        if self._subscription is None:
            raise Unavailable("the request port is not started, or closed")
        request_id = request_id or new_id("req")
        if request_id in self._requests:
            raise Conflict(f"request {request_id} is open already")
        now = self._clock.now()
        seconds = budget.remaining if isinstance(budget, Budget) else budget
        rules = self._rules if max_attempts is None else replace(self._rules, max_attempts=max_attempts)
        state = RequestState(work, deadline=now + seconds, rules=rules, jitter=self._jitter)
        if traceparent is None:
            traceparent = current_traceparent()
        terms = Terms(tenant, slo_class, priority, targets, route, traceparent)
        request = OpenRequest(request_id, pool, state, sink, terms, now, self._on_cancel)
        self._requests[request_id] = request
        self._apply(request, state.handle(Opened(), now), now)
        return request

    # What comes in.

    def _on_frame(self, received: Received) -> None:
        try:
            frame = decode(Frame, received.payload)
        except BadRequest as error:
            self.num_malformed_frames += 1
            log.warning("frame_malformed", error=error.message, num_bytes=len(received.payload))
            return
        self.num_frames += 1
        now = self._clock.now()
        requests = self._requests
        touched: list[OpenRequest] = []
        for delta in frame.deltas:
            request = requests.get(delta.request_id)
            if request is None:
                self._on_stray(delta)
                continue
            commands = request.state.handle(delta, now)
            if commands:
                if not request.pending:
                    touched.append(request)
                self._apply(request, commands, now)
        for request in touched:
            self._deliver(request)
        for answer in frame.answers:
            self._on_answer(answer)

    def _on_stray(self, delta: Delta) -> None:
        """A request that is over here has started somewhere: free its slot."""
        event = delta.event
        if type(event) is Started:
            cancel = Cancel(request_id=delta.request_id, reason="nobody waits for it any more")
            self._tell(subjects.worker_cancel(event.worker_id), encode(cancel))

    def _on_answer(self, answer: Answer) -> None:
        request = self._requests.get(answer.request_id)
        if request is None:
            return
        if answer.error is None:
            self._handle_for([request], Answered(answer.attempt, answer.scheduler_id))
        else:
            self._handle_for([request], Refused(answer.attempt, answer.error.raised()))

    def _on_bus_event(self, event: BusEvent, _: str) -> None:
        if event is BusEvent.RECONNECTED or event is BusEvent.SLOW_CONSUMER:
            self._handle_for(list(self._requests.values()), Resynchronised())

    def _on_roster_change(self, change: RosterChange) -> None:
        if change.kind is not ChangeKind.DOWN:
            return
        actor_id = change.announcement.actor_id
        if change.announcement.kind == "scheduler":
            self._handle_for(list(self._requests.values()), SchedulerGone(actor_id))
        else:
            held = list(self._by_worker.get(actor_id, {}).values())
            self._handle_for(held, WorkerGone(actor_id, change.is_lost))

    def _on_cancel(self, request: OpenRequest, reason: str) -> None:
        self._handle_for([request], ReaderCancelled(reason))

    def _handle_for(self, requests: Sequence[OpenRequest], event: Input) -> None:
        now = self._clock.now()
        for request in requests:
            self._apply(request, request.state.handle(event, now), now)

    # What goes out.

    def _apply(self, request: OpenRequest, commands: Sequence[Command], now: float) -> None:
        for command in commands:
            execute = self._execute.get(type(command))
            if execute is None:
                request.pending.append(command)  # type: ignore[arg-type]  # what is no command of ours is an event
            else:
                execute(request, command, now)
        if request.state.worker_id != request.noted_worker:
            self._note_worker(request)

    def _deliver(self, request: OpenRequest) -> None:
        """Hand over what a frame brought. The end, where it was among that, has been noted by then."""
        events, request.pending = request.pending, []
        if not events:
            return
        self._tell_sink(request, request.sink.deliver, events)

    def _tell_sink(self, request: OpenRequest, tell: Callable[[T], None], what: T) -> None:
        try:
            tell(what)
        except Exception as error:  # a bug of one request's reader must not cost the others their frames
            log.error("sink_failed", request_id=request.request_id, pool=request.pool, exc_info=error)
            request.cancel("its reader failed")

    def _send_submit(self, request: OpenRequest, command: SendSubmit, now: float) -> None:
        if command.attempt:
            self.num_resubmitted += 1
            log.info(
                "request_resubmitted",
                request_id=request.request_id,
                attempt=command.attempt,
                pool=request.pool,
            )
        terms = request.terms
        traceparent = terms.traceparent
        if is_sampled(traceparent):
            traceparent = begin_attempt(request, command.attempt, command.work, now)
        submit = Submit(
            request_id=request.request_id,
            attempt=command.attempt,
            pool=request.pool,
            reply_to=self._reply_to,
            work=raw(command.work),
            size=measure(command.work),
            tenant=terms.tenant,
            slo_class=terms.slo_class,
            priority=terms.priority,
            targets=_targets_now(request, now),
            route=terms.route,
            budget_ms=max(1, int((request.state.deadline - now) * 1000)),
            # A trace that begins here is a kind of text that no message takes.
            traceparent=None if traceparent is None else str(traceparent),
        )
        self._submits.add(
            subjects.pool_submit(request.pool), encode(submit), (request.request_id, command.attempt)
        )

    def _is_awaited(self, note: _Sent) -> bool:
        request_id, attempt = note
        request = self._requests.get(request_id)
        return request is not None and request.attempt == attempt

    def _on_refused(self, sent: list[_Sent], error: SageError) -> None:
        for request_id, attempt in sent:
            request = self._requests.get(request_id)
            if request is not None:
                self._handle_for([request], Refused(attempt, error))

    def _on_unheard(self, sent: list[_Sent]) -> None:
        """Nobody leads the pool, or the bus was away for too long."""
        for request_id, attempt in sent:
            request = self._requests.get(request_id)
            if request is None:
                continue
            error: SageError
            if (served := self._served_without(request.pool)) is not None:
                known = ", ".join(served) or "nothing"
                error = NotFound(f"nothing serves {request.pool!r}; served now: {known}", param="model")
            else:
                error = Unavailable(f"no scheduler serves {request.pool!r}")
            self._handle_for([request], Refused(attempt, error))

    def _served_without(self, pool: str) -> list[str] | None:
        """Return what is served where it is known by now that `pool` is not; else None.

        A pool that has served is known: its workers may be starved, or start again.
        """
        if pool in self._known_pools:
            return None
        if self._roster is None or self._clock.now() - self._started_at < self._rules.discovery:
            return None
        served = {model.name for actor in self._roster.actors.values() for model in actor.models}
        return None if pool in served else sorted(served)

    def _send_cancel(self, request: OpenRequest, command: SendCancel, _: float) -> None:
        cancel = encode(
            Cancel(request_id=request.request_id, attempt=command.attempt, reason=command.reason[:200])
        )
        self._tell(subjects.pool_cancel(request.pool), cancel)
        if command.worker_id is not None:
            self._tell(subjects.worker_cancel(command.worker_id), cancel)

    def _tell(self, subject: str, payload: bytes) -> None:
        try:
            self._bus.publish(subject, payload)
        except SageError as error:
            # The budget that travelled with the request ends it there.
            log.warning("cancel_not_sent", subject=subject, error=error.message)

    def _set_timer(self, request: OpenRequest, command: SetTimer, _: float) -> None:
        self._alarms.set(request, command.at)

    def _on_alarm(self, request: OpenRequest) -> None:
        self._handle_for([request], Timer())

    def _probe(self, request: OpenRequest, command: Probe, _: float) -> None:
        worker_id = command.worker_id
        announcement = None if self._roster is None else self._roster.actors.get(worker_id)
        is_held = None
        # An announcement tells something only if there has been one since the request fell silent.
        if announcement is not None and announcement.interval_ms / 1000 < self._rules.silence:
            is_held = f"{request.request_id}/{request.attempt}" in announcement.in_flight
        self._handle_for([request], WorkerListed(worker_id, is_held))

    def _finish(self, request: OpenRequest, command: Finish, now: float) -> None:
        # Before the sink is told, which may end the span that this one is in.
        if request.span is not None:
            end_attempt(request, command.error, now)
        del self._requests[request.request_id]
        request.is_finished = True
        self._alarms.forget(request)
        self._forget_worker(request)
        self._deliver(request)
        # A sink that knows its request is not kept alive by it.
        sink, request.sink = request.sink, _NOBODY
        self._tell_sink(request, sink.finish, command.error)

    # Who runs what, so that a worker's end costs only a look at its own requests.

    def _note_worker(self, request: OpenRequest) -> None:
        worker_id = request.state.worker_id
        if request.is_finished:
            return
        self._forget_worker(request)
        request.noted_worker = worker_id
        if worker_id is not None:
            self._known_pools.add(request.pool)
            self._by_worker.setdefault(worker_id, {})[request.request_id] = request

    def _forget_worker(self, request: OpenRequest) -> None:
        worker_id, request.noted_worker = request.noted_worker, None
        held = self._by_worker.get(worker_id) if worker_id is not None else None
        if held is not None and worker_id is not None:
            held.pop(request.request_id, None)
            if not held:
                del self._by_worker[worker_id]


def _targets_now(request: OpenRequest, now: float) -> Targets:
    """Return the targets of the attempt that begins now.

    Their clock goes on over attempts, until something was delivered: then it is the next piece that is waited for.
    """
    targets = request.terms.targets
    if request.state.has_delivered:
        return targets
    elapsed_ms = (now - request.opened_at) * 1000
    if elapsed_ms <= 0:
        return targets
    return msgspec.structs.replace(targets, started_ago_ms=targets.started_ago_ms + elapsed_ms)
