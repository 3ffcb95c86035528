"""Durable jobs as their submitter sees them."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from sage_bus import MemoryBroker
from sage_client import JobClient
from sage_core import DeadlineExceeded, NotFound
from sage_wire import decode, encode, subjects
from sage_wire.messages import JobState, JobStatus, RunPipeline, SubmitJob

JOB = SubmitJob(job_id="job-1", run=RunPipeline(pipeline="index-docs"))


class Planner:
    """Moves a job's state on, as a planner does."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.bus = broker.connect("planner")

    async def move(self, status: JobStatus) -> None:
        bucket = await self.bus.key_value(subjects.JOBS_BUCKET)
        entry = await bucket.get("job-1")
        assert entry is not None
        assert entry.value is not None
        state = msgspec.structs.replace(decode(JobState, entry.value), status=status)
        await bucket.update("job-1", encode(state), entry.revision)

    async def next_job(self) -> SubmitJob:
        queue = await self.bus.job_queue(subjects.JOBS_STREAM, subjects.JOBS_SUBMIT)
        jobs = queue.pull(1)
        job = await anext(jobs)
        await job.ack()
        await jobs.aclose()
        return decode(SubmitJob, job.payload)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def planner(broker: MemoryBroker) -> Planner:
    return Planner(broker)


@pytest.fixture
def client(broker: MemoryBroker) -> JobClient:
    return JobClient(broker.connect("client"))


async def test_a_submitted_job_is_stored_for_a_planner_and_its_state_is_known_at_once(
    client: JobClient, planner: Planner
) -> None:
    state = await client.submit(JOB)
    assert state == JobState(job_id="job-1", status=JobStatus.QUEUED, pipeline="index-docs")
    assert await client.state("job-1") == state
    assert await planner.next_job() == JOB


async def test_the_same_job_again_is_the_same_job(client: JobClient, planner: Planner) -> None:
    await client.submit(JOB)
    await planner.move(JobStatus.RUNNING)
    assert (await client.submit(JOB)).status is JobStatus.RUNNING


async def test_wait_returns_the_final_state(client: JobClient, planner: Planner) -> None:
    await client.submit(JOB)
    waiting = asyncio.create_task(client.wait("job-1", 2.0))
    await asyncio.sleep(0.005)
    await planner.move(JobStatus.RUNNING)
    await asyncio.sleep(0.005)
    assert not waiting.done()
    await planner.move(JobStatus.SUCCEEDED)
    assert (await waiting).status is JobStatus.SUCCEEDED
    assert (await client.wait("job-1", 2.0)).status is JobStatus.SUCCEEDED


async def test_wait_ends_with_its_budget(client: JobClient) -> None:
    await client.submit(JOB)
    with pytest.raises(DeadlineExceeded, match="job-1"):
        await client.wait("job-1", 0.02)


async def test_cancel_is_final_and_idempotent(client: JobClient, planner: Planner) -> None:
    await client.submit(JOB)
    for _ in range(2):
        assert (await client.cancel("job-1")).status is JobStatus.CANCELLED
    assert (await client.state("job-1")).status is JobStatus.CANCELLED


async def test_a_cancel_after_the_end_changes_nothing(client: JobClient, planner: Planner) -> None:
    await client.submit(JOB)
    await planner.move(JobStatus.SUCCEEDED)
    assert (await client.cancel("job-1")).status is JobStatus.SUCCEEDED


async def test_a_cancel_wins_against_a_state_that_changes_meanwhile(
    client: JobClient, planner: Planner
) -> None:
    await client.submit(JOB)
    bucket = await client._states()
    update, num_updates = bucket.update, 0

    async def update_after_the_planner(key: str, value: bytes, revision: int) -> int:
        nonlocal num_updates
        num_updates += 1
        if num_updates == 1:
            await planner.move(JobStatus.RUNNING)
        return await update(key, value, revision)

    bucket.update = update_after_the_planner  # type: ignore[method-assign]
    await client.cancel("job-1")
    assert (await client.state("job-1")).status is JobStatus.CANCELLED
    assert num_updates == 2


async def test_unknown_jobs_are_not_found(client: JobClient) -> None:
    for call in (client.state("no"), client.wait("no", 1.0), client.cancel("no")):
        with pytest.raises(NotFound):
            await call
