"""What the desk wants done: the closed set of messages and timers that the actor turns into IO."""

from __future__ import annotations

import msgspec

from sage_scheduler.held import Held
from sage_wire.messages import Answer, Cancel, Delta, Dispatch, Lead

__all__ = [
    "ArmTimer",
    "NoteScale",
    "Outgoing",
    "SendAnswer",
    "SendCancel",
    "SendDispatch",
    "SendFailure",
    "SendLead",
]


class SendAnswer(msgspec.Struct, frozen=True, gc=False):
    """Tell a consumer what becomes of a submit: it is held, or refused. `ended`: what was held until then."""

    reply_to: str
    answer: Answer
    ended: Held | None = None


class SendDispatch(msgspec.Struct, frozen=True, gc=False):
    """Tell a worker to start. `submitted_at` is on the desk's clock, for the queue-wait span."""

    worker_id: str
    dispatch: Dispatch
    submitted_at: float


class SendCancel(msgspec.Struct, frozen=True, gc=False):
    """Tell a worker to stop."""

    worker_id: str
    cancel: Cancel


class SendLead(msgspec.Struct, frozen=True, gc=False):
    """Tell a worker who leads one of its pools."""

    worker_id: str
    lead: Lead


class SendFailure(msgspec.Struct, frozen=True, gc=False):
    """Tell a consumer that its request is over, or must be submitted again. `ended` is as in `SendAnswer`."""

    reply_to: str
    delta: Delta
    ended: Held | None = None


class ArmTimer(msgspec.Struct, frozen=True, gc=False):
    """Call `SchedulingDesk.timer` at `at`; replaces an earlier one."""

    at: float


class NoteScale(msgspec.Struct, frozen=True, gc=False):
    """The pool would keep its targets with so many instances."""

    pool: str
    num_instances: int


Outgoing = SendAnswer | SendDispatch | SendCancel | SendLead | SendFailure | ArmTimer | NoteScale
