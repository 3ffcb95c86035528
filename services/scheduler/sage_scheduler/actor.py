"""The scheduler actor: bus to desk, desk to bus. All decisions are the desk's."""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar

from sage_actor import (
    Actor,
    ActorContext,
    ChangeKind,
    Presence,
    Roster,
    RosterChange,
    current_call,
    handles,
)
from sage_bus import BusEvent
from sage_core import NotFound, SageError, Unavailable
from sage_policy.least_outstanding import RECONCILE_AFTER
from sage_scheduler.desk import ArmTimer, Outgoing, SchedulingDesk, SendCancel, SendDispatch, SendFailure
from sage_scheduler.metrics import DECISIONS, HELD, QUEUE_SECONDS
from sage_scheduler.settings import SchedulerSettings
from sage_telemetry import is_sampled, record_span, semconv
from sage_wire import CallHeaders, encode, subjects
from sage_wire.messages import (
    Accepted,
    Announcement,
    Cancel,
    FindReceipt,
    Frame,
    Message,
    Receipt,
    Report,
    Submit,
)

__all__ = ["SchedulerActor"]

RECONCILE_INTERVAL = 1.0
"""Seconds between two comparisons of what was dispatched with what workers list."""


class SchedulerActor(Actor):
    """Serves every pool. Its state is soft: a fresh one learns it from the workers' announcements."""

    kind: ClassVar[str] = "scheduler"

    def __init__(self, context: ActorContext, settings: SchedulerSettings) -> None:
        super().__init__(context)
        self._desk = SchedulingDesk(settings.scheduler)
        self._roster = Roster(context.control, context.clock)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._knows_pools_at = 0.0
        self._reconnected_at = self.context.clock.now()

    async def on_start(self) -> None:
        """Learn who serves what before the first submit is read."""
        self.context.control.on_event(self._on_bus_event)
        self._roster.subscribe(self._on_roster)
        await self._roster.start()
        self._knows_pools_at = self.context.clock.now() + self.context.settings.announce_interval
        self.context.spawn(self._reconcile(), name="reconcile")

    async def on_stop(self) -> None:
        """Forget timers; what is queued is resubmitted by its consumers to the next scheduler."""
        for timer in self._timers.values():
            timer.cancel()
        await self._roster.stop()

    def presence(self) -> Presence:
        """Report how much is held and queued."""
        return Presence(num_in_flight=self._desk.num_held, num_queued=self._desk.num_queued)

    # -- messages -----------------------------------------------------------------------------------------

    @handles(subject=lambda _: subjects.ALL_SUBMITS)
    async def submit(self, request: Submit) -> Accepted:
        """Queue, dispatch or refuse."""
        call = current_call()
        now = self.context.clock.now()
        try:
            outgoing = self._desk.submit(request, call.budget.deadline, call.traceparent, now)
        except NotFound as error:
            if now < self._knows_pools_at:
                # Not every worker has answered yet: "not found" would be taken for final.
                raise Unavailable(f"this scheduler has just started; {error.message}") from None
            DECISIONS.labels(decision="refused", code=error.code).inc()
            raise
        except SageError as error:
            DECISIONS.labels(decision="refused", code=error.code).inc()
            raise
        self._send(outgoing)
        return Accepted(scheduler_id=self.context.actor_id, epoch=self.context.epoch)

    @handles(subject=lambda _: subjects.ALL_REPORTS)
    async def report(self, report: Report) -> None:
        """Free slots, learn."""
        self._send(self._desk.report(report, self.context.clock.now()))

    @handles(subject=lambda _: subjects.ALL_CANCELS, is_control=True)
    async def cancel(self, cancel: Cancel) -> None:
        """Stop a request wherever it is."""
        self._send(self._desk.cancel(cancel, self.context.clock.now()))

    @handles(subject=lambda _: subjects.RECEIPTS_FIND, is_control=True)
    async def find_receipt(self, request: FindReceipt) -> Receipt:
        """Return the receipt, or one whose decision is `unknown`: each scheduler answers for itself."""
        found = self._desk.receipt(request.request_id)
        if found is not None:
            return found
        return Receipt(
            request_id=request.request_id, attempt=0, pool="", policy="", decision="unknown",
            reason=f"scheduler {self.context.actor_id} has no receipt of it", queue_ms=0.0, num_queued=0,
        )  # fmt: skip

    # -- presence -----------------------------------------------------------------------------------------

    def _on_roster(self, change: RosterChange) -> None:
        announcement, now = change.announcement, self.context.clock.now()
        if change.kind is ChangeKind.DOWN:
            self._send(self._desk.worker_down(announcement.actor_id, now, is_lost=change.is_lost))
        elif _takes_work(announcement):
            self._send(self._desk.worker_up(announcement, now))
        else:
            self._send(self._desk.worker_down(announcement.actor_id, now, is_lost=False))

    async def _reconcile(self) -> None:
        """Compare what was dispatched with what workers list; nothing else tells of a dispatch that was lost."""
        while True:
            await asyncio.sleep(RECONCILE_INTERVAL)
            now = self.context.clock.now()
            if not self.context.control.is_connected or now - self._reconnected_at < RECONCILE_AFTER:
                # What workers said before the gap says nothing of what was dispatched to them since.
                continue
            for announcement in list(self._roster.actors.values()):
                if _takes_work(announcement):
                    self._send(self._desk.worker_up(announcement, now))

    def _on_bus_event(self, event: BusEvent, _detail: str) -> None:
        if event is BusEvent.RECONNECTED:
            self._reconnected_at = self.context.clock.now()

    # -- out ----------------------------------------------------------------------------------------------

    def _send(self, outgoing: list[Outgoing]) -> None:
        for item in outgoing:
            match item:
                case SendDispatch():
                    self._dispatch(item)
                case SendCancel(worker_id, cancel):
                    self.context.tell(subjects.worker_cancel(worker_id), cancel, is_control=True)
                case SendFailure(reply_to, delta):
                    DECISIONS.labels(decision="failed", code=delta.event.error.code).inc()  # type: ignore[union-attr]
                    self._publish(reply_to, Frame(deltas=[delta]), CallHeaders())
                case ArmTimer(pool, at):
                    self._arm(pool, at)
        HELD.set(self._desk.num_held)

    def _dispatch(self, item: SendDispatch) -> None:
        now = self.context.clock.now()
        DECISIONS.labels(decision="dispatched", code="").inc()
        QUEUE_SECONDS.observe(now - item.submitted_at)
        if is_sampled(item.traceparent):
            end_ns = time.time_ns()
            record_span(
                semconv.SPAN_QUEUE,
                parent=item.traceparent,
                start_ns=end_ns - int((now - item.submitted_at) * 1e9),
                end_ns=end_ns,
                attributes={semconv.POOL: item.dispatch.pool, semconv.WORKER_ID: item.worker_id},
            )
        # The request's own budget and trace, not those of the message that freed the slot.
        budget_ms = max(1, int((item.deadline - now) * 1000))
        headers = CallHeaders(budget_ms=budget_ms, traceparent=item.traceparent)
        self._publish(subjects.worker_dispatch(item.worker_id), item.dispatch, headers)

    def _publish(self, subject: str, message: Message, headers: CallHeaders) -> None:
        try:
            self.context.bus.publish(subject, encode(message), headers.encode())
        except SageError as error:
            # The consumer's silence probe and budget cover what could not be sent.
            self.context.log.error("publish_refused", subject=subject, code=error.code, reason=error.message)

    def _arm(self, pool: str, at: float) -> None:
        previous = self._timers.pop(pool, None)
        if previous is not None:
            previous.cancel()
        delay = max(0.0, at - self.context.clock.now())
        self._timers[pool] = asyncio.get_running_loop().call_later(delay, self._on_timer, pool)

    def _on_timer(self, pool: str) -> None:
        self._send(self._desk.timer(pool, self.context.clock.now()))


def _takes_work(announcement: Announcement) -> bool:
    return announcement.state == "ready" and bool(announcement.models)
