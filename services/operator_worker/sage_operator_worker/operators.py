"""What each operator does with its work: limits, then the kernel or the store. Blocking; knows no bus."""

from __future__ import annotations

from typing import Final

import numpy as np

import sage_native
from sage_core import BadRequest, LimitExceeded
from sage_operator_worker.settings import OperatorWorkerSection
from sage_operator_worker.store import Floats, Query, RetrievalMode, Update, VectorStore
from sage_wire.messages import Chunk, Index, Indexed, Retrieve, Retrieved, Split, SplitChunks

__all__ = ["index", "retrieve", "split"]

_MAX_LENGTH_ERROR: Final = 0.02
"""How far a vector's length may be from 1; bfloat16 rounding stays below 0.005."""


def split(work: Split, limits: OperatorWorkerSection) -> SplitChunks:
    """Cut documents into passages. A document without text gives none. Raises BadRequest or LimitExceeded."""
    _at_most(len(work.documents), limits.max_documents, "documents", "documents")
    _at_most(work.chunk_chars, limits.max_chunk_chars, "chunk_chars", "characters")
    chunks: list[Chunk] = []
    for document in work.documents:
        _at_most(len(document.text), limits.max_document_chars, f"document {document.source!r}", "characters")
        try:
            ranges = sage_native.split_text(document.text, work.chunk_chars, work.overlap_chars)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        _at_most(
            len(chunks) + len(ranges),
            limits.max_chunks,
            "the answer",
            "passages; split fewer documents at once",
        )
        for position, (start, end) in enumerate(ranges):
            chunks.append(
                Chunk(
                    source=document.source,
                    position=position,
                    text=document.text[start:end],
                    title=document.title,
                )
            )
    return SplitChunks(chunks=chunks)


def index(work: Index, limits: OperatorWorkerSection, store: VectorStore) -> Indexed:
    """Store passages and delete `removed_sources`, as one change. Raises like `VectorStore.update`."""
    _at_most(len(work.chunks), limits.max_chunks, "chunks", "passages")
    _at_most(len(work.removed_sources), limits.max_chunks, "removed_sources", "sources")
    if work.chunks and not work.embedding_model:
        raise BadRequest("embedding_model is empty; expected the model's name", param="embedding_model")
    for chunk in work.chunks:
        if not chunk.source:
            raise BadRequest("a passage has an empty source; expected a path or URL", param="chunks")
        if chunk.position < 0 or chunk.position > 2**31:
            raise BadRequest(
                f"a passage of {chunk.source!r} has position {chunk.position}; expected 0 or more",
                param="chunks",
            )
        _at_most(len(chunk.source), limits.max_source_chars, "a source", "characters")
        _at_most(
            len(chunk.title or ""), limits.max_source_chars, f"the title of {chunk.source!r}", "characters"
        )
        _at_most(len(chunk.text), limits.max_chunk_chars, f"a passage of {chunk.source!r}", "characters")
    if work.chunks:
        vectors = _read_vectors(work.vectors, len(work.chunks), work.dim, limits.max_dim, "vectors")
    else:
        vectors = np.empty((0, 0), dtype=np.float32)
    update = Update(work.embedding_model, work.chunks, vectors, work.removed_sources)
    info = store.update(work.collection, update)
    return Indexed(num_chunks=info.num_chunks, num_sources=info.num_sources)


def retrieve(work: Retrieve, limits: OperatorWorkerSection, store: VectorStore) -> Retrieved:
    """Find passages. Raises like `VectorStore.retrieve`."""
    try:
        mode = RetrievalMode(work.mode)
    except ValueError:
        raise BadRequest(
            f"mode is {work.mode!r}; expected one of {', '.join(RetrievalMode)}", param="mode"
        ) from None
    if not 1 <= work.top_k <= limits.max_top_k:
        raise BadRequest(f"top_k is {work.top_k}; expected 1 to {limits.max_top_k}", param="top_k")
    _at_most(len(work.query), limits.max_query_chars, "query", "characters")
    if mode is RetrievalMode.SPARSE:
        vector = np.empty(0, dtype=np.float32)
    else:
        vector = _read_vectors(work.vector, 1, len(work.vector) // 4, limits.max_dim, "vector")[0]
    hits = store.retrieve(work.collection, Query(work.query, vector, work.top_k, mode))
    return Retrieved(hits=hits)


def _at_most(found: int, limit: int, what: str, unit: str) -> None:
    if found > limit:
        raise LimitExceeded(f"{what} has {found}; at most {limit} {unit}")


def _read_vectors(data: bytes, num_rows: int, dim: int, max_dim: int, param: str) -> Floats:
    if not 1 <= dim <= max_dim:
        raise BadRequest(f"{param} have {dim} dimensions; expected 1 to {max_dim}", param=param)
    if len(data) != num_rows * dim * 4:
        raise BadRequest(
            f"{param} has {len(data)} bytes; expected {num_rows * dim * 4}: float32, {num_rows} x {dim}",
            param=param,
        )
    vectors: Floats = np.frombuffer(data, dtype="<f4").reshape(num_rows, dim).astype(np.float32, copy=False)
    lengths = np.linalg.norm(vectors, axis=1)
    # Written so that a NaN fails too.
    if num_rows and not np.all(np.abs(lengths - 1.0) <= _MAX_LENGTH_ERROR):
        wrong = int(np.argmin(np.abs(lengths - 1.0) <= _MAX_LENGTH_ERROR))
        raise BadRequest(
            f"{param}[{wrong}] has length {float(lengths[wrong])}; expected finite vectors of length 1",
            param=param,
        )
    return vectors
