"""The engine for laptops and tests: a Hugging Face causal language model, batched on a thread of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from sage_core import Cancelled, Conflict, WorkerLost
from sage_llm_worker.engines.model_thread import LoadOptions, ModelThread, Submission
from sage_llm_worker.streams import EventStream
from sage_wire.messages import Completed, Generate, Tokens
from sage_worker.engine import Capacity, EngineStats

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
    ) -> None:
        """`model`: the name it is served under, by default the folder's."""
        self.model = model or path.name
        self._options = LoadOptions(
            path=path,
            dtype=dtype,
            threads=threads,
            max_sequences=max_sequences or 16,
            max_context=max_context,
        )
        self._thread: ModelThread | None = None
        self._streams: dict[str, EventStream] = {}
        self._is_stopped = False

    async def start(self) -> None:
        """Load the model on its thread. Raises ConfigurationError where transformers cannot serve it."""
        self._thread = ModelThread(self._options, asyncio.get_running_loop())
        await self._thread.start()

    async def stop(self) -> None:
        """Abort everything and free the model."""
        self._is_stopped = True
        for request_id in list(self._streams):
            await self.abort(request_id)
        if self._thread is not None:
            await self._thread.stop()

    @property
    def capacity(self) -> Capacity:
        """Sequences in the batch, the model's context, and the cache's limit in tokens."""
        return self._started.capacity

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
        thread = self._started
        if not thread.is_alive:
            raise WorkerLost("the engine's thread has ended")
        stream = EventStream()
        self._streams[request_id] = stream
        thread.submit(Submission(request_id, request, priority, stream, time.monotonic()))
        is_complete = False
        try:
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

    @property
    def _started(self) -> ModelThread:
        if self._thread is None:
            raise RuntimeError("the engine was not started")
        return self._thread
