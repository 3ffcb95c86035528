"""One request as its consumer sees it: `handle(event, now) -> commands`. Pure: no IO, no clock, no asyncio.

    SUBMITTED --Answered--> ACCEPTED --Started--> STARTED --Completed--> ENDED
        |  ^  +------------Started, at once----------^
        |  |                   |                     |
        |  +------ BACKOFF <---+---------------------+   refused, scheduler gone, gap, worker gone, retryable failure
        +--> ENDED                                       final failure, cancel, budget spent

A submit without a word for a while is sent again as it was; whoever holds it says so.

Promises: events come out in order, none twice, none lost, whatever is lost, repeated or late on the way; nothing
comes out after the end, and the end comes exactly once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sage_client.delivered import delivered_for
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
from sage_core import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    NotFound,
    Overloaded,
    SageError,
    Unavailable,
    WorkerLost,
)
from sage_wire.messages import Completed, Delta, Failed, Started, Work

__all__ = ["GivenUp", "Phase", "RequestState", "RetryRules"]

OUT_OF_BAND: Final = -1
"""The sequence number of a `Failed` that a scheduler sends for a worker that cannot."""
_NOTHING: Final[Sequence[Command]] = ()


class Phase(enum.Enum):
    """Where the current attempt is."""

    SUBMITTED = "submitted"
    ACCEPTED = "accepted"
    STARTED = "started"
    BACKOFF = "backoff"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class GivenUp:
    """When and why an attempt was given up, and who ran it, if anybody did."""

    at: float
    error: SageError
    worker_id: str | None


@dataclass(frozen=True, slots=True)
class RetryRules:
    """When another attempt is worth it. All in seconds; delays are multiplied by a jitter of 0.5 to 1.5.

    `max_attempts` counts attempts that a worker or the way to it failed. A request whose workers died all of these
    times may be what they died of: it ends with an error that nobody repeats. Attempts that no scheduler took do not
    count; they go on for `patience`, so that a restarting scheduler is not seen. A submit without a word is repeated
    after `answer`, and given up after as long again. After `silence` it is asked whether a started attempt still runs;
    `grace` is how long the last frames of a worker may take. After `discovery` a pool that nobody announces is one
    that does not exist.
    """

    max_attempts: int = 3
    backoff: float = 0.05
    max_backoff: float = 1.0
    patience: float = 10.0
    answer: float = 1.0
    silence: float = 2.0
    grace: float = 0.5
    discovery: float = 1.5

    def delay(self, num_before: int, jitter: float) -> float:
        """Return how long to wait before another try when `num_before` went before it."""
        return min(self.backoff * 2.0 ** min(num_before, 16), self.max_backoff) * (0.5 + jitter)


class RequestState:
    """The state machine of one request. `deadline` is absolute on the driver's clock; `jitter` returns [0, 1)."""

    __slots__ = (
        "_answer_at",
        "_delivered",
        "_gone_at",
        "_heard_at",
        "_is_in_doubt",
        "_is_repeated",
        "_is_unlisted",
        "_jitter",
        "_next_seq",
        "_num_deaths",
        "_num_failures",
        "_num_refused",
        "_probe_at",
        "_refused_since",
        "_retry_at",
        "_rules",
        "_scheduler_id",
        "_timer_at",
        "_work",
        "attempt",
        "deadline",
        "given_up",
        "phase",
        "queue_ms",
        "worker_id",
    )

    def __init__(
        self,
        work: Work,
        *,
        deadline: float,
        rules: RetryRules | None = None,
        jitter: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.attempt = 0
        self.phase = Phase.BACKOFF
        self.worker_id: str | None = None
        self.queue_ms = 0.0
        self.deadline = deadline
        self._work = work
        self._rules = rules or RetryRules()
        self._jitter = jitter
        self._delivered = delivered_for(work)
        self._next_seq = 0
        self._num_failures = 0
        self._num_deaths = 0
        self._scheduler_id: str | None = None
        self._retry_at: float | None = None
        self._answer_at: float | None = None
        self._is_repeated = False
        self._gone_at: float | None = None
        self._heard_at = 0.0
        self._probe_at: float | None = None
        self._is_in_doubt = False
        self._is_unlisted = False
        self._refused_since: float | None = None
        self._num_refused = 0
        self._timer_at: float | None = None
        self.given_up: GivenUp | None = None
        """The end of the attempt before the current one."""

    @property
    def has_delivered(self) -> bool:
        """True once a part of the answer has come out."""
        return not self._delivered.is_empty

    def handle(self, event: Input, now: float) -> Sequence[Command]:
        """Take one event; return what must happen, in order. After the end nothing ever must."""
        if type(event) is Delta:
            return self._on_delta(event, now)
        if self.phase is Phase.ENDED:
            return _NOTHING
        return _HANDLERS[type(event)](self, event, now)

    # Hot path: one call per delta.

    def _on_delta(self, delta: Delta, now: float) -> Sequence[Command]:
        event = delta.event
        if delta.attempt != self.attempt or self.phase is Phase.ENDED or self.phase is Phase.BACKOFF:
            return self._on_late(delta, event)
        if delta.seq != self._next_seq:
            if delta.seq == OUT_OF_BAND and type(event) is Failed:
                return self._on_scheduler_failure(event, now)
            if delta.seq < self._next_seq:
                return self._on_repeated(event, now)
            return self._lose(
                WorkerLost(
                    f"results {self._next_seq} to {delta.seq - 1} of attempt {self.attempt} were lost"
                ),
                now,
                is_still_running=True,
            )
        self._next_seq += 1
        self._heard_at = now
        self._is_in_doubt = self._is_unlisted = False
        if type(event) is Started:
            return self._on_started(event, now)
        if type(event) is Failed:
            return self._on_failed(event, now)
        if type(event) is Completed:
            self.phase = Phase.ENDED
            return (event, Finish(None))
        accepted = self._delivered.accept(event)
        return _NOTHING if accepted is None else (accepted,)

    def _on_started(self, event: Started, now: float) -> Sequence[Command]:
        self.phase = Phase.STARTED
        self._answer_at = None
        self._refused_since, self._num_refused = None, 0
        self.worker_id = event.worker_id
        self.queue_ms = event.queue_ms
        self._probe_at = now + self._rules.silence
        return self._armed()

    def _on_failed(self, event: Failed, now: float) -> Sequence[Command]:
        error = event.error.raised()
        if not event.error.retryable or self._is_refusal(error):
            return self._end(error)
        return self._lose(error, now, is_still_running=False)

    def _on_scheduler_failure(self, event: Failed, now: float) -> Sequence[Command]:
        """Take the word of a scheduler; that it does not lead the pool any more matters until a worker has started."""
        if type(event.error.raised()) is not Unavailable:
            return self._on_failed(event, now)
        if self.phase is Phase.STARTED:
            return _NOTHING
        return self._again(now, self._rules.delay(0, self._jitter()), event.error.raised())

    def _on_late(self, delta: Delta, event: object) -> Sequence[Command]:
        """Drop it; where an attempt that was given up starts after all, free its slot."""
        if type(event) is Started and (delta.attempt < self.attempt or self.phase is Phase.ENDED):
            return (SendCancel(delta.attempt, event.worker_id, "another attempt took its place"),)
        return _NOTHING

    def _on_repeated(self, event: object, now: float) -> Sequence[Command]:
        """Drop it, unless another worker runs the attempt, too: then nobody knows whose results come next."""
        if type(event) is not Started or event.worker_id == self.worker_id:
            return _NOTHING
        cancel = SendCancel(self.attempt, event.worker_id, "another worker runs it")
        error = WorkerLost(f"workers {self.worker_id} and {event.worker_id} both ran attempt {self.attempt}")
        return (cancel, *self._lose(error, now, is_still_running=True))

    # Everything else happens a few times per request.

    def _on_opened(self, _: Opened, now: float) -> Sequence[Command]:
        return self._submit(now) if self._timer_at is None else _NOTHING

    def _on_answered(self, event: Answered, _: float) -> Sequence[Command]:
        if event.attempt == self.attempt and self.phase in (Phase.SUBMITTED, Phase.STARTED):
            self._scheduler_id = event.scheduler_id
            self._refused_since, self._num_refused = None, 0
            if self.phase is Phase.SUBMITTED:
                self.phase = Phase.ACCEPTED
                self._answer_at = None
                return self._armed()
        return _NOTHING

    def _on_refused(self, event: Refused, now: float) -> Sequence[Command]:
        if event.attempt != self.attempt or self.phase is not Phase.SUBMITTED:
            return _NOTHING
        error = event.error
        if self._refused_since is None:
            self._refused_since = now
        is_out_of_patience = now - self._refused_since >= self._rules.patience
        delay = max(self._rules.delay(self._num_refused, self._jitter()), error.retry_after or 0.0)
        # After trouble, a pool that nobody knows is one whose workers a young scheduler has not heard yet.
        is_curable = error.retryable or (isinstance(error, NotFound) and self.attempt > 0)
        is_too_late = is_out_of_patience or now + delay >= self.deadline
        if not is_curable or self._is_refusal(error) or is_too_late:
            return self._end(error)
        self._num_refused += 1
        # A scheduler that answered too late holds it now.
        cancel = SendCancel(self.attempt, None, "the scheduler did not answer in time")
        return (cancel, *self._again(now, delay, error))

    def _on_cancel(self, event: ReaderCancelled, _: float) -> Sequence[Command]:
        return (
            SendCancel(None, self.worker_id, event.reason),
            *self._end(Cancelled(f"the request was cancelled: {event.reason}")),
        )

    def _on_worker_gone(self, event: WorkerGone, now: float) -> Sequence[Command]:
        if self.phase is not Phase.STARTED or event.worker_id != self.worker_id:
            return _NOTHING
        if event.is_lost:
            return self._lose(WorkerLost(f"worker {event.worker_id} was lost"), now, is_still_running=False)
        self._gone_at = now + self._rules.grace
        return self._armed()

    def _on_worker_listed(self, event: WorkerListed, now: float) -> Sequence[Command]:
        if self.phase is not Phase.STARTED or event.worker_id != self.worker_id:
            return _NOTHING
        if event.is_held is None:
            is_lost = self._is_in_doubt
        else:
            # The first time, its last frames may still be behind the announcement, which takes another connection.
            is_lost = not event.is_held and self._is_unlisted
            self._is_unlisted = not event.is_held
        if is_lost:
            error = WorkerLost(f"the last results of worker {event.worker_id} were lost")
            return self._lose(error, now, is_still_running=True)
        self._probe_at = now + (self._rules.grace if self._is_unlisted else self._rules.silence)
        return self._armed()

    def _on_scheduler_gone(self, event: SchedulerGone, now: float) -> Sequence[Command]:
        if self.phase is not Phase.ACCEPTED or event.scheduler_id != self._scheduler_id:
            return _NOTHING
        error = Unavailable(f"scheduler {event.scheduler_id} is gone")
        return self._again(now, self._rules.delay(0, self._jitter()), error)

    def _on_resynchronised(self, _: Resynchronised, now: float) -> Sequence[Command]:
        if self.phase in (Phase.SUBMITTED, Phase.ACCEPTED):
            # Another attempt, not the same again: of one that two workers ran, frames could not be told apart.
            cancel = SendCancel(self.attempt, None, "messages were lost")
            error = Unavailable("messages were lost")
            return (cancel, *self._again(now, self._rules.delay(0, self._jitter()), error))
        if self.phase is Phase.STARTED:
            self._is_in_doubt = True
        return _NOTHING

    def _on_timer(self, _: Timer, now: float) -> Sequence[Command]:
        self._timer_at = None
        if now >= self.deadline:
            return (
                SendCancel(None, self.worker_id, "the budget is spent"),
                *self._end(DeadlineExceeded(f"the request's budget ran out while it was {self.phase.value}")),
            )
        if self.phase is Phase.BACKOFF and self._retry_at is not None and now >= self._retry_at:
            return self._submit(now)
        if self._answer_at is not None and now >= self._answer_at:
            return self._on_unanswered(now)
        if self._gone_at is not None and now >= self._gone_at:
            error = WorkerLost(f"worker {self.worker_id} stopped before it was done")
            return self._lose(error, now, is_still_running=False)
        if self._probe_at is not None and now >= self._probe_at:
            silent_until = self._heard_at + self._rules.silence
            if self.worker_id is not None and (self._is_unlisted or now >= silent_until):
                self._probe_at = None
                # Last, as its answer may set another timer.
                return (*self._armed(), Probe(self.worker_id))
            self._probe_at = silent_until
        return self._armed()

    def _on_unanswered(self, now: float) -> Sequence[Command]:
        if self._is_repeated:
            return self._on_refused(Refused(self.attempt, Unavailable("no scheduler answers")), now)
        self._is_repeated = True
        self._answer_at = now + self._rules.answer
        return (SendSubmit(self.attempt, self._attempt_work()), *self._armed())

    def _is_refusal(self, error: SageError) -> bool:
        """Overload is the caller's to handle, unless it already has part of the answer."""
        return isinstance(error, Overloaded) and self._delivered.is_empty

    def _lose(self, error: SageError, now: float, *, is_still_running: bool) -> Sequence[Command]:
        self._num_failures += 1
        if isinstance(error, WorkerLost) and not is_still_running:
            self._num_deaths += 1
        cancel = (SendCancel(self.attempt, self.worker_id, error.message),) if is_still_running else ()
        delay = max(self._rules.delay(self._num_failures - 1, self._jitter()), error.retry_after or 0.0)
        if isinstance(error, WorkerLost) and self._num_failures == 1:
            delay = 0.0
        if (
            self._num_failures >= self._rules.max_attempts
            or not self._delivered.is_resumable
            or now + delay >= self.deadline
        ):
            return (*cancel, *self._end(self._last_word(error)))
        return (*cancel, *self._again(now, delay, error))

    def _last_word(self, error: SageError) -> SageError:
        """Return what the caller is told: a `WorkerLost` would be repeated, and kill as many workers again."""
        if 1 < self._rules.max_attempts <= self._num_deaths:
            return EngineError(
                f"{self._num_deaths} workers in a row were lost while they ran this request; it is not tried again: "
                f"{error.message}"
            )
        return error

    def _again(self, now: float, delay: float, error: SageError) -> Sequence[Command]:
        """Give the current attempt up because of `error`: from here on its frames are late."""
        self.given_up = GivenUp(now, error, self.worker_id)
        self.attempt += 1
        self.phase = Phase.BACKOFF
        self.worker_id = self._scheduler_id = None
        self._next_seq = 0
        self._answer_at = self._gone_at = self._probe_at = None
        self._is_in_doubt = self._is_unlisted = False
        if delay <= 0.0:
            return self._submit(now)
        self._retry_at = now + delay
        return self._armed()

    def _submit(self, now: float) -> Sequence[Command]:
        self.phase = Phase.SUBMITTED
        self._retry_at = None
        self._answer_at = now + self._rules.answer
        self._is_repeated = False
        return (SendSubmit(self.attempt, self._attempt_work()), *self._armed())

    def _attempt_work(self) -> Work:
        return self._delivered.next_work() if self.attempt else self._work

    def _armed(self) -> Sequence[Command]:
        at = self.deadline
        for time in (self._retry_at, self._answer_at, self._gone_at, self._probe_at):
            if time is not None and time < at:
                at = time
        if at == self._timer_at:
            return _NOTHING
        self._timer_at = at
        return (SetTimer(at),)

    def _end(self, error: SageError | None) -> Sequence[Command]:
        self.phase = Phase.ENDED
        return (Finish(error),)


_HANDLERS: Final[dict[type, Callable[..., Sequence[Command]]]] = {
    Opened: RequestState._on_opened,
    Answered: RequestState._on_answered,
    Refused: RequestState._on_refused,
    ReaderCancelled: RequestState._on_cancel,
    WorkerGone: RequestState._on_worker_gone,
    WorkerListed: RequestState._on_worker_listed,
    SchedulerGone: RequestState._on_scheduler_gone,
    Resynchronised: RequestState._on_resynchronised,
    Timer: RequestState._on_timer,
}
"""By kind of event; not the methods of a state, which would refer to itself through them."""
