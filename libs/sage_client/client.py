"""One client for chat, embeddings, rerank and retrieval, straight over the bus."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self, TypedDict, Unpack

import msgspec
import numpy as np
from numpy.typing import NDArray

from sage_actor import Roster
from sage_bus import Bus, connect
from sage_client.catalog import AUTO, resolve_pool, served_models
from sage_client.request_port import RequestPort
from sage_client.request_stream import RequestStream
from sage_core import Budget, BusSettings, Clock, Internal, SystemClock, Unavailable, new_id
from sage_wire import decode
from sage_wire.messages import (
    Annotated,
    ChatMessage,
    ChatPrompt,
    Completed,
    Embed,
    Generate,
    Hit,
    Output,
    Rerank,
    Retrieve,
    Retrieved,
    RunPipeline,
    Sampling,
    Scores,
    ServedModel,
    Timings,
    Tokens,
    Usage,
    Vectors,
    Work,
)
from sage_wire.roles import Role

__all__ = ["ChatResult", "Messages", "SamplingOptions", "UnifiedInferenceClient"]

PIPELINE_PREFIX: Final = "pipeline/"
RETRIEVE_POOL: Final = "operator/retrieve"
MAX_TEXTS: Final = 512
MAX_CHARS: Final = 512 * 1024
MAX_PARTS_OPEN: Final = 8
DISCOVERY_SECONDS: Final = 5.0

Messages = str | Sequence[ChatMessage | Mapping[str, str]]
"""A user's text, or turns with `role` and `content`."""


class SamplingOptions(TypedDict, total=False):
    """Sampling parameters by OpenAI's names; what is left out is the model's default."""

    max_tokens: int
    temperature: float
    top_p: float
    stop: list[str]
    seed: int
    presence_penalty: float
    frequency_penalty: float


@dataclass(frozen=True, slots=True)
class ChatResult:
    """A finished answer. `sources` are the passages a pipeline's answer rests on."""

    text: str
    model: str
    request_id: str
    finish_reason: str = "stop"
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    sources: list[Hit] = field(default_factory=list)
    worker_id: str | None = None
    queue_ms: float = 0.0


class UnifiedInferenceClient:
    """Chat, embed, rerank and retrieve on a SAGE cluster. Use as `async with UnifiedInferenceClient(url) as client`.

    Takes a bus, which stays the caller's, or the URL of a NATS server or the settings of a bus, to which it holds a
    connection of its own. `role` is whose rights are used.
    `budget` in seconds bounds each call that names none. Calls raise SageError: NotFound for unknown names,
    Overloaded with `retry_after`, DeadlineExceeded, Unavailable, BadRequest. Cancelling a call cancels its work.
    """

    def __init__(
        self,
        bus: Bus | BusSettings | str,
        *,
        budget: float = 60.0,
        tenant: str = "default",
        role: Role = Role.OPERATOR,
        clock: Clock | None = None,
    ) -> None:
        self._given = bus
        self._role = role
        self._budget = budget
        self._tenant = tenant
        self._clock = clock or SystemClock()
        self._exits = AsyncExitStack()
        self._port: RequestPort | None = None
        self._roster: Roster | None = None

    async def start(self) -> None:
        """Connect and learn who is there. Raises BusUnavailable where there is no server."""
        async with AsyncExitStack() as exits:
            name = new_id("client")
            given = BusSettings(url=self._given) if isinstance(self._given, str) else self._given
            if isinstance(given, BusSettings):
                bus: Bus = await connect(given, name=name, role=self._role)
                exits.push_async_callback(bus.close)
            else:
                bus = given
            roster = Roster(bus, self._clock)
            await roster.start()
            exits.push_async_callback(roster.stop)
            port = RequestPort(bus, consumer_id=name, role=self._role, clock=self._clock, roster=roster)
            await port.start()
            exits.push_async_callback(port.close)
            self._roster, self._port = roster, port
            self._exits = exits.pop_all()

    async def close(self) -> None:
        """Cancel what is open and disconnect. Idempotent."""
        self._port = self._roster = None
        await self._exits.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def models(self) -> list[ServedModel]:
        """Return what is served now."""
        return served_models(self._started().actors.values())

    async def chat(
        self,
        model: str,
        messages: Messages,
        *,
        budget: Budget | float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> ChatResult:
        """Return the whole answer. `model` is a model, `pipeline/<name>`, or `auto`."""
        texts: list[str] = []
        sources: list[Hit] = []
        completed = Completed()
        stream = await self.stream_chat(model, messages, budget=budget, **sampling)
        async with stream:
            async for event in stream:
                match event:
                    case Tokens():
                        texts.append(event.text)
                    case Annotated():
                        sources += event.sources
                    case Completed():
                        completed = event
                    case _:
                        pass
        return ChatResult(
            text="".join(texts),
            model=stream.pool,
            request_id=stream.request_id,
            finish_reason=completed.finish_reason,
            usage=completed.usage,
            timings=completed.timings,
            sources=sources,
            worker_id=stream.worker_id,
            queue_ms=stream.queue_ms,
        )

    async def stream_chat(
        self,
        model: str,
        messages: Messages,
        *,
        budget: Budget | float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> RequestStream:
        """Return the answer's stream of Tokens, Annotated and Completed; use `async with` to leave early."""
        turns = _turns(messages)
        options = Sampling(**sampling)
        if model.startswith(PIPELINE_PREFIX):
            name = model.removeprefix(PIPELINE_PREFIX)
            return self._submit(model, RunPipeline(pipeline=name, messages=turns, sampling=options), budget)
        pool = await self._pool(model, "generate")
        return self._submit(
            pool, Generate(model=pool, prompt=ChatPrompt(messages=turns), sampling=options), budget
        )

    async def embed(
        self,
        model: str,
        texts: Sequence[str],
        *,
        dimensions: int | None = None,
        budget: Budget | float | None = None,
    ) -> NDArray[np.float32]:
        """Return L2-normalised vectors: float32, shape (len(texts), dim); shape (0, 0) for no texts.

        Large inputs are sent in parts, a few at a time.
        """
        pool = await self._pool(model, "embed")
        limit = self._limit(budget)
        rows: list[NDArray[np.float32]] = []
        async with AsyncExitStack() as exits:
            waiting: deque[tuple[RequestStream, int]] = deque()
            for part in _parts(texts):
                if len(waiting) >= MAX_PARTS_OPEN:
                    rows.append(await _vectors(*waiting.popleft()))
                work = Embed(model=pool, texts=part, dimensions=dimensions)
                stream = await exits.enter_async_context(self._submit(pool, work, limit))
                waiting.append((stream, len(part)))
            while waiting:
                rows.append(await _vectors(*waiting.popleft()))
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)

    async def rerank(
        self,
        model: str,
        query: str,
        documents: Sequence[str],
        *,
        budget: Budget | float | None = None,
    ) -> list[float]:
        """Return the relevance of each document in the order given; higher is better."""
        if not documents:
            return []
        pool = await self._pool(model, "rerank")
        async with self._submit(
            pool, Rerank(model=pool, query=query, documents=list(documents)), budget
        ) as stream:
            async for event in stream:
                if isinstance(event, Scores):
                    return event.scores
        raise Internal(f"pool {pool!r} completed without scores")

    async def retrieve(
        self,
        collection: str,
        query: str,
        *,
        top_k: int = 5,
        mode: str = "hybrid",
        embedding_model: str = AUTO,
        budget: Budget | float | None = None,
    ) -> list[Hit]:
        """Return the passages of `collection` nearest to `query`, best first. `mode`: hybrid, dense or sparse."""
        limit = self._limit(budget)
        vectors = await self.embed(embedding_model, [query], budget=limit)
        work = Retrieve(
            collection=collection,
            query=query,
            vector=vectors[0].astype("<f4").tobytes(),
            top_k=top_k,
            mode=mode,
        )
        async with self._submit(RETRIEVE_POOL, work, limit) as stream:
            async for event in stream:
                if isinstance(event, Output):
                    return decode(Retrieved, event.value).hits
        raise Internal(f"pool {RETRIEVE_POOL!r} completed without a value")

    def _started(self) -> Roster:
        if self._roster is None:
            raise Unavailable("the client is not started, or closed")
        return self._roster

    def _limit(self, budget: Budget | float | None) -> Budget:
        if isinstance(budget, Budget):
            return budget
        return Budget.of(self._budget if budget is None else budget, self._clock)

    def _submit(self, pool: str, work: Work, budget: Budget | float | None) -> RequestStream:
        if self._port is None:
            raise Unavailable("the client is not started, or closed")
        return self._port.submit(pool, work, budget=self._limit(budget), tenant=self._tenant)

    async def _pool(self, name: str, task: str) -> str:
        """Resolve `auto`, waiting a moment for the first announcements; other names are the scheduler's to judge."""
        if name != AUTO:
            return name
        roster = self._started()
        changed = asyncio.Event()
        unsubscribe = roster.subscribe(lambda _: changed.set())
        try:
            async with asyncio.timeout(DISCOVERY_SECONDS):
                while True:
                    changed.clear()
                    try:
                        return resolve_pool(roster.actors.values(), name, task).name
                    except Unavailable:
                        await changed.wait()
        except TimeoutError:
            return resolve_pool(roster.actors.values(), name, task).name
        finally:
            unsubscribe()


def _turns(messages: Messages) -> list[ChatMessage]:
    if isinstance(messages, str):
        return [ChatMessage(role="user", content=messages)]
    return [
        turn if isinstance(turn, ChatMessage) else msgspec.convert(turn, ChatMessage) for turn in messages
    ]


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    num_chars = 0
    for text in texts:
        if part and (len(part) >= MAX_TEXTS or num_chars + len(text) > MAX_CHARS):
            yield part
            part, num_chars = [], 0
        part.append(text)
        num_chars += len(text)
    if part:
        yield part


async def _vectors(stream: RequestStream, num_texts: int) -> NDArray[np.float32]:
    pieces: list[bytes] = []
    dim = 0
    async for event in stream:
        if isinstance(event, Vectors):
            pieces.append(event.data)
            dim = event.dim
    rows = np.frombuffer(b"".join(pieces), "<f4").astype(np.float32, copy=False)
    if dim <= 0 or rows.size != num_texts * dim:
        raise Internal(
            f"pool {stream.pool!r} gave {rows.size} values for {num_texts} texts of {dim} dimensions"
        )
    return rows.reshape(num_texts, dim)
