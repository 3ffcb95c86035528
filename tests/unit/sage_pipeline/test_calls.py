"""Lowering: what each node asks of which pool, in which pieces, and what it makes of the replies."""

from __future__ import annotations

import struct

import pytest

from sage_core import BadRequest, EngineError, LimitExceeded
from sage_pipeline import (
    Calls,
    Plan,
    Reply,
    Value,
    chat,
    compile_pipeline,
    documents,
    embed,
    index,
    llm,
    lower,
    pipeline,
    rerank,
    retrieve,
    split,
)
from sage_pipeline import prompt as prompt_node
from sage_pipeline.values import (
    Answer,
    Chunks,
    Documents,
    EmbeddedChunks,
    Hits,
    IndexReport,
    Messages,
    Prompt,
    Vector,
)
from sage_wire import raw
from sage_wire.messages import (
    ChatMessage,
    Chunk,
    Completed,
    Document,
    Embed,
    Generate,
    Hit,
    Index,
    Indexed,
    Output,
    Rerank,
    Retrieve,
    RunPipeline,
    Sampling,
    Scores,
    Split,
    SplitChunks,
    Tokens,
    Usage,
    Vectors,
)

INDEXING = compile_pipeline(pipeline("i", documents() >> split() >> embed(batch=3) >> index("docs")))
ASKING = compile_pipeline(
    pipeline(
        "a",
        chat()
        >> embed()
        >> retrieve("docs", top_k=4)
        >> rerank(top_k=2)
        >> prompt_node()
        >> llm(max_tokens=64, temperature=0.5, stop=["END"]),
    )
)
QUESTION = Messages((ChatMessage(role="user", content="Why?"),))


def lowered(plan: Plan, node_id: str, run: RunPipeline | None = None, **inputs: Value) -> Calls:
    calls = lower(plan, plan.step(node_id), inputs, run or RunPipeline(pipeline="x"), resolve)
    assert isinstance(calls, Calls)
    return calls


def resolve(task: str, name: str) -> str:
    return f"the-{task}-model" if name == "auto" else name


def reply(*events: Vectors | Scores | Output | Tokens | Completed) -> Reply:
    gathered = Reply()
    for event in events:
        gathered.add(event)
    return gathered


def rows(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def chunks_of(*sizes: int, text: str = "t") -> Chunks:
    return Chunks(
        tuple(
            Chunk(source=f"s{source}", position=position, text=text)
            for source, size in enumerate(sizes)
            for position in range(size)
        )
    )


def test_many_passages_are_embedded_in_bounded_requests_and_gathered_in_order() -> None:
    chunks = chunks_of(7)
    calls = lowered(INDEXING, "embed", input=chunks)
    assert [call.pool for call in calls.calls] == ["the-embed-model"] * 3
    works = [call.work for call in calls.calls]
    assert [len(work.texts) for work in works if isinstance(work, Embed)] == [3, 3, 1]
    assert calls.max_parallel > 1
    value = calls.gather(
        [
            # A batch may come in parts, and parts may be given in any order of offsets.
            reply(Vectors(offset=2, dim=1, data=rows(3)), Vectors(offset=0, dim=1, data=rows(1, 2))),
            reply(Vectors(offset=0, dim=1, data=rows(4, 5, 6))),
            reply(Vectors(offset=0, dim=1, data=rows(7))),
        ]
    )
    assert value == EmbeddedChunks("the-embed-model", 1, chunks.chunks, rows(1, 2, 3, 4, 5, 6, 7))


def test_a_passage_is_embedded_under_its_title() -> None:
    chunks = Chunks(
        (Chunk(source="a", position=0, text="body", title="Page"), Chunk(source="b", position=0, text="bare"))
    )
    calls = lowered(INDEXING, "embed", input=chunks)
    assert [call.work for call in calls.calls] == [
        Embed(model="the-embed-model", texts=["Page\nbody", "bare"])
    ]


def test_a_question_becomes_one_vector() -> None:
    calls = lowered(ASKING, "embed", input=QUESTION)
    assert calls.calls[0].work == Embed(model="the-embed-model", texts=["Why?"])
    assert calls.gather([reply(Vectors(offset=0, dim=2, data=rows(0, 1)))]) == Vector(
        "the-embed-model", 2, rows(0, 1)
    )


@pytest.mark.parametrize(
    "replies",
    [
        [Vectors(offset=0, dim=2, data=rows(1))],
        [],
        [Vectors(offset=0, dim=1, data=rows(1)), Vectors(offset=1, dim=2, data=rows(1, 2))],
    ],
)
def test_vectors_of_a_wrong_shape_are_an_error_of_the_engine(replies: list[Vectors]) -> None:
    calls = lowered(ASKING, "embed", input=QUESTION)
    with pytest.raises(EngineError, match="expected 1 vectors of one dimension"):
        calls.gather([reply(*replies)])


def test_big_inputs_are_split_in_several_requests() -> None:
    many = Documents(tuple(Document(source=str(number), text="x" * 100_000) for number in range(12)))
    calls = lowered(INDEXING, "split", documents=many)
    works = [call.work for call in calls.calls]
    assert len(works) > 1
    assert [document for work in works if isinstance(work, Split) for document in work.documents] == list(
        many.documents
    )
    parts = [reply(Output(value=raw(SplitChunks(chunks=[chunk])))) for chunk in chunks_of(len(works)).chunks]
    assert calls.gather(parts) == chunks_of(len(works))


def test_indexing_never_divides_a_source_and_counts_the_whole_collection() -> None:
    chunks = chunks_of(40, 40, 40, text="x" * 2500)
    vectors = b"".join(rows(float(number)) for number in range(120))
    calls = lowered(INDEXING, "index", chunks=EmbeddedChunks("m", 1, chunks.chunks, vectors))
    works = [call.work for call in calls.calls if isinstance(call.work, Index)]
    assert len(works) == 2
    assert calls.max_parallel == 1
    seen: set[str] = set()
    for work in works:
        sources = {chunk.source for chunk in work.chunks}
        assert not sources & seen
        seen |= sources
        assert len(work.vectors) == 4 * len(work.chunks)
    assert b"".join(work.vectors for work in works) == vectors
    reports = [
        reply(Output(value=raw(Indexed(num_chunks=number, num_sources=number)))) for number in (80, 120)
    ]
    assert calls.gather(reports) == IndexReport(Indexed(num_chunks=120, num_sources=120))


def test_a_document_that_has_become_empty_loses_its_earlier_passages() -> None:
    run = RunPipeline(
        pipeline="index-docs",
        documents=[Document(source="0", text="x"), Document(source="emptied", text=" ")],
    )
    calls = lowered(
        INDEXING,
        "index",
        run=run,
        chunks=EmbeddedChunks("m", 1, (Chunk(source="0", position=0, text="x"),), rows(1)),
    )
    (work,) = (call.work for call in calls.calls)
    assert isinstance(work, Index)
    assert work.removed_sources == ["emptied"]


def test_a_run_that_only_removes_sources_asks_the_index_alone() -> None:
    run = RunPipeline(pipeline="i", removed_sources=["b", "a"])
    documents = lower(INDEXING, INDEXING.step("documents"), {}, run, resolve)
    assert documents == Documents(())
    assert lower(INDEXING, INDEXING.step("split"), {"documents": documents}, run, resolve) == Chunks(())
    calls = lowered(INDEXING, "index", run=run, chunks=EmbeddedChunks("m", 0, (), b""))
    (work,) = (call.work for call in calls.calls)
    assert isinstance(work, Index)
    assert (work.chunks, work.removed_sources) == ([], ["a", "b"])


def test_a_source_that_is_removed_and_brought_anew_stays() -> None:
    run = RunPipeline(pipeline="i", documents=[Document(source="0", text="x")], removed_sources=["0", "0#2"])
    chunks = EmbeddedChunks("m", 1, (Chunk(source="0", position=0, text="x"),), rows(1))
    (work,) = (call.work for call in lowered(INDEXING, "index", run=run, chunks=chunks).calls)
    assert isinstance(work, Index)
    assert work.removed_sources == ["0#2"]


def test_vectors_follow_their_passages_when_a_source_returns_later() -> None:
    chunks = (
        Chunk(source="a", position=0, text="1"),
        Chunk(source="b", position=0, text="2"),
        Chunk(source="a", position=1, text="3"),
    )
    calls = lowered(INDEXING, "index", chunks=EmbeddedChunks("m", 1, chunks, rows(1, 2, 3)))
    (work,) = (call.work for call in calls.calls)
    assert isinstance(work, Index)
    assert [chunk.text for chunk in work.chunks] == ["1", "3", "2"]
    assert work.vectors == rows(1, 3, 2)


def test_a_document_too_large_to_index_is_named() -> None:
    chunks = chunks_of(2000, text="x" * 1000)
    with pytest.raises(LimitExceeded, match="document 's0' gives 2000 passages"):
        lowered(INDEXING, "index", chunks=EmbeddedChunks("m", 1, chunks.chunks, rows(*[0.0] * 2000)))


def test_documents_without_text_are_the_callers_mistake() -> None:
    empty = lower(INDEXING, INDEXING.step("embed"), {"input": Chunks(())}, RunPipeline(pipeline="i"), resolve)
    assert empty == EmbeddedChunks("the-embed-model", 0, (), b"")
    with pytest.raises(BadRequest, match="no text to index"):
        lowered(INDEXING, "index", chunks=EmbeddedChunks("m", 0, (), b""))


def test_retrieval_asks_with_words_and_vector() -> None:
    calls = lowered(ASKING, "retrieve", query=QUESTION, vector=Vector("m", 1, rows(1)))
    assert calls.calls[0].pool == "operator/retrieve"
    assert calls.calls[0].work == Retrieve(
        collection="docs", query="Why?", vector=rows(1), top_k=4, mode="hybrid"
    )
    with pytest.raises(EngineError, match="completed without a Retrieved"):
        calls.gather([reply()])


def test_rerank_orders_by_score_and_keeps_the_best() -> None:
    hits = Hits(tuple(Hit(source=name, position=0, text=name, score=0.0, title="T") for name in "abc"))
    calls = lowered(ASKING, "rerank", query=QUESTION, hits=hits)
    assert calls.calls[0].work == Rerank(model="the-rerank-model", query="Why?", documents=["a", "b", "c"])
    value = calls.gather([reply(Scores(scores=[0.1, 0.9, 0.5]))])
    assert isinstance(value, Hits)
    assert [(hit.source, hit.score, hit.title) for hit in value.hits] == [("b", 0.9, "T"), ("c", 0.5, "T")]
    with pytest.raises(EngineError, match="2 scores for 3 passages"):
        calls.gather([reply(Scores(scores=[1, 2]))])
    nothing = lower(
        ASKING,
        ASKING.step("rerank"),
        {"query": QUESTION, "hits": Hits(())},
        RunPipeline(pipeline="x"),
        resolve,
    )
    assert nothing == Hits(())


def test_a_requests_own_sampling_wins_over_the_pipelines() -> None:
    run = RunPipeline(pipeline="a", sampling=Sampling(temperature=0.0, seed=7))
    calls = lowered(ASKING, "llm", run, prompt=Prompt(QUESTION.messages))
    work = calls.calls[0].work
    assert isinstance(work, Generate)
    assert work.sampling == Sampling(max_tokens=64, temperature=0.0, seed=7, stop=["END"])
    usage = Usage(prompt_tokens=3, completion_tokens=2)
    value = calls.gather(
        [reply(Tokens(text="He"), Tokens(text="y"), Completed(finish_reason="length", usage=usage))]
    )
    assert value == Answer("Hey", usage, "length")


def test_inner_models_keep_the_pipelines_sampling() -> None:
    plan = compile_pipeline(
        pipeline("two", chat() >> llm(id="draft", max_tokens=9) >> prompt_node() >> llm(id="final"))
    )
    run = RunPipeline(pipeline="two", sampling=Sampling(max_tokens=1, stop=["x"]))
    work = lowered(plan, "draft", run, prompt=QUESTION).calls[0].work
    assert isinstance(work, Generate)
    assert work.sampling == Sampling(max_tokens=9)


@pytest.mark.parametrize(
    ("plan", "run", "param"),
    [
        (ASKING, RunPipeline(pipeline="a"), "messages"),
        (ASKING, RunPipeline(pipeline="a", documents=[Document(source="s", text="t")]), "messages"),
        (ASKING, RunPipeline(pipeline="a", messages=[ChatMessage(role="system", content="s")]), "messages"),
        (ASKING, RunPipeline(pipeline="a", removed_sources=["s"]), "messages"),
        (INDEXING, RunPipeline(pipeline="i"), "documents"),
        (INDEXING, RunPipeline(pipeline="i", messages=list(QUESTION.messages)), "documents"),
    ],
)
def test_an_input_of_the_wrong_kind_is_the_callers_mistake(plan: Plan, run: RunPipeline, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        lower(plan, plan.steps[0], {}, run, resolve)
    assert caught.value.param == param
