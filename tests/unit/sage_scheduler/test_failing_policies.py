"""What the desk does with a policy that decides nonsense, or fails."""

from __future__ import annotations

from sage_policy import Command, Decision, Dispatch, Event, Shed, Submitted
from sage_policy.python_policy import PolicyFailure
from sage_scheduler.desk import SchedulingDesk
from sage_scheduler.outgoing import SendAnswer, SendDispatch
from unit.sage_scheduler.test_desk import FENCE, MODEL, announce, failures, submit


class Swapping:
    """A policy that refuses every second request and dispatches the one before it in the same breath."""

    name = "swapping"

    def __init__(self) -> None:
        self.waiting: str | None = None

    def handle(self, event: Event, now: float) -> list[Command]:
        if not isinstance(event, Submitted):
            return []
        if self.waiting is None:
            self.waiting = event.key
            return []
        because = Decision("because", 0.0, 0)
        waiting, self.waiting = self.waiting, None
        return [Shed(event.key, "overloaded", 1.0, because), Dispatch(waiting, "w1", because)]


def test_a_refusal_does_not_swallow_what_else_was_decided() -> None:
    scheduling = SchedulingDesk(Swapping())
    scheduling.lead(MODEL, FENCE, 0.0)
    scheduling.worker_heard(announce(), 0.0)
    scheduling.submit(submit("a"), 10.0, 0.0)
    refusal, sent = scheduling.submit(submit("b"), 10.0, 0.0)
    assert isinstance(refusal, SendAnswer)
    assert refusal.answer.error is not None
    assert isinstance(sent, SendDispatch)
    assert sent.dispatch.request_id == "a"


class Mistaken(Swapping):
    """A policy that raises for the prompt `bad`, and dispatches all others to where nobody is."""

    def handle(self, event: Event, now: float) -> list[Command]:
        if isinstance(event, Submitted):
            if event.key == "bad/0":
                raise ValueError("no such prompt")
            if event.key == "odd/0":
                return [3]  # type: ignore[list-item]
            if event.key != "waits/0":
                return [Dispatch(event.key, "nobody", Decision("because", 0.0, 0))]
        return []


def mistaken() -> tuple[SchedulingDesk, list[str]]:
    told: list[str] = []
    scheduling = SchedulingDesk(Mistaken(), failed=told.append)
    scheduling.lead(MODEL, FENCE, 0.0)
    scheduling.worker_heard(announce(), 0.0)
    return scheduling, told


def test_a_policy_that_raises_costs_what_waits_and_is_told_in_one_line() -> None:
    scheduling, told = mistaken()
    (held,) = scheduling.submit(submit("waits"), 10.0, 0.0)
    assert isinstance(held, SendAnswer)
    failed, refusal = scheduling.submit(submit("bad"), 10.0, 0.0)
    assert isinstance(refusal, SendAnswer)
    assert refusal.answer.error is not None
    assert failures([failed]) == [("waits", "internal", False)]
    assert refusal.answer.error.code == "internal"
    assert refusal.answer.error.message.startswith("policy swapping failed: ValueError: no such prompt")
    assert told == [refusal.answer.error.message]
    assert scheduling.num_held == 0
    receipt = scheduling.receipt("bad")
    assert receipt is not None
    assert receipt.reason == told[0]


def test_a_long_exception_is_shown_in_part() -> None:
    failure = PolicyFailure(Mistaken(), TypeError("incompatible arguments\n" + "x" * 5000))
    assert "incompatible arguments x" in str(failure)
    assert len(str(failure)) < 500


def test_what_is_no_command_is_a_failure_of_the_policy() -> None:
    scheduling, told = mistaken()
    (refusal,) = scheduling.submit(submit("odd"), 10.0, 0.0)
    assert isinstance(refusal, SendAnswer)
    assert refusal.answer.error is not None
    assert "TypeError: handle returned 3" in told[0]


def test_a_dispatch_to_nobody_fails_its_request_at_once() -> None:
    scheduling, told = mistaken()
    (refusal,) = scheduling.submit(submit("lost"), 10.0, 0.0)
    assert isinstance(refusal, SendAnswer)
    assert refusal.answer.error is not None
    assert refusal.answer.error.code == "internal"
    assert "Dispatch names 'nobody', no instance of pool 'mini'" in refusal.answer.error.message
    assert told == [refusal.answer.error.message]
    assert scheduling.num_held == 0
