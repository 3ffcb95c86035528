"""What happens to a request at its consumer, and what the consumer must do about it: the two closed sets.

Structs rather than dataclasses: a frozen dataclass takes five times as long to make.
"""

from __future__ import annotations

import msgspec

from sage_core import SageError
from sage_wire.messages import Delta, Event, Work

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


class Opened(msgspec.Struct, frozen=True, gc=False):
    """The first event: submit it."""


class Answered(msgspec.Struct, frozen=True, gc=False):
    """A scheduler holds `attempt`."""

    attempt: int
    scheduler_id: str


class Refused(msgspec.Struct, frozen=True, gc=False):
    """The scheduler did not take `attempt`, or there is none (`Unavailable`)."""

    attempt: int
    error: SageError


class ReaderCancelled(msgspec.Struct, frozen=True, gc=False):
    """The reader no longer wants it."""

    reason: str


class WorkerGone(msgspec.Struct, frozen=True, gc=False):
    """A worker left. `is_lost`: without a word; else its last frames may still be on the way."""

    worker_id: str
    is_lost: bool


class WorkerListed(msgspec.Struct, frozen=True, gc=False):
    """Answers `Probe`: whether the worker's last announcement lists the attempt; None where nobody knows."""

    worker_id: str
    is_held: bool | None


class SchedulerGone(msgspec.Struct, frozen=True, gc=False):
    """A scheduler's life ended; what it held and had not started is gone."""

    scheduler_id: str


class Resynchronised(msgspec.Struct, frozen=True, gc=False):
    """The bus is back after a gap in which messages were lost."""


class Timer(msgspec.Struct, frozen=True, gc=False):
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


class SendSubmit(msgspec.Struct, frozen=True, gc=False):
    """Submit `attempt` to the pool's scheduler: the first time, or again as no word came. It may be there already."""

    attempt: int
    work: Work


class SendCancel(msgspec.Struct, frozen=True, gc=False):
    """Tell the pool's scheduler, and the worker where it is known. `attempt` None means all of them."""

    attempt: int | None
    worker_id: str | None
    reason: str


class SetTimer(msgspec.Struct, frozen=True, gc=False):
    """Send `Timer` at `at`; replaces the earlier timer."""

    at: float


class Probe(msgspec.Struct, frozen=True, gc=False):
    """Find out whether the worker still holds the current attempt; answer with `WorkerListed`."""

    worker_id: str


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The end. None after `Completed`; else what the reader gets raised."""

    error: SageError | None


Command = Event | SendSubmit | SendCancel | SetTimer | Probe | Finish
"""An `Event` is handed to the reader as it is."""
