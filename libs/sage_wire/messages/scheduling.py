"""Between consumers, schedulers and workers: submit, dispatch, report. Schedulers never decode the work itself."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from sage_wire.messages.base import Message, WireError

__all__ = [
    "BATCH_CLASS",
    "Dispatch",
    "Dispatches",
    "Lead",
    "Report",
    "ReportEvent",
    "Reports",
    "Submit",
    "Submits",
    "Targets",
    "WorkSize",
]

BATCH_CLASS: Final = "batch"
"""The class of work that ranks below all other, e.g. that of durable jobs."""


class WorkSize(Message, frozen=True):
    """What the cost model needs to know of a request without reading it.

    `num_prompt_tokens` may be an estimate. `blocks` are the hashes of the prompt's leading blocks that
    `sage_wire.prefix` defines: two prompts that begin alike have equal hashes for as long as they do.
    """

    num_items: int = 1
    num_chars: int = 0
    max_tokens: int = 0
    num_prompt_tokens: int = 0
    blocks: list[int] = []


class Targets(Message, frozen=True):
    """What a request promises its reader. None: what its class promises.

    Targets are met or missed on a clock that started `started_ago_ms` before the message was sent, with the first
    attempt, or with the pipeline that the request is a part of. About `downstream_ms` of other work follow before
    they are met. The time to the first token of work without tokens is that of its result.
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    started_ago_ms: float = 0.0
    downstream_ms: float = 0.0


class Submit(Message, frozen=True):
    """Ask the scheduler that leads a pool to have `work` done; what becomes of it is told on `reply_to`.

    First comes an `Answer` or the worker's `Started`. Where neither does, submit the same (request_id, attempt) again:
    that is idempotent. `reply_to` is a subject made by `subjects.frames`. `budget_ms` is what is left of the request's
    time, `traceparent` its trace (W3C). Output lengths are learned by `route`.
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
    targets: Targets = Targets()
    route: str = ""
    budget_ms: int = 0
    traceparent: str | None = None


class Submits(Message, frozen=True):
    """All that one consumer submits to one pool in one turn of its event loop, in order.

    Nobody listens while no scheduler leads the pool: submit again a moment later. NATS says so (503) on the reply
    subject; nothing else ever comes there.
    """

    submits: list[Submit]


class Dispatch(Message, frozen=True):
    """Tell a worker to start a request now. `fence` grows with each leader of the pool; workers refuse a lower one.

    The `batch_size` dispatches of one pool and fence with the same `batch` > 0 are computed as one batch. The class,
    the targets, the budget and the trace are those of the submit; the clocks of targets and budget go on.
    """

    request_id: str
    attempt: int
    pool: str
    reply_to: str
    work: msgspec.Raw
    tenant: str = "default"
    priority: int = 0
    queue_ms: float = 0.0
    fence: int = 0
    batch: int = 0
    batch_size: int = 0
    slo_class: str = "interactive"
    targets: Targets = Targets()
    budget_ms: int = 0
    traceparent: str | None = None


class Dispatches(Message, frozen=True):
    """All that one scheduler dispatches to one worker in one turn of its event loop, in order."""

    dispatches: list[Dispatch]


class Lead(Message, frozen=True):
    """Told to every worker of a pool by the scheduler that leads it now, before its first dispatch.

    From then on the worker refuses what an earlier leader sent, however late it arrives.
    """

    pool: str
    scheduler_id: str
    fence: int


class ReportEvent(enum.StrEnum):
    """What became of a dispatch."""

    STARTED = "started"
    FIRST_TOKEN = "first_token"  # noqa: S105 - a token of text
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Report(Message, frozen=True):
    """Told by a worker to the pool's scheduler; the last three events release the worker's slot.

    A report that a later one in the same message implies is left out: `started` by any, `first_token` by `finished`.
    `num_cached` prompt tokens were found in the engine's cache, where the engine says so.
    """

    worker_id: str
    pool: str
    request_id: str
    attempt: int
    event: ReportEvent
    num_tokens: int = 0
    elapsed_ms: float = 0.0
    error: WireError | None = None
    num_cached: int = 0


class Reports(Message, frozen=True):
    """All that one worker reports of one pool in one turn of its event loop, in order."""

    reports: list[Report]
