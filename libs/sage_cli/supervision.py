"""When to start, restart, give up and stop the processes of one instance. Pure: no clock, no IO, no asyncio.

    waiting -> starting -> ready            started in order of `start_stage`, each stage once the one before is ready
    starting | ready -> backing_off -> starting      an exit; the delay doubles while it keeps failing
    any -> stopping -> stopped              in order of `stop_stage`, each stage once the one before has ended

A process that exits with status 2 (configuration) ends the whole instance with status 2: a restart would fail in
the same way. One that never became ready and keeps exiting ends it with status 1. One that was ready before is
restarted for as long as the instance lives. One that runs but has fallen silent is killed, then restarted.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

__all__ = [
    "Command",
    "Event",
    "Exited",
    "Finish",
    "ForceRequested",
    "Kill",
    "Limits",
    "Member",
    "MemberView",
    "Ready",
    "SetTimer",
    "Silent",
    "Spawn",
    "State",
    "StopRequested",
    "Supervision",
    "Terminate",
    "Timer",
]

CONFIGURATION_EXIT = 2


class State(enum.StrEnum):
    """Where one process is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Member:
    """One process to keep running."""

    name: str
    start_stage: int
    stop_stage: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds. The first restart is immediate; delays then double from `first_delay` to `max_delay`."""

    first_delay: float = 0.5
    max_delay: float = 10.0
    stable_after: float = 10.0
    max_failed_starts: int = 4
    stop_timeout: float = 25.0
    silent_timeout: float = 15.0


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended with `status` (negative: the signal that killed it). `detail` is its last words."""

    name: str
    status: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """The process does its work, or is heard again after silence."""

    name: str


@dataclass(frozen=True, slots=True)
class Silent:
    """The process runs, yet is not heard any more."""

    name: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Stop everything in good order; asked a second time it is as good as `ForceRequested`."""


@dataclass(frozen=True, slots=True)
class ForceRequested:
    """Stop everything now."""


@dataclass(frozen=True, slots=True)
class Timer:
    """The time asked for by `SetTimer` has come."""


Event = Exited | Ready | Silent | StopRequested | ForceRequested | Timer


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the process."""

    name: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask the process to drain and exit (SIGTERM)."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End the process at once (SIGKILL)."""

    name: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Send `Timer` at `at`; replaces any earlier timer."""

    at: float


@dataclass(frozen=True, slots=True)
class Finish:
    """Everything has ended: exit with `status`; `reason` is empty after a stop that was asked for."""

    status: int
    reason: str


Command = Spawn | Terminate | Kill | SetTimer | Finish


@dataclass(frozen=True, slots=True)
class MemberView:
    """What the screen shows of one process."""

    name: str
    state: State
    num_restarts: int
    detail: str


@dataclass(slots=True)
class _Process:
    member: Member
    state: State = State.WAITING
    was_ready: bool = False
    num_restarts: int = 0
    num_failures: int = 0
    started_at: float = 0.0
    due_at: float | None = None
    detail: str = ""

    @property
    def is_alive(self) -> bool:
        return self.state in (State.STARTING, State.READY, State.STOPPING)


@dataclass(slots=True)
class _Stop:
    status: int
    reason: str
    is_forced: bool = False


@dataclass(slots=True)
class Supervision:
    """The state of one instance. `start` first, then `handle` every event; `now` is monotonic seconds."""

    members: tuple[Member, ...]
    limits: Limits = field(default_factory=Limits)
    _processes: dict[str, _Process] = field(init=False)
    _stop: _Stop | None = field(init=False, default=None)
    _is_finished: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._processes = {member.name: _Process(member) for member in self.members}

    @property
    def is_stopping(self) -> bool:
        """True from the first reason to stop on."""
        return self._stop is not None

    @property
    def is_ready(self) -> bool:
        """True while every process is ready."""
        return all(process.state is State.READY for process in self._processes.values())

    def views(self) -> list[MemberView]:
        """Return every process in the order given."""
        return [
            MemberView(process.member.name, process.state, process.num_restarts, process.detail)
            for process in self._processes.values()
        ]

    def start(self, now: float) -> list[Command]:
        """Return the commands that start the first stage."""
        return self._advance(now)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event; return what must happen, in order. Unknown names and late events are ignored."""
        if self._is_finished:
            return []
        commands: list[Command] = []
        match event:
            case Exited():
                self._exited(event, now)
            case Ready(name):
                self._heard(name)
            case Silent(name):
                self._fell_silent(name, now)
            case StopRequested():
                if self._stop is None:
                    self._stop = _Stop(0, "")
                else:
                    commands += self._force()
            case ForceRequested():
                self._stop = self._stop or _Stop(0, "")
                commands += self._force()
            case Timer():
                commands += self._timer(now)
        return commands + self._advance(now)

    def _exited(self, event: Exited, now: float) -> None:
        process = self._processes.get(event.name)
        if process is None or not process.is_alive:
            return
        process.due_at = None
        if self._stop is not None:
            process.state = State.STOPPED
            return
        process.detail = (
            _status_text(event.status) if event.status < 0 else event.detail or _status_text(event.status)
        )
        if event.status == CONFIGURATION_EXIT:
            process.state = State.STOPPED
            self._stop = _Stop(CONFIGURATION_EXIT, event.detail or f"{event.name} exited with status 2")
            return
        is_stable = process.state is State.READY and now - process.started_at >= self.limits.stable_after
        process.num_failures = 1 if is_stable else process.num_failures + 1
        if not process.was_ready and process.num_failures >= self.limits.max_failed_starts:
            process.state = State.STOPPED
            self._stop = _Stop(
                1, f"{event.name} did not start in {process.num_failures} attempts: {process.detail}"
            )
            return
        process.state = State.BACKING_OFF
        process.due_at = now + self._delay(process.num_failures)

    def _delay(self, num_failures: int) -> float:
        if num_failures <= 1:
            return 0.0
        return min(self.limits.max_delay, self.limits.first_delay * 2.0 ** min(num_failures - 2, 16))

    def _heard(self, name: str) -> None:
        process = self._processes.get(name)
        if process is not None and process.state in (State.STARTING, State.READY):
            process.state = State.READY
            process.was_ready = True
            process.due_at = None
            process.detail = ""

    def _fell_silent(self, name: str, now: float) -> None:
        process = self._processes.get(name)
        if process is not None and process.state is State.READY and process.due_at is None:
            process.due_at = now + self.limits.silent_timeout
            process.detail = "silent"

    def _force(self) -> list[Command]:
        assert self._stop is not None
        self._stop.is_forced = True
        commands: list[Command] = []
        for process in self._processes.values():
            if process.is_alive:
                process.state, process.due_at = State.STOPPING, None
                commands.append(Kill(process.member.name))
        return commands

    def _timer(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for process in self._processes.values():
            if process.due_at is None or process.due_at > now:
                continue
            if process.state in (State.READY, State.STOPPING):
                process.due_at = None
                commands.append(Kill(process.member.name))
        return commands

    def _advance(self, now: float) -> list[Command]:
        commands = self._advance_stop(now) if self._stop is not None else self._advance_start(now)
        due = [process.due_at for process in self._processes.values() if process.due_at is not None]
        if due and not self._is_finished:
            commands.append(SetTimer(min(due)))
        return commands

    def _advance_start(self, now: float) -> list[Command]:
        commands: list[Command] = []
        blocked_at: int | None = None
        for process in sorted(self._processes.values(), key=lambda each: each.member.start_stage):
            if blocked_at is not None and process.member.start_stage > blocked_at:
                break
            is_due = process.state is State.WAITING or (
                process.state is State.BACKING_OFF and process.due_at is not None and process.due_at <= now
            )
            if is_due:
                process.num_restarts += process.state is State.BACKING_OFF
                process.state, process.started_at, process.due_at = State.STARTING, now, None
                commands.append(Spawn(process.member.name))
            # A later stage waits for the first readiness only: a restart does not hold back its dependants.
            if not process.was_ready:
                blocked_at = process.member.start_stage
        return commands

    def _advance_stop(self, now: float) -> list[Command]:
        assert self._stop is not None
        for process in self._processes.values():
            if process.state in (State.WAITING, State.BACKING_OFF):
                process.state, process.due_at = State.STOPPED, None
        remaining = [process for process in self._processes.values() if process.state is not State.STOPPED]
        if not remaining:
            self._is_finished = True
            return [Finish(self._stop.status, self._stop.reason)]
        stage = min(process.member.stop_stage for process in remaining)
        commands: list[Command] = []
        for process in remaining:
            if process.member.stop_stage == stage and process.state is not State.STOPPING:
                process.state, process.due_at = State.STOPPING, now + self.limits.stop_timeout
                commands.append(Terminate(process.member.name))
        return commands


def _status_text(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"exited with status {status}"
