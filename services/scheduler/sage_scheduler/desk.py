"""The scheduler without IO: submits, reports, cancels and presence become policy events, its commands messages.

One policy serves all pools that are led here. Pools that another scheduler leads are known, but the policy never
hears of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sage_core import SageError, Unavailable, error_from_code
from sage_policy import (
    Abort,
    Command,
    Decision,
    Event,
    Finished,
    FirstToken,
    InstanceDown,
    InstanceUp,
    Policy,
    PoolClosed,
    Progressed,
    ScaleHint,
    SetTimer,
    Shed,
    Started,
    Submitted,
    Telemetry,
    Timer,
)
from sage_policy import Cancelled as CancelledEvent
from sage_policy import Dispatch as DispatchCommand
from sage_policy.python_policy import PolicyFailure
from sage_scheduler.bounds import misfit
from sage_scheduler.held import Held, HeldRequests, attempt_of, key_of, request_id_of
from sage_scheduler.instances import PoolFacts, pool_facts
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
from sage_scheduler.receipts import ReceiptBook, Subject
from sage_scheduler.workers import KnownWorkers
from sage_wire.messages import (
    BATCH_CLASS,
    Announcement,
    Answer,
    Cancel,
    Delta,
    Dispatch,
    Failed,
    Lead,
    Receipt,
    Report,
    ReportEvent,
    Submit,
    Targets,
    WireError,
)

__all__ = ["OUT_OF_BAND", "Record", "SchedulingDesk"]

OUT_OF_BAND = -1
"""`Delta.seq` of a failure that the scheduler reports for a worker that cannot."""

Record = Callable[[Event, float, list[Command]], None]
"""Is told of every event that the policy got and of the commands that it gave."""


@dataclass(slots=True)
class _Pool:
    """A pool that is led here."""

    fence: int
    facts: PoolFacts


class SchedulingDesk:
    """One scheduler's whole state. Every method returns what must be sent, in order; `now` never goes back."""

    def __init__(
        self,
        policy: Policy,
        *,
        scheduler_id: str = "",
        epoch: str = "",
        max_receipts: int = 10_000,
        record: Record | None = None,
        failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`failed` is told whenever the policy raised or commanded what cannot be done."""
        self._policy = policy
        self._failed = failed
        self._is_clearing = False
        self._scheduler_id = scheduler_id
        self._epoch = epoch
        self._record = record
        self._pools: dict[str, _Pool] = {}
        self._held = HeldRequests()
        self._workers = KnownWorkers()
        self._receipts = ReceiptBook(scheduler_id, policy.name, max_receipts)

    # -- leadership ---------------------------------------------------------------------------------------

    def lead(self, pool_name: str, fence: int, now: float) -> list[Outgoing]:
        """Begin to schedule a pool, with what its workers say they run. Dispatches carry `fence`."""
        models = self._workers.models(pool_name)
        self._pools[pool_name] = _Pool(fence, pool_facts(models))
        outgoing: list[Outgoing] = []
        for worker_id in self._workers.of_pool(pool_name):
            outgoing += self._instance_up(worker_id, pool_name, now)
        return outgoing

    def lose(self, pool_name: str, now: float) -> list[Outgoing]:
        """Stop scheduling a pool: what runs is the next leader's, all else must be submitted to that one.

        Nobody will hear of a dispatch that is lost on its way now, so what has not been confirmed counts as waiting.
        """
        if self._pools.pop(pool_name, None) is None:
            return []
        outgoing = self._run(PoolClosed(pool_name), now)
        error = Unavailable(f"scheduler {self._scheduler_id} does not lead the pool any more")
        for key in self._held.of_pool(pool_name):
            held = self._held.release(key)
            if held is not None and not held.is_started:
                outgoing.append(_failure(held, error))
        self._workers.forget_pool(pool_name)
        return outgoing

    # -- from consumers -----------------------------------------------------------------------------------

    def submit(self, submit: Submit, deadline: float, now: float) -> list[Outgoing]:
        """Take a request. Its consumer is answered, unless it is dispatched at once: then its worker answers.

        Idempotent per (request_id, attempt); what is submitted again is answered in any case. `deadline` is absolute,
        on the clock of `now`.
        """
        pool = self._pools.get(submit.pool)
        if pool is None:
            error = Unavailable(f"scheduler {self._scheduler_id} does not lead the pool {submit.pool!r}")
            return [self._answer(submit, error)]
        if self._held.was_cancelled(submit.request_id, now):
            return [self._answer(submit, error_from_code("cancelled", "cancelled before it was submitted"))]
        key = key_of(submit.request_id, submit.attempt)
        if key in self._held:
            return [self._answer(submit)]
        if (refusal := misfit(submit)) is not None:
            return [self._answer(submit, refusal)]
        self._held.add(key, Held(submit, deadline, now))
        outgoing = self._run(_submitted(key, submit, deadline, pool.facts), now, refusable=key)
        held = self._held.get(key)
        if held is not None and held.worker_id is None:
            self._receipts.held(self._subject(held), self._held.num_queued)
            outgoing.append(self._answer(submit))
        return outgoing

    def cancel(self, cancel: Cancel, now: float) -> list[Outgoing]:
        """Stop every attempt of a request (or one), wherever it is. Idempotent."""
        keys = self._held.of_request(cancel.request_id, cancel.attempt)
        if not keys and cancel.attempt is None:
            self._held.remember_cancel(cancel.request_id, now)
        outgoing: list[Outgoing] = []
        for key in keys:
            outgoing += self._run(CancelledEvent(key), now)
        return outgoing

    # -- from workers -------------------------------------------------------------------------------------

    def report(self, report: Report, now: float) -> list[Outgoing]:
        """Take a worker's word on a dispatch. Reports on requests of earlier leaders free the slot all the same.

        An end implies what was not reported before it. When the first of several tokens came is not known then, so
        nothing is learned from it; a single token tells how long its prompt took.
        """
        if report.pool not in self._pools:
            return []
        key = key_of(report.request_id, report.attempt)
        held = self._held.get(key)
        elapsed_ms = 0.0 if held is None else (now - held.dispatched_at) * 1000
        event: Event
        outgoing: list[Outgoing] = []
        match report.event:
            case ReportEvent.STARTED:
                if held is not None:
                    held.is_started = True
                event = Started(key)
            case ReportEvent.FIRST_TOKEN:
                event = self._first_token(key, held, report, elapsed_ms)
            case ReportEvent.FINISHED | ReportEvent.FAILED | ReportEvent.CANCELLED:
                if held is not None and report.num_tokens == 1 and not held.has_token:
                    outgoing = self._run(self._first_token(key, held, report, elapsed_ms), now)
                if self._held.release(key) is not None:
                    self._receipts.ended(report, elapsed_ms)
                self._workers.forget_key(report.worker_id, key)
                event = Finished(key, report.num_tokens)
        return outgoing + self._run(event, now)

    def _first_token(self, key: str, held: Held | None, report: Report, elapsed_ms: float) -> FirstToken:
        if held is not None:
            held.is_started = held.has_token = True
            self._receipts.started(report, elapsed_ms)
        return FirstToken(key, report.num_cached)

    def worker_heard(self, announcement: Announcement, now: float) -> list[Outgoing]:
        """Take the announcement of a worker that takes work: its pools, limits, load, and what it runs."""
        worker_id = announcement.actor_id
        dropped = self._workers.heard(announcement)
        outgoing: list[Outgoing] = []
        for pool_name in dropped:
            outgoing += self._leave(worker_id, pool_name, now, is_lost=False)
        for key in self._workers.ended_unheard(worker_id):
            outgoing += self._run(Finished(key), now)
        for pool_name in self._workers.pools(worker_id):
            if pool_name in self._pools:
                outgoing += self._instance_up(worker_id, pool_name, now)
        for load in announcement.telemetry:
            if load.pool in self._pools:
                event = Telemetry(worker_id, load.pool, load.num_running, load.num_waiting, load.kv_used)
                outgoing += self._run(event, now)
        return outgoing + self._progress(announcement, now)

    def worker_draining(self, worker_id: str, now: float) -> list[Outgoing]:
        """Give a worker no more work. Idempotent."""
        outgoing: list[Outgoing] = []
        for pool_name in self._workers.closed(worker_id):
            outgoing += self._leave(worker_id, pool_name, now, is_lost=False)
        return outgoing

    def worker_down(self, worker_id: str, now: float, *, is_lost: bool) -> list[Outgoing]:
        """Forget a worker: it ended, having told of all it ran, or (`is_lost`) it is gone with that."""
        outgoing: list[Outgoing] = []
        for pool_name in self._workers.gone(worker_id):
            outgoing += self._leave(worker_id, pool_name, now, is_lost=is_lost)
        return outgoing

    def timer(self, now: float) -> list[Outgoing]:
        """The time of an `ArmTimer` has come."""
        return self._run(Timer(), now)

    # -- to look at ---------------------------------------------------------------------------------------

    def receipt(self, request_id: str) -> Receipt | None:
        """Return the latest decision on a request, None where it is unknown or long ago."""
        return self._receipts.find(request_id)

    def ties(self) -> dict[str, frozenset[str]]:
        """Return every pool that is served now, with what it shares with others: its workers and devices."""
        return self._workers.ties()

    @property
    def ties_version(self) -> int:
        """Grows whenever `ties` may give something else."""
        return self._workers.ties_version

    @property
    def num_held(self) -> int:
        """Requests queued or running."""
        return len(self._held)

    @property
    def num_queued(self) -> int:
        """Requests not yet given to a worker."""
        return self._held.num_queued

    # -- inside -------------------------------------------------------------------------------------------

    def _instance_up(self, worker_id: str, pool_name: str, now: float) -> list[Outgoing]:
        """Tell the policy of a worker, unless it would hear nothing new."""
        pool = self._pools[pool_name]
        placed = {
            key
            for key in self._held.placed_on(worker_id)
            if (held := self._held.get(key)) is not None and held.submit.pool == pool_name
        }
        news = self._workers.news(worker_id, pool_name, placed, self._pool_of)
        if news is None:
            return []
        outgoing: list[Outgoing] = []
        if news.is_first:
            pool.facts = pool_facts(self._workers.models(pool_name))
            lead = Lead(pool=pool_name, scheduler_id=self._scheduler_id, fence=pool.fence)
            outgoing.append(SendLead(worker_id, lead))
        return outgoing + self._run(InstanceUp(news.instance), now)

    def _pool_of(self, key: str, worker_id: str) -> str | None:
        """Return the pool that a worker runs `key` for: of an earlier leader's, the first that is led here."""
        held = self._held.get(key)
        if held is not None:
            return held.submit.pool
        return next((pool for pool in self._workers.pools(worker_id) if pool in self._pools), None)

    def _leave(self, worker_id: str, pool_name: str, now: float, *, is_lost: bool) -> list[Outgoing]:
        if pool_name not in self._pools:
            return []
        return self._run(InstanceDown(worker_id, pool_name, is_lost), now)

    def _progress(self, announcement: Announcement, now: float) -> list[Outgoing]:
        outgoing: list[Outgoing] = []
        for key, num_tokens in zip(announcement.in_flight, announcement.num_tokens, strict=False):
            held = self._held.get(key)
            if held is not None and held.worker_id == announcement.actor_id and num_tokens > held.num_tokens:
                held.num_tokens = num_tokens
                outgoing += self._run(Progressed(key, num_tokens), now)
        return outgoing

    def _answer(
        self, submit: Submit, error: SageError | None = None, ended: Held | None = None
    ) -> SendAnswer:
        answer = Answer(
            request_id=submit.request_id,
            attempt=submit.attempt,
            scheduler_id=self._scheduler_id,
            epoch=self._epoch,
            error=None if error is None else WireError.of(error),
        )
        return SendAnswer(submit.reply_to, answer, ended)

    def _run(self, event: Event, now: float, refusable: str | None = None) -> list[Outgoing]:
        """Give the policy an event. That `refusable` is shed is the answer to its submit; of others, a failure."""
        try:
            commands = list(self._policy.handle(event, now))
            for command in commands:
                if not isinstance(command, Command):
                    raise TypeError(f"handle returned {command!r}; expected commands")
        except (Exception, SystemExit) as error:  # a policy may be a user's code, which may raise anything
            return self._clear(PolicyFailure(self._policy, error).message, now, refusable)
        if self._record is not None:
            self._record(event, now, commands)
        if not commands:
            return []
        sizes: Counter[int] | None = None
        outgoing: list[Outgoing] = []
        for command in commands:
            match command:
                case DispatchCommand(key, instance_id):
                    held = self._held.get(key)
                    if held is not None and self._is_known(instance_id, held.submit.pool):
                        if command.batch and sizes is None:
                            sizes = _batch_sizes(commands)
                        size = 0 if sizes is None else sizes[command.batch]
                        outgoing += self._dispatched(command, size, now)
                        continue
                    if held is not None:
                        what = ValueError(
                            f"Dispatch names {instance_id!r}, no instance of pool {held.submit.pool!r}"
                        )
                        failure = PolicyFailure(self._policy, what).message
                        self._failed(failure)
                        outgoing += self._shed(_broken(key, failure, held, now), refusable)
                    if event != Finished(key):
                        outgoing += self._run(Finished(key), now)
                case Shed():
                    outgoing += self._shed(command, refusable)
                case Abort(key, instance_id):
                    held = self._held.get(key)
                    if held is not None:
                        self._receipts.decided(self._subject(held), command)
                    cancel = Cancel(request_id=request_id_of(key), attempt=attempt_of(key))
                    outgoing.append(SendCancel(instance_id, cancel))
                case SetTimer(at):
                    outgoing.append(ArmTimer(at))
                case ScaleHint(pool, num_instances):
                    outgoing.append(NoteScale(pool, num_instances))
        return outgoing

    def _is_known(self, instance_id: str, pool: str) -> bool:
        return pool in self._workers.pools(instance_id)

    def _shed(self, command: Shed, refusable: str | None) -> list[Outgoing]:
        held = self._held.release(command.key)
        if held is not None:
            self._receipts.decided(self._subject(held), command)
        if held is None:
            return []
        error = _shed_error(command)
        is_answer = command.key == refusable
        return [self._answer(held.submit, error, held) if is_answer else _failure(held, error)]

    def _clear(self, failure: str, now: float, refusable: str | None) -> list[Outgoing]:
        """The policy raised: what waits may never be decided, so it fails at once; what runs goes on.

        The policy is told of each, so that a request that it cannot bear does not stay in its queue.
        """
        if self._is_clearing:
            return []
        self._is_clearing = True
        # A replay would raise as well, or go on from another state.
        self._record = None
        self._failed(failure)
        outgoing: list[Outgoing] = []
        waiting = self._held.waiting()
        for key in waiting:
            outgoing += self._shed(_broken(key, failure, self._held.get(key), now), refusable)
        for key in waiting:
            outgoing += self._run(CancelledEvent(key), now)
        self._is_clearing = False
        return outgoing

    def _dispatched(self, command: DispatchCommand, batch_size: int, now: float) -> list[Outgoing]:
        held = self._held.place(command.key, command.instance_id, now)
        self._receipts.decided(self._subject(held, batch_size), command)
        submit, waited_ms = held.submit, (now - held.since) * 1000
        dispatch = Dispatch(
            request_id=submit.request_id,
            attempt=submit.attempt,
            pool=submit.pool,
            reply_to=submit.reply_to,
            work=submit.work,
            tenant=submit.tenant,
            priority=_rank_at_worker(submit),
            queue_ms=waited_ms,
            fence=self._pools[submit.pool].fence,
            batch=command.batch,
            batch_size=batch_size,
            slo_class=submit.slo_class,
            targets=_later(submit.targets, waited_ms),
            budget_ms=max(1, int((held.deadline - now) * 1000)),
            traceparent=submit.traceparent,
        )
        return [SendDispatch(command.instance_id, dispatch, held.since)]

    def _subject(self, held: Held, batch_size: int = 0) -> Subject:
        submit = held.submit
        fence = self._pools[submit.pool].fence
        return Subject(submit.request_id, submit.attempt, submit.pool, fence, batch_size)


def _submitted(key: str, submit: Submit, deadline: float, facts: PoolFacts) -> Submitted:
    size, targets = submit.size, submit.targets
    return Submitted(
        key=key,
        pool=submit.pool,
        deadline=deadline,
        num_items=size.num_items,
        num_chars=size.num_chars if facts.is_sized else 0,
        max_tokens=size.max_tokens,
        tenant=submit.tenant,
        slo_class=submit.slo_class,
        priority=submit.priority,
        num_prompt_tokens=min(size.num_prompt_tokens, facts.max_prompt) if facts.is_sized else 0,
        ttft_slo=_seconds(targets.ttft_ms),
        tpot_slo=_seconds(targets.tpot_ms),
        e2e_slo=_seconds(targets.e2e_ms),
        started_ago=targets.started_ago_ms / 1000,
        downstream_seconds=targets.downstream_ms / 1000,
        blocks=tuple(size.blocks),
        route=submit.route,
    )


def _batch_sizes(commands: list[Command]) -> Counter[int]:
    return Counter(
        command.batch for command in commands if isinstance(command, DispatchCommand) and command.batch
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _later(targets: Targets, waited_ms: float) -> Targets:
    return Targets(
        ttft_ms=targets.ttft_ms,
        tpot_ms=targets.tpot_ms,
        e2e_ms=targets.e2e_ms,
        started_ago_ms=targets.started_ago_ms + waited_ms,
        downstream_ms=targets.downstream_ms,
    )


def _rank_at_worker(submit: Submit) -> int:
    """Work of class `batch` ranks below all other of its caller's priority inside engines, too."""
    return submit.priority - 1 if submit.slo_class == BATCH_CLASS else submit.priority


def _broken(key: str, failure: str, held: Held | None, now: float) -> Shed:
    waited = 0.0 if held is None else now - held.since
    return Shed(key, "internal", None, Decision(failure, waited, 0))


def _shed_error(command: Shed) -> SageError:
    decision: Decision = command.decision
    waited = f" after {decision.queue_seconds:.2f} s in the queue" if decision.queue_seconds > 0 else ""
    return error_from_code(command.code, decision.reason + waited, retry_after=command.retry_after)


def _failure(held: Held, error: SageError) -> SendFailure:
    submit = held.submit
    event = Failed(error=WireError.of(error))
    delta = Delta(request_id=submit.request_id, attempt=submit.attempt, seq=OUT_OF_BAND, event=event)
    return SendFailure(submit.reply_to, delta, held)
