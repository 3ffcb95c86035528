"""Drives the state of one request by hand, and keeps what came out of it."""

from __future__ import annotations

from collections.abc import Sequence

from sage_client.request_events import (
    Answered,
    Command,
    Finish,
    Input,
    Opened,
    Probe,
    SendCancel,
    SendSubmit,
    SetTimer,
    Timer,
)
from sage_client.request_state import RequestState, RetryRules
from sage_wire.messages import (
    Delta,
    Event,
    Failed,
    Generate,
    Started,
    TextPrompt,
    Tokens,
    WireError,
    Work,
)

__all__ = ["ANSWER", "WORK", "Driver"]

WORK = Generate(model="m", prompt=TextPrompt(text="p"))
ANSWER = [f"w{index} " for index in range(6)]


class Driver:
    """Feeds a state and keeps what came out of it."""

    def __init__(self, work: Work = WORK, *, budget: float = 100.0, max_attempts: int = 3) -> None:
        self.now = 0.0
        self.state = RequestState(work, deadline=budget, rules=RetryRules(max_attempts=max_attempts))
        self.events: list[Event] = []
        self.submits: list[SendSubmit] = []
        self.cancels: list[SendCancel] = []
        self.finished: list[Finish] = []
        self.timer: float | None = None
        self.probes = 0
        self.feed(Opened())

    def feed(self, event: Input) -> Sequence[Command]:
        commands = self.state.handle(event, self.now)
        for command in commands:
            match command:
                case SendSubmit():
                    self.submits.append(command)
                case SendCancel():
                    self.cancels.append(command)
                case SetTimer(at):
                    self.timer = at
                case Probe():
                    self.probes += 1
                case Finish():
                    self.finished.append(command)
                case _:
                    self.events.append(command)
        return commands

    def delta(self, seq: int, event: Event, attempt: int | None = None) -> Sequence[Command]:
        attempt = self.state.attempt if attempt is None else attempt
        return self.feed(Delta(request_id="r", attempt=attempt, seq=seq, event=event))

    def start(self, worker: str = "w1") -> None:
        self.feed(Answered(self.state.attempt, "scheduler-1"))
        self.delta(0, Started(worker_id=worker, model="m", queue_ms=2.0))

    def fail(self, seq: int, code: str, *, retryable: bool) -> None:
        self.delta(seq, Failed(error=WireError(code=code, message="told", retryable=retryable)))

    def fire(self) -> None:
        assert self.timer is not None
        self.now, self.timer = self.timer, None
        self.feed(Timer())

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Tokens))
