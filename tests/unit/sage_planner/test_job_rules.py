"""What a delivery of a job means, whatever state it is found in."""

from __future__ import annotations

import pytest

from sage_core import Overloaded, WorkerLost
from sage_planner.job_rules import (
    Discard,
    GiveUp,
    RunJob,
    Settle,
    Verdict,
    is_job_id,
    on_delivery,
    retry_delay,
    returned,
)
from sage_wire.messages import JobState, JobStatus, RunPipeline, SubmitJob, WireError

JOB = SubmitJob(job_id="j1", run=RunPipeline(pipeline="rag-docs"))


def state(status: JobStatus, **fields: object) -> JobState:
    return JobState(job_id="j1", status=status, pipeline="rag-docs", **fields)  # type: ignore[arg-type]


def delivered(stored: JobState | None, num_delivered: int = 1, sequence: int = 7) -> Verdict:
    return on_delivery(
        stored,
        JOB,
        planner_id="p2",
        num_delivered=num_delivered,
        sequence=sequence,
        max_attempts=3,
        num_nodes=5,
    )


@pytest.mark.parametrize("stored", [None, state(JobStatus.QUEUED), state(JobStatus.RUNNING, planner_id="p1")])
def test_a_job_that_is_not_final_runs_here_now(stored: JobState | None) -> None:
    verdict = delivered(stored)
    assert isinstance(verdict, RunJob)
    assert (verdict.state.status, verdict.state.planner_id, verdict.state.num_nodes) == (
        JobStatus.RUNNING,
        "p2",
        5,
    )
    assert verdict.state.attempt == 1


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED])
def test_a_final_job_is_never_run_again(status: JobStatus) -> None:
    stored = state(status)
    assert delivered(stored, 2) == Settle(stored)
    assert delivered(stored, 99) == Settle(stored)


def test_each_run_of_a_job_has_its_own_attempt() -> None:
    verdict = delivered(state(JobStatus.RUNNING, attempt=4), 2)
    assert isinstance(verdict, RunJob)
    assert verdict.state.attempt == 5


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING])
def test_a_job_belongs_to_the_first_message_that_brought_it(status: JobStatus) -> None:
    first = state(status, attempt=1, planner_id="p1", queue_sequence=7)
    assert delivered(first, sequence=8) == Discard()
    again = delivered(first, 2, sequence=7)
    assert isinstance(again, RunJob)
    assert again.state.queue_sequence == 7
    # An operator made the queue anew: its numbers begin again.
    assert isinstance(delivered(first, sequence=1), RunJob)


def test_a_job_that_killed_every_planner_is_failed_without_being_run() -> None:
    verdict = delivered(state(JobStatus.RUNNING, attempt=3, planner_id="p1"), 4)
    assert isinstance(verdict, GiveUp)
    assert verdict.state.status is JobStatus.FAILED
    assert verdict.state.error is not None
    assert verdict.state.error.message == "given up after 3 runs, and no planner lived to report why"
    kept = returned(state(JobStatus.RUNNING), WorkerLost("the worker died"))
    assert kept.status is JobStatus.QUEUED
    verdict = delivered(kept, 4)
    assert isinstance(verdict, GiveUp)
    assert verdict.state.error == WireError(
        code="internal", message="given up after 3 runs; last failure: the worker died"
    )


def test_the_wait_doubles_has_a_limit_and_honours_what_the_failure_asks_for() -> None:
    waits = [retry_delay(1.0, number, WorkerLost("x")) for number in (1, 2, 3, 7, 5000)]
    assert waits == [1.0, 2.0, 4.0, 60.0, 60.0]
    assert retry_delay(1.0, 1, Overloaded("x", retry_after=90.0)) == 90.0


@pytest.mark.parametrize(
    ("text", "is_good"), [("job-1_A", True), ("", False), ("a.b", False), ("a b", False), ("x" * 129, False)]
)
def test_a_job_id_must_be_a_key(text: str, is_good: bool) -> None:
    assert is_job_id(text) is is_good
