"""`[operator_worker]`: where collections are kept, and the limits of one call."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from sage_core import ByteSize, Paths, ServiceSettings
from sage_core.settings import Section

__all__ = ["OperatorWorkerSection", "OperatorWorkerSettings"]


class OperatorWorkerSection(Section):
    """`[operator_worker]`."""

    data_dir: Path | None = Field(
        None,
        description="Folder of the collections, on a local disk; unset: `collections` in the data folder.",
    )
    threads: int = Field(4, ge=1, le=256, description="Calls that are worked on at once.")
    max_in_flight: int = Field(32, ge=1, description="Calls held at once; the scheduler keeps the rest.")
    max_documents: int = Field(1024, ge=1, description="Documents per split.")
    max_document_chars: int = Field(4_000_000, ge=1, description="Characters per document.")
    max_chunks: int = Field(8192, ge=1, description="Passages per index call, and per answer of a split.")
    max_chunk_chars: int = Field(20_000, ge=1, description="Characters per passage, split or indexed.")
    max_source_chars: int = Field(4096, ge=1, description="Characters of a source's name, and of a title.")
    max_query_chars: int = Field(20_000, ge=1, description="Characters of a query.")
    max_top_k: int = Field(200, ge=1, description="Hits per retrieval.")
    max_dim: int = Field(8192, ge=1, description="Numbers per vector.")
    max_collections: int = Field(10_000, ge=1, description="Collections in the folder.")
    max_collection_chunks: int = Field(1_000_000, ge=1, description="Passages per collection.")
    max_open_collections: int = Field(64, ge=1, description="Collections kept open.")
    max_cached_bytes: ByteSize = Field(2 * 2**30, description="Memory for the vectors of open collections.")


class OperatorWorkerSettings(ServiceSettings):
    """Everything that `python -m sage_operator_worker` reads."""

    operator_worker: OperatorWorkerSection = Field(default_factory=lambda: OperatorWorkerSection())

    @property
    def data_dir(self) -> Path:
        """The folder of the collections."""
        return self.operator_worker.data_dir or Paths.for_instance(self.instance).data / "collections"
