"""Presence, cancel, drain and inspection of actors."""

from __future__ import annotations

from sage_wire.messages.base import Message

__all__ = [
    "Announcement",
    "Cancel",
    "Discover",
    "Drain",
    "Draining",
    "FindReceipt",
    "FindSpans",
    "FoundSpans",
    "Ping",
    "Pong",
    "Receipt",
    "ReceiptCandidate",
    "ServedModel",
    "Span",
]


class ServedModel(Message, frozen=True):
    """A pool a worker serves. `task` is generate, embed, rerank, operator or pipeline.

    `takes`: what a pipeline's runs bring, messages or documents; empty for other tasks.
    """

    name: str
    task: str
    engine: str = ""
    max_context: int = 0
    dim: int = 0
    description: str = ""
    takes: str = ""


class Announcement(Message, frozen=True):
    """Sent on every change and once per interval. Three missed intervals mean that the actor is gone.

    `state` is starting, ready, draining or stopped. `epoch` is new in each life of a process; `sequence` counts
    announcements of one life. `in_flight` lists request ids with their attempt, `id/attempt`, for schedulers
    that start anew.
    """

    actor_id: str
    kind: str
    epoch: str
    sequence: int
    state: str
    version: str
    host: str
    pid: int
    interval_ms: int = 1000
    models: list[ServedModel] = []
    max_in_flight: int = 0
    num_in_flight: int = 0
    num_queued: int = 0
    in_flight: list[str] = []
    health: str = "ok"
    started_s_ago: float = 0.0


class Discover(Message, frozen=True):
    """Asked of every actor: announce yourself now."""


class Ping(Message, frozen=True):
    """Asked of one actor; answered from its event loop, so a stuck loop does not answer."""


class Pong(Message, frozen=True):
    """The answer to Ping."""

    actor_id: str
    epoch: str
    state: str


class Drain(Message, frozen=True):
    """Ask an actor to stop taking work, finish or hand over what it holds, and exit."""

    timeout_ms: int = 20000


class Draining(Message, frozen=True):
    """The answer to Drain, at once."""

    num_in_flight: int


class Cancel(Message, frozen=True):
    """Stop a request in any phase. Idempotent; unknown ids are remembered briefly, as the submit may be behind."""

    request_id: str
    attempt: int | None = None
    reason: str = "cancelled by the caller"


class FindSpans(Message, frozen=True):
    """Asked of every actor: recent spans of one trace, or of the traces that a request id appears in."""

    trace_id: str
    request_id: str = ""


class Span(Message, frozen=True):
    """A finished span. Times are Unix nanoseconds of the host that recorded it."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    service: str
    start_ns: int
    end_ns: int
    is_error: bool = False
    attributes: dict[str, str | int | float | bool] = {}


class FoundSpans(Message, frozen=True):
    """The answer to FindSpans."""

    actor_id: str
    spans: list[Span]


class FindReceipt(Message, frozen=True):
    """Asked of every scheduler."""

    request_id: str


class ReceiptCandidate(Message, frozen=True):
    """An instance that was considered; lower score wins. `reason` says why it could not be used, empty if it could."""

    instance_id: str
    score: float
    reason: str = ""


class Receipt(Message, frozen=True):
    """Why a scheduler did what it did with a request. `decision` is dispatched, held, shed or aborted."""

    request_id: str
    attempt: int
    pool: str
    policy: str
    decision: str
    reason: str
    queue_ms: float
    num_queued: int
    chosen: str | None = None
    candidates: list[ReceiptCandidate] = []
    predicted_ms: float | None = None
    actual_ms: float | None = None
