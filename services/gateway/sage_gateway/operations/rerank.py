"""`POST /v1/rerank` and `/v2/rerank`: documents in the order of their relevance to a query, as Jina and Cohere have it.

https://docs.cohere.com/reference/rerank, https://api.jina.ai/redoc#tag/rerank
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sage_core import Internal
from sage_gateway.decoding import BodyDecoder
from sage_gateway.operation import Asked, Planned
from sage_gateway.operations.fields import Count, ModelName
from sage_gateway.operations.refusal import wrong
from sage_gateway.operations.serving import find_served
from sage_gateway.operations.token_counts import PromptUsageBody
from sage_wire.messages import Completed, Event, Rerank, Scores, Usage

__all__ = ["MAX_DOCUMENTS", "RerankBody", "RerankOperation", "Reranked", "ScoreGatherer"]

MAX_DOCUMENTS: Final = 2_048

_encode = msgspec.json.Encoder().encode


class TextDocument(msgspec.Struct, frozen=True):
    """A text in Cohere's and Jina's object form."""

    text: str


class RerankBody(msgspec.Struct, frozen=True, kw_only=True):
    """One query and what to rank for it."""

    model: ModelName
    query: Annotated[str, Meta(min_length=1)] | TextDocument
    documents: Annotated[list[str | TextDocument], Meta(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: Count | None = None
    return_documents: bool | None = None


RERANK_DECODER: Final = BodyDecoder(
    RerankBody, frozenset({"truncation", "max_tokens_per_doc", "max_chunks_per_doc", "user"})
)
"""Documents are cut to what the model reads, whatever a body says about that."""


class DocumentBody(msgspec.Struct, frozen=True):
    """A document as it was sent."""

    text: str


class RerankResult(msgspec.Struct, frozen=True):
    """One document, by its index in the request."""

    index: int
    relevance_score: float
    document: DocumentBody | UnsetType = UNSET


class ApiVersion(msgspec.Struct, frozen=True):
    """The route's version, as Cohere's clients read it."""

    version: str


class RerankMeta(msgspec.Struct, frozen=True):
    """Facts about the answer."""

    api_version: ApiVersion


class Reranked(msgspec.Struct, frozen=True):
    """`POST /v1/rerank` and `/v2/rerank` answer this, best first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: PromptUsageBody
    meta: RerankMeta
    object: str = "list"


class RerankOperation:
    """Implements `operation.Operation`. `returns_documents` is what the route does where the body does not say."""

    def __init__(self, version: str, *, returns_documents: bool) -> None:
        self._version = version
        self._returns_documents = returns_documents

    def plan(self, payload: bytes, asked: Asked) -> Planned:
        """See Operation."""
        decoded = RERANK_DECODER.decode(payload)
        body = decoded.body
        served = find_served(asked, body.model, ("rerank",))
        query = _text(body.query)
        if not query:
            raise wrong("query", "is empty")
        documents = [_text(document) for document in body.documents]
        shown = self._returns_documents if body.return_documents is None else body.return_documents
        answer = _RerankAnswer(
            asked.request_id,
            served.name,
            self._version,
            documents,
            len(documents) if body.top_n is None else body.top_n,
            returns_documents=shown,
        )
        work = Rerank(model=served.name, query=query, documents=documents)
        return Planned("rerank", served, [work], answer, num_ignored=decoded.num_ignored)


class ScoreGatherer:
    """Takes the scores of `Rerank` works. Implements the gathering half of `operation.Answer`."""

    is_streamed = False

    def __init__(self, nums_documents: Sequence[int]) -> None:
        self._nums_documents = nums_documents
        self._scores: list[list[float] | None] = [None] * len(nums_documents)
        self._usages = [Usage()] * len(nums_documents)
        self.finish_reasons: list[str] = []

    def add(self, index: int, events: Sequence[Event]) -> bytes:
        """See Answer."""
        for event in events:
            if type(event) is Scores and self._scores[index] is None:
                if len(event.scores) != self._nums_documents[index]:
                    raise Internal(
                        f"the worker returned {len(event.scores)} scores "
                        f"for {self._nums_documents[index]} documents"
                    )
                self._scores[index] = event.scores
            elif type(event) is Completed:
                self._usages[index] = event.usage
            else:
                raise Internal(f"the worker sent {type(event).__name__} for scores")
        return b""

    @property
    def usage(self) -> Usage:
        """See Answer."""
        return Usage(prompt_tokens=sum(usage.prompt_tokens for usage in self._usages))

    def _all_scores(self) -> list[list[float]]:
        """Return the scores of every work. Raises Internal where one has none."""
        found = [scores for scores in self._scores if scores is not None]
        if len(found) != len(self._scores):
            raise Internal("the worker returned no scores")
        return found


class _RerankAnswer(ScoreGatherer):
    def __init__(
        self,
        request_id: str,
        model: str,
        version: str,
        documents: list[str],
        top_n: int,
        *,
        returns_documents: bool,
    ) -> None:
        super().__init__([len(documents)])
        self._request_id, self._model, self._version = request_id, model, version
        self._documents, self._top_n = documents, top_n
        self._returns_documents = returns_documents

    def end(self) -> bytes:
        """See Answer. Equal scores keep the request's order."""
        (scores,) = self._all_scores()
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: self._top_n]
        results = [
            RerankResult(
                index,
                scores[index],
                DocumentBody(self._documents[index]) if self._returns_documents else UNSET,
            )
            for index in order
        ]
        num_tokens = self.usage.prompt_tokens
        return _encode(
            Reranked(
                self._request_id,
                self._model,
                results,
                PromptUsageBody(num_tokens, num_tokens),
                RerankMeta(ApiVersion(self._version)),
            )
        )


def _text(document: str | TextDocument) -> str:
    return document.text if isinstance(document, TextDocument) else document
