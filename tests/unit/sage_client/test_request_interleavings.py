"""One request at its consumer under any interleaving of faults: exact text and one end."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from request_driver import ANSWER, Driver
from sage_client.request_events import (
    Answered,
    Finish,
    Input,
    Refused,
    Resynchronised,
    SchedulerGone,
    SendCancel,
    Timer,
    WorkerGone,
    WorkerListed,
)
from sage_client.request_state import Phase, RetryRules
from sage_core import (
    Unavailable,
)
from sage_wire.messages import (
    Completed,
    Delta,
    Event,
    Failed,
    Generate,
    Started,
    Tokens,
    WireError,
)

FAULTS = [
    "lost",
    "told",
    "lost",
    "answer",
    "refuse",
    "gone",
    "unlisted",
    "listed",
    "scheduler",
    "bus",
    "twice",
]


class AnyInterleaving(RuleBasedStateMachine):
    """Every attempt is run by a true engine; the network loses, repeats and delays, everything else may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver(max_attempts=1000)
        self.wires: dict[int, list[Delta]] = {}
        self.run_new_attempts()

    def run_new_attempts(self) -> None:
        for submit in self.driver.submits:
            if submit.attempt in self.wires:
                continue
            assert isinstance(submit.work, Generate)
            resume = submit.work.resume
            done = 0 if resume is None else resume.num_tokens
            assert "".join(ANSWER[:done]) == ("" if resume is None else resume.text)
            events: list[Event] = [Started(worker_id=f"w{submit.attempt}", model="m")]
            events += [Tokens(text=word, token_ids=[0]) for word in ANSWER[done:]]
            events.append(Completed())
            self.wires[submit.attempt] = [
                Delta(request_id="r", attempt=submit.attempt, seq=seq, event=event)
                for seq, event in enumerate(events)
            ]

    def feed(self, event: Input) -> None:
        was_finished = bool(self.driver.finished)
        commands = self.driver.feed(event)
        if was_finished:
            assert all(isinstance(command, SendCancel) for command in commands)
        self.run_new_attempts()

    def wire(self, back: int) -> list[Delta]:
        attempts = sorted(self.wires)
        return self.wires[attempts[max(0, len(attempts) - 1 - back)]]

    @rule(num=st.integers(1, 4))
    def deliver(self, num: int) -> None:
        for _ in range(num):
            if wire := self.wire(0):
                self.feed(wire.pop(0))

    @rule(back=st.integers(1, 3), num=st.integers(1, 4))
    def deliver_late(self, back: int, num: int) -> None:
        for _ in range(num):
            if wire := self.wire(back):
                self.feed(wire.pop(0))

    @rule(back=st.integers(0, 1), num=st.integers(1, 2))
    def lose(self, back: int, num: int) -> None:
        del self.wire(back)[:num]

    @rule(seq=st.integers(0, 8))
    def repeat(self, seq: int) -> None:
        if seq < self.driver.state._next_seq:
            num_submits = len(self.driver.submits)
            attempt = self.driver.state.attempt
            self.feed(Delta(request_id="r", attempt=attempt, seq=seq, event=Tokens(text="REPEATED")))
            assert len(self.driver.submits) == num_submits

    @rule(
        fault=st.sampled_from(FAULTS),
        back=st.integers(0, 1),
    )
    def anything_else(self, fault: str, back: int) -> None:
        attempt = self.driver.state.attempt - back
        error = WireError(code="worker_lost", message="lost", retryable=True)
        events: dict[str, Input] = {
            "answer": Answered(attempt, "scheduler-1"),
            "refuse": Refused(attempt, Unavailable("no")),
            "gone": WorkerGone(f"w{attempt}", is_lost=False),
            "lost": WorkerGone(f"w{attempt}", is_lost=True),
            "unlisted": WorkerListed(f"w{attempt}", is_held=False),
            "listed": WorkerListed(f"w{attempt}", is_held=True),
            "scheduler": SchedulerGone("scheduler-1"),
            "bus": Resynchronised(),
            "twice": Delta(
                request_id="r", attempt=attempt, seq=0, event=Started(worker_id="another", model="m")
            ),
            "told": Delta(request_id="r", attempt=attempt, seq=-1, event=Failed(error=error)),
        }
        self.feed(events[fault])

    @precondition(lambda self: self.driver.timer is not None and self.driver.timer < 90)
    @rule()
    def let_time_pass(self) -> None:
        self.driver.fire()
        self.run_new_attempts()

    @rule(seconds=st.floats(0, 0.4))
    def tick_early(self, seconds: float) -> None:
        self.driver.now += seconds
        self.feed(Timer())

    @invariant()
    def delivered_text_is_a_prefix_of_the_answer(self) -> None:
        assert "".join(ANSWER).startswith(self.driver.text)

    @invariant()
    def attempts_are_submitted_in_order_and_at_most_twice(self) -> None:
        attempts = [submit.attempt for submit in self.driver.submits]
        assert attempts == sorted(attempts)
        assert sorted(set(attempts)) == list(range(attempts[-1] + 1))
        assert max(map(attempts.count, attempts)) <= 2

    @invariant()
    def what_is_repeated_is_the_same_work(self) -> None:
        works = {(submit.attempt, msgspec.json.encode(submit.work)) for submit in self.driver.submits}
        assert len(works) == self.driver.submits[-1].attempt + 1

    @invariant()
    def there_is_at_most_one_end_and_nothing_after_it(self) -> None:
        ends = [index for index, event in enumerate(self.driver.events) if isinstance(event, Completed)]
        assert ends in ([], [len(self.driver.events) - 1])
        assert len(self.driver.finished) <= 1

    def teardown(self) -> None:
        """Let nothing fail any more: the request must come to its true end."""
        for _ in range(200):
            if self.driver.finished:
                break
            if self.driver.state.phase is Phase.BACKOFF:
                self.driver.fire()
                self.run_new_attempts()
                continue
            wire = self.wires[self.driver.state.attempt]
            if wire:
                self.feed(wire.pop(0))
            else:
                worker_id = self.driver.state.worker_id or f"w{self.driver.state.attempt}"
                self.feed(WorkerGone(worker_id, is_lost=True))
                if self.driver.state.phase in (Phase.SUBMITTED, Phase.ACCEPTED):
                    self.feed(SchedulerGone("scheduler-1"))
                    self.feed(Refused(self.driver.state.attempt, Unavailable("no")))
        assert len(self.driver.finished) == 1
        if self.driver.finished[0].error is None:
            assert self.driver.text == "".join(ANSWER)


@settings(max_examples=100, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 7), max_size=4),
    late=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 7)), min_size=40, max_size=40),
)
def test_text_is_exact_however_often_workers_die_and_whatever_comes_late(
    cuts: list[int], late: list[tuple[int, int]]
) -> None:
    network = AnyInterleaving()
    network.driver.state._rules = RetryRules(max_attempts=1000, backoff=0.0)
    every: dict[int, list[Delta]] = {}
    for cut in [*cuts, 8]:
        attempt = network.driver.state.attempt
        every[attempt] = list(network.wires[attempt])
        for delta in every[attempt][:cut]:
            back, index = late.pop()
            stray = every.get(attempt - back, [])[index : index + 1]
            for event in [*stray, delta, *stray]:
                network.feed(event)
            network.delivered_text_is_a_prefix_of_the_answer()
        if not network.driver.finished:
            network.feed(network_failure(network.driver))
    assert network.driver.finished == [Finish(None)]
    assert network.driver.text == "".join(ANSWER)


def network_failure(driver: Driver) -> Input:
    """What ends the current attempt, in the phase it is in."""
    if driver.state.phase is Phase.STARTED:
        return WorkerGone(driver.state.worker_id or "", is_lost=True)
    return Refused(driver.state.attempt, Unavailable("no"))


AnyInterleaving.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestAnyInterleaving = AnyInterleaving.TestCase
