"""The planner among real schedulers and workers on one in-process bus: a pipeline is called like any model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from sage_actor import Actor, ActorContext, ActorRuntime, Roster
from sage_bus import MemoryBroker
from sage_client import JobClient, RequestPort
from sage_core import BadRequest, Cancelled, NotFound
from sage_core.settings import ActorSettings
from sage_planner import PlannerActor, PlannerSection, load_library
from sage_planner.testing import ScriptedPools, small_cluster
from sage_scheduler import SchedulerActor, SchedulerSettings
from sage_scheduler.settings import SchedulerSection
from sage_wire import decode
from sage_wire.messages import (
    Annotated,
    ChatMessage,
    ChatPrompt,
    Completed,
    Document,
    Event,
    Generate,
    Indexed,
    JobStatus,
    Output,
    RunPipeline,
    ServedModel,
    SubmitJob,
    Tokens,
    Work,
)
from sage_worker import Assigned, Worker

INDEX = RunPipeline(
    pipeline="index-docs",
    documents=[Document(source="nats.txt", text="NATS carries messages.\nNothing else does.")],
)
SCHEDULER = SchedulerSettings(scheduler=SchedulerSection(event_log=False))
TASKS = {"minilm": "embed", "minilm-rerank": "rerank", "tiny": "generate"}


class PoolsWorker(Worker):
    """Serves every pool of a `ScriptedPools` as one worker."""

    kind = "pools-worker"
    max_in_flight = 16

    def __init__(self, context: ActorContext, pools: ScriptedPools) -> None:
        super().__init__(context)
        self.pools = pools

    def models(self) -> list[ServedModel]:
        return [ServedModel(name=name, task=TASKS.get(name, "operator")) for name in self.pools._handlers]

    async def perform(self, request: Assigned) -> AsyncIterator[Event]:
        async for event in self.pools._handlers[request.pool](request.work):
            yield event


class Cluster:
    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.pools = small_cluster()
        self.runtimes: list[ActorRuntime] = []
        self.port = RequestPort(self.broker.connect("port"))

    async def start(self) -> None:
        await self.add("scheduler-1", lambda context: SchedulerActor(context, SCHEDULER))
        await self.add("pools-1", lambda context: PoolsWorker(context, self.pools))
        library, section = load_library(), PlannerSection(job_retry_delay=0.01)
        await self.add("planner-1", lambda context: PlannerActor(context, section, library))
        await self.port.start()
        roster = Roster(self.broker.connect("roster"))
        await roster.start()
        async with asyncio.timeout(5):
            while sum(announced.state == "ready" for announced in roster.actors.values()) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        await roster.stop()

    async def add(self, actor_id: str, factory: Callable[[ActorContext], Actor]) -> None:
        runtime = ActorRuntime(
            factory,
            actor_id=actor_id,
            bus=self.broker.connect(actor_id),
            control=self.broker.connect(f"{actor_id}-control"),
            settings=ActorSettings(),
        )
        self.runtimes.append(runtime)
        await runtime.start()

    async def stop(self) -> None:
        await self.port.close()
        for runtime in reversed(self.runtimes):
            await runtime.stop(drain=False)

    async def call(self, run: RunPipeline, pool: str | None = None) -> list[Event]:
        async with self.port.submit(pool or f"pipeline/{run.pipeline}", run, budget=5.0) as stream:
            return [event async for event in stream]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    await made.start()
    yield made
    await made.stop()


def ask(question: str) -> RunPipeline:
    return RunPipeline(pipeline="rag-docs", messages=[ChatMessage(role="user", content=question)])


async def test_index_then_ask_through_scheduler_and_workers(cluster: Cluster) -> None:
    indexed = await cluster.call(INDEX)
    output = indexed[-2]
    assert isinstance(output, Output)
    assert decode(Indexed, output.value) == Indexed(num_chunks=2, num_sources=1)
    events = await cluster.call(ask("Who carries messages?"))
    assert "".join(event.text for event in events if isinstance(event, Tokens)) == "WHO CARRIES MESSAGES?"
    sources = [event.sources for event in events if isinstance(event, Annotated) and event.sources]
    assert sources[0][0].source == "nats.txt"
    assert [event.stage for event in events if isinstance(event, Annotated) and event.stage][-1] == "answer"
    assert isinstance(events[-1], Completed)
    assert events[-1].usage.completion_tokens == 3


async def test_mistakes_of_the_caller_arrive_as_what_they_are(cluster: Cluster) -> None:
    with pytest.raises(NotFound, match="node 'passages': collection 'docs' does not exist"):
        await cluster.call(ask("Who?"))
    with pytest.raises(BadRequest, match="takes messages and nothing else"):
        await cluster.call(RunPipeline(pipeline="rag-docs"))
    with pytest.raises(NotFound, match="pipeline 'nope' does not exist; available: index-docs, rag-docs"):
        await cluster.call(RunPipeline(pipeline="nope"), "pipeline/rag-docs")
    generate = Generate(model="pipeline/rag-docs", prompt=ChatPrompt(messages=ask("x").messages))
    with pytest.raises(BadRequest, match="runs pipelines; found Generate"):
        async with cluster.port.submit("pipeline/rag-docs", generate, budget=5.0) as stream:
            await stream.next_batch()


async def test_cancelling_the_run_frees_the_models_slot(cluster: Cluster) -> None:
    entered, freed = asyncio.Event(), asyncio.Event()

    async def hang(work: Work) -> AsyncIterator[Event]:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            freed.set()
        yield Completed()

    await cluster.call(INDEX)
    cluster.pools.serve("tiny", hang)
    stream = cluster.port.submit("pipeline/rag-docs", ask("Who?"), budget=5.0)
    async with asyncio.timeout(5):
        await entered.wait()
        stream.cancel("the client left")
        await freed.wait()
        with pytest.raises(Cancelled):
            [event async for event in stream]


async def test_a_durable_job_runs_in_the_same_planner(cluster: Cluster) -> None:
    client = JobClient(cluster.broker.connect("client"))
    await client.submit(SubmitJob(job_id="j1", run=INDEX))
    state = await client.wait("j1", 5)
    assert (state.status, state.planner_id) == (JobStatus.SUCCEEDED, "planner-1")
    assert decode(Indexed, state.value) == Indexed(num_chunks=2, num_sources=1)


async def test_a_draining_planner_finishes_its_runs_and_jobs(cluster: Cluster) -> None:
    await cluster.call(INDEX)
    go_on, entered = asyncio.Event(), asyncio.Event()

    async def slow(work: Work) -> AsyncIterator[Event]:
        entered.set()
        await go_on.wait()
        yield Tokens(text="done")
        yield Completed()

    cluster.pools.serve("tiny", slow)
    client = JobClient(cluster.broker.connect("client"))
    calling = asyncio.create_task(cluster.call(ask("Who?")))
    await entered.wait()
    await client.submit(SubmitJob(job_id="j1", run=ask("Who?")))
    async with asyncio.timeout(5):
        while (await client.state("j1")).num_nodes_done < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        draining = asyncio.create_task(cluster.runtimes[-1].stop(drain=True))
        await asyncio.sleep(0.01)
        assert not draining.done()
        go_on.set()
        assert isinstance((await calling)[-1], Completed)
        await draining
    assert (await client.state("j1")).text == "done"
