"""The scheduler actor: bus to desk, desk to bus. All decisions are the desk's; who leads which pool, the leases'."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

from sage_actor import Actor, ActorContext, ChangeKind, Presence, Roster, RosterChange, handles
from sage_actor.announcer import installed_version
from sage_bus import Gathering, Subscription
from sage_core import Paths, SageError
from sage_policy import Command, Event
from sage_policy.event_log import LogHeader
from sage_scheduler.desk import SchedulingDesk
from sage_scheduler.event_log_file import EventLogFile
from sage_scheduler.held import Held
from sage_scheduler.leadership import Leadership
from sage_scheduler.metrics import DECISIONS, HELD, LED_POOLS, QUEUE_SECONDS, WANTED_INSTANCES
from sage_scheduler.outgoing import (
    ArmTimer,
    NoteScale,
    Outgoing,
    SendAnswer,
    SendCancel,
    SendDispatch,
    SendFailure,
    SendLead,
)
from sage_scheduler.policies import policy_of
from sage_scheduler.settings import SchedulerSettings
from sage_scheduler.spans import record_dispatch, record_shed
from sage_telemetry import is_sampled
from sage_wire import encode, subjects
from sage_wire.messages import Announcement, Cancel, FindReceipt, Lead, Receipt, Reports, Submits, WireError

__all__ = ["SchedulerActor"]

# Looking a label up takes as long as counting.
_DISPATCHED: Final = DECISIONS.labels(decision="dispatched", code="")
DISPATCH_WAIT: Final = 1.0
"""Seconds that a dispatch may wait for a connection; later its budget would be wrong. It counts as lost on the way."""


class SchedulerActor(Actor):
    """Leads the pools whose leases it holds, and stands by for the others.

    Its state is soft: who takes over learns it from the workers' announcements, consumers submit again what waited.
    """

    kind: ClassVar[str] = "scheduler"

    def __init__(self, context: ActorContext, settings: SchedulerSettings) -> None:
        super().__init__(context)
        section = settings.scheduler
        self._health = "ok"
        self._settings = settings
        self._log_file: EventLogFile | None = None
        self._desk = SchedulingDesk(
            policy_of(section),
            scheduler_id=context.actor_id,
            epoch=context.epoch,
            max_receipts=section.max_receipts,
            record=self._record if section.event_log else None,
            failed=self._policy_failed,
        )
        self._roster = Roster(context.control, context.clock)
        self._leadership = Leadership(
            context, ttl=section.lease_ttl, on_gained=self._on_gained, on_lost=self._on_lost
        )
        self._default_budget_ms = int(context.settings.default_budget * 1000)
        self._dispatches = self._gathering("dispatches", max_wait=DISPATCH_WAIT)
        self._answers = self._gathering("answers")
        self._failures = self._gathering("deltas")
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._ties_version = 0

    async def on_start(self) -> None:
        """Listen for workers; pools are led as they are found to have no leader."""
        if self._settings.scheduler.event_log:
            self._log_file = self._open_log()
        HELD.set_function(lambda: self._desk.num_held)
        self._roster.subscribe(self._on_roster)
        self._roster.follow(self._on_announcement)
        await self._roster.start()
        self._leadership.start()

    async def on_stop(self) -> None:
        """Hand the pools over: another scheduler leads them at once, and gets what waits from its consumers."""
        if self._timer is not None:
            self._timer.cancel()
        await self._roster.stop()
        for pool in await self._leadership.release():
            self._send(self._desk.lose(pool, self.context.clock.now()))
        for gathering in (self._dispatches, self._answers, self._failures):
            gathering.flush()
        if self._log_file is not None:
            self._log_file.close()

    def presence(self) -> Presence:
        """Report how much is held and queued, and which pools are led."""
        return Presence(
            health=self._health,
            num_in_flight=self._desk.num_held,
            num_queued=self._desk.num_queued,
            leads=tuple(sorted(self._subscriptions)),
        )

    # -- messages -----------------------------------------------------------------------------------------

    @handles(is_on_demand=True)
    def submit(self, request: Submits) -> None:
        """Queue, dispatch or refuse."""
        now = self._now()
        for submit in request.submits:
            budget_ms = submit.budget_ms or self._default_budget_ms
            self._send(self._desk.submit(submit, now + budget_ms / 1000, now))

    @handles(is_on_demand=True)
    def report(self, request: Reports) -> None:
        """Free slots, learn."""
        now = self._now()
        for report in request.reports:
            self._send(self._desk.report(report, now))

    @handles(is_on_demand=True, is_control=True)
    async def cancel(self, cancel: Cancel) -> None:
        """Stop a request wherever it is."""
        self._send(self._desk.cancel(cancel, self._now()))

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

    # -- leadership ---------------------------------------------------------------------------------------

    async def _on_gained(self, pool: str, fence: int) -> None:
        """Begin to lead: hear of what runs, tell the workers, then take submits."""
        context, opened = self.context, list[Subscription]()
        try:
            opened.append(await context.listen("report", subjects.pool_report(pool)))
            opened.append(await context.listen("cancel", subjects.pool_cancel(pool)))
            now = self._now()
            if self._leadership.is_leading(pool, fence):
                self._send(self._desk.lead(pool, fence, now))
                opened.append(await context.listen("submit", subjects.pool_submit(pool)))
        except SageError as error:
            # The lease goes back, and the pool is claimed anew, here or elsewhere.
            context.log.warning("pool_not_opened", pool=pool, reason=error.message)
            await self._leadership.give_up(pool, fence)
        if not self._leadership.is_leading(pool, fence):
            await _close(opened)  # it was lost meanwhile
            return
        self._subscriptions[pool] = opened
        self._note_leads()

    def _on_lost(self, pool: str) -> None:
        """Stop at once: another scheduler may lead the pool already."""
        self._send(self._desk.lose(pool, self.context.clock.now()))
        opened = self._subscriptions.pop(pool, [])
        self.context.spawn(_close(opened), name=f"close {pool}")
        self._note_leads()

    def _note_leads(self) -> None:
        LED_POOLS.set(len(self._subscriptions))
        self.context.announce()

    def _now(self) -> float:
        """Return the time, after ending what was led until then: nothing is decided under a lease that is over."""
        now = self.context.clock.now()
        self._leadership.sweep(now)
        return now

    # -- presence -----------------------------------------------------------------------------------------

    def _on_roster(self, change: RosterChange) -> None:
        if change.kind is ChangeKind.DOWN:
            actor_id = change.announcement.actor_id
            self._send(self._desk.worker_down(actor_id, self._now(), is_lost=change.is_lost))
            self._serve()

    def _on_announcement(self, announcement: Announcement) -> None:
        """Compare what was dispatched with what the worker lists: nothing else tells of a dispatch that was lost."""
        if announcement.state == "ready" and announcement.models:
            self._send(self._desk.worker_heard(announcement, self._now()))
        else:
            self._send(self._desk.worker_draining(announcement.actor_id, self._now()))
        self._serve()

    def _serve(self) -> None:
        if self._desk.ties_version != self._ties_version:
            self._ties_version = self._desk.ties_version
            self._leadership.serve(self._desk.ties())

    # -- out ----------------------------------------------------------------------------------------------

    def _gathering(self, field: str, *, max_wait: float | None = None) -> Gathering[str]:
        return Gathering(self.context.bus, field, refused=self._publish_refused, max_wait=max_wait)

    def _send(self, outgoing: list[Outgoing]) -> None:
        for item in outgoing:
            match item:
                case SendDispatch():
                    self._dispatch(item)
                case SendCancel(worker_id, cancel):
                    self.context.tell(subjects.worker_cancel(worker_id), cancel, is_control=True)
                case SendLead(worker_id, lead):
                    self._tell_lead(worker_id, lead)
                case SendAnswer(reply_to, answer, ended):
                    if answer.error is not None:
                        DECISIONS.labels(decision="refused", code=answer.error.code).inc()
                        self._ended_waiting(ended, answer.error)
                    self._answers.add(reply_to, encode(answer), answer.request_id)
                case SendFailure(reply_to, delta, ended):
                    error: WireError = delta.event.error  # type: ignore[union-attr]
                    DECISIONS.labels(decision="failed", code=error.code).inc()
                    self._ended_waiting(ended, error)
                    self._failures.add(reply_to, encode(delta), delta.request_id)
                case ArmTimer(at):
                    self._arm(at)
                case NoteScale(pool, num_instances):
                    WANTED_INSTANCES.labels(pool=pool).set(num_instances)

    def _dispatch(self, item: SendDispatch) -> None:
        now = self.context.clock.now()
        _DISPATCHED.inc()
        QUEUE_SECONDS.observe(now - item.submitted_at)
        subject = subjects.worker_dispatch(item.worker_id)
        payload = encode(item.dispatch)
        self._dispatches.add(subject, payload, item.dispatch.request_id)
        if is_sampled(item.dispatch.traceparent):
            record_dispatch(item, subject, len(payload), now, self.context.clock.now())

    def _ended_waiting(self, ended: Held | None, error: WireError) -> None:
        """Record the wait of a request that no worker took."""
        if ended is not None and ended.worker_id is None and is_sampled(ended.submit.traceparent):
            record_shed(ended, error, self.context.clock.now())

    def _tell_lead(self, worker_id: str, lead: Lead) -> None:
        try:
            self.context.control.publish(subjects.worker_lead(worker_id), encode(lead))
        except SageError as error:
            self.context.log.error("lead_refused", worker=worker_id, code=error.code, reason=error.message)

    def _publish_refused(self, request_ids: list[str], error: SageError) -> None:
        """Say so; the consumer's answer timer, silence probe and budget cover what could not be sent."""
        self.context.log.error(
            "publish_refused", request_ids=request_ids, code=error.code, reason=error.message
        )

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = at - self.context.clock.now()
        # uvloop rounds to the nearest millisecond; a timer that comes early is asked for again at once.
        delay = delay + 0.0005 if delay > 0 else 0.0
        self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._send(self._desk.timer(self._now()))

    def _policy_failed(self, failure: str) -> None:
        """Say it once: a policy that fails may do so for every request."""
        if failure != self._health:
            self._health = failure
            self.context.log.error("policy_failed", policy=self._settings.scheduler.policy, reason=failure)
            self.context.announce()

    # -- the event log ------------------------------------------------------------------------------------

    def _open_log(self) -> EventLogFile:
        section, context = self._settings.scheduler, self.context
        header = LogHeader(
            policy=section.policy,
            max_queued=section.max_queued,
            seed=section.seed,
            classes=section.slo_classes(),
            weights=section.weights,
            version=installed_version(),
            scheduler_id=context.actor_id,
            epoch=context.epoch,
        )
        path = Paths.for_instance(self._settings.instance).state / "events" / f"{context.actor_id}.log"
        return EventLogFile(path, header, max_bytes=section.event_log_size)

    def _record(self, event: Event, now: float, commands: list[Command]) -> None:
        if self._log_file is not None:
            self._log_file.record(event, now, commands)


async def _close(subscriptions: list[Subscription]) -> None:
    for subscription in subscriptions:
        await subscription.unsubscribe()
