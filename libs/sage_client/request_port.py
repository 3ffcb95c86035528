"""Where a process puts requests in and gets their frames back: one subscription for all of them.

Thin: bus and timers become events of `RequestState`, its commands become messages. A frame is decoded once; an event
in order costs two dictionary look-ups and no task.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import structlog

from sage_actor import ChangeKind, Roster, RosterChange
from sage_bus import Bus, BusEvent, Received, Subscription
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
    DeadlineExceeded,
    NotFound,
    SageError,
    SystemClock,
    Unavailable,
    new_id,
)
from sage_telemetry import current_traceparent
from sage_wire import CallHeaders, decode, encode, raw, subjects
from sage_wire.headers import ERROR
from sage_wire.messages import Accepted, Cancel, Delta, Frame, Started, Submit, Targets, WireError, Work

__all__ = ["RequestPort"]

ANSWER_SECONDS: Final = 2.0
"""How long a scheduler may take to say that it holds a request."""

_CLASS_TARGETS: Final = Targets()
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Open:
    """A request without its end: the reader's side, how it is submitted, and what waits for it."""

    stream: RequestStream
    tenant: str
    slo_class: str
    priority: int
    targets: Targets
    route: str
    opened_at: float
    traceparent: str | None
    worker_id: str | None = None
    timer: asyncio.TimerHandle | None = None
    ask: asyncio.Task[None] | None = None

    def stop_timer(self) -> None:
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()

    def stop_asking(self) -> None:
        ask, self.ask = self.ask, None
        if ask is not None and ask is not asyncio.current_task():
            ask.cancel()


class RequestPort:
    """Submits work to pools and follows it to its end. One per process; used from one event loop.

    With a started `roster`, a worker that dies is noticed by its silence there; without one, by the scheduler's word.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        consumer_id: str | None = None,
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
        self._reply_to = subjects.frames(self.consumer_id)
        self._subscription: Subscription | None = None
        self._streams: dict[str, _Open] = {}
        self._by_worker: dict[str, dict[str, _Open]] = {}
        self._started_at = 0.0
        self._leave_roster: Callable[[], None] = lambda: None
        self._asks: set[asyncio.Task[None]] = set()
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
        for opened in list(self._streams.values()):
            opened.stream.cancel("the consumer is closing")
        self._leave_roster()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()
        await asyncio.gather(*self._asks, return_exceptions=True)

    @property
    def num_open(self) -> int:
        """Requests without an end yet."""
        return len(self._streams)

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
        """Submit `work` to `pool` and return its stream; never waits.

        Output lengths are learned by `route`. It is traced under `traceparent`, or under the caller's current span
        where that is None. `budget` bounds the whole request: when it is spent the stream raises DeadlineExceeded and
        whatever runs is cancelled. Every failure arrives through the stream, e.g. NotFound, Overloaded with
        `retry_after`, Unavailable where no scheduler answers. Raises Conflict where `request_id` is open here already,
        and Unavailable before `start` or after `close`.
        """
        if self._subscription is None:
            raise Unavailable("the request port is not started, or closed")
        request_id = request_id or new_id("req")
        if request_id in self._streams:
            raise Conflict(f"request {request_id} is open already")
        now = self._clock.now()
        seconds = budget.remaining if isinstance(budget, Budget) else budget
        rules = self._rules if max_attempts is None else replace(self._rules, max_attempts=max_attempts)
        state = RequestState(work, deadline=now + seconds, rules=rules, jitter=self._jitter)
        stream = RequestStream(request_id, pool, state, self._on_cancel)
        if traceparent is None:
            traceparent = current_traceparent()
        opened = self._streams[request_id] = _Open(
            stream, tenant, slo_class, priority, targets, route, now, traceparent
        )
        self._apply(opened, state.handle(Opened(), now), now)
        return stream

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
        streams = self._streams
        for delta in frame.deltas:
            opened = streams.get(delta.request_id)
            if opened is None:
                self._on_stray(delta)
                continue
            commands = opened.stream.state.handle(delta, now)
            if commands:
                self._apply(opened, commands, now)
            if type(delta.event) is Started:
                self._note_worker(opened)

    def _on_stray(self, delta: Delta) -> None:
        """A request that is over here has started somewhere: free its slot."""
        event = delta.event
        if type(event) is Started:
            cancel = Cancel(request_id=delta.request_id, reason="nobody waits for it any more")
            self._tell(subjects.worker_cancel(event.worker_id), encode(cancel))

    def _on_bus_event(self, event: BusEvent, _: str) -> None:
        if event is BusEvent.RECONNECTED or event is BusEvent.SLOW_CONSUMER:
            self._handle_for(list(self._streams.values()), Resynchronised())

    def _on_roster_change(self, change: RosterChange) -> None:
        if change.kind is not ChangeKind.DOWN:
            return
        actor_id = change.announcement.actor_id
        if change.announcement.kind == "scheduler":
            self._handle_for(list(self._streams.values()), SchedulerGone(actor_id))
        else:
            held = list(self._by_worker.get(actor_id, {}).values())
            self._handle_for(held, WorkerGone(actor_id, change.is_lost))

    def _on_cancel(self, stream: RequestStream, reason: str) -> None:
        opened = self._streams.get(stream.request_id)
        if opened is not None and opened.stream is stream:
            self._handle_for([opened], ReaderCancelled(reason))

    def _handle_for(self, requests: Sequence[_Open], event: Input) -> None:
        now = self._clock.now()
        for opened in requests:
            self._apply(opened, opened.stream.state.handle(event, now), now)

    # What goes out.

    def _apply(self, opened: _Open, commands: Sequence[Command], now: float) -> None:
        for command in commands:
            execute = self._execute.get(type(command))
            if execute is None:
                opened.stream.push(command)  # type: ignore[arg-type]  # what is no command of ours is an event
            else:
                execute(opened, command, now)
        self._note_worker(opened)

    def _send_submit(self, opened: _Open, command: SendSubmit, now: float) -> None:
        stream = opened.stream
        if command.attempt:
            self.num_resubmitted += 1
            log.info(
                "request_resubmitted",
                request_id=stream.request_id,
                attempt=command.attempt,
                pool=stream.pool,
            )
        submit = Submit(
            request_id=stream.request_id,
            attempt=command.attempt,
            pool=stream.pool,
            reply_to=self._reply_to,
            work=raw(command.work),
            size=measure(command.work),
            tenant=opened.tenant,
            slo_class=opened.slo_class,
            priority=opened.priority,
            targets=_targets_now(opened, now),
            route=opened.route,
        )
        task = asyncio.create_task(
            self._ask(opened, submit, stream.state.deadline - now),
            name=f"submit {stream.request_id}/{command.attempt}",
        )
        opened.stop_asking()
        opened.ask = task
        self._asks.add(task)
        task.add_done_callback(self._asks.discard)

    async def _ask(self, opened: _Open, submit: Submit, seconds: float) -> None:
        event: Answered | Refused
        try:
            event = Answered(submit.attempt, await self._answer(submit, seconds, opened.traceparent))
        except SageError as error:
            event = Refused(submit.attempt, error)
        if self._streams.get(submit.request_id) is opened:
            self._handle_for([opened], event)

    async def _answer(self, submit: Submit, seconds: float, traceparent: str | None) -> Accepted:
        headers = CallHeaders(
            call_id=f"{submit.request_id}-{submit.attempt}",
            budget_ms=max(0, int(seconds * 1000)),
            traceparent=traceparent,
        )
        try:
            reply = await self._bus.request(
                subjects.pool_submit(submit.pool),
                encode(submit),
                timeout=max(0.001, min(seconds, ANSWER_SECONDS)),
                headers=headers.encode(),
            )
        except DeadlineExceeded:
            raise Unavailable(f"the scheduler of {submit.pool!r} does not answer") from None
        except Unavailable as error:
            if type(error) is Unavailable and (served := self._served_without(submit.pool)) is not None:
                known = ", ".join(served) or "nothing"
                message = f"nothing serves {submit.pool!r}; served now: {known}"
                raise NotFound(message, param="model") from None
            raise type(error)(f"no scheduler serves {submit.pool!r}: {error.message}") from None
        if ERROR in reply.headers:
            raise decode(WireError, reply.payload).raised()
        return decode(Accepted, reply.payload)

    def _served_without(self, pool: str) -> list[str] | None:
        """Return what is served where it is known by now that `pool` is not; else None."""
        if self._roster is None or self._clock.now() - self._started_at < self._rules.discovery:
            return None
        served = {model.name for actor in self._roster.actors.values() for model in actor.models}
        return None if pool in served else sorted(served)

    def _send_cancel(self, opened: _Open, command: SendCancel, _: float) -> None:
        stream = opened.stream
        cancel = encode(
            Cancel(request_id=stream.request_id, attempt=command.attempt, reason=command.reason[:200])
        )
        self._tell(subjects.pool_cancel(stream.pool), cancel)
        if command.worker_id is not None:
            self._tell(subjects.worker_cancel(command.worker_id), cancel)

    def _tell(self, subject: str, payload: bytes) -> None:
        try:
            self._bus.publish(subject, payload)
        except SageError as error:
            # The budget that travelled with the request ends it there.
            log.warning("cancel_not_sent", subject=subject, error=error.message)

    def _set_timer(self, opened: _Open, command: SetTimer, now: float) -> None:
        opened.stop_timer()
        opened.timer = asyncio.get_running_loop().call_later(
            max(0.0, command.at - now), self._on_timer, opened
        )

    def _on_timer(self, opened: _Open) -> None:
        opened.timer = None
        self._handle_for([opened], Timer())

    def _probe(self, opened: _Open, command: Probe, _: float) -> None:
        stream, worker_id = opened.stream, command.worker_id
        announcement = None if self._roster is None else self._roster.actors.get(worker_id)
        is_held = None
        # An announcement tells something only if there has been one since the request fell silent.
        if announcement is not None and announcement.interval_ms / 1000 < self._rules.silence:
            is_held = f"{stream.request_id}/{stream.attempt}" in announcement.in_flight
        self._handle_for([opened], WorkerListed(worker_id, is_held))

    def _finish(self, opened: _Open, command: Finish, _: float) -> None:
        stream = opened.stream
        del self._streams[stream.request_id]
        opened.stop_timer()
        opened.stop_asking()
        self._forget_worker(opened)
        stream.finish(command.error)

    # Who runs what, so that a worker's end costs only a look at its own requests.

    def _note_worker(self, opened: _Open) -> None:
        worker_id = opened.stream.state.worker_id
        if worker_id == opened.worker_id or opened.stream.is_finished:
            return
        self._forget_worker(opened)
        opened.worker_id = worker_id
        if worker_id is not None:
            self._by_worker.setdefault(worker_id, {})[opened.stream.request_id] = opened

    def _forget_worker(self, opened: _Open) -> None:
        worker_id, opened.worker_id = opened.worker_id, None
        held = self._by_worker.get(worker_id) if worker_id is not None else None
        if held is not None and worker_id is not None:
            held.pop(opened.stream.request_id, None)
            if not held:
                del self._by_worker[worker_id]


def _targets_now(opened: _Open, now: float) -> Targets:
    """Return the targets of the attempt that begins now.

    Their clock goes on over attempts, until something was delivered: then it is the next piece that is waited for.
    """
    if opened.stream.state.has_delivered:
        return opened.targets
    elapsed_ms = (now - opened.opened_at) * 1000
    if elapsed_ms <= 0:
        return opened.targets
    return msgspec.structs.replace(opened.targets, started_ago_ms=opened.targets.started_ago_ms + elapsed_ms)
