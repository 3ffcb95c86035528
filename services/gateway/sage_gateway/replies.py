"""Complete (not streamed) response bodies, as OpenAI, Jina and Cohere define them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from sage_core import Internal
from sage_gateway.translation import RerankPlan
from sage_wire.messages import Annotated, Hit, ServedModel, Usage, Vectors

__all__ = [
    "Choice",
    "Extras",
    "chat_body",
    "completion_body",
    "embedding_body",
    "model_body",
    "models_body",
    "rerank_body",
    "usage_body",
]

_encoder = msgspec.json.Encoder()
_FLOAT_BYTES: Final = 4


class _CachedTokens(msgspec.Struct, frozen=True):
    cached_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    """Token counts in OpenAI's shape."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _CachedTokens


def usage_body(usage: Usage) -> UsageBody:
    """Return `usage` in OpenAI's shape."""
    return UsageBody(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        _CachedTokens(usage.cached_tokens),
    )


class StageTimes(msgspec.Struct, frozen=True):
    """Our extension `sage`: what each stage of a pipeline took, in milliseconds."""

    stages: dict[str, float]


class Extras:
    """What a pipeline says beside its text, gathered from its `Annotated` events."""

    def __init__(self) -> None:
        self.sources: list[Hit] = []
        self._stages: dict[str, float] = {}

    def add(self, event: Annotated) -> None:
        """Take one event. A stage that ran more than once counts in sum."""
        self.sources.extend(event.sources)
        if event.stage is not None:
            self._stages[event.stage] = round(self._stages.get(event.stage, 0.0) + event.stage_ms, 3)

    @property
    def stage_times(self) -> StageTimes | None:
        """The `sage` field, or None where no stage was reported."""
        return StageTimes(self._stages) if self._stages else None


class Choice:
    """One choice of an answer while it arrives."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.finish_reason = "stop"
        self.usage = Usage()
        self.extras = Extras()


class SourceBody(msgspec.Struct, frozen=True):
    """Our extension: a passage that the answer rests on."""

    source: str
    title: str | None
    position: int
    score: float
    text: str


def source_bodies(hits: Sequence[Hit]) -> list[SourceBody]:
    """Return `hits` as they are shown to clients."""
    return [SourceBody(hit.source, hit.title, hit.position, hit.score, hit.text) for hit in hits]


class _Message(msgspec.Struct, frozen=True):
    role: str
    content: str
    refusal: None = None
    sources: list[SourceBody] | UnsetType = UNSET


class _ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: _Message
    finish_reason: str
    logprobs: None = None


class _Chat(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[_ChatChoice]
    usage: UsageBody
    service_tier: str | UnsetType = UNSET
    sage: StageTimes | UnsetType = UNSET


def chat_body(request_id: str, created: int, model: str, choice: Choice, service_tier: str | None) -> bytes:
    """Return a `chat.completion`. `created` is in Unix seconds."""
    sources = source_bodies(choice.extras.sources) or UNSET
    message = _Message("assistant", "".join(choice.texts), sources=sources)
    return _encoder.encode(
        _Chat(
            request_id,
            "chat.completion",
            created,
            model,
            [_ChatChoice(0, message, choice.finish_reason)],
            usage_body(choice.usage),
            service_tier=service_tier or UNSET,
            sage=choice.extras.stage_times or UNSET,
        )
    )


class _TextChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    finish_reason: str
    logprobs: None = None


class _Completion(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[_TextChoice]
    usage: UsageBody


def completion_body(request_id: str, created: int, model: str, choices: Sequence[Choice]) -> bytes:
    """Return a `text_completion` with one choice per prompt."""
    shown = [
        _TextChoice(index, "".join(choice.texts), choice.finish_reason)
        for index, choice in enumerate(choices)
    ]
    usage = total_usage([choice.usage for choice in choices])
    return _encoder.encode(
        _Completion(request_id, "text_completion", created, model, shown, usage_body(usage))
    )


def total_usage(usages: Sequence[Usage]) -> Usage:
    """Return the sum of `usages`."""
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
    )


class _Embedding(msgspec.Struct, frozen=True):
    object: str
    index: int
    embedding: list[float] | str


class _PromptUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class _Embeddings(msgspec.Struct, frozen=True):
    object: str
    data: list[_Embedding]
    model: str
    usage: _PromptUsage


def embedding_body(
    model: str, num_texts: int, batches: Sequence[Vectors], usage: Usage, *, is_base64: bool
) -> bytes:
    """Return an embeddings list in the order of the inputs; base64 is of little-endian float32.

    Raises Internal where `batches` do not cover exactly the texts `0 … num_texts`.
    """
    rows: list[list[float] | str] = []
    for batch in sorted(batches, key=lambda batch: batch.offset):
        row_bytes = batch.dim * _FLOAT_BYTES
        if batch.offset != len(rows) or row_bytes <= 0 or len(batch.data) % row_bytes:
            raise Internal("the embedding worker returned vectors that do not fit the inputs")
        if is_base64:
            data = memoryview(batch.data)
            rows.extend(
                base64.b64encode(data[start : start + row_bytes]).decode("ascii")
                for start in range(0, len(data), row_bytes)
            )
        else:
            rows.extend(np.frombuffer(batch.data, dtype="<f4").reshape(-1, batch.dim).tolist())
    if len(rows) != num_texts:
        raise Internal(f"the embedding worker returned {len(rows)} vectors for {num_texts} inputs")
    data_list = [_Embedding("embedding", index, row) for index, row in enumerate(rows)]
    shown = _PromptUsage(usage.prompt_tokens, usage.prompt_tokens)
    return _encoder.encode(_Embeddings("list", data_list, model, shown))


class _Document(msgspec.Struct, frozen=True):
    text: str


class _RerankResult(msgspec.Struct, frozen=True):
    index: int
    relevance_score: float
    document: _Document | UnsetType = UNSET


class _ApiVersion(msgspec.Struct, frozen=True):
    version: str


class _RerankMeta(msgspec.Struct, frozen=True):
    api_version: _ApiVersion


class _Reranked(msgspec.Struct, frozen=True):
    id: str
    object: str
    model: str
    results: list[_RerankResult]
    usage: _PromptUsage
    meta: _RerankMeta


def rerank_body(
    request_id: str, model: str, plan: RerankPlan, scores: Sequence[float], usage: Usage, version: str
) -> bytes:
    """Return the best `top_n` documents, best first; equal scores keep the request's order.

    Raises Internal where the worker did not score every document.
    """
    documents = plan.work.documents
    if len(scores) != len(documents):
        raise Internal(f"the worker returned {len(scores)} scores for {len(documents)} documents")
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: plan.top_n]
    results = [
        _RerankResult(index, scores[index], _Document(documents[index]) if plan.return_documents else UNSET)
        for index in order
    ]
    shown = _PromptUsage(usage.prompt_tokens, usage.prompt_tokens)
    meta = _RerankMeta(_ApiVersion(version))
    return _encoder.encode(_Reranked(request_id, "list", model, results, shown, meta))


class ModelBody(msgspec.Struct, frozen=True):
    """One model. `tasks` and the three after it are our extensions."""

    id: str
    object: str
    created: int
    owned_by: str
    tasks: list[str]
    max_model_len: int | UnsetType = UNSET
    dimensions: int | UnsetType = UNSET
    description: str | UnsetType = UNSET


class _Models(msgspec.Struct, frozen=True):
    object: str
    data: list[ModelBody]


def _model(models: Sequence[ServedModel], created: int) -> ModelBody:
    first = models[0]
    return ModelBody(
        first.name,
        "model",
        created,
        "sage",
        [model.task for model in models],
        max_model_len=first.max_context or UNSET,
        dimensions=first.dim or UNSET,
        description=first.description or UNSET,
    )


def model_body(models: Sequence[ServedModel], created: int) -> bytes:
    """Return one model that is served for every task in `models`."""
    return _encoder.encode(_model(models, created))


def models_body(models: Sequence[ServedModel], created: int) -> bytes:
    """Return the list of models, one entry per name."""
    by_name: dict[str, list[ServedModel]] = {}
    for model in models:
        by_name.setdefault(model.name, []).append(model)
    return _encoder.encode(_Models("list", [_model(group, created) for group in by_name.values()]))
