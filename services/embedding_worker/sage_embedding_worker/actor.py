"""The embedding-worker: loads its models, checks what is asked, and turns results into events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import ClassVar, Final

from sage_actor import ActorContext
from sage_core import BadRequest, LimitExceeded, NotFound
from sage_embedding_worker.encoder import CrossEncoder, Encoder
from sage_embedding_worker.locations import ModelSpec
from sage_embedding_worker.served import ModelLimits, ServedCrossEncoder, ServedEncoder
from sage_embedding_worker.settings import EmbeddingWorkerSection
from sage_embedding_worker.vectors import shorten, split_events
from sage_wire.messages import Completed, Embed, EngineProfile, Event, Rerank, Scores, ServedModel, Usage
from sage_worker import Assigned, FormedBatch, Worker
from sage_worker.device import device_name, is_gpu

__all__ = ["EmbeddingWorker"]

_ENGINE: Final = "sentence-transformers"


class EmbeddingWorker(Worker):
    """Serves every model of its settings. `load_encoder` and `load_reranker` block; they run in a thread."""

    kind: ClassVar[str] = "embedding-worker"

    def __init__(
        self,
        context: ActorContext,
        section: EmbeddingWorkerSection,
        *,
        load_encoder: Callable[[ModelSpec], Encoder],
        load_reranker: Callable[[ModelSpec], CrossEncoder],
    ) -> None:
        super().__init__(context)
        self.max_in_flight = section.max_in_flight
        self._section = section
        self._load_encoder = load_encoder
        self._load_reranker = load_reranker
        self._encoders: dict[str, ServedEncoder] = {}
        self._rerankers: dict[str, ServedCrossEncoder] = {}

    async def on_start(self) -> None:
        """Load all models, one after the other. Raises ConfigurationError for one that cannot be loaded."""
        section = self._section
        limits = ModelLimits(
            max_batch_texts=section.max_batch_texts,
            max_batch_tokens=section.max_batch_tokens,
            refuses_overlong=section.overlong == "refuse",
        )
        for spec in section.model_specs:
            encoder = await asyncio.to_thread(self._load_encoder, spec)
            served = self._encoders[spec.name] = ServedEncoder(encoder, limits)
            await served.start()
            self.context.log.info(
                "model_loaded", model=spec.name, dim=encoder.dim, max_tokens=encoder.max_tokens
            )
        for spec in section.reranker_specs:
            reranker = await asyncio.to_thread(self._load_reranker, spec)
            served_reranker = self._rerankers[spec.name] = ServedCrossEncoder(reranker, limits)
            await served_reranker.start()
            self.context.log.info("reranker_loaded", model=spec.name, max_tokens=reranker.max_tokens)

    async def on_stop(self) -> None:
        """Stop the threads."""
        for encoder in self._encoders.values():
            await encoder.stop()
        for reranker in self._rerankers.values():
            await reranker.stop()

    def models(self) -> list[ServedModel]:
        """Announce each bi-encoder with the tasks embed and rerank, each cross-encoder with rerank."""
        device = device_name(self._section.device)
        served = [
            ServedModel(
                name=name,
                task=task,
                engine=_ENGINE,
                max_context=encoder.max_tokens,
                dim=encoder.dim,
                description=description,
                is_batched=True,
                is_gpu=is_gpu(device),
                device=device,
                profile=self._profile(encoder.max_tokens),
            )
            for name, encoder in self._encoders.items()
            for task, description in (("embed", ""), ("rerank", "cosine of embeddings"))
        ]
        served.extend(
            ServedModel(
                name=name,
                task="rerank",
                engine=_ENGINE,
                max_context=reranker.max_tokens,
                is_batched=True,
                is_gpu=is_gpu(device),
                device=device,
                profile=self._profile(reranker.max_tokens),
            )
            for name, reranker in self._rerankers.items()
        )
        return served

    async def perform(self, request: Assigned) -> AsyncIterator[Event]:
        """Answer Embed and Rerank. Work of negative priority (batch) gives way to all other.

        What the scheduler formed into one batch is computed as one.
        """
        is_background = request.priority < 0
        match request.work:
            case Embed() as work:
                events = self._embed(work, is_background, request.batch)
            case Rerank() as work:
                events = self._rerank(work, is_background, request.batch)
            case other:
                raise BadRequest(f"found work {type(other).__name__}; expected Embed or Rerank")
        async for event in events:
            yield event

    async def _embed(
        self, work: Embed, is_background: bool, batch: FormedBatch | None
    ) -> AsyncIterator[Event]:
        encoder = self._encoders.get(work.model)
        if encoder is None:
            raise self._not_found(work.model, self._encoders)
        if work.dimensions is not None and not 1 <= work.dimensions <= encoder.dim:
            raise BadRequest(
                f"dimensions is {work.dimensions}; expected 1 to {encoder.dim} for {work.model!r}",
                param="dimensions",
            )
        self._check(work.texts, "input")
        found = await encoder.compute(work.texts, is_background=is_background, batch=batch)
        for event in split_events(shorten(found.values, work.dimensions)):
            yield event
        yield Completed(usage=Usage(prompt_tokens=found.num_tokens))

    async def _rerank(
        self, work: Rerank, is_background: bool, batch: FormedBatch | None
    ) -> AsyncIterator[Event]:
        model = self._rerankers.get(work.model) or self._encoders.get(work.model)
        if model is None:
            raise self._not_found(work.model, [*self._encoders, *self._rerankers])
        self._check([work.query], "query")
        self._check(work.documents, "documents")
        found = await model.rerank(work.query, work.documents, is_background=is_background, batch=batch)
        yield Scores(scores=found.values.tolist())
        yield Completed(usage=Usage(prompt_tokens=found.num_tokens))

    def _profile(self, max_context: int) -> EngineProfile:
        section = self._section
        return EngineProfile(
            max_sequences=section.max_batch_texts,
            max_step_tokens=section.max_batch_tokens,
            max_context=max_context,
        )

    def _check(self, texts: Sequence[str], param: str) -> None:
        section = self._section
        if not texts:
            raise BadRequest(f"{param} is empty; expected at least one text", param=param)
        if len(texts) > section.max_texts:
            raise LimitExceeded(
                f"{param} has {len(texts)} texts; at most {section.max_texts} are allowed", param=param
            )
        for index, text in enumerate(texts):
            if len(text) > section.max_text_chars:
                raise LimitExceeded(
                    f"{param}[{index}] has {len(text)} characters; at most {section.max_text_chars} are allowed",
                    param=param,
                )

    def _not_found(self, model: str, known: Sequence[str] | dict[str, ServedEncoder]) -> NotFound:
        names = ", ".join(repr(name) for name in known) or "none"
        return NotFound(f"model {model!r} is not served here; there are: {names}", param="model")
