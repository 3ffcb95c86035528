"""The spans of runs: nodes tried again and jobs delivered again link to what went before; jobs continue a trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest

from sage_bus import MemoryBroker
from sage_client import JobClient
from sage_core import Budget, WorkerLost
from sage_pipeline import Plan
from sage_planner.driver import Origin, RunDriver
from sage_planner.jobs import JobPuller
from sage_planner.library import load_library
from sage_planner.settings import PlannerSection
from sage_planner.testing import ScriptedPools, small_cluster
from sage_telemetry import Telemetry, use_parent
from sage_wire.messages import Document, Event, JobStatus, RunPipeline, Span, SubmitJob, Work
from span_recording import SAMPLED, TRACE_ID, recording

LIBRARY = load_library()
INDEX = RunPipeline(pipeline="index-docs", documents=[Document(source="a.txt", text="One line.\nTwo lines.")])


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    with recording() as made:
        yield made


def failing_once(pools: ScriptedPools, pool: str) -> ScriptedPools:
    """Let the first request to `pool` lose its worker."""
    healthy, failures = pools._handlers[pool], [WorkerLost("gone")]

    async def handle(work: Work) -> AsyncIterator[Event]:
        if failures:
            raise failures.pop()
        async for event in healthy(work):
            yield event

    pools.serve(pool, handle)
    return pools


def named(telemetry: Telemetry, name: str) -> list[Span]:
    return [span for span in telemetry.recent.find(TRACE_ID) if span.name == name]


async def test_a_node_that_is_tried_again_links_to_its_first_attempt(telemetry: Telemetry) -> None:
    pools = failing_once(small_cluster(), "operator/split")
    made = RunDriver(
        LIBRARY.plan("index-docs", {}),
        INDEX,
        pools,
        pools.resolve,
        Budget.of(10.0),
        Origin(traceparent=SAMPLED),
    )
    async with aclosing(made.events()) as events:
        async for _ in events:
            pass
    (node,) = {
        span.name
        for span in telemetry.recent.find(TRACE_ID)
        if span.is_error and span.name.startswith("node ")
    }
    first, second = named(telemetry, node)
    assert first.attributes["error.type"] == "worker_lost"
    assert second.links == [f"{TRACE_ID}-{first.span_id}"]
    assert first.parent_id == second.parent_id == SAMPLED[36:52]


def puller(broker: MemoryBroker, pools: ScriptedPools) -> JobPuller:
    def make_driver(plan: Plan, run: RunPipeline, budget: Budget, origin: Origin) -> RunDriver:
        return RunDriver(plan, run, pools, pools.resolve, budget, origin, max_attempts=1)

    return JobPuller(
        broker.connect("planner-1"),
        PlannerSection(job_retry_delay=0.01, max_node_attempts=1),
        planner_id="planner-1",
        make_plan=lambda run: LIBRARY.plan(run.pipeline, run.parameters),
        make_driver=make_driver,
    )


async def run_job(pools: ScriptedPools, header: str | None) -> JobStatus:
    broker = MemoryBroker()
    client = JobClient(broker.connect("client"))
    made = puller(broker, pools)
    task = asyncio.create_task(made.run())
    with use_parent(header):
        await client.submit(SubmitJob(job_id="j1", run=INDEX))
    state = await client.wait("j1", 5)
    made.stop()
    await asyncio.wait_for(task, 5)
    return state.status


async def test_a_job_continues_the_trace_of_who_submitted_it(telemetry: Telemetry) -> None:
    assert await run_job(small_cluster(), SAMPLED) is JobStatus.SUCCEEDED
    (job,) = named(telemetry, "job")
    assert (job.kind, job.parent_id, job.is_error) == ("consumer", SAMPLED[36:52], False)
    assert job.attributes["sage.job.id"] == "j1"
    nodes = [span for span in telemetry.recent.find(TRACE_ID) if span.name.startswith("node ")]
    assert len(nodes) == 4
    assert {node.parent_id for node in nodes} == {job.span_id}


async def test_a_job_that_is_run_again_links_to_its_first_run(telemetry: Telemetry) -> None:
    # Not the first node: a run is known to those after it once it has stored some progress.
    assert await run_job(failing_once(small_cluster(), "operator/index"), SAMPLED) is JobStatus.SUCCEEDED
    first, second = named(telemetry, "job")
    assert (first.is_error, second.is_error) == (True, False)
    assert second.links == [f"{TRACE_ID}-{first.span_id}"]
    assert first.parent_id == second.parent_id == SAMPLED[36:52]


async def test_a_job_that_came_without_a_trace_has_none(telemetry: Telemetry) -> None:
    assert await run_job(small_cluster(), None) is JobStatus.SUCCEEDED
    assert len(telemetry.recent) == 0
