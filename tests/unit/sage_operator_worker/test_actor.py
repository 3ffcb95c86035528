"""What callers of the operator-worker rely on."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import pytest

from sage_actor import ActorRuntime
from sage_bus import MemoryBroker
from sage_core import BadRequest, Budget, LimitExceeded, NotFound, load_settings
from sage_core.settings import ActorSettings
from sage_operator_worker import (
    CollectionInfo,
    OperatorWorker,
    OperatorWorkerSection,
    OperatorWorkerSettings,
    SqliteVectorStore,
    Update,
)
from sage_wire import decode
from sage_wire.messages import (
    Chunk,
    Completed,
    Document,
    Embed,
    Index,
    Indexed,
    Message,
    Output,
    Retrieve,
    Retrieved,
    Split,
    SplitChunks,
    Work,
)
from sage_worker import Assigned

M = TypeVar("M", bound=Message)
UNIT = np.array([0.6, 0.8], dtype="<f4").tobytes()


class Recording(SqliteVectorStore):
    """The real store, noting which threads call it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.threads: set[str] = set()

    def update(self, collection: str, update: Update) -> CollectionInfo:
        self.threads.add(threading.current_thread().name)
        return super().update(collection, update)


class Running:
    """A started worker."""

    def __init__(self, runtime: ActorRuntime, store: Recording) -> None:
        self.runtime = runtime
        self.store = store

    async def ask(self, work: Work, reply: type[M]) -> M:
        assert isinstance(self.runtime.actor, OperatorWorker)
        assigned = Assigned(
            request_id="r", attempt=1, pool="p", work=work, tenant="t", priority=0, budget=Budget.of(5),
            traceparent=None, queue_ms=0.0,
        )  # fmt: skip
        output, completed = [event async for event in self.runtime.actor.perform(assigned)]
        assert isinstance(output, Output)
        assert isinstance(completed, Completed)
        return decode(reply, output.value)


class Start(Protocol):
    async def __call__(self, **settings: object) -> Running: ...


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    runtimes: list[ActorRuntime] = []
    broker = MemoryBroker()

    async def begin(**settings: object) -> Running:
        store = Recording(tmp_path / str(len(runtimes)))
        section = OperatorWorkerSection.model_validate(settings)
        runtime = ActorRuntime(
            lambda context: OperatorWorker(context, section, open_store=lambda: store),
            actor_id="operator-worker-1",
            bus=broker.connect("data"),
            control=broker.connect("control"),
            settings=ActorSettings(),
        )
        await runtime.start()
        runtimes.append(runtime)
        return Running(runtime, store)

    yield begin
    for runtime in runtimes:
        await runtime.stop(drain=False)


def index(num_chunks: int = 1, **changes: object) -> Index:
    fields: dict[str, object] = {
        "collection": "docs",
        "embedding_model": "m",
        "dim": 2,
        "chunks": [Chunk(source="a", position=i, text=f"passage {i}", title="T") for i in range(num_chunks)],
        "vectors": UNIT * num_chunks,
    }
    return Index(**(fields | changes))  # type: ignore[arg-type]


async def test_documents_are_split_indexed_and_retrieved(start: Start) -> None:
    running = await start()
    documents = [
        Document(source="s", title="T", text="One two.\n\nThree four."),
        Document(source="e", text=" "),
    ]
    split = await running.ask(Split(documents=documents, chunk_chars=12, overlap_chars=0), SplitChunks)
    assert split.chunks == [
        Chunk(source="s", position=0, text="One two.", title="T"),
        Chunk(source="s", position=1, text="Three four.", title="T"),
    ]
    indexed = await running.ask(index(chunks=split.chunks, vectors=UNIT * 2), Indexed)
    assert indexed == Indexed(num_chunks=2, num_sources=1)
    found = await running.ask(Retrieve(collection="docs", query="three", vector=UNIT, top_k=1), Retrieved)
    assert [(hit.source, hit.position, hit.text, hit.title) for hit in found.hits] == [
        ("s", 1, "Three four.", "T")
    ]
    removed = await running.ask(index(0, removed_sources=["s"]), Indexed)
    assert removed == Indexed(num_chunks=0, num_sources=0)


async def test_sources_are_removed_without_a_model_and_without_making_a_collection(start: Start) -> None:
    running = await start()
    removal = Index(
        collection="docs", embedding_model="", dim=0, chunks=[], vectors=b"", removed_sources=["a"]
    )
    assert await running.ask(removal, Indexed) == Indexed(num_chunks=0, num_sources=0)
    with pytest.raises(NotFound):
        await running.ask(Retrieve(collection="docs", query="x", vector=UNIT), Retrieved)
    await running.ask(index(2), Indexed)
    assert await running.ask(removal, Indexed) == Indexed(num_chunks=0, num_sources=0)


async def test_the_store_is_called_in_the_worker_s_own_threads(start: Start) -> None:
    running = await start()
    await running.ask(index(), Indexed)
    assert all(name.startswith("operator") for name in running.store.threads)


async def test_each_operator_is_announced_as_a_pool(start: Start) -> None:
    actor = (await start(max_in_flight=7)).runtime.actor
    assert actor is not None
    presence = actor.presence()
    assert [model.name for model in presence.models] == [
        "operator/split",
        "operator/index",
        "operator/retrieve",
    ]
    assert {model.task for model in presence.models} == {"operator"}
    assert presence.max_in_flight == 7


async def test_words_alone_need_no_vector(start: Start) -> None:
    running = await start()
    await running.ask(index(2), Indexed)
    work = Retrieve(collection="docs", query="passage 1", vector=b"", top_k=1, mode="sparse")
    assert [hit.position for hit in (await running.ask(work, Retrieved)).hits] == [1]


LONG = Document(source="s", text="x" * 60)


@pytest.mark.parametrize(
    ("work", "error", "complaint"),
    [
        (Split(documents=[LONG] * 3), LimitExceeded, "documents has 3; at most 2 documents"),
        (Split(documents=[LONG], chunk_chars=0), BadRequest, "chunk_chars is 0; expected at least 1"),
        (Split(documents=[LONG], chunk_chars=9, overlap_chars=5), BadRequest, "expected at most half"),
        (Split(documents=[LONG], chunk_chars=41), LimitExceeded, "chunk_chars has 41; at most 40"),
        (
            Split(documents=[LONG], chunk_chars=4, overlap_chars=0),
            LimitExceeded,
            "at most 10 passages; split fewer",
        ),
        (
            Split(documents=[Document(source="s", text="x" * 101)], chunk_chars=40),
            LimitExceeded,
            "document 's' has 101; at most 100 characters",
        ),
        (index(11), LimitExceeded, "chunks has 11; at most 10 passages"),
        (index(vectors=UNIT[:-1]), BadRequest, "vectors has 7 bytes; expected 8: float32, 1 x 2"),
        (index(dim=0, vectors=b""), BadRequest, "vectors have 0 dimensions"),
        (
            index(vectors=b"\0" * 8),
            BadRequest,
            r"vectors\[0\] has length 0.0; expected finite vectors of length 1",
        ),
        (index(vectors=b"\xff" * 8), BadRequest, r"vectors\[0\] has length nan"),
        (index(embedding_model=""), BadRequest, "embedding_model is empty"),
        (index(collection="a\n"), BadRequest, "collection name is"),
        (index(chunks=[Chunk(source="", position=0, text="")]), BadRequest, "a passage has an empty source"),
        (
            index(chunks=[Chunk(source="a", position=-1, text="")]),
            BadRequest,
            "has position -1; expected 0 or more",
        ),
        (
            index(chunks=[Chunk(source="a", position=0, text="x" * 41)]),
            LimitExceeded,
            "a passage of 'a' has 41; at most 40",
        ),
        (
            Retrieve(collection="docs", query="q", vector=UNIT, top_k=0),
            BadRequest,
            "top_k is 0; expected 1 to 200",
        ),
        (
            Retrieve(collection="docs", query="q", vector=UNIT, mode="best"),
            BadRequest,
            "mode is 'best'; expected",
        ),
        (Retrieve(collection="docs", query="q", vector=b""), BadRequest, "vector have 0 dimensions"),
        (Embed(model="m", texts=["a"]), BadRequest, "found work Embed; expected Split, Index or Retrieve"),
    ],
)
async def test_wrong_work_is_refused_saying_what_was_expected(
    start: Start, work: Work, error: type[Exception], complaint: str
) -> None:
    running = await start(max_documents=2, max_document_chars=100, max_chunk_chars=40, max_chunks=10)
    with pytest.raises(error, match=complaint):
        await running.ask(work, Message)


async def test_an_answer_too_large_for_the_bus_is_refused(start: Start) -> None:
    running = await start(max_document_chars=9_000_000)
    documents = [Document(source="s", text="word " * 1_700_000)]
    with pytest.raises(LimitExceeded, match=r"bytes; at most .* fit: ask for less at once"):
        await running.ask(Split(documents=documents, chunk_chars=2000, overlap_chars=0), SplitChunks)


def test_collections_live_in_the_instance_s_data_folder_unless_told(tmp_path: Path) -> None:
    settings = load_settings(OperatorWorkerSettings, environ={"SAGE_INSTANCE": "two"})
    assert settings.data_dir.parts[-3:] == ("sage", "two", "collections")
    told = load_settings(OperatorWorkerSettings, environ={"SAGE_OPERATOR_WORKER__DATA_DIR": str(tmp_path)})
    assert told.data_dir == tmp_path
