"""The driver: a run's events in order, everything in parallel that may be, every request cancelled with the run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from sage_core import BadRequest, Budget, Cancelled, DeadlineExceeded, Internal, Overloaded, WorkerLost
from sage_pipeline import (
    Plan,
    chat,
    compile_pipeline,
    documents,
    embed,
    index,
    llm,
    pipeline,
    prompt,
    rerank,
    retrieve,
    split,
)
from sage_planner.driver import RunDriver
from sage_planner.library import load_library
from sage_planner.testing import ScriptedPools, small_cluster
from sage_wire import decode
from sage_wire.messages import (
    Annotated,
    ChatMessage,
    Completed,
    Document,
    Embed,
    Event,
    Indexed,
    Output,
    Retrieved,
    RunPipeline,
    Tokens,
    Usage,
    Vectors,
    Work,
)

LIBRARY = load_library()
DOCUMENTS = [
    Document(
        source="nats.txt", text="NATS carries messages.\nIt has no brokers to herd.", title="About NATS"
    ),
    Document(source="rag.txt", text="Retrieval finds passages.\nThe model answers from them."),
]


def driver(pools: ScriptedPools, plan: Plan, run: RunPipeline, *, seconds: float = 10.0) -> RunDriver:
    return RunDriver(plan, run, pools, pools.resolve, Budget.of(seconds))


async def collect(made: RunDriver) -> list[Event]:
    async with aclosing(made.events()) as events:
        return [event async for event in events]


def ask(question: str, pipe: str = "rag-docs") -> RunPipeline:
    return RunPipeline(pipeline=pipe, messages=[ChatMessage(role="user", content=question)])


async def indexed_cluster() -> ScriptedPools:
    pools = small_cluster()
    run = RunPipeline(pipeline="index-docs", documents=DOCUMENTS)
    await collect(driver(pools, LIBRARY.plan("index-docs", {}), run))
    return pools


async def test_index_docs_answers_with_what_the_collection_holds() -> None:
    pools = small_cluster()
    run = RunPipeline(pipeline="index-docs", documents=DOCUMENTS)
    events = await collect(driver(pools, LIBRARY.plan("index-docs", {}), run))
    assert [event.stage for event in events if isinstance(event, Annotated)] == [
        "documents", "split", "embed", "index"
    ]  # fmt: skip
    assert isinstance(events[-2], Output)
    assert decode(Indexed, events[-2].value) == Indexed(num_chunks=4, num_sources=2)
    assert events[-1] == Completed()


async def test_rag_docs_shows_stages_sources_tokens_and_the_models_usage() -> None:
    pools = await indexed_cluster()
    events = await collect(driver(pools, LIBRARY.plan("rag-docs", {}), ask("Who carries messages?")))
    stages = [event.stage for event in events if isinstance(event, Annotated) and event.stage]
    assert stages == ["question", "query_vector", "passages", "prompt", "answer"]
    (sources,) = (event.sources for event in events if isinstance(event, Annotated) and event.sources)
    assert (sources[0].source, sources[0].title) == ("nats.txt", "About NATS")
    first_token = next(number for number, event in enumerate(events) if isinstance(event, Tokens))
    assert (
        next(n for n, event in enumerate(events) if isinstance(event, Annotated) and event.sources)
        < first_token
    )
    assert "".join(event.text for event in events if isinstance(event, Tokens)) == "WHO CARRIES MESSAGES?"
    assert events[-1] == Completed(usage=Usage(prompt_tokens=7, completion_tokens=3))


async def test_a_run_may_choose_its_collection() -> None:
    pools = small_cluster()
    plan = LIBRARY.plan("index-docs", {"collection": "other"})
    await collect(driver(pools, plan, RunPipeline(pipeline="index-docs", documents=DOCUMENTS)))
    await collect(driver(pools, LIBRARY.plan("rag-docs", {"collection": "other"}), ask("Who?")))
    with pytest.raises(Exception, match="node 'passages': collection 'docs' does not exist"):
        await collect(driver(pools, LIBRARY.plan("rag-docs", {}), ask("Who?")))


async def test_tokens_reach_the_caller_before_the_answer_is_done() -> None:
    pools = await indexed_cluster()
    go_on = asyncio.Event()

    async def slow(work: Work) -> AsyncIterator[Event]:
        yield Tokens(text="first")
        await go_on.wait()
        yield Tokens(text=" second")
        yield Completed()

    pools.serve("tiny", slow)
    async with aclosing(driver(pools, LIBRARY.plan("rag-docs", {}), ask("Who?")).events()) as events:
        async for event in events:
            if isinstance(event, Tokens):
                break
        assert event == Tokens(text="first")
        go_on.set()
        rest = [event async for event in events]
    assert rest[0] == Tokens(text=" second")


async def test_ready_nodes_run_at_the_same_time() -> None:
    pools = small_cluster()
    arrived = 0
    both = asyncio.Event()

    async def meet(work: Work) -> AsyncIterator[Event]:
        nonlocal arrived
        arrived += 1
        if arrived == 2:
            both.set()
        await both.wait()  # passes only when both models run at once
        yield Tokens(text="x")
        yield Completed()

    pools.serve("left", meet)
    pools.serve("right", meet)
    question = chat()
    left, right = llm(question, model="left", id="left"), llm(question, model="right", id="right")
    joined = prompt(question=question, slots={"a": left, "b": right}, template="{{a}} {{b}}")
    plan = compile_pipeline(pipeline("both", llm(joined, id="final")))
    events = await collect(driver(pools, plan, ask("Q", "both")))
    assert "".join(event.text for event in events if isinstance(event, Tokens)) == "X X"


async def test_many_passages_are_embedded_in_parallel_batches_in_order() -> None:
    pools = small_cluster()
    num_running = peak = 0
    inner = pools._handlers["minilm"]

    async def counted(work: Work) -> AsyncIterator[Event]:
        nonlocal num_running, peak
        num_running += 1
        peak = max(peak, num_running)
        await asyncio.sleep(0.001)
        async for event in inner(work):
            yield event
        num_running -= 1

    pools.serve("minilm", counted)
    text = "\n".join(f"passage number {number}" for number in range(300))
    plan = compile_pipeline(pipeline("big", documents() >> split() >> embed(batch=16) >> index("docs")))
    await collect(
        driver(pools, plan, RunPipeline(pipeline="big", documents=[Document(source="s", text=text)]))
    )
    works = [work for work in pools.works("minilm") if isinstance(work, Embed)]
    assert [len(work.texts) for work in works] == [16] * 18 + [12]
    assert 1 < peak <= 8


async def test_a_failed_node_is_named_and_the_rest_is_cancelled() -> None:
    pools = small_cluster()

    async def hang(work: Work) -> AsyncIterator[Event]:
        await asyncio.Event().wait()
        yield Completed()

    async def refuse(work: Work) -> AsyncIterator[Event]:
        await asyncio.sleep(0)
        raise BadRequest("the text is too long")
        yield Completed()

    pools.serve("left", hang)
    pools.serve("right", refuse)
    question = chat()
    left, right = llm(question, model="left", id="left"), llm(question, model="right", id="right")
    joined = prompt(question=question, slots={"a": left, "b": right}, template="{{a}} {{b}}")
    plan = compile_pipeline(pipeline("both", llm(joined, id="final")))
    with pytest.raises(BadRequest, match="node 'right': the text is too long"):
        await collect(driver(pools, plan, ask("Q", "both")))
    assert {stream.pool: stream.is_cancelled for stream in pools.streams} == {"left": True, "right": False}


async def test_one_failed_batch_cancels_the_other_batches() -> None:
    pools = small_cluster()

    async def first_fails(work: Work) -> AsyncIterator[Event]:
        assert isinstance(work, Embed)
        await asyncio.sleep(0)
        if work.texts[0].endswith(" 0"):
            raise BadRequest("no")
        await asyncio.Event().wait()
        yield Completed()

    pools.serve("minilm", first_fails)
    text = "\n".join(f"passage {number}" for number in range(64))
    plan = compile_pipeline(pipeline("big", documents() >> split() >> embed(batch=8) >> index("docs")))
    with pytest.raises(BadRequest, match="node 'embed': no"):
        await collect(
            driver(pools, plan, RunPipeline(pipeline="big", documents=[Document(source="s", text=text)]))
        )
    assert all(stream.is_finished for stream in pools.streams)


async def test_closing_the_iterator_cancels_every_request_of_the_run() -> None:
    pools = await indexed_cluster()

    async def endless(work: Work) -> AsyncIterator[Event]:
        while True:
            yield Tokens(text="on and ")
            await asyncio.sleep(0)

    pools.serve("tiny", endless)
    async with aclosing(driver(pools, LIBRARY.plan("rag-docs", {}), ask("Who?")).events()) as events:
        async for event in events:
            if isinstance(event, Tokens):
                break
    assert pools.streams[-1].pool == "tiny"
    assert pools.streams[-1].is_cancelled
    assert all(stream.is_finished for stream in pools.streams)


@pytest.mark.parametrize("stage", ["minilm", "operator/retrieve", "tiny"])
async def test_cancelling_the_reader_frees_whatever_stage_runs(stage: str) -> None:
    pools = await indexed_cluster()
    entered = asyncio.Event()

    async def hang(work: Work) -> AsyncIterator[Event]:
        entered.set()
        await asyncio.Event().wait()
        yield Completed()

    pools.serve(stage, hang)
    reading = asyncio.create_task(collect(driver(pools, LIBRARY.plan("rag-docs", {}), ask("Who?"))))
    await entered.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert pools.streams[-1].pool == stage
    assert pools.streams[-1].is_cancelled


async def test_cancel_by_hand_ends_the_run_as_cancelled() -> None:
    pools = await indexed_cluster()

    async def hang(work: Work) -> AsyncIterator[Event]:
        await asyncio.Event().wait()
        yield Completed()

    pools.serve("tiny", hang)
    made = driver(pools, LIBRARY.plan("rag-docs", {}), ask("Who?"))
    asyncio.get_running_loop().call_later(0.01, made.cancel, "no longer wanted")
    with pytest.raises(Cancelled, match="no longer wanted"):
        await collect(made)
    assert pools.streams[-1].is_cancelled


async def test_the_deadline_of_the_run_ends_it_in_any_stage() -> None:
    pools = await indexed_cluster()

    async def hang(work: Work) -> AsyncIterator[Event]:
        await asyncio.Event().wait()
        yield Completed()

    pools.serve("tiny", hang)
    with pytest.raises(DeadlineExceeded, match="answer"):
        await collect(driver(pools, LIBRARY.plan("rag-docs", {}), ask("Who?"), seconds=0.03))
    assert all(stream.is_finished for stream in pools.streams)


async def test_an_overloaded_pool_is_asked_again_and_the_run_succeeds() -> None:
    pools = await indexed_cluster()
    inner = pools._handlers["operator/retrieve"]
    num_asked = 0

    async def busy_once(work: Work) -> AsyncIterator[Event]:
        nonlocal num_asked
        num_asked += 1
        if num_asked == 1:
            raise Overloaded("full", retry_after=0.001)
        async for event in inner(work):
            yield event

    pools.serve("operator/retrieve", busy_once)
    plan = LIBRARY.plan("rag-docs", {})
    events = await collect(driver(pools, plan, ask("Who?")))
    assert isinstance(events[-1], Completed)
    assert num_asked == 2


async def test_an_answer_that_broke_off_is_not_begun_again() -> None:
    pools = await indexed_cluster()

    async def dies(work: Work) -> AsyncIterator[Event]:
        yield Tokens(text="half an")
        raise WorkerLost("the worker died")

    pools.serve("tiny", dies)
    with pytest.raises(WorkerLost, match="node 'answer': the worker died"):
        await collect(driver(pools, LIBRARY.plan("rag-docs", {}), ask("Who?")))
    assert len(pools.works("tiny")) == 1


async def test_a_bug_in_one_node_fails_that_run_alone_and_as_internal() -> None:
    pools = await indexed_cluster()

    def broken(task: str, name: str) -> str:
        raise ZeroDivisionError

    made = RunDriver(LIBRARY.plan("rag-docs", {}), ask("Who?"), pools, broken, Budget.of(5))
    with pytest.raises(Internal, match="node 'query_vector': ZeroDivisionError in the planner"):
        await collect(made)


async def test_other_outputs_arrive_as_their_own_kind() -> None:
    pools = await indexed_cluster()
    search = compile_pipeline(
        pipeline("s", chat() >> embed() >> retrieve("docs", top_k=3) >> rerank(top_k=2))
    )
    events = await collect(driver(pools, search, ask("carries messages", "s")))
    assert isinstance(events[-2], Output)
    assert len(decode(Retrieved, events[-2].value).hits) == 2
    vector = compile_pipeline(pipeline("v", chat() >> embed()))
    events = await collect(driver(pools, vector, ask("x", "v")))
    assert isinstance(events[-2], Vectors)
    assert len(events[-2].data) == 4 * events[-2].dim


async def test_an_input_of_the_wrong_kind_is_refused_before_any_request() -> None:
    pools = small_cluster()
    with pytest.raises(BadRequest, match="takes documents and nothing else"):
        await collect(driver(pools, LIBRARY.plan("index-docs", {}), ask("x", "index-docs")))
    assert pools.streams == []
