"""Durable pipeline jobs: submit, look, wait, cancel. Their state is a KV entry, changed by compare-and-set alone."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Final

import msgspec

from sage_bus import Bus, Entry, JobQueue, KeyValue
from sage_core import Budget, Conflict, DeadlineExceeded, NotFound
from sage_telemetry import current_traceparent
from sage_wire import CallHeaders, decode, encode, subjects
from sage_wire.messages import JOB_STATE_SECONDS, JobState, JobStatus, SubmitJob

__all__ = ["FINAL_STATUSES", "JobClient"]

FINAL_STATUSES: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class JobClient:
    """Submits and follows jobs. Stateless beyond its handles; any process may ask about any job."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._bucket: KeyValue | None = None
        self._queue: JobQueue | None = None

    async def submit(self, job: SubmitJob) -> JobState:
        """Store `job` durably and return its state; it runs even if every process dies now.

        The same `job_id` again is the same job. It is traced under the caller's current span. Raises Overloaded where
        the queue is full, BusUnavailable where nothing confirmed it: submit it again then.
        """
        if self._queue is None:
            self._queue = await self._bus.job_queue(subjects.JOBS_STREAM, subjects.JOBS_SUBMIT)
        bucket = await self._states()
        existing = await bucket.get(job.job_id)
        if existing is not None and existing.value is not None:
            return decode(JobState, existing.value)
        headers = CallHeaders(traceparent=current_traceparent()).encode()
        await self._queue.submit(job.job_id, encode(job), headers)
        state = JobState(job_id=job.job_id, status=JobStatus.QUEUED, pipeline=job.run.pipeline)
        try:
            await bucket.create(job.job_id, encode(state))
        except Conflict:
            # A planner was faster, or another submit of the same job.
            return await self.state(job.job_id)
        return state

    async def state(self, job_id: str) -> JobState:
        """Return where the job is. Raises NotFound for an unknown id."""
        return (await self._entry(job_id))[0]

    async def wait(self, job_id: str, budget: Budget | float) -> JobState:
        """Return the final state. Raises NotFound for an unknown id, DeadlineExceeded when the budget is spent."""
        seconds = budget.remaining if isinstance(budget, Budget) else budget
        state = await self.state(job_id)
        if state.status in FINAL_STATUSES:
            return state
        bucket = await self._states()
        try:
            async with asyncio.timeout(seconds):
                return await self._final_state(bucket, job_id)
        except TimeoutError:
            raise DeadlineExceeded(f"job {job_id} did not end within {seconds:.1f} s") from None

    async def cancel(self, job_id: str) -> JobState:
        """Mark the job cancelled, which stops the planner that runs it; return the state, final in any case.

        Idempotent. Raises NotFound for an unknown id.
        """
        bucket = await self._states()
        while True:
            state, revision = await self._entry(job_id)
            if state.status in FINAL_STATUSES:
                return state
            cancelled = msgspec.structs.replace(state, status=JobStatus.CANCELLED)
            try:
                await bucket.update(job_id, encode(cancelled), revision)
            except Conflict:
                continue
            return cancelled

    async def _states(self) -> KeyValue:
        if self._bucket is None:
            self._bucket = await self._bus.key_value(subjects.JOBS_BUCKET, ttl=JOB_STATE_SECONDS)
        return self._bucket

    async def _entry(self, job_id: str) -> tuple[JobState, int]:
        bucket = await self._states()
        entry: Entry | None = await bucket.get(job_id)
        if entry is None or entry.value is None:
            raise NotFound(f"no job {job_id!r}", param="job_id")
        return decode(JobState, entry.value), entry.revision

    async def _final_state(self, bucket: KeyValue, job_id: str) -> JobState:
        async with aclosing(bucket.watch()) as changes:
            async for entry in changes:
                if entry.key != job_id:
                    continue
                if entry.value is None:
                    raise NotFound(f"job {job_id!r} was deleted", param="job_id")
                state = decode(JobState, entry.value)
                if state.status in FINAL_STATUSES:
                    return state
        raise NotFound(f"job {job_id!r} was deleted", param="job_id")
