"""`[embedding_worker]`: which models this worker serves, and how it computes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from sage_core import ServiceSettings
from sage_core.settings import Section
from sage_embedding_worker.locations import ModelSpec, parse_model

__all__ = ["EmbeddingWorkerSection", "EmbeddingWorkerSettings"]


class EmbeddingWorkerSection(Section):
    """`[embedding_worker]`."""

    models: tuple[str, ...] = Field(
        ("all-MiniLM-L6-v2",),
        description="Sentence-transformers models: a hub name, a folder, or NAME=FOLDER. Each is a pool.",
    )
    rerankers: tuple[str, ...] = Field(
        (), description="Cross-encoders, written like `models`; each is a pool with the task rerank."
    )
    threads: int = Field(
        0, ge=0, le=1024, description="Threads of one computation; 0: all CPUs of the process."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="`auto`: bfloat16 where the CPU computes it natively, else float32."
    )
    device: str = Field("cpu", description="Where the models run, as torch names it: cpu, cuda, cuda:1 …")
    overlong: Literal["truncate", "refuse"] = Field(
        "truncate", description="What happens to a text with more tokens than the model reads."
    )
    max_texts: int = Field(2048, ge=1, description="Texts (or documents to rerank) per request.")
    max_text_chars: int = Field(100_000, ge=1, description="Characters per text.")
    max_batch_texts: int = Field(64, ge=1, description="Texts computed at once.")
    max_batch_tokens: int = Field(
        8192, ge=1, description="Tokens computed at once, padding included; bounds memory and waiting."
    )
    max_in_flight: int = Field(64, ge=1, description="Requests held at once; the scheduler keeps the rest.")

    @field_validator("models", "rerankers")
    @classmethod
    def _check_models(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        names = [parse_model(entry).name for entry in entries]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"model name {name!r} appears twice; give one another name with NAME=FOLDER")
        return entries

    @property
    def model_specs(self) -> tuple[ModelSpec, ...]:
        """The parsed `models`."""
        return tuple(parse_model(entry) for entry in self.models)

    @property
    def reranker_specs(self) -> tuple[ModelSpec, ...]:
        """The parsed `rerankers`."""
        return tuple(parse_model(entry) for entry in self.rerankers)


class EmbeddingWorkerSettings(ServiceSettings):
    """Everything that `python -m sage_embedding_worker` reads."""

    embedding_worker: EmbeddingWorkerSection = Field(default_factory=lambda: EmbeddingWorkerSection())
