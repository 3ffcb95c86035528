"""What flows along the edges of a pipeline: one class per edge type, and the type itself for compile time."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import ClassVar

from sage_core import BadRequest
from sage_wire.messages import ChatMessage, Chunk, Document, Hit, Indexed, Usage

__all__ = [
    "Answer",
    "Chunks",
    "Documents",
    "EdgeType",
    "EmbeddedChunks",
    "Hits",
    "IndexReport",
    "Messages",
    "Prompt",
    "Value",
    "Vector",
    "text_of",
]


class EdgeType(enum.StrEnum):
    """The closed set of edge types, as they are named in messages and plans."""

    MESSAGES = "Messages"
    VECTOR = "Vector"
    DOCUMENTS = "Documents"
    CHUNKS = "Chunks"
    EMBEDDED_CHUNKS = "EmbeddedChunks"
    HITS = "Hits"
    PROMPT = "Prompt"
    ANSWER = "Answer"
    INDEX_REPORT = "IndexReport"


@dataclass(frozen=True, slots=True)
class Messages:
    """A conversation, oldest turn first."""

    edge: ClassVar[EdgeType] = EdgeType.MESSAGES
    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class Vector:
    """One embedding. `data`: little-endian float32, shape (dim,), L2-normalised."""

    edge: ClassVar[EdgeType] = EdgeType.VECTOR
    model: str
    dim: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Documents:
    """Source documents."""

    edge: ClassVar[EdgeType] = EdgeType.DOCUMENTS
    documents: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class Chunks:
    """Passages of documents; those of one source are adjacent."""

    edge: ClassVar[EdgeType] = EdgeType.CHUNKS
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class EmbeddedChunks:
    """Passages with their vectors: little-endian float32, shape (len(chunks), dim), row-major."""

    edge: ClassVar[EdgeType] = EdgeType.EMBEDDED_CHUNKS
    model: str
    dim: int
    chunks: tuple[Chunk, ...]
    vectors: bytes


@dataclass(frozen=True, slots=True)
class Hits:
    """Retrieved passages, best first."""

    edge: ClassVar[EdgeType] = EdgeType.HITS
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages ready for a model, and the passages that they quote, in the order of their numbers."""

    edge: ClassVar[EdgeType] = EdgeType.PROMPT
    messages: tuple[ChatMessage, ...]
    sources: tuple[Hit, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Generated text."""

    edge: ClassVar[EdgeType] = EdgeType.ANSWER
    text: str
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = "stop"


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What a collection holds after indexing."""

    edge: ClassVar[EdgeType] = EdgeType.INDEX_REPORT
    indexed: Indexed


Value = Messages | Vector | Documents | Chunks | EmbeddedChunks | Hits | Prompt | Answer | IndexReport
"""Everything an edge can carry."""


def text_of(value: Value) -> str:
    """Return the text that `value` stands for: an answer's text, or the last user message of a conversation.

    Raises BadRequest for a conversation without a user message.
    """
    if isinstance(value, Answer):
        return value.text
    if isinstance(value, Messages):
        for message in reversed(value.messages):
            if message.role == "user":
                return message.content
        raise BadRequest(
            "messages hold no message with role 'user'; the last one is the question", param="messages"
        )
    raise TypeError(f"{value.edge} has no text")
