"""The embedding-worker: loads its models, checks what is asked, and turns results into events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import ClassVar, Final

from sage_actor import ActorContext
from sage_core import BadRequest, LimitExceeded, NotFound
from sage_embedding_worker.encoder import CrossEncoder, Encoder, Text
from sage_embedding_worker.locations import ModelSpec
from sage_embedding_worker.served import ModelLimits, ServedCrossEncoder, ServedEncoder
from sage_embedding_worker.settings import EmbeddingWorkerSection
from sage_embedding_worker.vectors import shorten, split_events
from sage_wire.codec import raw
from sage_wire.messages import (
    Completed,
    Detokenize,
    Embed,
    EngineProfile,
    Event,
    Output,
    Rerank,
    Scores,
    ServedModel,
    TextPrompt,
    Tokenize,
    Usage,
)
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
        """Answer Embed, Rerank, Tokenize and Detokenize. Work of negative priority (batch) gives way to all other.

        What the scheduler formed into one batch is computed as one.
        """
        is_background = request.priority < 0
        match request.work:
            case Embed() as work:
                events = self._embed(work, is_background, request.batch)
            case Rerank() as work:
                events = self._rerank(work, is_background, request.batch)
            case Tokenize() as work:
                events = self._tokenize(work)
            case Detokenize() as work:
                events = self._detokenize(work)
            case other:
                raise BadRequest(
                    f"found work {type(other).__name__}; expected Embed, Rerank, Tokenize or Detokenize"
                )
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
        texts = self._texts(work, encoder)
        found = await encoder.compute(texts, is_background=is_background, batch=batch)
        for event in split_events(shorten(found.values, work.dimensions)):
            yield event
        yield Completed(usage=Usage(prompt_tokens=found.num_tokens))

    def _texts(self, work: Embed, encoder: ServedEncoder) -> Sequence[Text]:
        if not work.token_ids:
            self._check(work.texts, "input")
            return work.texts
        if work.texts:
            raise BadRequest("input has both texts and token ids; expected one of the two", param="input")
        section = self._section
        if len(work.token_ids) > section.max_texts:
            raise LimitExceeded(
                f"input has {len(work.token_ids)} texts; at most {section.max_texts} are allowed",
                param="input",
            )
        for index, token_ids in enumerate(work.token_ids):
            if not 1 <= len(token_ids) <= section.max_text_chars:
                raise LimitExceeded(
                    f"input[{index}] has {len(token_ids)} tokens; expected 1 to {section.max_text_chars}",
                    param="input",
                )
            encoder.check_ids(token_ids, "input")
        return [tuple(token_ids) for token_ids in work.token_ids]

    async def _tokenize(self, work: Tokenize) -> AsyncIterator[Event]:
        if not isinstance(work.prompt, TextPrompt):
            raise BadRequest(f"model {work.model!r} has no chat template; send a text", param="messages")
        self._check([work.prompt.text], "prompt")
        tokenized = await self._model(work.model).tokenize(
            work.prompt.text,
            adds_special_tokens=work.adds_special_tokens is not False,
            with_strings=work.with_strings,
        )
        yield Output(value=raw(tokenized))
        yield Completed(usage=Usage(prompt_tokens=len(tokenized.token_ids)))

    async def _detokenize(self, work: Detokenize) -> AsyncIterator[Event]:
        if len(work.token_ids) > self._section.max_text_chars:
            raise LimitExceeded(
                f"tokens has {len(work.token_ids)} ids; at most {self._section.max_text_chars} are allowed",
                param="tokens",
            )
        yield Output(value=raw(await self._model(work.model).detokenize(work.token_ids)))
        yield Completed(usage=Usage(prompt_tokens=len(work.token_ids)))

    def _model(self, name: str) -> ServedEncoder | ServedCrossEncoder:
        model = self._rerankers.get(name) or self._encoders.get(name)
        if model is None:
            raise self._not_found(name, [*self._encoders, *self._rerankers])
        return model

    async def _rerank(
        self, work: Rerank, is_background: bool, batch: FormedBatch | None
    ) -> AsyncIterator[Event]:
        model = self._model(work.model)
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
