"""What happens to a durable job: pure decisions over its stored state and the delivery at hand.

The queue keeps a job until it is acknowledged, the bucket holds its state, and a final state is stored before the
acknowledgement: so a job may run more than once and has one result. A delivery beyond `max_attempts` fails the job
without running it, which is how a job that kills its planner ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from sage_core import Internal, SageError
from sage_wire.messages import Hit, JobState, JobStatus, SubmitJob, WireError

__all__ = [
    "FINAL",
    "Discard",
    "GiveUp",
    "RunJob",
    "Settle",
    "Verdict",
    "failed",
    "is_job_id",
    "on_delivery",
    "progressed",
    "retry_delay",
    "returned",
    "succeeded",
]

FINAL: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
MAX_RETRY_DELAY: Final = 60.0
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class RunJob:
    """Store `state`, then run the job."""

    state: JobState


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Store `state`, which is final, then settle it."""

    state: JobState


@dataclass(frozen=True, slots=True)
class Settle:
    """The job is final already: acknowledge it, or move it to the dead letters where it failed."""

    state: JobState


@dataclass(frozen=True, slots=True)
class Discard:
    """An earlier message of the queue is the same job and still holds it: acknowledge this one, change nothing."""


Verdict = RunJob | GiveUp | Settle | Discard


def is_job_id(text: str) -> bool:
    """Say whether `text` can be a key of the bucket."""
    return _JOB_ID.fullmatch(text) is not None


def on_delivery(
    stored: JobState | None,
    job: SubmitJob,
    *,
    planner_id: str,
    num_delivered: int,
    sequence: int,
    max_attempts: int,
    num_nodes: int,
) -> Verdict:
    """Decide what a delivery means. A job that another planner runs is taken over: its ack wait has passed.

    Not so where the job was submitted again after the queue forgot its id: taking over, the two messages would end
    each other's runs until both are given up. `sequence` is the message's number in the queue.
    """
    if stored is not None and stored.status in FINAL:
        return Settle(stored)
    if stored is not None and 0 < stored.queue_sequence < sequence:
        return Discard()
    attempt = max(num_delivered, stored.attempt + 1 if stored is not None else 1)
    if num_delivered > max_attempts:
        last = stored.error if stored is not None else None
        reason = (
            f"; last failure: {last.message}" if last is not None else ", and no planner lived to report why"
        )
        error = Internal(f"given up after {max_attempts} runs{reason}")
        base = stored or JobState(job_id=job.job_id, status=JobStatus.QUEUED, pipeline=job.run.pipeline)
        return GiveUp(failed(base, error))
    return RunJob(
        JobState(
            job_id=job.job_id,
            status=JobStatus.RUNNING,
            pipeline=job.run.pipeline,
            attempt=attempt,
            planner_id=planner_id,
            num_nodes=num_nodes,
            queue_sequence=sequence,
            error=stored.error if stored is not None else None,
            traceparent=stored.traceparent if stored is not None else None,
        )
    )


def progressed(state: JobState, num_nodes_done: int) -> JobState:
    """Return the state after another node."""
    return msgspec.structs.replace(state, num_nodes_done=num_nodes_done)


def succeeded(state: JobState, text: str, value: msgspec.Raw, sources: list[Hit]) -> JobState:
    """Return the final state of a job that has its result."""
    return msgspec.structs.replace(
        state,
        status=JobStatus.SUCCEEDED,
        text=text,
        value=value,
        sources=sources,
        error=None,
        num_nodes_done=state.num_nodes,
    )


def failed(state: JobState, error: SageError) -> JobState:
    """Return the final state of a job that will not be tried again."""
    return msgspec.structs.replace(state, status=JobStatus.FAILED, error=WireError.of(error))


def returned(state: JobState, error: SageError | None) -> JobState:
    """Return the state of a job that goes back to the queue, keeping why."""
    return msgspec.structs.replace(
        state,
        status=JobStatus.QUEUED,
        planner_id=None,
        num_nodes_done=0,
        error=WireError.of(error) if error is not None else state.error,
    )


def retry_delay(base: float, num_delivered: int, error: SageError) -> float:
    """Return the seconds before the next delivery: doubling, at least what the failure asks for."""
    backoff = min(base * 2.0 ** min(num_delivered - 1, 30), MAX_RETRY_DELAY)
    return max(backoff, error.retry_after or 0.0)
