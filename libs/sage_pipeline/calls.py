"""What a node asks of which pools, and how the replies become its value. Big inputs become several bounded requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from sage_core import BadRequest, EngineError, LimitExceeded
from sage_pipeline.nodes import (
    EmbedOptions,
    IndexOptions,
    LlmOptions,
    PromptOptions,
    RerankOptions,
    RetrieveOptions,
    SplitOptions,
)
from sage_pipeline.plan import Plan, Step
from sage_pipeline.prompting import render_prompt
from sage_pipeline.values import (
    Answer,
    Chunks,
    Documents,
    EdgeType,
    EmbeddedChunks,
    Hits,
    IndexReport,
    Messages,
    Prompt,
    Value,
    Vector,
    text_of,
)
from sage_wire import decode
from sage_wire.messages import (
    Annotated,
    ChatPrompt,
    Chunk,
    Completed,
    Document,
    Embed,
    Event,
    Generate,
    Hit,
    Index,
    Indexed,
    Message,
    Output,
    Rerank,
    Retrieve,
    Retrieved,
    RunPipeline,
    Sampling,
    Scores,
    Split,
    SplitChunks,
    Tokens,
    Usage,
    Vectors,
    Work,
)

__all__ = ["MAX_REQUEST_BYTES", "Call", "Calls", "Reply", "Resolve", "lower"]

MAX_REQUEST_BYTES: Final = 1024 * 1024
"""Aim for the size of one request to an operator; a single source that is larger goes alone."""
MAX_SOURCE_BYTES: Final = 7 * 1024 * 1024
"""Passages and vectors of one source must travel together, as indexing replaces a source as a whole."""

Resolve = Callable[[str, str], str]
"""(task, model name or auto) -> the pool to ask. Raises Unavailable where no pool serves the task."""

M = TypeVar("M", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One request."""

    pool: str
    work: Work


@dataclass(slots=True)
class Reply:
    """The events of one request, gathered."""

    texts: list[str] = field(default_factory=list)
    vectors: list[Vectors] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    output: Output | None = None
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = "stop"

    def add(self, event: Event) -> None:
        """Take one event of the request's stream."""
        match event:
            case Tokens(text=text):
                self.texts.append(text)
            case Vectors():
                self.vectors.append(event)
            case Scores(scores=scores):
                self.scores = scores
            case Output():
                self.output = event
            case Completed(usage=usage, finish_reason=reason):
                self.usage, self.finish_reason = usage, reason
            case Annotated() | _:
                pass

    def value(self, kind: type[M]) -> M:
        """Decode the operator's output. Raises EngineError where there is none."""
        if self.output is None:
            raise EngineError(f"the worker completed without a {kind.__name__}")
        return decode(kind, self.output.value)

    def joined_vectors(self, num_texts: int) -> tuple[int, bytes]:
        """Return dim and the rows of `num_texts` vectors. Raises EngineError for any other shape."""
        parts = sorted(self.vectors, key=lambda part: part.offset)
        data = b"".join(part.data for part in parts)
        dims = {part.dim for part in parts}
        if len(dims) != 1 or len(data) != 4 * num_texts * (dim := dims.pop()):
            raise EngineError(f"expected {num_texts} vectors of one dimension; found {len(data)} bytes")
        return dim, data


@dataclass(frozen=True, slots=True)
class Calls:
    """Requests to make, at most `max_parallel` at once, and the function from their replies, in order, to the value."""

    calls: tuple[Call, ...]
    gather: Callable[[Sequence[Reply]], Value]
    max_parallel: int = 1


def lower(
    plan: Plan, step: Step, inputs: Mapping[str, Value], run: RunPipeline, resolve: Resolve
) -> Value | Calls:
    """Return the value of `step` where the planner makes it itself, else the requests that make it.

    Raises BadRequest for an input that can never work, LimitExceeded for one that is too large, and what
    `resolve` raises.
    """
    match step.options:
        case EmbedOptions() as options:
            return _embed(options, inputs["input"], resolve)
        case SplitOptions() as options:
            return _split(step, options, _as(Documents, inputs["documents"]))
        case IndexOptions() as options:
            return _index(step, options, _as(EmbeddedChunks, inputs["chunks"]), run)
        case RetrieveOptions() as options:
            return _retrieve(step, options, inputs)
        case RerankOptions() as options:
            return _rerank(options, inputs, resolve)
        case PromptOptions() as options:
            return render_prompt(options, inputs, plan.parameters)
        case LlmOptions() as options:
            return _llm(step, options, inputs["prompt"], run, resolve)
    return source_value(step, run)


def source_value(step: Step, run: RunPipeline) -> Value:
    """Return the run's input as the source wants it. Raises BadRequest naming the field that is missing."""
    if step.yields is EdgeType.DOCUMENTS:
        if run.messages or not (run.documents or run.removed_sources):
            raise BadRequest(f"pipeline '{run.pipeline}' takes documents and nothing else", param="documents")
        return Documents(tuple(run.documents))
    if run.documents or run.removed_sources or not run.messages:
        raise BadRequest(f"pipeline '{run.pipeline}' takes messages and nothing else", param="messages")
    messages = Messages(tuple(run.messages))
    text_of(messages)
    return messages


def _as(kind: type[T], value: object) -> T:
    assert isinstance(value, kind)  # the compiler checked the edge
    return value


def _embed(options: EmbedOptions, value: Value, resolve: Resolve) -> Value | Calls:
    pool = resolve("embed", options.model)
    if not isinstance(value, Chunks):
        texts = [text_of(value)]
    else:
        # A passage from the middle of a page rarely says what the page is about; its title does.
        texts = [f"{chunk.title}\n{chunk.text}" if chunk.title else chunk.text for chunk in value.chunks]
        if not texts:
            return EmbeddedChunks(pool, 0, (), b"")
    batches = [texts[start : start + options.batch] for start in range(0, len(texts), options.batch)]

    def gather(replies: Sequence[Reply]) -> Value:
        rows = [reply.joined_vectors(len(batch)) for reply, batch in zip(replies, batches, strict=True)]
        if len({dim for dim, _ in rows}) != 1:
            raise EngineError(f"model '{pool}' answered with vectors of different dimensions")
        dim, data = rows[0][0], b"".join(part for _, part in rows)
        if isinstance(value, Chunks):
            return EmbeddedChunks(pool, dim, value.chunks, data)
        return Vector(pool, dim, data)

    return Calls(
        tuple(Call(pool, Embed(model=pool, texts=batch)) for batch in batches), gather, max_parallel=8
    )


def _split(step: Step, options: SplitOptions, value: Documents) -> Value | Calls:
    if not value.documents:
        return Chunks(())

    def size(document: Document) -> int:
        return 4 * len(document.text)

    groups = _packed([[document] for document in value.documents], size)
    works = [
        Split(documents=group, chunk_chars=options.chunk_chars, overlap_chars=options.overlap_chars)
        for group in groups
    ]

    def gather(replies: Sequence[Reply]) -> Value:
        return Chunks(tuple(chunk for reply in replies for chunk in reply.value(SplitChunks).chunks))

    return Calls(tuple(Call(step.pool, work) for work in works), gather, max_parallel=4)


def _index(step: Step, options: IndexOptions, value: EmbeddedChunks, run: RunPipeline) -> Calls:
    if not value.chunks and not run.removed_sources:
        raise BadRequest("the documents hold no text to index", param="documents")
    row_bytes = 4 * value.dim
    by_source: dict[str, list[int]] = {}
    for number, chunk in enumerate(value.chunks):
        by_source.setdefault(chunk.source, []).append(number)

    def size(number: int) -> int:
        return _text_bytes(value.chunks[number]) + row_bytes

    for source, numbers in by_source.items():
        total = sum(map(size, numbers))
        if total > MAX_SOURCE_BYTES:
            raise LimitExceeded(
                f"document '{source}' gives {len(numbers)} passages, {total} bytes with their vectors; at most "
                f"{MAX_SOURCE_BYTES} bytes per document can be indexed; cut it into several documents",
                param="documents",
            )
    # A document that has become empty must not keep its earlier passages.
    given = {document.source for document in run.documents}
    removed = sorted((given | set(run.removed_sources)) - by_source.keys())
    calls: list[Call] = []
    for numbers in _packed(list(by_source.values()), size) or [[]]:
        rows = (value.vectors[number * row_bytes : (number + 1) * row_bytes] for number in numbers)
        work = Index(
            collection=options.collection,
            embedding_model=value.model,
            dim=value.dim,
            chunks=[value.chunks[number] for number in numbers],
            vectors=b"".join(rows),
            removed_sources=[] if calls else removed,
        )
        calls.append(Call(step.pool, work))

    def gather(replies: Sequence[Reply]) -> Value:
        return IndexReport(replies[-1].value(Indexed))

    return Calls(tuple(calls), gather)  # one after the other: the last reply counts the whole collection


def _retrieve(step: Step, options: RetrieveOptions, inputs: Mapping[str, Value]) -> Calls:
    vector = inputs.get("vector")
    work = Retrieve(
        collection=options.collection,
        query=text_of(inputs["query"]),
        vector=_as(Vector, vector).data if vector is not None and options.mode != "sparse" else b"",
        top_k=options.top_k,
        mode=options.mode,
    )
    return Calls((Call(step.pool, work),), lambda replies: Hits(tuple(replies[0].value(Retrieved).hits)))


def _rerank(options: RerankOptions, inputs: Mapping[str, Value], resolve: Resolve) -> Value | Calls:
    hits = _as(Hits, inputs["hits"]).hits
    if not hits:
        return Hits(())
    pool = resolve("rerank", options.model)
    work = Rerank(model=pool, query=text_of(inputs["query"]), documents=[hit.text for hit in hits])

    def gather(replies: Sequence[Reply]) -> Value:
        scores = replies[0].scores
        if len(scores) != len(hits):
            raise EngineError(f"model '{pool}' answered {len(scores)} scores for {len(hits)} passages")
        scored = [
            Hit(source=hit.source, position=hit.position, text=hit.text, score=score, title=hit.title)
            for hit, score in zip(hits, scores, strict=True)
        ]
        scored.sort(key=lambda hit: -hit.score)
        return Hits(tuple(scored[: options.top_k]))

    return Calls((Call(pool, work),), gather)


def _llm(step: Step, options: LlmOptions, value: Value, run: RunPipeline, resolve: Resolve) -> Calls:
    pool = resolve("generate", options.model)
    asked = run.sampling if step.is_streamed else Sampling()
    sampling = Sampling(
        max_tokens=_first(asked.max_tokens, options.max_tokens),
        temperature=_first(asked.temperature, options.temperature),
        top_p=_first(asked.top_p, options.top_p),
        stop=asked.stop or list(options.stop),
        seed=_first(asked.seed, options.seed),
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
    )
    messages = list(value.messages if isinstance(value, Prompt | Messages) else ())
    work = Generate(model=pool, prompt=ChatPrompt(messages=messages), sampling=sampling)

    def gather(replies: Sequence[Reply]) -> Value:
        return Answer("".join(replies[0].texts), replies[0].usage, replies[0].finish_reason)

    return Calls((Call(pool, work),), gather)


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)


def _text_bytes(chunk: Chunk) -> int:
    """Return an upper bound of the encoded size."""
    return 4 * (len(chunk.text) + len(chunk.source) + len(chunk.title or "")) + 64


def _packed(groups: Sequence[Sequence[T]], size: Callable[[T], int]) -> list[list[T]]:
    """Join groups, never dividing one, into lists of about MAX_REQUEST_BYTES."""
    packed: list[list[T]] = []
    used = MAX_REQUEST_BYTES
    for group in groups:
        needed = sum(map(size, group))
        if used + needed > MAX_REQUEST_BYTES or not packed:
            packed.append([])
            used = 0
        packed[-1].extend(group)
        used += needed
    return packed
