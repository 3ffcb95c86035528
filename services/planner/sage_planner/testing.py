"""Pools in one process, behind the request port's face: what tests of pipelines run against instead of a cluster."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import AsyncIterator, Callable
from typing import Final

from sage_core import Budget, Cancelled, DeadlineExceeded, NotFound, SageError
from sage_wire import raw
from sage_wire.messages import (
    ChatPrompt,
    Chunk,
    Completed,
    Embed,
    Event,
    Generate,
    Hit,
    Index,
    Indexed,
    Output,
    Rerank,
    Retrieve,
    Retrieved,
    Scores,
    Split,
    SplitChunks,
    Targets,
    Tokens,
    Usage,
    Vectors,
    Work,
)

__all__ = ["Handler", "ScriptedPools", "ScriptedStream", "small_cluster", "words_vector"]

Handler = Callable[[Work], AsyncIterator[Event]]
DIM: Final = 8


class ScriptedStream:
    """One request. Events are produced by a task, as if by a worker; budget, cancel and errors behave the same."""

    def __init__(self, pool: str, work: Work, events: AsyncIterator[Event] | None, seconds: float) -> None:
        self.pool = pool
        self.work = work
        self.is_cancelled = False
        self.is_finished = False
        self.targets: Targets | None = None
        self.route = ""
        self._pending: list[Event] = []
        self._error: SageError | None = None
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._produce(events, seconds))

    async def next_batch(self) -> list[Event]:
        """See `RequestStream.next_batch`."""
        while not self._pending:
            if self._error is not None:
                raise self._error
            if self.is_finished:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        batch, self._pending = self._pending, []
        return batch

    async def aclose(self) -> None:
        """See `RequestStream.aclose`."""
        if not self.is_finished:
            self.is_cancelled = True
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _produce(self, events: AsyncIterator[Event] | None, seconds: float) -> None:
        try:
            if events is None:
                raise NotFound(f"pool '{self.pool}' does not exist")
            async with asyncio.timeout(seconds):
                async for event in events:
                    self._pending.append(event)
                    self._wake.set()
        except TimeoutError:
            self._error = DeadlineExceeded("the request's budget ran out")
        except SageError as error:
            self._error = error
        except asyncio.CancelledError:
            self._error = Cancelled("cancelled by the caller")
        finally:
            self.is_finished = True
            self._wake.set()


class ScriptedPools:
    """Answers submits from plain functions. `streams` lists every request ever made, in order."""

    def __init__(self) -> None:
        self.streams: list[ScriptedStream] = []
        self._handlers: dict[str, Handler] = {}

    def serve(self, pool: str, handler: Handler) -> None:
        """Let `handler`, an async generator function, answer requests to `pool` from now on."""
        self._handlers[pool] = handler

    def works(self, pool: str) -> list[Work]:
        """Return what was asked of `pool` so far."""
        return [stream.work for stream in self.streams if stream.pool == pool]

    def resolve(self, task: str, name: str) -> str:
        """Resolve `auto` to the pool that `small_cluster` serves for the task."""
        return (
            {"embed": "minilm", "rerank": "minilm-rerank", "generate": "tiny"}[task]
            if name == "auto"
            else name
        )

    def submit(
        self,
        pool: str,
        work: Work,
        *,
        budget: Budget | float,
        tenant: str = "default",  # noqa: ARG002 - the protocol's
        slo_class: str = "interactive",  # noqa: ARG002
        priority: int = 0,  # noqa: ARG002
        targets: Targets | None = None,
        route: str = "",
        traceparent: str | None = None,  # noqa: ARG002
    ) -> ScriptedStream:
        """See `RequestPort.submit`."""
        handler = self._handlers.get(pool)
        seconds = budget.remaining if isinstance(budget, Budget) else budget
        stream = ScriptedStream(pool, work, handler(work) if handler is not None else None, seconds)
        stream.targets, stream.route = targets, route
        self.streams.append(stream)
        return stream


def words_vector(text: str) -> bytes:
    """Return a float32 vector of `DIM` numbers that depends on the words of `text` alone."""
    totals = [0.0] * DIM
    for word in text.lower().split():
        totals[hashlib.sha256(word.strip(".,?!").encode()).digest()[0] % DIM] += 1.0
    norm = sum(total * total for total in totals) ** 0.5 or 1.0
    return struct.pack(f"<{DIM}f", *(total / norm for total in totals))


def small_cluster() -> ScriptedPools:
    """Return pools that split, embed, index, retrieve, rerank and answer, small and deterministic.

    The model answers with the question in upper case, one word per event, and counts words as tokens.
    """
    pools = ScriptedPools()
    stored: dict[str, dict[str, list[Chunk]]] = {}

    async def split(work: Work) -> AsyncIterator[Event]:
        assert isinstance(work, Split)
        chunks = [
            Chunk(source=document.source, position=position, text=text, title=document.title)
            for document in work.documents
            for position, text in enumerate(line for line in document.text.splitlines() if line.strip())
        ]
        yield Output(value=raw(SplitChunks(chunks=chunks)))
        yield Completed()

    async def embed(work: Work) -> AsyncIterator[Event]:
        assert isinstance(work, Embed)
        yield Vectors(offset=0, dim=DIM, data=b"".join(map(words_vector, work.texts)))
        yield Completed()

    async def index(work: Work) -> AsyncIterator[Event]:
        assert isinstance(work, Index)
        collection = stored.setdefault(work.collection, {})
        for source in {chunk.source for chunk in work.chunks}:
            collection[source] = [chunk for chunk in work.chunks if chunk.source == source]
        indexed = Indexed(num_chunks=sum(map(len, collection.values())), num_sources=len(collection))
        yield Output(value=raw(indexed))
        yield Completed()

    async def retrieve(work: Work) -> AsyncIterator[Event]:
        assert isinstance(work, Retrieve)
        if work.collection not in stored:
            raise NotFound(f"collection '{work.collection}' does not exist", param="collection")
        asked = set(work.query.lower().split())
        hits = [
            Hit(
                source=chunk.source,
                position=chunk.position,
                text=chunk.text,
                score=float(len(asked & set(chunk.text.lower().split()))),
                title=chunk.title,
            )
            for chunks in stored[work.collection].values()
            for chunk in chunks
        ]
        hits.sort(key=lambda hit: -hit.score)
        yield Output(value=raw(Retrieved(hits=hits[: work.top_k])))
        yield Completed()

    async def rerank(work: Work) -> AsyncIterator[Event]:
        assert isinstance(work, Rerank)
        yield Scores(scores=[float(-len(document)) for document in work.documents])
        yield Completed()

    async def generate(work: Work) -> AsyncIterator[Event]:
        assert isinstance(work, Generate)
        assert isinstance(work.prompt, ChatPrompt)
        words = work.prompt.messages[-1].content.upper().split()
        for number, word in enumerate(words):
            yield Tokens(text=word if number == 0 else f" {word}")
            await asyncio.sleep(0)
        yield Completed(usage=Usage(prompt_tokens=7, completion_tokens=len(words)))

    handlers: dict[str, Handler] = {
        "operator/split": split,
        "operator/index": index,
        "operator/retrieve": retrieve,
        "minilm": embed,
        "minilm-rerank": rerank,
        "tiny": generate,
    }
    for pool, handler in handlers.items():
        pools.serve(pool, handler)
    return pools
