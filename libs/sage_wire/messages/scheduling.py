"""Between consumers, schedulers and workers: submit, dispatch, report. Schedulers never decode the work itself."""

from __future__ import annotations

import enum

import msgspec

from sage_wire.messages.base import Message, WireError

__all__ = ["Accepted", "Dispatch", "Report", "ReportEvent", "Submit", "WorkSize"]


class WorkSize(Message, frozen=True):
    """What the cost model needs to know of a request without reading it."""

    num_items: int = 1
    num_chars: int = 0
    max_tokens: int = 0


class Submit(Message, frozen=True):
    """Ask a pool's scheduler to have `work` done. Answered by `Accepted` or an error.

    The remaining budget travels in the call headers. `reply_to` is a subject made by `subjects.frames`.
    Submitting the same (request_id, attempt) twice is idempotent.
    """

    request_id: str
    attempt: int
    pool: str
    reply_to: str
    work: msgspec.Raw
    size: WorkSize = WorkSize()
    tenant: str = "default"
    slo_class: str = "interactive"
    priority: int = 0


class Accepted(Message, frozen=True):
    """The scheduler holds the request; frames follow on `reply_to`. `epoch` names the scheduler's life."""

    scheduler_id: str
    epoch: str


class Dispatch(Message, frozen=True):
    """Tell a worker to start a request now. `fence` grows with each scheduler leader; workers refuse a lower one."""

    request_id: str
    attempt: int
    pool: str
    reply_to: str
    work: msgspec.Raw
    tenant: str = "default"
    priority: int = 0
    queue_ms: float = 0.0
    fence: int = 0


class ReportEvent(enum.StrEnum):
    """What became of a dispatch."""

    STARTED = "started"
    FIRST_TOKEN = "first_token"  # noqa: S105 - a token of text
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Report(Message, frozen=True):
    """Told by a worker to the pool's scheduler; the last three events release the worker's slot."""

    worker_id: str
    pool: str
    request_id: str
    attempt: int
    event: ReportEvent
    num_tokens: int = 0
    elapsed_ms: float = 0.0
    error: WireError | None = None
