"""Which dispatches a worker takes, and which requests a cancel stops."""

from __future__ import annotations

import msgspec

from sage_wire.messages import Cancel, Dispatch
from sage_worker.ledger import Admission, DispatchLedger, Key, Verdict


def dispatch(request_id: str = "r", attempt: int = 0, *, fence: int = 0, pool: str = "p") -> Dispatch:
    return Dispatch(
        request_id=request_id,
        attempt=attempt,
        pool=pool,
        reply_to="c",
        work=msgspec.Raw(b"\x80"),
        fence=fence,
    )


class Ledger(DispatchLedger):
    def take(self, request: Dispatch, now: float = 0.0, max_held: int = 2) -> Admission:
        return self.dispatched(request, now, max_held=max_held)


def test_an_attempt_is_run_once() -> None:
    ledger = Ledger()
    assert ledger.take(dispatch()).verdict is Verdict.START
    assert ledger.take(dispatch()).verdict is Verdict.REPEATED
    ledger.ended(Key("r", 0))
    assert ledger.take(dispatch()).verdict is Verdict.REPEATED


def test_a_later_attempt_ends_the_earlier_one_and_an_earlier_one_comes_too_late() -> None:
    ledger = Ledger()
    ledger.take(dispatch(attempt=1))
    assert ledger.take(dispatch(attempt=2)) == Admission(Verdict.START, superseded=Key("r", 1))
    assert ledger.take(dispatch(attempt=1)).verdict is Verdict.REPEATED
    ledger.ended(Key("r", 1))
    assert [str(key) for key in ledger.running] == ["r/2"]


def test_a_lower_fence_is_refused_in_its_pool() -> None:
    ledger = Ledger()
    assert ledger.take(dispatch("a", fence=7)).verdict is Verdict.START
    assert ledger.take(dispatch("b", fence=6)).verdict is Verdict.STALE
    assert ledger.take(dispatch("b", fence=6, pool="other")).verdict is Verdict.START


def test_a_stale_dispatch_does_not_hide_the_true_one() -> None:
    ledger = Ledger()
    ledger.take(dispatch("a", fence=7))
    assert ledger.take(dispatch("b", fence=6)).verdict is Verdict.STALE
    assert ledger.take(dispatch("b", fence=7)).verdict is Verdict.START


def test_a_cancel_that_overtakes_its_dispatch_is_remembered_for_five_seconds() -> None:
    for late_by, verdict in ((4.9, Verdict.CANCELLED), (5.0, Verdict.START)):
        ledger = Ledger()
        assert ledger.cancelled(Cancel(request_id="r"), now=0.0) is None
        assert ledger.take(dispatch(), now=late_by).verdict is verdict


def test_a_cancel_of_one_attempt_leaves_the_next_alone() -> None:
    ledger = Ledger()
    ledger.take(dispatch(attempt=1))
    assert ledger.cancelled(Cancel(request_id="r", attempt=0), now=0.0) is None
    assert ledger.cancelled(Cancel(request_id="r", attempt=1), now=0.0) == Key("r", 1)
    early = Ledger()
    early.cancelled(Cancel(request_id="r", attempt=0), now=0.0)
    assert early.take(dispatch(attempt=1)).verdict is Verdict.START


def test_a_cancel_without_attempt_means_whatever_runs() -> None:
    ledger = Ledger()
    ledger.take(dispatch(attempt=3))
    assert ledger.cancelled(Cancel(request_id="r"), now=0.0) == Key("r", 3)


def test_a_full_worker_and_a_draining_one_refuse() -> None:
    ledger = Ledger()
    ledger.take(dispatch("a"))
    ledger.take(dispatch("b"))
    assert ledger.take(dispatch("c")).verdict is Verdict.FULL
    assert ledger.take(dispatch("a", attempt=1)).verdict is Verdict.START
    ledger.ended(Key("b", 0))
    ledger.is_draining = True
    assert ledger.take(dispatch("d")).verdict is Verdict.DRAINING
    assert ledger.num_running == 1


def test_memory_is_bounded() -> None:
    ledger = Ledger()
    for index in range(20_000):
        ledger.take(dispatch(f"r{index}"))
        ledger.ended(Key(f"r{index}", 0))
        ledger.cancelled(Cancel(request_id=f"c{index}"), now=0.0)
    assert len(ledger._seen) <= 8192
    assert len(ledger._cancelled) <= 8192


def test_a_leader_that_introduced_itself_ends_the_dispatches_of_those_before() -> None:
    ledger = Ledger()
    ledger.led("p", 7)
    ledger.led("p", 5)
    assert ledger.dispatched(dispatch("late", fence=6), 0.0, max_held=9).verdict is Verdict.STALE
    assert ledger.dispatched(dispatch("other", fence=1, pool="q"), 0.0, max_held=9).verdict is Verdict.START
    assert ledger.dispatched(dispatch("late", fence=7), 0.0, max_held=9).verdict is Verdict.START
