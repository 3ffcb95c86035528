"""Where calls arrive and are served: headers in the callback, everything else in tasks bounded by slots.

accept (bus callback)  immediate handler → run it; header Sage-Cancel → end that call; mailbox full → Overloaded;
                       else wait
pump                   oldest waiting call whose lane has a slot; spent budget → dropped unrun
serve (one task)       decode body → handler under its budget → reply, error reply, or crash
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import structlog

from sage_actor.calls import Call, enter_call
from sage_actor.handlers import HandlerSpec
from sage_actor.mailbox import Lane, Mailbox
from sage_bus.bus import Bus, Received
from sage_core import (
    Clock,
    DeadlineExceeded,
    Internal,
    LimitExceeded,
    Overloaded,
    SageError,
)
from sage_telemetry import (
    SpanHandle,
    describe_message,
    get_logger,
    is_sampled,
    metrics,
    semconv,
    start_span,
    use_parent,
)
from sage_wire import CallHeaders, decode, encode
from sage_wire.headers import CANCEL, ERROR
from sage_wire.messages import WireError

__all__ = ["Desk", "Letter", "Outcome", "Route"]

EMPTY_MAP = b"\x80"
log = get_logger()

# Looking a label up costs as much as counting, so the counters of a verb are kept.
_calls = cache(
    metrics.counter("sage_actor_calls", "Calls by what became of them.", ["verb", "outcome"]).labels
)
_seconds = cache(metrics.histogram("sage_actor_call_seconds", "Time a handler ran.", ["verb"]).labels)
_waited = cache(
    metrics.histogram("sage_actor_wait_seconds", "Time a call waited in the mailbox.", ["verb"]).labels
)


@dataclass(frozen=True, slots=True)
class Route:
    """A handler with the lane it queues in and the bus it answers on."""

    spec: HandlerSpec
    bus: Bus
    lane: Lane[Letter]


@dataclass(slots=True, eq=False)
class Letter:
    """One call between arrival and answer."""

    call: Call
    route: Route
    received: Received
    arrived_at: float
    task: asyncio.Task[None] | None = None
    is_unwanted: bool = False
    """Its caller has gone: nothing is replied."""
    verdict: SageError | None = None
    """Why the runtime ended it; becomes the reply."""

    @property
    def verb(self) -> str:
        """What was asked."""
        return self.route.spec.verb


@dataclass(slots=True)
class Outcome:
    """Told of what handlers do."""

    succeeded: Callable[[], None] = field(default=lambda: None)
    crashed: Callable[[BaseException], None] = field(default=lambda _: None)


class Desk:
    """A mailbox, its slots and the calls in them. While no target is attached, calls wait."""

    def __init__(
        self,
        *,
        max_waiting: int,
        max_slots: int,
        default_budget: float,
        clock: Clock,
        context: Context,
        outcome: Outcome,
    ) -> None:
        self._mailbox: Mailbox[Letter] = Mailbox(max_waiting, max_slots)
        self._shared_lane = self._mailbox.lane()
        self._default_budget = default_budget
        self._clock = clock
        self._context = context
        self._outcome = outcome
        self._target: object | None = None
        self._letters: dict[str, Letter] = {}
        self._early: deque[tuple[Route, Received]] = deque()
        self._max_early = max_waiting
        self._running: dict[asyncio.Task[None], Letter] = {}
        self._next_sweep = 0.0
        self._next_complaint = 0.0
        self._num_refused = 0
        self._mean_seconds = 0.01
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_running(self) -> int:
        """Calls whose handler runs."""
        return self._mailbox.num_running

    @property
    def num_waiting(self) -> int:
        """Calls in the mailbox."""
        return self._mailbox.num_waiting

    def route(self, spec: HandlerSpec, bus: Bus) -> Route:
        """Return the route for `spec`, with a lane of its own where it has a slot limit."""
        lane = self._shared_lane if spec.max_slots is None else self._mailbox.lane(spec.max_slots)
        return Route(spec, bus, lane)

    def attach(self, target: object) -> None:
        """Serve with `target` from now on, beginning with what waits."""
        self._target = target
        while self._early and self._target is not None:
            self._handle(*self._early.popleft(), self._target)
        self._pump()

    def detach(self) -> None:
        """Start no more handlers; what arrives waits."""
        self._target = None

    async def wait_idle(self) -> None:
        """Return when nothing waits and nothing runs."""
        await self._idle.wait()

    def accept(self, route: Route, received: Received) -> None:
        """Take a message from the bus: handle, cancel, refuse or enqueue. Never waits, never raises."""
        if route.spec.is_immediate:
            if self._target is not None:
                self._handle(route, received, self._target)
            elif len(self._early) < self._max_early:
                self._early.append((route, received))
            else:
                _calls(route.spec.verb, "refused_overloaded").inc()
            return
        cancelled = received.headers.get(CANCEL)
        if cancelled is not None:
            self._cancel(cancelled)
            return
        now = self._clock.now()
        headers = CallHeaders.decode(received.headers)
        call = Call(
            subject=received.subject,
            call_id=headers.call_id or "",
            budget=headers.budget(self._default_budget, self._clock),
            traceparent=headers.traceparent,
        )
        letter = Letter(call, route, received, now)
        if self._mailbox.is_full:
            self._drop_spent(now)
        if not self._mailbox.admit(route.lane, letter):
            self._refuse(letter, self._overloaded(now))
            return
        self._idle.clear()
        if call.call_id:
            self._letters.setdefault(call.call_id, letter)
        self._pump()

    def end_running(self, verdict: SageError) -> list[asyncio.Task[None]]:
        """Cancel every running handler; its caller gets `verdict`. Returns the tasks, to be waited for."""
        for task, letter in self._running.items():
            if letter.verdict is None:
                letter.verdict = verdict
                task.cancel()
        return list(self._running)

    def refuse_waiting(self, verdict: SageError) -> None:
        """Answer everything that waits with `verdict`."""
        self._early.clear()
        for letter in self._mailbox.remove(lambda _: True):
            self._refuse(letter, verdict)
        self._note_idle()

    def _handle(self, route: Route, received: Received, target: object) -> None:
        """Run an immediate handler, to its end."""
        spec = route.spec
        started_at = self._clock.now()
        outcome = "ok"
        try:
            getattr(target, spec.method)(decode(spec.request_type, received.payload))
        except SageError as error:
            outcome = error.code
            log.warning("message_refused", verb=spec.verb, code=error.code, reason=error.message)
        except Exception as error:  # the runtime's seam: a bug in a handler ends this life, not the process
            outcome = "crashed"
            log.error("handler_crashed", verb=spec.verb, exc_info=error)
            self._outcome.crashed(error)
        else:
            self._outcome.succeeded()
        _calls(spec.verb, outcome).inc()
        _seconds(spec.verb).observe(self._clock.now() - started_at)

    def _pump(self) -> None:
        while self._target is not None and (taken := self._mailbox.take()) is not None:
            lane, letter = taken
            if letter.call.budget.is_spent:
                self._mailbox.release(lane)
                self._refuse(letter, _spent(letter))
                continue
            loop = asyncio.get_running_loop()
            task = loop.create_task(
                self._serve(letter, self._target), name=f"handle {letter.verb}", context=self._context.copy()
            )
            letter.task = task
            self._running[task] = letter
            task.add_done_callback(self._served)
        self._note_idle()

    def _served(self, task: asyncio.Task[None]) -> None:
        letter = self._running.pop(task)
        self._forget(letter)
        self._mailbox.release(letter.route.lane)
        self._pump()

    async def _serve(self, letter: Letter, target: object) -> None:
        started_at = self._clock.now()
        outcome = "ok"
        try:
            payload = await self._perform(letter, target, started_at - letter.arrived_at)
        except SageError as error:
            outcome = error.code
            self._reply_error(letter, error)
        except asyncio.CancelledError as error:
            if letter.is_unwanted:
                outcome = "cancelled"
            elif letter.verdict is not None:
                outcome = letter.verdict.code
                self._reply_error(letter, letter.verdict)
            else:
                # Nobody ended this task, so the handler awaited something that was cancelled elsewhere.
                outcome = "crashed"
                self._crash(letter, error)
        except Exception as error:  # the runtime's seam: a bug in a handler ends this life, not the process
            outcome = "crashed"
            self._crash(letter, error)
        else:
            self._reply(letter, payload)
            self._outcome.succeeded()
        finally:
            elapsed = self._clock.now() - started_at
            self._mean_seconds += 0.1 * (elapsed - self._mean_seconds)
            _calls(letter.verb, outcome).inc()
            _seconds(letter.verb).observe(elapsed)
            _waited(letter.verb).observe(started_at - letter.arrived_at)

    async def _perform(self, letter: Letter, target: object, waited: float) -> bytes:
        """Run the handler under its budget and return the encoded reply."""
        spec = letter.route.spec
        enter_call(letter.call)
        structlog.contextvars.bind_contextvars(verb=letter.verb, call_id=letter.call.call_id)
        with use_parent(letter.call.traceparent), _span(letter) as span:
            if span.is_recording:
                span.set(semconv.MAILBOX_MS, waited * 1000)
            request = decode(spec.request_type, letter.received.payload)
            handler: Any = getattr(target, spec.method)
            limit = asyncio.timeout(letter.call.budget.remaining)
            try:
                async with limit:
                    reply = await handler(request)
            except TimeoutError:
                if limit.expired():
                    raise _spent(letter) from None
                raise
            return EMPTY_MAP if reply is None else encode(reply)

    def _crash(self, letter: Letter, error: BaseException) -> None:
        self._reply_error(
            letter,
            Internal(f"{letter.verb} failed with {type(error).__name__}; the actor's log has the cause"),
        )
        log.error("handler_crashed", verb=letter.verb, call_id=letter.call.call_id, exc_info=error)
        self._outcome.crashed(error)

    def _cancel(self, call_id: str) -> None:
        letter = self._letters.get(call_id)
        if letter is None or letter.is_unwanted:
            return
        letter.is_unwanted = True
        if letter.task is not None:
            letter.task.cancel()
            return
        self._mailbox.remove(lambda waiting: waiting is letter)
        self._forget(letter)
        _calls(letter.verb, "cancelled").inc()
        self._note_idle()

    def _overloaded(self, now: float) -> Overloaded:
        self._num_refused += 1
        if now >= self._next_complaint:
            log.warning("calls_refused", num_refused=self._num_refused, num_waiting=self.num_waiting)
            self._next_complaint, self._num_refused = now + 1.0, 0
        seconds = self._mean_seconds * self.num_waiting / self._mailbox.max_slots
        return Overloaded("the actor's mailbox is full", retry_after=round(min(30.0, max(0.05, seconds)), 3))

    def _drop_spent(self, now: float) -> None:
        # One pass over the mailbox per 50 ms at most, however many messages are being refused.
        if now < self._next_sweep:
            return
        self._next_sweep = now + 0.05
        for letter in self._mailbox.remove(lambda waiting: waiting.call.budget.is_spent):
            self._refuse(letter, _spent(letter))

    def _refuse(self, letter: Letter, error: SageError) -> None:
        self._forget(letter)
        _calls(letter.verb, f"refused_{error.code}").inc()
        self._reply_error(letter, error)

    def _forget(self, letter: Letter) -> None:
        call_id = letter.call.call_id
        if call_id and self._letters.get(call_id) is letter:
            del self._letters[call_id]

    def _note_idle(self) -> None:
        if self._mailbox.is_idle:
            self._idle.set()

    def _reply(self, letter: Letter, payload: bytes) -> None:
        if letter.received.reply is None:
            return
        try:
            letter.route.bus.publish(letter.received.reply, payload)
        except LimitExceeded as error:
            self._reply_error(letter, error)
        except SageError as error:
            log.warning("reply_lost", verb=letter.verb, call_id=letter.call.call_id, error=error.message)

    def _reply_error(self, letter: Letter, error: SageError) -> None:
        if letter.received.reply is None:
            return
        try:
            letter.route.bus.publish(letter.received.reply, encode(WireError.of(error)), {ERROR: "1"})
        except SageError as failure:
            log.warning("reply_lost", verb=letter.verb, call_id=letter.call.call_id, error=failure.message)


def _spent(letter: Letter) -> DeadlineExceeded:
    return DeadlineExceeded(f"{letter.verb} did not finish within its budget")


def _span(letter: Letter) -> SpanHandle:
    """One span per sampled ask; what is told is part of its sender's span."""
    call = letter.call
    if letter.received.reply is None or not is_sampled(call.traceparent):
        return SpanHandle(None, call.traceparent)
    return start_span(
        f"{semconv.SPAN_HANDLE} {letter.verb}",
        parent=call.traceparent,
        kind="server",
        attributes={
            **describe_message(semconv.SPAN_HANDLE, semconv.OPERATION_TYPE_PROCESS, call.subject),
            semconv.CALL_VERB: letter.verb,
            semconv.MESSAGING_MESSAGE_BODY_SIZE: len(letter.received.payload),
        },
    )
