"""The scheduler without IO: turns submits, reports, cancels and presence into policy events, and back.

It owns what a policy must not see: the request bodies, where their frames go, and the receipts.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from sage_core import NotFound, SageError, error_from_code
from sage_policy import (
    Abort,
    Command,
    Decision,
    Event,
    Finished,
    FirstToken,
    Instance,
    InstanceDown,
    InstanceUp,
    Policy,
    SetTimer,
    Shed,
    Started,
    Submitted,
    Timer,
    make_policy,
)
from sage_policy import Cancelled as CancelledEvent
from sage_policy import Dispatch as DispatchCommand
from sage_scheduler.settings import SchedulerSection
from sage_wire.messages import (
    Announcement,
    Cancel,
    Delta,
    Dispatch,
    Failed,
    Receipt,
    ReceiptCandidate,
    Report,
    ReportEvent,
    Submit,
    WireError,
)

__all__ = ["ArmTimer", "Outgoing", "SchedulingDesk", "SendCancel", "SendDispatch", "SendFailure"]

CANCEL_MEMORY = 5.0
"""Seconds that a cancel for an unknown request is remembered: it may have overtaken its submit."""

BATCH_CLASS = "batch"

OUT_OF_BAND = -1
"""`Delta.seq` of a failure that the scheduler reports for a worker that cannot."""


@dataclass(frozen=True, slots=True)
class SendDispatch:
    """Tell a worker to start. `submitted_at` is on the desk's clock, for the queue-wait span."""

    worker_id: str
    dispatch: Dispatch
    deadline: float
    traceparent: str | None
    submitted_at: float


@dataclass(frozen=True, slots=True)
class SendCancel:
    """Tell a worker to stop."""

    worker_id: str
    cancel: Cancel


@dataclass(frozen=True, slots=True)
class SendFailure:
    """Tell a consumer that its request is over."""

    reply_to: str
    delta: Delta


@dataclass(frozen=True, slots=True)
class ArmTimer:
    """Call `SchedulingDesk.timer(pool)` at `at`."""

    pool: str
    at: float


Outgoing = SendDispatch | SendCancel | SendFailure | ArmTimer


@dataclass(slots=True)
class _Held:
    """A request from submit to its last report."""

    submit: Submit
    deadline: float
    traceparent: str | None
    since: float
    worker_id: str | None = None
    dispatched_at: float = 0.0


@dataclass(slots=True)
class _Pool:
    name: str
    policy: Policy
    workers: set[str]


class SchedulingDesk:
    """One scheduler's whole state. Every method returns what must be sent, in order."""

    def __init__(self, settings: SchedulerSection) -> None:
        self._settings = settings
        self._pools: dict[str, _Pool] = {}
        self._held: dict[str, _Held] = {}
        self._attempts: dict[str, list[str]] = {}
        self._workers: dict[str, Announcement] = {}
        self._receipts: OrderedDict[str, Receipt] = OrderedDict()
        self._cancelled: OrderedDict[str, float] = OrderedDict()

    # -- from consumers -----------------------------------------------------------------------------------

    def submit(self, submit: Submit, deadline: float, traceparent: str | None, now: float) -> list[Outgoing]:
        """Take a request. Raises the SageError to answer with where it is refused at once.

        Idempotent per (request_id, attempt). `deadline` is absolute, on the clock of `now`.
        """
        pool = self._pools.get(submit.pool)
        if pool is None:
            known = ", ".join(sorted(self._pools)) or "none yet"
            raise NotFound(f"nothing serves {submit.pool!r}; served now: {known}", param="model")
        self._forget_cancels(now)
        if submit.request_id in self._cancelled:
            raise error_from_code("cancelled", "cancelled before it was submitted")
        key = _key(submit.request_id, submit.attempt)
        if key in self._held:
            return []
        self._hold(key, _Held(submit, deadline, traceparent, now))
        size = submit.size
        event = Submitted(
            key=key,
            pool=submit.pool,
            deadline=deadline,
            num_items=size.num_items,
            num_chars=size.num_chars,
            max_tokens=size.max_tokens,
            tenant=submit.tenant,
            slo_class=submit.slo_class,
            priority=_priority(submit),
        )
        outgoing, refusal = self._run(pool, event, now, refusable=key)
        if refusal is not None:
            raise refusal
        return outgoing

    def cancel(self, cancel: Cancel, now: float) -> list[Outgoing]:
        """Stop every attempt of a request (or one), wherever it is. Idempotent."""
        keys = [
            key
            for key in self._attempts.get(cancel.request_id, ())
            if cancel.attempt is None or self._held[key].submit.attempt == cancel.attempt
        ]
        if not keys and cancel.attempt is None:
            self._cancelled[cancel.request_id] = now
            self._forget_cancels(now)
        outgoing: list[Outgoing] = []
        for key in keys:
            pool = self._pools[self._held[key].submit.pool]
            outgoing += self._run(pool, CancelledEvent(key), now)[0]
        return outgoing

    # -- from workers -------------------------------------------------------------------------------------

    def report(self, report: Report, now: float) -> list[Outgoing]:
        """Take a worker's word on a dispatch. Reports on unknown requests free the slot all the same."""
        pool = self._pools.get(report.pool)
        if pool is None:
            return []
        key = _key(report.request_id, report.attempt)
        event: Event
        match report.event:
            case ReportEvent.STARTED:
                event = Started(key)
            case ReportEvent.FIRST_TOKEN:
                event = FirstToken(key)
            case ReportEvent.FINISHED | ReportEvent.FAILED | ReportEvent.CANCELLED:
                held = self._let_go(key)
                if held is not None:
                    self._note_actual(report, (now - held.dispatched_at) * 1000)
                event = Finished(key, report.num_tokens)
        return self._run(pool, event, now)[0]

    def worker_up(self, announcement: Announcement, now: float) -> list[Outgoing]:
        """Take a ready worker's announcement: its pools, limits and what it runs."""
        before = self._workers.get(announcement.actor_id)
        self._workers[announcement.actor_id] = announcement
        names = {model.name for model in announcement.models}
        outgoing: list[Outgoing] = []
        for model in before.models if before is not None else []:
            if model.name not in names:
                outgoing += self._leave(announcement.actor_id, model.name, now, is_lost=False)
        for name in sorted(names):
            pool = self._pools.get(name)
            if pool is None:
                policy = make_policy(
                    self._settings.policy, max_queued=self._settings.max_queued, seed=self._settings.seed
                )
                pool = self._pools[name] = _Pool(name, policy, set())
            pool.workers.add(announcement.actor_id)
            instance = Instance(
                announcement.actor_id, name, announcement.max_in_flight, self._running(announcement, name)
            )
            outgoing += self._run(pool, InstanceUp(instance), now)[0]
        return outgoing

    def worker_down(self, worker_id: str, now: float, *, is_lost: bool) -> list[Outgoing]:
        """Stop using a worker: it drains, or (`is_lost`) it is gone with all it ran."""
        before = self._workers.get(worker_id)
        if before is None:
            return []
        if is_lost:
            del self._workers[worker_id]
        outgoing: list[Outgoing] = []
        for model in before.models:
            outgoing += self._leave(worker_id, model.name, now, is_lost=is_lost)
        return outgoing

    def timer(self, pool_name: str, now: float) -> list[Outgoing]:
        """The time of an `ArmTimer` has come."""
        pool = self._pools.get(pool_name)
        return [] if pool is None else self._run(pool, Timer(), now)[0]

    # -- to look at ---------------------------------------------------------------------------------------

    def receipt(self, request_id: str) -> Receipt | None:
        """Return the latest decision on a request, None where it is unknown or long ago."""
        return self._receipts.get(request_id)

    @property
    def num_held(self) -> int:
        """Requests queued or running."""
        return len(self._held)

    @property
    def num_queued(self) -> int:
        """Requests not yet given to a worker."""
        return sum(1 for held in self._held.values() if held.worker_id is None)

    # -- inside -------------------------------------------------------------------------------------------

    def _leave(self, worker_id: str, pool_name: str, now: float, *, is_lost: bool) -> list[Outgoing]:
        pool = self._pools[pool_name]
        if is_lost:
            pool.workers.discard(worker_id)
        return self._run(pool, InstanceDown(worker_id, pool_name, is_lost), now)[0]

    def _running(self, announcement: Announcement, pool_name: str) -> tuple[str, ...]:
        """What the worker runs for this pool. Unknown keys (of an earlier scheduler) count in its first pool."""
        is_first = pool_name == min(model.name for model in announcement.models)
        keys = []
        for key in announcement.in_flight:
            held = self._held.get(key)
            if held.submit.pool == pool_name if held is not None else is_first:
                keys.append(key)
        return tuple(keys)

    def _run(
        self, pool: _Pool, event: Event, now: float, refusable: str | None = None
    ) -> tuple[list[Outgoing], SageError | None]:
        outgoing: list[Outgoing] = []
        refusal: SageError | None = None
        for command in pool.policy.handle(event, now):
            match command:
                case DispatchCommand(key, instance_id, decision):
                    outgoing += self._dispatched(pool, key, instance_id, decision, now)
                case Shed(key, code, retry_after, decision):
                    held = self._let_go(key)
                    self._keep_receipt(pool, key, command, decision)
                    error = _shed_error(code, decision, retry_after)
                    if key == refusable:
                        refusal = error
                    elif held is not None:
                        outgoing.append(_failure(held.submit, error))
                case Abort(key, instance_id, decision):
                    self._keep_receipt(pool, key, command, decision)
                    held = self._held.get(key)
                    attempt = held.submit.attempt if held is not None else None
                    outgoing.append(
                        SendCancel(instance_id, Cancel(request_id=_request_id(key), attempt=attempt))
                    )
                case SetTimer(at):
                    outgoing.append(ArmTimer(pool.name, at))
        return outgoing, refusal

    def _dispatched(
        self, pool: _Pool, key: str, worker_id: str, decision: Decision, now: float
    ) -> list[Outgoing]:
        held = self._held[key]
        held.worker_id, held.dispatched_at = worker_id, now
        self._keep_receipt(pool, key, DispatchCommand(key, worker_id, decision), decision)
        submit = held.submit
        dispatch = Dispatch(
            request_id=submit.request_id,
            attempt=submit.attempt,
            pool=submit.pool,
            reply_to=submit.reply_to,
            work=submit.work,
            tenant=submit.tenant,
            priority=_priority(submit),
            queue_ms=decision.queue_seconds * 1000,
        )
        return [SendDispatch(worker_id, dispatch, held.deadline, held.traceparent, held.since)]

    def _keep_receipt(self, pool: _Pool, key: str, command: Command, decision: Decision) -> None:
        if self._settings.max_receipts == 0:
            return
        request_id = _request_id(key)
        self._receipts[request_id] = Receipt(
            request_id=request_id,
            attempt=int(key.rpartition("/")[2]),
            pool=pool.name,
            policy=pool.policy.name,
            decision=_DECISIONS[type(command)],
            reason=decision.reason,
            queue_ms=decision.queue_seconds * 1000,
            num_queued=decision.num_queued,
            chosen=command.instance_id if isinstance(command, DispatchCommand) else None,
            candidates=[
                ReceiptCandidate(instance_id=c.instance_id, score=c.score, reason=c.reason)
                for c in decision.candidates
            ],
        )
        self._receipts.move_to_end(request_id)
        while len(self._receipts) > self._settings.max_receipts:
            self._receipts.popitem(last=False)

    def _note_actual(self, report: Report, elapsed_ms: float) -> None:
        receipt = self._receipts.get(report.request_id)
        if receipt is not None and receipt.attempt == report.attempt:
            self._receipts[report.request_id] = msgspec.structs.replace(receipt, actual_ms=elapsed_ms)

    def _hold(self, key: str, held: _Held) -> None:
        self._held[key] = held
        self._attempts.setdefault(held.submit.request_id, []).append(key)

    def _let_go(self, key: str) -> _Held | None:
        held = self._held.pop(key, None)
        if held is not None:
            attempts = self._attempts[held.submit.request_id]
            attempts.remove(key)
            if not attempts:
                del self._attempts[held.submit.request_id]
        return held

    def _forget_cancels(self, now: float) -> None:
        while self._cancelled:
            request_id, at = next(iter(self._cancelled.items()))
            if now - at <= CANCEL_MEMORY and len(self._cancelled) <= 10_000:
                return
            del self._cancelled[request_id]


_DECISIONS = {DispatchCommand: "dispatched", Shed: "shed", Abort: "aborted"}


def _priority(submit: Submit) -> int:
    """Work of class `batch` ranks below all other of its caller's priority; workers see the same number."""
    return submit.priority - 1 if submit.slo_class == BATCH_CLASS else submit.priority


def _key(request_id: str, attempt: int) -> str:
    return f"{request_id}/{attempt}"


def _request_id(key: str) -> str:
    return key.rpartition("/")[0]


def _shed_error(code: str, decision: Decision, retry_after: float | None) -> SageError:
    waited = f" after {decision.queue_seconds:.2f} s in the queue" if decision.queue_seconds > 0 else ""
    return error_from_code(code, decision.reason + waited, retry_after=retry_after)


def _failure(submit: Submit, error: SageError) -> SendFailure:
    event = Failed(error=WireError.of(error))
    delta = Delta(request_id=submit.request_id, attempt=submit.attempt, seq=OUT_OF_BAND, event=event)
    return SendFailure(submit.reply_to, delta)
