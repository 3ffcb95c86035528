"""The llm-worker actor: chooses and starts an engine, and hands it every request it is dispatched."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from sage_actor import ActorContext
from sage_client import UnifiedInferenceClient
from sage_core import BadRequest, LimitExceeded, SageError
from sage_llm_worker.config_files import configured_model
from sage_llm_worker.model_store import ModelStore
from sage_llm_worker.selection import Selection, build_engine, select_engine
from sage_llm_worker.settings import LlmWorkerSection
from sage_telemetry import metrics
from sage_wire.codec import raw
from sage_wire.messages import (
    Completed,
    Detokenize,
    Detokenized,
    EngineProfile,
    Event,
    Generate,
    Output,
    ServedModel,
    Telemetry,
    Tokenize,
    Tokenized,
    Tokens,
    Usage,
)
from sage_wire.roles import Role
from sage_worker import Assigned, Capacity, Engine, Worker
from sage_worker.device import is_gpu

__all__ = ["LlmWorker", "end_process"]

_HEADROOM_BYTES: Final = 4096
"""What a message on the bus needs beside the value it carries."""
_DESCRIPTIONS: Final = {
    "extractive": "Quotes the passages of the prompt; no generative model.",
    "emulated": "Emulated engine without weights, for load tests.",
}

_COUNTED_AT_ONCE: Final = 32
"""Generated tokens of a request; counting one costs as much as passing it on."""
_tokens = metrics.counter("sage_llm_generated_tokens", "Tokens generated.")
_prompt_tokens = metrics.counter("sage_llm_prompt_tokens", "Prompt tokens of completed requests.")
_running = metrics.gauge("sage_llm_running_sequences", "Sequences in the engine's batch.")
_waiting = metrics.gauge("sage_llm_waiting_sequences", "Sequences that wait inside the engine.")
_kv_used = metrics.gauge("sage_llm_kv_used_ratio", "Share of the KV cache in use.")


def end_process() -> None:
    """Stop this service as if told to twice: at once, without a drain, with exit status 1."""
    # raise_signal, not kill: two pending signals of one kind would count as one.
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)


class LlmWorker(Worker):
    """Serves one model. `on_dead_engine` is called once when the engine can serve nothing any more."""

    kind: ClassVar[str] = "llm-worker"

    def __init__(
        self,
        context: ActorContext,
        section: LlmWorkerSection,
        *,
        on_dead_engine: Callable[[], None] = end_process,
    ) -> None:
        super().__init__(context)
        self._section = section
        self._on_dead_engine = on_dead_engine
        self._store = ModelStore()
        self._engine: Engine | None = None
        self._client: UnifiedInferenceClient | None = None
        self._served: list[ServedModel] = []
        self._is_dead = False

    async def on_start(self) -> None:
        """Choose, fetch and load. Raises ConfigurationError where the settings ask for what this host has not."""
        section = self._section
        selection = await asyncio.to_thread(
            select_engine, section, self._store, configured_model("small_instruct")
        )
        selection, folder = await self._with_model(selection)
        self.context.log.info(
            "engine_selected",
            engine=selection.engine,
            model=selection.model,
            served_name=selection.served_name,
            reason=selection.reason,
        )
        if selection.engine == "extractive" and section.extractive.embedding_model:
            self._client = UnifiedInferenceClient(
                self.context.bus, budget=section.extractive.embed_budget, role=Role.LLM_WORKER
            )
            await self._client.start()
        engine = build_engine(selection, section, folder, self._embed if self._client else None)
        try:
            await engine.start()
        except BaseException:
            await engine.stop()
            raise
        self._engine = engine
        capacity = engine.capacity
        self.max_in_flight = section.max_in_flight or capacity.max_sequences
        self._served = [
            ServedModel(
                name=selection.served_name,
                task="generate",
                engine=engine.name,
                max_context=capacity.max_context,
                description=_DESCRIPTIONS.get(engine.name, ""),
                is_gpu=is_gpu(capacity.device),
                device=capacity.device,
                profile=_profile(capacity),
                tool_format=engine.formats.tools,
                reasoning_format=engine.formats.reasoning,
                takes_images=capacity.takes_images,
            )
        ]
        self.context.log.info(
            "engine_started",
            engine=engine.name,
            max_sequences=capacity.max_sequences,
            max_context=capacity.max_context,
            kv_tokens=capacity.kv_tokens,
        )

    async def on_stop(self) -> None:
        """Stop the engine."""
        if self._engine is not None:
            await self._engine.stop()
        if self._client is not None:
            await self._client.close()

    def models(self) -> list[ServedModel]:
        """The one model."""
        return self._served

    def telemetry(self) -> list[Telemetry]:
        """What the engine says of its batch and its cache."""
        if self._engine is None or self._is_dead:
            return []
        stats = self._engine.stats()
        return [
            Telemetry(
                pool=model.name,
                num_running=stats.num_running,
                num_waiting=stats.num_waiting,
                kv_used=stats.kv_used,
            )
            for model in self._served
        ]

    def health(self) -> str:
        """What the engine says of itself; a dead one ends the process, so that its supervisor starts another."""
        engine = self._engine
        if engine is None:
            return "starting"
        stats = engine.stats() if not self._is_dead else None
        if stats is not None:
            _running.set(stats.num_running)
            _waiting.set(stats.num_waiting)
            _kv_used.set(stats.kv_used)
        health = engine.health()
        if health != "ok" and not self._is_dead:
            self._is_dead = True
            self.context.log.error("engine_died", engine=engine.name, reason=health)
            self._on_dead_engine()
        return health

    async def perform(self, request: Assigned) -> AsyncIterator[Event]:
        """Generate, tokenize or detokenize. Raises BadRequest for other work."""
        work, engine = request.work, self._engine
        assert engine is not None
        match work:
            case Generate():
                pass
            case Tokenize():
                tokenized = await engine.tokenize(work)
                yield self._output(tokenized)
                yield Completed(usage=Usage(prompt_tokens=len(tokenized.token_ids)))
                return
            case Detokenize():
                yield self._output(await engine.detokenize(work))
                yield Completed(usage=Usage(prompt_tokens=len(work.token_ids)))
                return
            case other:
                raise BadRequest(
                    f"found work {type(other).__name__}; this pool answers Generate, Tokenize and Detokenize"
                )
        # Two attempts of one request may be here for a moment: each has its own sequence.
        events = engine.generate(f"{request.request_id}/{request.attempt}", work, priority=request.priority)
        num_uncounted = 0
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Tokens):
                        if not event.is_prompt:
                            num_uncounted += event.num_tokens
                            if num_uncounted >= _COUNTED_AT_ONCE:
                                _tokens.inc(num_uncounted)
                                num_uncounted = 0
                    else:
                        _prompt_tokens.inc(event.usage.prompt_tokens)
                    yield event
        except SageError:
            self.health()
            raise
        finally:
            _tokens.inc(num_uncounted)

    def _output(self, value: Tokenized | Detokenized) -> Output:
        encoded = raw(value)
        limit = self.context.bus.max_payload - _HEADROOM_BYTES
        if len(bytes(encoded)) > limit:
            raise LimitExceeded(
                f"the answer has {len(bytes(encoded))} bytes; at most {limit} fit: send less at once"
            )
        return Output(value=encoded)

    async def _with_model(self, selection: Selection) -> tuple[Selection, Path | None]:
        """Return the selection with the folder of its model, or the reader where a default model cannot be had."""
        if selection.engine in ("emulated", "extractive"):
            return selection, None
        try:
            return selection, await asyncio.to_thread(self._store.fetch, selection.model)
        except SageError as error:
            if not selection.is_fallible:
                raise
            reader = self._section.model_copy(update={"engine": "extractive", "model": "auto"})
            self.context.log.warning("default_model_unavailable", model=selection.model, reason=error.message)
            return select_engine(reader, self._store, None), None

    async def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        assert self._client is not None
        return await self._client.embed(self._section.extractive.embedding_model, texts)


def _profile(capacity: Capacity) -> EngineProfile:
    return EngineProfile(
        **asdict(capacity.step_cost),
        max_sequences=capacity.max_sequences,
        max_step_tokens=capacity.max_step_tokens,
        max_context=capacity.max_context,
        kv_tokens=capacity.kv_tokens,
        block_tokens=capacity.block_tokens,
    )
