"""What the desk wants done: the closed set of messages and timers that the actor turns into IO."""

from __future__ import annotations

from dataclasses import dataclass

from sage_core import SageError
from sage_wire.messages import Cancel, Delta, Dispatch, Lead

__all__ = [
    "ArmTimer",
    "NoteScale",
    "Outgoing",
    "Refuse",
    "SendCancel",
    "SendDispatch",
    "SendFailure",
    "SendLead",
]


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer the submit at hand with this error."""

    error: SageError


@dataclass(frozen=True, slots=True)
class SendDispatch:
    """Tell a worker to start. `submitted_at` is on the desk's clock, for the queue-wait span."""

    worker_id: str
    dispatch: Dispatch
    deadline: float
    traceparent: str | None
    submitted_at: float


@dataclass(frozen=True, slots=True)
class SendCancel:
    """Tell a worker to stop."""

    worker_id: str
    cancel: Cancel


@dataclass(frozen=True, slots=True)
class SendLead:
    """Tell a worker who leads one of its pools."""

    worker_id: str
    lead: Lead


@dataclass(frozen=True, slots=True)
class SendFailure:
    """Tell a consumer that its request is over, or must be submitted again."""

    reply_to: str
    delta: Delta


@dataclass(frozen=True, slots=True)
class ArmTimer:
    """Call `SchedulingDesk.timer` at `at`; replaces an earlier one."""

    at: float


@dataclass(frozen=True, slots=True)
class NoteScale:
    """The pool would keep its targets with so many instances."""

    pool: str
    num_instances: int


Outgoing = Refuse | SendDispatch | SendCancel | SendLead | SendFailure | ArmTimer | NoteScale
