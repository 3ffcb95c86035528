"""The scheduling desk under any history: what holds after every event."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from desk_driver import FENCE, MODEL, announce, desk, refusals, report, submit
from sage_scheduler.desk import SchedulingDesk
from sage_scheduler.outgoing import (
    Outgoing,
    SendDispatch,
    SendFailure,
)


class DeskMachine(RuleBasedStateMachine):
    """Whatever happens, the desk holds exactly what nobody has ended, and no attempt is dispatched twice."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = desk(leads=())
        self.now = 0.0
        self.is_led = False
        self.number = 0
        self.open: set[str] = set()
        self.running: dict[str, set[str]] = {}
        self.ever: set[str] = set()

    def take(self, outgoing: list[Outgoing]) -> None:
        for item in outgoing:
            match item:
                case SendDispatch(worker_id, dispatch):
                    key = f"{dispatch.request_id}/{dispatch.attempt}"
                    assert key not in self.ever, "an attempt is dispatched once"
                    assert self.is_led
                    assert key in self.open
                    self.ever.add(key)
                    self.running[worker_id].add(key)
                case SendFailure(_, delta):
                    key = f"{delta.request_id}/{delta.attempt}"
                    assert key in self.open, "a request ends once"
                    self.open.discard(key)
                case _:
                    pass

    @rule(seconds=st.floats(0, 2))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def lead(self) -> None:
        if not self.is_led:
            self.is_led = True
            self.take(self.desk.lead(MODEL, FENCE, self.now))

    @rule()
    def lose(self) -> None:
        outgoing = self.desk.lose(MODEL, self.now)
        self.take(outgoing)
        self.is_led = False
        self.open.clear()

    @rule(budget=st.floats(0.1, 5))
    def submit(self, budget: float) -> None:
        self.number += 1
        key = f"r{self.number}/0"
        self.open.add(key)
        request, deadline = submit(f"r{self.number}"), self.now + budget
        outgoing = SchedulingDesk.submit(self.desk, request, deadline, self.now)
        if refusals(outgoing):
            self.open.discard(key)
        self.take(outgoing)

    @rule(worker=st.sampled_from(["w1", "w2"]), limit=st.integers(0, 3))
    def announce(self, worker: str, limit: int) -> None:
        running = self.running.setdefault(worker, set())
        self.take(self.desk.worker_heard(announce(worker, limit, sorted(running)), self.now))

    @rule(worker=st.sampled_from(["w1", "w2"]), is_first=st.booleans())
    def end_one(self, worker: str, is_first: bool) -> None:
        running = sorted(self.running.get(worker, ()))
        if running:
            key = running[0 if is_first else -1]
            self.running[worker].discard(key)
            self.open.discard(key)
            ended = msgspec.structs.replace(report(key.rpartition("/")[0]), worker_id=worker)
            self.take(self.desk.report(ended, self.now))

    @rule(worker=st.sampled_from(["w1", "w2"]))
    def lose_worker(self, worker: str) -> None:
        self.running[worker] = set()
        self.take(self.desk.worker_down(worker, self.now, is_lost=True))

    @rule()
    def fire_timer(self) -> None:
        self.take(self.desk.timer(self.now))

    @invariant()
    def everything_open_is_held(self) -> None:
        assert self.desk.num_held == (len(self.open) if self.is_led else 0)


DeskMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
test_the_desk_loses_nothing = DeskMachine.TestCase
