"""The seam between the operators and what keeps passages. A store knows no bus and no scheduler."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sage_wire.messages import Chunk, Hit

__all__ = ["CollectionInfo", "Floats", "Query", "RetrievalMode", "Update", "VectorStore"]

Floats = npt.NDArray[np.float32]


class RetrievalMode(enum.StrEnum):
    """How passages are ranked: by vector, by words, or by both rankings fused."""

    HYBRID = "hybrid"
    DENSE = "dense"
    SPARSE = "sparse"


@dataclass(frozen=True, slots=True)
class Update:
    """One change of a collection, applied as a whole or not at all.

    All earlier passages of every source in `chunks` and `removed_sources` go, then `chunks` are stored. `vectors`:
    float32, shape (len(chunks), dim), L2-normalised, made by `embedding_model`.
    """

    embedding_model: str
    chunks: Sequence[Chunk]
    vectors: Floats
    removed_sources: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for. `vector`: float32, shape (dim,), L2-normalised; unused where `mode` is sparse."""

    text: str
    vector: Floats
    top_k: int
    mode: RetrievalMode = RetrievalMode.HYBRID


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """What a collection holds."""

    name: str
    embedding_model: str
    dim: int
    num_chunks: int
    num_sources: int


class VectorStore(Protocol):
    """Keeps passages with their vectors in named collections. Methods block, and may be called from any thread.

    A collection exists from its first `update` with chunks on; it remembers the embedding model and dim of that one.
    What `update` returned from survives the death of the process; an update cut short leaves no trace.
    """

    def update(self, collection: str, update: Update) -> CollectionInfo:
        """Apply `update`, creating the collection where there are chunks to store; repeating it changes nothing.

        Raises BadRequest for a bad name or repeated (source, position), Conflict, naming both, where model or dim
        differ from the collection's, LimitExceeded where it would grow too large.
        """
        ...

    def retrieve(self, collection: str, query: Query) -> list[Hit]:
        """Return at most `query.top_k` hits, best first.

        Raises NotFound naming the collections there are, and Conflict for a vector of another dim.
        """
        ...

    def describe(self, collection: str) -> CollectionInfo:
        """Return what the collection holds. Raises NotFound naming the collections there are."""
        ...

    def collections(self) -> list[str]:
        """Return the names of all collections, sorted."""
        ...

    def close(self) -> None:
        """Release files and memory; calls that still run finish first. Idempotent."""
        ...
