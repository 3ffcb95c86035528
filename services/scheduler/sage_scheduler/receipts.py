"""The latest decisions of a scheduler, and how what was decided went. Receipts are written out only when asked for."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import isnan

from sage_policy import Abort, Decision, Dispatch, Shed
from sage_wire.messages import DecisionFacts, Receipt, ReceiptCandidate, ReceiptTimes, Report

__all__ = ["ReceiptBook", "Subject"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What was decided about. `batch_size` is that of a dispatch in a batch."""

    request_id: str
    attempt: int
    pool: str
    fence: int
    batch_size: int = 0


@dataclass(slots=True)
class _Entry:
    subject: Subject
    command: Dispatch | Shed | Abort | None
    num_queued: int
    first_token_ms: float | None = None
    ended_ms: float | None = None
    num_tokens: int = 0
    num_cached: int = 0


class ReceiptBook:
    """Holds the last decision on each of `max_receipts` requests."""

    def __init__(self, scheduler_id: str, policy: str, max_receipts: int) -> None:
        self._scheduler_id = scheduler_id
        self._policy = policy
        self._max = max_receipts
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def decided(self, subject: Subject, command: Dispatch | Shed | Abort) -> None:
        """Keep a decision of the policy."""
        self._keep(_Entry(subject, command, command.decision.num_queued))

    def held(self, subject: Subject, num_queued: int) -> None:
        """Keep that the policy let a request wait."""
        self._keep(_Entry(subject, None, num_queued))

    def started(self, report: Report, elapsed_ms: float) -> None:
        """Note the first token of a dispatch."""
        entry = self._entry(report)
        if entry is not None:
            entry.first_token_ms = elapsed_ms
            entry.num_cached = report.num_cached

    def ended(self, report: Report, elapsed_ms: float) -> None:
        """Note the end of a dispatch."""
        entry = self._entry(report)
        if entry is not None:
            entry.ended_ms = elapsed_ms
            entry.num_tokens = report.num_tokens
            entry.num_cached = report.num_cached or entry.num_cached

    def find(self, request_id: str) -> Receipt | None:
        """Return the latest decision on a request, None where it is unknown or long ago."""
        entry = self._entries.get(request_id)
        if entry is None:
            return None
        subject, command = entry.subject, entry.command
        decision = command.decision if command is not None else _waiting(entry)
        return Receipt(
            request_id=subject.request_id,
            attempt=subject.attempt,
            pool=subject.pool,
            policy=self._policy,
            decision=_DECISIONS[type(command)],
            reason=decision.reason,
            queue_ms=decision.queue_seconds * 1000,
            num_queued=entry.num_queued,
            chosen=command.instance_id if isinstance(command, Dispatch) else None,
            candidates=[
                ReceiptCandidate(instance_id=each.instance_id, score=each.score, reason=each.reason)
                for each in decision.candidates
            ],
            predicted_ms=_ms(decision.predicted_e2e),
            actual_ms=entry.ended_ms,
            predicted=_predicted(decision),
            actual=_actual(entry),
            facts=DecisionFacts(
                scheduler_id=self._scheduler_id,
                fence=subject.fence,
                batch=command.batch if isinstance(command, Dispatch) else 0,
                batch_size=subject.batch_size,
                code=command.code if isinstance(command, Shed) else "",
                retry_after=command.retry_after if isinstance(command, Shed) else None,
            ),
        )

    def _keep(self, entry: _Entry) -> None:
        if self._max == 0:
            return
        self._entries[entry.subject.request_id] = entry
        self._entries.move_to_end(entry.subject.request_id)
        while len(self._entries) > self._max:
            self._entries.popitem(last=False)

    def _entry(self, report: Report) -> _Entry | None:
        entry = self._entries.get(report.request_id)
        if entry is None or entry.subject.attempt != report.attempt:
            return None
        return entry if isinstance(entry.command, Dispatch) else None


_DECISIONS = {Dispatch: "dispatched", Shed: "shed", Abort: "aborted", type(None): "held"}


def _waiting(entry: _Entry) -> Decision:
    return Decision("waits for an instance that can take it", 0.0, entry.num_queued)


def _ms(seconds: float) -> float | None:
    return None if isnan(seconds) else seconds * 1000


def _predicted(decision: Decision) -> ReceiptTimes | None:
    if isnan(decision.predicted_ttft) and isnan(decision.predicted_tpot):
        return None
    return ReceiptTimes(ttft_ms=_ms(decision.predicted_ttft), tpot_ms=_ms(decision.predicted_tpot))


def _actual(entry: _Entry) -> ReceiptTimes | None:
    first, ended = entry.first_token_ms, entry.ended_ms
    if first is None and ended is None:
        return None
    tpot_ms = None
    if first is not None and ended is not None and entry.num_tokens > 1:
        tpot_ms = (ended - first) / (entry.num_tokens - 1)
    return ReceiptTimes(
        ttft_ms=first, tpot_ms=tpot_ms, num_tokens=entry.num_tokens, num_cached=entry.num_cached
    )
