"""The seam between a worker and what generates text. Engines know no bus, no HTTP and no scheduler."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from sage_wire.messages import Completed, Detokenize, Detokenized, Generate, Tokenize, Tokenized, Tokens
from sage_worker.device import CPU

__all__ = ["Capacity", "Engine", "EngineStats", "StepCost", "TextFormats"]


@dataclass(frozen=True, slots=True)
class StepCost:
    """How long the steps of an engine take; see `sage_wire.messages.EngineProfile`. All zero: unknown, or no time."""

    a0: float = 0.0
    a1: float = 0.0
    a2: float = 0.0
    m0: float = 0.0
    m1: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0
    host: float = 0.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """Fixed limits of a started engine, 0 where it has none. `device`: see `sage_worker.device`.

    `takes_images`: the model sees; other engines refuse messages with images.
    """

    max_sequences: int
    max_context: int
    kv_tokens: int
    max_step_tokens: int = 0
    block_tokens: int = 0
    device: str = CPU
    step_cost: StepCost = StepCost()
    takes_images: bool = False


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. All counts are of this engine alone."""

    num_running: int
    num_waiting: int
    kv_used: float
    num_generated: int


@dataclass(frozen=True, slots=True)
class TextFormats:
    """How the model writes tool calls and reasoning into its text; see `sage_wire.messages.ServedModel`."""

    tools: str = ""
    reasoning: str = ""


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

    @property
    def formats(self) -> TextFormats:
        """Valid after `start`. Markers of these formats are part of the text, special tokens or not."""
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
        again, and `max_tokens` counts it. With `request.structure` the whole text, resumed part included, is one that
        the structure allows; it is enforced token by token, so an answer cut at `max_tokens` is the beginning of one.
        Raises BadRequest or ContextLengthExceeded before the first yield, also for what this engine cannot do, which
        `param` names; EngineError later, WorkerLost where the whole engine died. The first `Tokens` say how much of
        the prompt was cached, where the engine knows. Closing the iterator, or cancelling its
        consumer, frees the sequence. Among waiting requests a higher `priority` goes first where the engine can.
        """
        ...

    async def tokenize(self, request: Tokenize) -> Tokenized:
        """Return the ids that `generate` would read for the same prompt. Raises BadRequest as it does."""
        ...

    async def detokenize(self, request: Detokenize) -> Detokenized:
        """Return the text of ids, special tokens included. Raises BadRequest for ids the model does not have."""
        ...

    async def abort(self, request_id: str) -> None:
        """Free the sequence of `request_id`; its iterator raises Cancelled. Unknown ids are ignored."""
        ...
