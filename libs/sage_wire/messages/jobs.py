"""Durable pipeline jobs: submitted to a JetStream work queue, their state in a KV bucket."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from sage_wire.messages.base import Message, WireError
from sage_wire.messages.work import Hit, RunPipeline

__all__ = ["JOB_STATE_SECONDS", "NO_VALUE", "JobState", "JobStatus", "SubmitJob"]


NO_VALUE: Final = msgspec.Raw()


JOB_STATE_SECONDS: Final = 7 * 24 * 3600.0
"""How long the state of a job is kept after its last change: the time to live of the bucket's values."""


class SubmitJob(Message, frozen=True):
    """Published to `subjects.JOBS_SUBMIT`; the publisher's `Nats-Msg-Id` is the job id."""

    job_id: str
    run: RunPipeline
    budget_ms: int = 600_000
    tenant: str = "default"


class JobStatus(enum.StrEnum):
    """The life of a job; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobState(Message, frozen=True):
    """The value of key `job_id` in bucket `subjects.JOBS_BUCKET`, changed by compare-and-set only.

    `text` is what the pipeline generated, `value` what it put out instead (as in `Output`). `value` is `NO_VALUE`
    where there is none: msgspec cannot decode a Raw that may also be null. `sources` are the passages that `text`
    rests on, in the order of their numbers. `queue_sequence` is the number that the queue gave to the job,
    `traceparent` the span of its latest run, where that is traced.
    """

    job_id: str
    status: JobStatus
    pipeline: str
    attempt: int = 0
    planner_id: str | None = None
    num_nodes_done: int = 0
    num_nodes: int = 0
    text: str = ""
    value: msgspec.Raw = NO_VALUE
    error: WireError | None = None
    sources: list[Hit] = []
    queue_sequence: int = 0
    traceparent: str | None = None
