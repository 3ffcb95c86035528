"""What tests of an engine have in common: requests to it, and all that comes back."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from sage_core import BadRequest
from sage_wire.messages import (
    ChatMessage,
    ChatPrompt,
    Completed,
    Generate,
    Resume,
    Sampling,
    TokenLogprobs,
    Tokens,
)
from sage_worker.engine import Engine

__all__ = ["Answer", "EngineCase", "collect"]


@dataclass(slots=True)
class Answer:
    """Everything one request yielded."""

    pieces: list[Tokens] = field(default_factory=list)
    completed: Completed | None = None

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """All log probabilities."""
        return [entry for piece in self.pieces for entry in piece.logprobs]

    @property
    def token_ids(self) -> list[int]:
        """All ids."""
        return [token_id for piece in self.pieces for token_id in piece.token_ids]

    def first(self, num_pieces: int) -> Resume:
        """Return what a consumer holds after `num_pieces` events, as the next attempt is told."""
        part = Answer(self.pieces[:num_pieces])
        return Resume(
            text=part.text,
            token_ids=part.token_ids,
            num_tokens=sum(piece.num_tokens for piece in part.pieces),
        )


async def collect(engine: Engine, request: Generate, request_id: str = "r") -> Answer:
    """Run a request to its end."""
    answer = Answer()
    async with aclosing(engine.generate(request_id, request)) as events:
        async for event in events:
            assert answer.completed is None, "an event came after Completed"
            if isinstance(event, Completed):
                answer.completed = event
            else:
                answer.pieces.append(event)
    return answer


class EngineCase(ABC):
    """Overwrite `make_engine`, and what follows where an engine needs another prompt or counts otherwise."""

    num_tokens = 24
    is_batch_exact = True
    """False where the text of a request may depend on what else is in the batch."""
    refused: frozenset[str] = frozenset()
    """Fields of a request that this engine cannot honour, and so refuses by name (`BadRequest.param`)."""

    @abstractmethod
    def make_engine(self, max_sequences: int | None = None) -> Engine:
        """Return an engine, not started."""
        ...

    def prompt(self, number: int = 0) -> ChatPrompt:
        """Return a prompt whose answer has more than `num_tokens` tokens."""
        return ChatPrompt(messages=[ChatMessage(role="user", content=f"Tell me about worker {number}.")])

    def overlong_prompt(self) -> ChatPrompt:
        """Return a prompt that exceeds the context."""
        return ChatPrompt(messages=[ChatMessage(role="user", content="worker " * 5000)])

    def request(self, number: int = 0, **options: Any) -> Generate:
        """Return a greedy, seeded request; `options` are fields of Sampling and of Generate."""
        fields: dict[str, Any] = {"model": "m", "prompt": self.prompt(number)}
        for name in ("prompt", "resume", "structure", "echo"):
            if name in options:
                fields[name] = options.pop(name)
        sampling = {"max_tokens": self.num_tokens, "temperature": 0.0, "seed": 1} | options
        return Generate(sampling=Sampling(**sampling), **fields)

    async def answer(self, engine: Engine, param: str, request: Generate) -> Answer | None:
        """Return the answer; None where the engine refuses `param`, as it says that it does."""
        if param not in self.refused:
            return await collect(engine, request)
        with pytest.raises(BadRequest) as refused:
            await collect(engine, request)
        assert refused.value.param == param
        return None

    @pytest_asyncio.fixture
    async def engine(self) -> AsyncIterator[Engine]:
        """A started engine."""
        engine = self.make_engine()
        await engine.start()
        yield engine
        await engine.stop()

    async def until_free(self, engine: Engine) -> None:
        """Wait until no sequence is left; fails after two seconds."""
        async with asyncio.timeout(2):
            # Engines tell of a free sequence in their stats alone.
            while engine.stats().num_running or engine.stats().num_waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert engine.health() == "ok"
