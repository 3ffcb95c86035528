"""The seam between a worker and what generates text. Engines know no bus, no HTTP and no scheduler."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from sage_wire.messages import Completed, Generate, Tokens

__all__ = ["Capacity", "Engine", "EngineStats"]


@dataclass(frozen=True, slots=True)
class Capacity:
    """Fixed limits of a started engine."""

    max_sequences: int
    max_context: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. All counts are of this engine alone."""

    num_running: int
    num_waiting: int
    kv_used: float
    num_generated: int


class Engine(Protocol):
    """Generates text for many requests at once; does its own continuous batching.

    Called from one event loop. `generate` may be called any number of times concurrently; calls beyond
    `capacity.max_sequences` wait inside the engine.
    """

    name: str
    model: str

    async def start(self) -> None:
        """Load everything. Raises ConfigurationError for a model that cannot be served, naming what to do."""
        ...

    async def stop(self) -> None:
        """Abort what runs and free everything. Idempotent."""
        ...

    @property
    def capacity(self) -> Capacity:
        """Valid after `start`."""
        ...

    def stats(self) -> EngineStats:
        """Cheap; callable at any time after `start`."""
        ...

    def health(self) -> str:
        """Return `ok`, or one line saying why this engine serves nothing any more; its process should end then."""
        ...

    def generate(
        self, request_id: str, request: Generate, *, priority: int = 0
    ) -> AsyncGenerator[Tokens | Completed, None]:
        """Yield token deltas as the engine produces them, then exactly one `Completed`.

        `request.resume` is what an earlier attempt delivered: generation continues after it, it is not yielded
        again, and `max_tokens` counts it. Raises BadRequest or ContextLengthExceeded before the first yield,
        EngineError later, WorkerLost where the whole engine died. Closing the iterator, or cancelling its
        consumer, frees the sequence. Among waiting requests a higher `priority` goes first where the engine can.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """Free the sequence of `request_id`; its iterator raises Cancelled. Unknown ids are ignored."""
        ...
