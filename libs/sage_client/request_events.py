"""What happens to a request at its consumer, and what the consumer must do about it: the two closed sets."""

from __future__ import annotations

from dataclasses import dataclass

from sage_core import SageError
from sage_wire.messages import Accepted, Delta, Event, Work

__all__ = [
    "Answered",
    "Command",
    "Finish",
    "Input",
    "Opened",
    "Probe",
    "ReaderCancelled",
    "Refused",
    "Resynchronised",
    "SchedulerGone",
    "SendCancel",
    "SendSubmit",
    "SetTimer",
    "Timer",
    "WorkerGone",
    "WorkerListed",
]


@dataclass(frozen=True, slots=True)
class Opened:
    """The first event: submit it."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The scheduler took `attempt`."""

    attempt: int
    accepted: Accepted


@dataclass(frozen=True, slots=True)
class Refused:
    """The scheduler did not take `attempt`, or gave no answer (`Unavailable`)."""

    attempt: int
    error: SageError


@dataclass(frozen=True, slots=True)
class ReaderCancelled:
    """The reader no longer wants it."""

    reason: str


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """A worker left. `is_lost`: without a word; else its last frames may still be on the way."""

    worker_id: str
    is_lost: bool


@dataclass(frozen=True, slots=True)
class WorkerListed:
    """Answers `Probe`: whether the worker's last announcement lists the attempt; None where nobody knows."""

    worker_id: str
    is_held: bool | None


@dataclass(frozen=True, slots=True)
class SchedulerGone:
    """A scheduler's life ended; what it held and had not started is gone."""

    scheduler_id: str


@dataclass(frozen=True, slots=True)
class Resynchronised:
    """The bus is back after a gap in which messages were lost."""


@dataclass(frozen=True, slots=True)
class Timer:
    """The time asked for by `SetTimer` has come."""


Input = (
    Delta
    | Opened
    | Answered
    | Refused
    | ReaderCancelled
    | WorkerGone
    | WorkerListed
    | SchedulerGone
    | Resynchronised
    | Timer
)


@dataclass(frozen=True, slots=True)
class SendSubmit:
    """Ask the pool's scheduler for `attempt`; answer with `Answered` or `Refused`."""

    attempt: int
    work: Work


@dataclass(frozen=True, slots=True)
class SendCancel:
    """Tell the pool's scheduler, and the worker where it is known. `attempt` None means all of them."""

    attempt: int | None
    worker_id: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Send `Timer` at `at`; replaces the earlier timer."""

    at: float


@dataclass(frozen=True, slots=True)
class Probe:
    """Find out whether the worker still holds the current attempt; answer with `WorkerListed`."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The end. None after `Completed`; else what the reader gets raised."""

    error: SageError | None


Command = Event | SendSubmit | SendCancel | SetTimer | Probe | Finish
"""An `Event` is handed to the reader as it is."""
