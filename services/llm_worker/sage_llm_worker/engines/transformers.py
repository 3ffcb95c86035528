"""The engine for laptops and tests: a Hugging Face causal language model, batched on a thread of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

from sage_core import BadRequest, Cancelled, Conflict, WorkerLost
from sage_llm_worker.engines.model_loading import LoadOptions
from sage_llm_worker.engines.model_thread import ModelThread, Submission
from sage_llm_worker.formats import AUTO
from sage_llm_worker.limits import check_sampling
from sage_llm_worker.streams import EventStream
from sage_llm_worker.structures import StructureCompiler, param_of, structure_param
from sage_wire.messages import (
    Completed,
    Detokenize,
    Detokenized,
    Generate,
    Tokenize,
    Tokenized,
    Tokens,
)
from sage_worker.engine import Capacity, EngineStats, TextFormats

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["TransformersEngine"]


class TransformersEngine:
    """See `sage_worker.engine.Engine`. Loads from a folder; fetching it is not this engine's business."""

    name = "transformers"

    def __init__(
        self,
        path: Path,
        *,
        model: str | None = None,
        dtype: str = "auto",
        threads: int | None = None,
        max_sequences: int | None = None,
        max_context: int | None = None,
        tool_format: str = AUTO,
        reasoning_format: str = AUTO,
    ) -> None:
        """`model`: the name it is served under, by default the folder's. Formats: see `sage_llm_worker.formats`."""
        self.model = model or path.name
        self._options = LoadOptions(
            path=path,
            dtype=dtype,
            threads=threads,
            max_sequences=max_sequences or 16,
            max_context=max_context,
            tool_format=tool_format,
            reasoning_format=reasoning_format,
        )
        self._compiler: StructureCompiler | None = None
        self._thread: ModelThread | None = None
        self._streams: dict[str, EventStream] = {}
        self._is_stopped = False

    async def start(self) -> None:
        """Load the model on its thread. Raises ConfigurationError where transformers cannot serve it."""
        self._thread = ModelThread(self._options, asyncio.get_running_loop())
        vocabulary = await self._thread.start()
        if vocabulary.matching is not None:
            self._compiler = StructureCompiler(vocabulary.matching)

    async def stop(self) -> None:
        """Abort everything and free the model."""
        self._is_stopped = True
        for request_id in list(self._streams):
            await self.abort(request_id)
        if self._compiler is not None:
            self._compiler.close()
        if self._thread is not None:
            await self._thread.stop()

    @property
    def capacity(self) -> Capacity:
        """Sequences in the batch, the model's context, and the cache's limit in tokens."""
        return self._started.capacity

    @property
    def formats(self) -> TextFormats:
        """As the settings say, or told from the chat template."""
        return self._started.formats

    def stats(self) -> EngineStats:
        """As of the last step."""
        return self._started.stats

    def health(self) -> str:
        """`ok` while the model's thread lives."""
        if self._thread is not None and not self._is_stopped and not self._thread.is_alive:
            return "the model's thread ended"
        return "ok"

    async def generate(
        self, request_id: str, request: Generate, *, priority: int = 0
    ) -> AsyncGenerator[Tokens | Completed, None]:
        """Yield tokens as steps produce them; see `Engine.generate`."""
        if request_id in self._streams:
            raise Conflict(f"request {request_id} is already running on this engine")
        thread = self._running
        check_sampling(request.sampling)
        stream = EventStream(request.gather_ms / 1000)
        self._streams[request_id] = stream
        submitted = time.monotonic()
        is_complete = False
        try:
            matcher = await self._matcher(request)
            if not stream.is_closed:
                thread.submit(Submission(request_id, request, priority, stream, submitted, matcher))
            while not is_complete:
                event = await stream.get()
                is_complete = isinstance(event, Completed)
                yield event
        finally:
            if not is_complete:
                thread.remove(request_id)
            stream.close()
            # An id may be used again once its sequence is free.
            if self._streams.get(request_id) is stream:
                del self._streams[request_id]

    async def abort(self, request_id: str) -> None:
        """Free a sequence before the next step; its iterator raises Cancelled."""
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            self._started.remove(request_id)
            stream.fail(Cancelled("the request was aborted"))

    async def tokenize(self, request: Tokenize) -> Tokenized:
        """On the model's thread, between two steps."""
        return await self._running.call(lambda reader: reader.tokenize(request))

    async def detokenize(self, request: Detokenize) -> Detokenized:
        """On the model's thread, between two steps."""
        return await self._running.call(lambda reader: reader.detokenize(request))

    async def _matcher(self, request: Generate) -> LLMatcher | None:
        structure = request.structure
        if structure is None:
            return None
        if self._compiler is None:
            raise BadRequest(
                "this model's tokenizer cannot be used for structured output", param=param_of(structure)
            )
        return await self._compiler.matcher(structure, param=structure_param(request))

    @property
    def _running(self) -> ModelThread:
        if not self._started.is_alive:
            raise WorkerLost("the engine's thread has ended")
        return self._started

    @property
    def _started(self) -> ModelThread:
        if self._thread is None:
            raise RuntimeError("the engine was not started")
        return self._thread
