"""Durable jobs: pulls them from the work queue, runs them like any other run, keeps their state in the bucket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from sage_bus import Bus, Entry, Feed, Job, JobQueue, KeyValue
from sage_core import BadRequest, Budget, Cancelled, Clock, Conflict, Internal, SageError, SystemClock
from sage_pipeline import Plan
from sage_planner.driver import Origin, RunDriver
from sage_planner.job_rules import (
    FINAL,
    Discard,
    GiveUp,
    RunJob,
    Settle,
    failed,
    is_job_id,
    on_delivery,
    progressed,
    retry_delay,
    returned,
    succeeded,
)
from sage_planner.job_store import JobStore
from sage_planner.metrics import JOBS, JOBS_RUNNING
from sage_planner.settings import PlannerSection
from sage_telemetry import describe_message, get_logger, semconv, start_span
from sage_wire import CallHeaders, decode, subjects
from sage_wire.messages import (
    BATCH_CLASS,
    JOB_STATE_SECONDS,
    NO_VALUE,
    Annotated,
    Hit,
    JobState,
    JobStatus,
    Output,
    RunPipeline,
    SubmitJob,
    Tokens,
)

__all__ = ["JobPuller", "MakeDriver"]

RETRY_OPEN_SECONDS: Final = 2.0
GIVE_BACK_SECONDS: Final = 2.0

MakeDriver = Callable[[Plan, RunPipeline, Budget, Origin], RunDriver]
MakePlan = Callable[[RunPipeline], Plan]
log = get_logger()


class _TakenOver(Exception):
    """Another planner holds the job now; nothing more may be written or acknowledged here."""


@dataclass(slots=True)
class _Running:
    """A job that runs here. `revision` is that of our last write."""

    job: Job
    state: JobState
    revision: int
    driver: RunDriver
    is_taken_over: bool = False

    def take_over(self) -> None:
        """End the run here without another write: a later delivery of the job is being run."""
        self.is_taken_over = True
        self.driver.cancel("the job was delivered again")


class JobPuller:
    """Pulls and runs jobs until it is stopped. `run` is one task of the actor; state is in the bucket alone."""

    def __init__(
        self,
        bus: Bus,
        settings: PlannerSection,
        *,
        planner_id: str,
        make_plan: MakePlan,
        make_driver: MakeDriver,
        clock: Clock | None = None,
    ) -> None:
        self._bus = bus
        self._settings = settings
        self._planner_id = planner_id
        self._make_plan = make_plan
        self._make_driver = make_driver
        self._clock = clock or SystemClock()
        self._running: dict[str, _Running] = {}
        self._stopping = asyncio.Event()
        self.trouble = ""

    async def run(self) -> None:
        """Serve the queue; returns after `stop`, when every job that ran here has ended.

        Where the bus has no JetStream, or it cannot be reached, opening is tried again; `trouble` says why.
        """
        while not self._stopping.is_set():
            try:
                bucket = await self._bus.key_value(subjects.JOBS_BUCKET, ttl=JOB_STATE_SECONDS)
                queue = await self._bus.job_queue(
                    subjects.JOBS_STREAM,
                    subjects.JOBS_SUBMIT,
                    ack_wait=self._settings.job_ack_wait,
                    max_deliver=self._settings.job_max_attempts + 1,
                )
                self.trouble = ""
                await self._serve(bucket, queue)
            except SageError as error:
                self.trouble = f"jobs: {error.message}"
                log.warning("job_queue_lost", error=error.message)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), RETRY_OPEN_SECONDS)

    def stop(self) -> None:
        """Pull nothing more; `run` returns when what runs has ended. Idempotent."""
        self._stopping.set()

    async def _serve(self, bucket: KeyValue, queue: JobQueue) -> None:
        feed = queue.pull(self._settings.max_jobs)
        store = JobStore(bucket)
        watcher = asyncio.create_task(self._watch(bucket), name="watch jobs")
        stopper = asyncio.create_task(self._close_when_stopping(feed), name="stop pulling jobs")
        failure: SageError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    async for job in feed:
                        group.create_task(self._take(job, store), name="job")
                except SageError as error:  # what runs may still end well; the group waits for it
                    failure = error
        finally:
            for task in (watcher, stopper):
                task.cancel()
            await asyncio.gather(watcher, stopper, return_exceptions=True)
            await feed.aclose()
        if failure is not None:
            raise failure

    async def _close_when_stopping(self, feed: Feed[Job]) -> None:
        await self._stopping.wait()
        await feed.aclose()

    # -- one job -------------------------------------------------------------------------------------------

    async def _take(self, job: Job, store: JobStore) -> None:
        """Handle one delivery; whatever happens, the job is settled, given back, or left to its ack wait."""
        JOBS_RUNNING.inc()
        try:
            outcome = await self._handle(job, store)
        except _TakenOver:
            outcome = "taken_over"
        except SageError as error:  # the bus is gone: the queue delivers it again
            log.warning("job_left", error=error.message)
            outcome = "left"
        except Exception:  # a bug costs this delivery alone; the job is given back
            log.exception("job_crashed")
            outcome = "crashed"
            with suppress(SageError):
                await job.nak(self._settings.job_retry_delay)
        finally:
            JOBS_RUNNING.dec()
        JOBS.labels(outcome).inc()

    async def _handle(self, job: Job, store: JobStore) -> str:
        try:
            submitted = decode(SubmitJob, job.payload)
            if not is_job_id(submitted.job_id):
                raise BadRequest(
                    "malformed SubmitJob: job_id holds other characters than A-Z, a-z, 0-9, '_', '-'"
                )
        except BadRequest as error:
            log.warning("job_malformed", error=error.message)
            await job.dead_letter(error.message)
            return "malformed"
        plan: Plan | None = None
        refusal: SageError | None = None
        try:
            if submitted.budget_ms <= 0:
                raise BadRequest(
                    f"'budget_ms': found {submitted.budget_ms}; expected at least 1", param="budget_ms"
                )
            plan = self._make_plan(submitted.run)
        except SageError as error:
            refusal = error
        while True:
            stored, revision = await store.read(submitted.job_id)
            verdict = on_delivery(
                stored,
                submitted,
                planner_id=self._planner_id,
                num_delivered=job.num_delivered,
                sequence=job.sequence,
                max_attempts=self._settings.job_max_attempts,
                num_nodes=len(plan.steps) if plan is not None else 0,
            )
            if isinstance(verdict, Settle):
                return await self._settle(job, verdict.state)
            if isinstance(verdict, Discard):
                log.info("job_submitted_again", job_id=submitted.job_id)
                await job.ack()
                return "discarded"
            state = verdict.state
            if isinstance(verdict, RunJob) and refusal is not None:
                state = failed(state, refusal)
            try:
                revision = await store.write(state, revision)
            except Conflict:
                continue  # somebody, perhaps a cancel, was first: decide again
            if isinstance(verdict, GiveUp) or plan is None or refusal is not None:
                return await self._settle(job, state)
            return await self._run(job, store, submitted, plan, state, revision)

    async def _run(
        self, job: Job, store: JobStore, submitted: SubmitJob, plan: Plan, state: JobState, revision: int
    ) -> str:
        parent = CallHeaders.decode(job.headers).traceparent
        span = start_span(
            semconv.SPAN_JOB,
            parent=parent,
            kind="consumer",
            attributes={
                **describe_message(semconv.SPAN_JOB, semconv.OPERATION_TYPE_PROCESS, subjects.JOBS_STREAM),
                semconv.JOB_ID: state.job_id,
                semconv.ATTEMPT: state.attempt,
                semconv.PIPELINE: state.pipeline,
                semconv.TENANT: submitted.tenant,
            },
            retry_of=state.traceparent,
        )
        # The next write stores it: a run that takes this job over links to this one.
        state = msgspec.structs.replace(state, traceparent=span.traceparent if span.is_recording else None)
        log.info("job_started", job_id=state.job_id, pipeline=state.pipeline, attempt=state.attempt)
        with span:
            origin = Origin(submitted.tenant, slo_class=BATCH_CLASS, traceparent=span.traceparent)
            budget = Budget.of(submitted.budget_ms / 1000, self._clock)
            driver = self._make_driver(plan, submitted.run, budget, origin)
            stale = self._running.get(state.job_id)
            if stale is not None:  # our own heartbeats came too late, and the queue gave us the job again
                stale.take_over()
            running = self._running[state.job_id] = _Running(job, state, revision, driver)
            heartbeat = asyncio.create_task(self._heartbeat(job), name=f"heartbeat {state.job_id}")
            try:
                final = await self._outcome(running, store)
                await self._write_final(running, store, final)
                if final.error is not None:
                    span.fail(final.error.raised())
            except asyncio.CancelledError:
                await self._give_back(running, store)
                raise
            finally:
                heartbeat.cancel()
                await asyncio.gather(heartbeat, return_exceptions=True)
                if self._running.get(state.job_id) is running:
                    del self._running[state.job_id]
        if running.state.status is JobStatus.QUEUED:
            assert running.state.error is not None
            delay = retry_delay(
                self._settings.job_retry_delay, job.num_delivered, running.state.error.raised()
            )
            log.info("job_returned", job_id=state.job_id, delay_s=delay, error=running.state.error.message)
            await job.nak(delay)
            return "returned"
        return await self._settle(job, running.state)

    async def _outcome(self, running: _Running, store: JobStore) -> JobState:
        """Run the pipeline and return the state that follows; progress is written on the way."""
        texts: list[str] = []
        sources: list[Hit] = []
        value = NO_VALUE
        num_done = 0
        try:
            async with aclosing(running.driver.events()) as events:
                async for event in events:
                    match event:
                        case Tokens(text=text):
                            texts.append(text)
                        case Output(value=found):
                            value = found
                        case Annotated(sources=found_sources) if found_sources:
                            sources = found_sources
                        case Annotated(stage=str()):
                            num_done += 1
                            if num_done < running.state.num_nodes:
                                await self._write(running, store, progressed(running.state, num_done))
        except Cancelled as error:
            if running.is_taken_over:
                raise _TakenOver from None
            return failed(running.state, error)
        except SageError as error:
            return self._after_failure(running, error)
        return succeeded(running.state, "".join(texts), value, sources)

    def _after_failure(self, running: _Running, error: SageError) -> JobState:
        if not error.retryable:
            return failed(running.state, error)
        if running.job.num_delivered < self._settings.job_max_attempts:
            return returned(running.state, error)
        attempts = self._settings.job_max_attempts
        return failed(
            running.state, Internal(f"given up after {attempts} runs; last failure: {error.message}")
        )

    async def _settle(self, job: Job, state: JobState) -> str:
        """Take a final job off the queue; its state is stored."""
        log.info("job_ended", job_id=state.job_id, status=state.status.value)
        if state.status is JobStatus.FAILED:
            reason = state.error.message if state.error is not None else "failed"
            await job.dead_letter(reason)
        else:
            await job.ack()
        return state.status.value

    # -- state ---------------------------------------------------------------------------------------------

    async def _write(self, running: _Running, store: JobStore, state: JobState) -> None:
        """Store `state` over our last write. A cancel that came between wins; a takeover ends the run here."""
        try:
            running.revision = await store.write(state, running.revision)
            running.state = state
        except Conflict:
            stored, revision = await store.read(state.job_id)
            if stored is not None and stored.status in FINAL:
                running.state, running.revision = stored, revision
                raise Cancelled("the job was cancelled") from None
            running.is_taken_over = True
            raise _TakenOver from None

    async def _write_final(self, running: _Running, store: JobStore, state: JobState) -> None:
        if running.state.status not in FINAL:
            with suppress(Cancelled):
                await self._write(running, store, state)

    async def _give_back(self, running: _Running, store: JobStore) -> None:
        """The planner is stopping: let another one start the job at once. The ack wait does it where this fails."""
        with suppress(SageError, _TakenOver, TimeoutError):
            async with asyncio.timeout(GIVE_BACK_SECONDS):
                await self._write(running, store, returned(running.state, None))
                await running.job.nak(self._settings.job_retry_delay)

    async def _heartbeat(self, job: Job) -> None:
        while True:
            await asyncio.sleep(self._settings.job_ack_wait / 3)
            try:
                await job.in_progress()
            except SageError as error:
                log.warning("job_heartbeat_failed", error=error.message)

    async def _watch(self, bucket: KeyValue) -> None:
        """End runs whose state somebody else made final, or took over."""
        while True:
            try:
                async with aclosing(bucket.watch()) as changes:
                    async for entry in changes:
                        self._changed(entry)
            except SageError as error:
                log.warning("job_watch_failed", error=error.message)
            await asyncio.sleep(RETRY_OPEN_SECONDS)

    def _changed(self, entry: Entry) -> None:
        running = self._running.get(entry.key)
        if running is None or entry.value is None or entry.revision <= running.revision:
            return
        try:
            state = decode(JobState, entry.value)
        except BadRequest:
            return
        if state.status in FINAL:
            running.state, running.revision = state, entry.revision
            running.driver.cancel("the job was cancelled")
        elif state.planner_id not in (None, self._planner_id) or state.attempt != running.state.attempt:
            running.take_over()
