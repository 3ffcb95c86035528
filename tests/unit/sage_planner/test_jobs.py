"""Durable jobs over an in-process bus: one result each, whatever happens to the planners that run them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from sage_bus import JobQueue, MemoryBroker
from sage_client import JobClient
from sage_core import Budget, WorkerLost
from sage_pipeline import Plan
from sage_planner.driver import Origin, RunDriver
from sage_planner.jobs import JobPuller
from sage_planner.library import load_library
from sage_planner.settings import PlannerSection
from sage_planner.testing import ScriptedPools, small_cluster
from sage_wire import decode, encode, subjects
from sage_wire.messages import (
    ChatMessage,
    Completed,
    Document,
    Event,
    Indexed,
    JobState,
    JobStatus,
    RunPipeline,
    SubmitJob,
    Tokens,
    Work,
)

LIBRARY = load_library()
INDEX = RunPipeline(pipeline="index-docs", documents=[Document(source="a.txt", text="One line.\nTwo lines.")])
SETTINGS = PlannerSection(job_retry_delay=0.01, max_node_attempts=1)


def puller(
    broker: MemoryBroker, pools: ScriptedPools, name: str = "planner-1", settings: PlannerSection = SETTINGS
) -> JobPuller:
    def make_driver(plan: Plan, run: RunPipeline, budget: Budget, origin: Origin) -> RunDriver:
        return RunDriver(
            plan, run, pools, pools.resolve, budget, origin, max_attempts=settings.max_node_attempts
        )

    return JobPuller(
        broker.connect(name),
        settings,
        planner_id=name,
        make_plan=lambda run: LIBRARY.plan(run.pipeline, run.parameters),
        make_driver=make_driver,
    )


@asynccontextmanager
async def pulling(made: JobPuller) -> AsyncIterator[None]:
    """Run a puller, and let it end in order."""
    task = asyncio.create_task(made.run())
    try:
        yield
    finally:
        made.stop()
        await asyncio.wait_for(task, 5)


async def open_queue(broker: MemoryBroker, ack_wait: float = 30.0) -> JobQueue:
    bus = broker.connect("test")
    return await bus.job_queue(subjects.JOBS_STREAM, subjects.JOBS_SUBMIT, ack_wait=ack_wait)


async def states_of(broker: MemoryBroker, job_id: str, until: Callable[[JobState], bool]) -> list[JobState]:
    """Return every state the job went through until one fits."""
    bucket = await broker.connect("watch").key_value(subjects.JOBS_BUCKET)
    seen = []
    async with asyncio.timeout(5), aclosing(bucket.watch()) as changes:
        async for entry in changes:
            if entry.key == job_id and entry.value is not None:
                seen.append(decode(JobState, entry.value))
                if until(seen[-1]):
                    return seen
    return seen


def num_left(broker: MemoryBroker) -> int:
    return broker.jobs[subjects.JOBS_STREAM].num_stored


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - states of others have no event
            await asyncio.sleep(0.002)


async def test_a_job_runs_to_its_result_and_leaves_the_queue() -> None:
    broker = MemoryBroker()
    client = JobClient(broker.connect("client"))
    await client.submit(SubmitJob(job_id="j1", run=INDEX))
    watching = asyncio.create_task(states_of(broker, "j1", lambda state: state.status is JobStatus.SUCCEEDED))
    async with pulling(puller(broker, small_cluster())):
        states = await watching
        await until(lambda: num_left(broker) == 0)
    assert decode(Indexed, states[-1].value) == Indexed(num_chunks=2, num_sources=1)
    assert [state.num_nodes_done for state in states if state.status is JobStatus.RUNNING] == [0, 1, 2, 3]
    assert (states[-1].num_nodes_done, states[-1].num_nodes) == (4, 4)


async def test_the_text_of_an_answer_is_kept_with_its_sources() -> None:
    broker, pools = MemoryBroker(), small_cluster()
    client = JobClient(broker.connect("client"))
    ask = RunPipeline(pipeline="rag-docs", messages=[ChatMessage(role="user", content="two lines")])
    async with pulling(puller(broker, pools)):
        await client.submit(SubmitJob(job_id="j1", run=INDEX))
        await client.wait("j1", 5)
        await client.submit(SubmitJob(job_id="j2", run=ask))
        state = await client.wait("j2", 5)
    assert (state.status, state.text) == (JobStatus.SUCCEEDED, "TWO LINES")
    assert [(hit.source, hit.text) for hit in state.sources] == [
        ("a.txt", "Two lines."),
        ("a.txt", "One line."),
    ]


async def test_a_job_nobody_registered_is_run_too() -> None:
    """Any language may publish to the queue alone; the state appears with the first planner."""
    broker = MemoryBroker()
    queue = await open_queue(broker)
    await queue.submit("j1", encode(SubmitJob(job_id="j1", run=INDEX)))
    async with pulling(puller(broker, small_cluster())):
        states = await states_of(broker, "j1", lambda state: state.status is JobStatus.SUCCEEDED)
    assert states[-1].pipeline == "index-docs"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\xff\x00", "malformed SubmitJob"),
        (b"\x80", "missing required field `job_id`"),
        (
            b"\x82\xa6job_id\xa3a.b\xa3run\x82\xa4type\xacrun_pipeline\xa8pipeline\xa1x",
            "job_id holds other characters",
        ),
    ],
)
async def test_a_malformed_job_is_a_dead_letter_with_its_reason(payload: bytes, reason: str) -> None:
    broker = MemoryBroker()
    queue = await open_queue(broker)
    await queue.submit("bad", payload)
    async with pulling(puller(broker, small_cluster())):
        await until(lambda: num_left(broker) == 0)
    (letter,) = await queue.dead_letters()
    assert reason in letter.reason


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (RunPipeline(pipeline="nope"), "pipeline 'nope' does not exist"),
        (RunPipeline(pipeline="index-docs", parameters={"colection": "x"}), "has no parameter 'colection'"),
        (RunPipeline(pipeline="index-docs"), "node 'documents': pipeline 'index-docs' takes documents"),
    ],
)
async def test_a_job_that_can_never_work_fails_at_once_and_becomes_a_dead_letter(
    run: RunPipeline, reason: str
) -> None:
    broker, pools = MemoryBroker(), small_cluster()
    queue = await open_queue(broker)
    client = JobClient(broker.connect("client"))
    async with pulling(puller(broker, pools)):
        await client.submit(SubmitJob(job_id="j1", run=run))
        state = await client.wait("j1", 5)
        await until(lambda: num_left(broker) == 0)
    assert state.status is JobStatus.FAILED
    assert state.error is not None
    assert reason in state.error.message
    (letter,) = await queue.dead_letters()
    assert letter.reason == state.error.message
    assert pools.streams == []


async def test_a_retryable_failure_is_tried_again_later_with_its_reason_kept() -> None:
    broker, pools = MemoryBroker(), small_cluster()
    inner, num_asked = pools._handlers["operator/index"], 0

    async def down_twice(work: Work) -> AsyncIterator[Event]:
        nonlocal num_asked
        num_asked += 1
        if num_asked <= 2:
            raise WorkerLost("the operator died")
        async for event in inner(work):
            yield event

    pools.serve("operator/index", down_twice)
    client = JobClient(broker.connect("client"))
    await client.submit(SubmitJob(job_id="j1", run=INDEX))
    watching = asyncio.create_task(states_of(broker, "j1", lambda state: state.status is JobStatus.SUCCEEDED))
    async with pulling(puller(broker, pools)):
        states = await watching
    returned = [state for state in states if state.status is JobStatus.QUEUED and state.error]
    assert [state.error.message for state in returned if state.error] == [
        "node 'index': the operator died"
    ] * 2
    assert states[-1].attempt == 3
    assert states[-1].error is None


async def test_a_job_that_keeps_failing_is_given_up_with_the_last_reason() -> None:
    broker, pools = MemoryBroker(), small_cluster()

    async def down(work: Work) -> AsyncIterator[Event]:
        raise WorkerLost("the operator died")
        yield Completed()

    pools.serve("operator/split", down)
    queue = await open_queue(broker)
    client = JobClient(broker.connect("client"))
    settings = PlannerSection(job_retry_delay=0.002, job_max_attempts=3, max_node_attempts=1)
    async with pulling(puller(broker, pools, settings=settings)):
        await client.submit(SubmitJob(job_id="j1", run=INDEX))
        state = await client.wait("j1", 5)
        await until(lambda: num_left(broker) == 0)
    assert state.status is JobStatus.FAILED
    assert state.error is not None
    assert state.error.message == "given up after 3 runs; last failure: node 'split': the operator died"
    assert len(pools.works("operator/split")) == 3
    assert [letter.reason for letter in await queue.dead_letters()] == [state.error.message]


def hanging(pools: ScriptedPools, pool: str) -> asyncio.Event:
    """Let `pool` hang; the event says that a request arrived."""
    entered = asyncio.Event()

    async def hang(work: Work) -> AsyncIterator[Event]:
        entered.set()
        await asyncio.Event().wait()
        yield Completed()

    pools.serve(pool, hang)
    return entered


async def test_cancel_stops_the_run_and_frees_its_requests() -> None:
    broker, pools = MemoryBroker(), small_cluster()
    entered = hanging(pools, "minilm")
    queue = await open_queue(broker)
    client = JobClient(broker.connect("client"))
    async with pulling(puller(broker, pools)):
        await client.submit(SubmitJob(job_id="j1", run=INDEX))
        await entered.wait()
        assert (await client.cancel("j1")).status is JobStatus.CANCELLED
        await until(lambda: num_left(broker) == 0)
    assert (await client.state("j1")).status is JobStatus.CANCELLED
    assert pools.streams[-1].is_cancelled
    assert await queue.dead_letters() == []


async def test_a_job_cancelled_while_it_waits_is_never_run() -> None:
    broker, pools = MemoryBroker(), small_cluster()
    client = JobClient(broker.connect("client"))
    await client.submit(SubmitJob(job_id="j1", run=INDEX))
    await client.cancel("j1")
    async with pulling(puller(broker, pools)):
        await until(lambda: num_left(broker) == 0)
    assert pools.streams == []


async def test_a_stopping_planner_finishes_its_job_and_takes_no_other() -> None:
    broker, pools = MemoryBroker(), small_cluster()
    inner, go_on, entered = pools._handlers["minilm"], asyncio.Event(), asyncio.Event()

    async def wait(work: Work) -> AsyncIterator[Event]:
        entered.set()
        await go_on.wait()
        async for event in inner(work):
            yield event

    pools.serve("minilm", wait)
    client = JobClient(broker.connect("client"))
    made = puller(broker, pools)
    running = asyncio.create_task(made.run())
    await client.submit(SubmitJob(job_id="j1", run=INDEX))
    await entered.wait()
    made.stop()
    await asyncio.sleep(0.005)
    await client.submit(SubmitJob(job_id="j2", run=INDEX))
    go_on.set()
    await asyncio.wait_for(running, 5)
    assert (await client.state("j1")).status is JobStatus.SUCCEEDED
    assert (await client.state("j2")).status is JobStatus.QUEUED


async def test_a_planner_cut_off_in_its_drain_hands_the_job_over() -> None:
    broker, pools = MemoryBroker(), small_cluster()
    entered = hanging(pools, "minilm")
    client = JobClient(broker.connect("client"))
    first = asyncio.create_task(puller(broker, pools).run())
    await client.submit(SubmitJob(job_id="j1", run=INDEX))
    await entered.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (await client.state("j1")).status is JobStatus.QUEUED
    async with pulling(puller(broker, small_cluster(), "planner-2")):
        state = await client.wait("j1", 5)
    assert (state.status, state.planner_id, state.attempt) == (JobStatus.SUCCEEDED, "planner-2", 2)


async def test_a_planner_that_fell_silent_loses_its_job_and_writes_nothing_more() -> None:
    """Its ack wait passes while it is stuck; the other planner's result stands and is acknowledged once."""
    broker, pools = MemoryBroker(), small_cluster()
    entered = hanging(pools, "minilm")
    queue = await open_queue(broker, ack_wait=0.03)  # far shorter than the heartbeat of either planner
    client = JobClient(broker.connect("client"))
    first = puller(broker, pools, "planner-1")
    async with pulling(first):
        await client.submit(SubmitJob(job_id="j1", run=INDEX))
        await entered.wait()
        first.stop()  # it holds the job, and takes no other
        async with pulling(puller(broker, small_cluster(), "planner-2")):
            state = await client.wait("j1", 5)
            await until(lambda: all(stream.is_finished for stream in pools.streams))
            await until(lambda: num_left(broker) == 0)
    assert (state.status, state.planner_id, state.attempt) == (JobStatus.SUCCEEDED, "planner-2", 2)
    assert await client.state("j1") == state
    assert await queue.dead_letters() == []


async def test_a_job_that_comes_back_to_its_own_planner_ends_the_earlier_run() -> None:
    broker, pools = MemoryBroker(), small_cluster()
    inner = pools._handlers["minilm"]
    num_asked = 0

    async def hang_once(work: Work) -> AsyncIterator[Event]:
        nonlocal num_asked
        num_asked += 1
        if num_asked == 1:
            await asyncio.Event().wait()
        async for event in inner(work):
            yield event

    pools.serve("minilm", hang_once)
    await open_queue(broker, ack_wait=0.03)
    client = JobClient(broker.connect("client"))
    async with pulling(puller(broker, pools)):
        await client.submit(SubmitJob(job_id="j1", run=INDEX))
        state = await client.wait("j1", 5)
    assert (state.status, state.attempt) == (JobStatus.SUCCEEDED, 2)
    assert all(stream.is_finished for stream in pools.streams)


async def test_a_redelivered_job_that_is_final_is_only_acknowledged() -> None:
    """As after a kill between the stored result and its acknowledgement."""
    broker, pools = MemoryBroker(), small_cluster()
    client = JobClient(broker.connect("client"))
    state = await client.submit(SubmitJob(job_id="j1", run=INDEX))
    bucket = await broker.connect("other").key_value(subjects.JOBS_BUCKET)
    entry = await bucket.get("j1")
    assert entry is not None
    done = JobState(job_id="j1", status=JobStatus.SUCCEEDED, pipeline=state.pipeline, text="kept")
    await bucket.update("j1", encode(done), entry.revision)
    async with pulling(puller(broker, pools)):
        await until(lambda: num_left(broker) == 0)
    assert (await client.state("j1")).text == "kept"
    assert pools.streams == []


async def test_a_job_submitted_again_while_it_runs_is_run_once() -> None:
    """The queue tells a second submit by its id for two minutes; a job may run for longer."""
    broker, pools = MemoryBroker(), small_cluster()
    inner, go_on = pools._handlers["minilm"], asyncio.Event()

    async def wait(work: Work) -> AsyncIterator[Event]:
        await go_on.wait()
        async for event in inner(work):
            yield event

    pools.serve("minilm", wait)
    queue = await open_queue(broker)
    job = encode(SubmitJob(job_id="j1", run=INDEX))
    made = [puller(broker, pools, name) for name in ("planner-1", "planner-2")]
    watching = asyncio.create_task(states_of(broker, "j1", lambda state: state.status is JobStatus.SUCCEEDED))
    await queue.submit("j1", job)
    async with pulling(made[0]), pulling(made[1]):
        await states_of(broker, "j1", lambda state: state.num_nodes_done == 2)
        broker.jobs[subjects.JOBS_STREAM].seen.clear()
        await queue.submit("j1", job)
        await until(lambda: num_left(broker) == 1)
        go_on.set()
        states = await watching
        await until(lambda: num_left(broker) == 0)
    assert {state.attempt for state in states} == {1}
    assert len(pools.works("operator/split")) == 1


async def test_jobs_run_side_by_side_up_to_the_limit() -> None:
    broker, pools = MemoryBroker(), small_cluster()
    num_running = peak = 0

    async def counted(work: Work) -> AsyncIterator[Event]:
        nonlocal num_running, peak
        num_running += 1
        peak = max(peak, num_running)
        await asyncio.sleep(0.005)
        num_running -= 1
        yield Tokens(text="x")
        yield Completed()

    pools.serve("tiny", counted)
    client = JobClient(broker.connect("client"))
    await client.submit(SubmitJob(job_id="i0", run=INDEX))
    ask = RunPipeline(pipeline="rag-docs", messages=[ChatMessage(role="user", content="q")])
    async with pulling(puller(broker, pools, settings=PlannerSection(max_jobs=3))):
        await client.wait("i0", 5)
        for number in range(9):
            await client.submit(SubmitJob(job_id=f"j{number}", run=ask))
        states = [await client.wait(f"j{number}", 5) for number in range(9)]
    assert {state.status for state in states} == {JobStatus.SUCCEEDED}
    assert peak == 3


async def test_a_spent_budget_fails_the_job() -> None:
    broker, pools = MemoryBroker(), small_cluster()
    hanging(pools, "minilm")
    client = JobClient(broker.connect("client"))
    async with pulling(puller(broker, pools)):
        await client.submit(SubmitJob(job_id="j1", run=INDEX, budget_ms=20))
        state = await client.wait("j1", 5)
    assert state.status is JobStatus.FAILED
    assert state.error is not None
    assert state.error.code == "deadline_exceeded"
