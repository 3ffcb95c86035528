"""`/v1/embeddings` and `/v1/rerank`: texts in, vectors or scores out, in one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sage_core import Internal
from sage_gateway.bodies import EMBEDDING_NO_EFFECT, RERANK_NO_EFFECT, EmbeddingBody, RerankBody
from sage_gateway.decoding import BodyDecoder
from sage_gateway.edge import Edge, Visit
from sage_gateway.event_stream import Watch
from sage_gateway.metrics import TOKENS
from sage_gateway.replies import embedding_body, rerank_body
from sage_gateway.translation import plan_embedding, plan_rerank
from sage_telemetry import semconv
from sage_wire.messages import Completed, Embed, Event, Rerank, Scores, Usage, Vectors

__all__ = ["VectorRoutes"]

E = TypeVar("E", bound=Event)

_RERANK_OPERATION = "rerank"


class VectorRoutes:
    """Handlers of the embedding and reranking routes; SageErrors are left to the caller."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._embedding = BodyDecoder(EmbeddingBody, EMBEDDING_NO_EFFECT)
        self._rerank = BodyDecoder(RerankBody, RERANK_NO_EFFECT)

    async def embed(self, visit: Visit) -> None:
        """Answer `POST /v1/embeddings`."""
        edge = self._edge
        body = await visit.read(self._embedding)
        served = edge.catalog.resolve(body.model, ("embed",), edge.clock.now())
        work = plan_embedding(body, served)
        batches, usage = await self._run(visit, work, semconv.OPERATION_EMBEDDINGS, Vectors)
        is_base64 = body.encoding_format == "base64"
        await visit.exchange.respond(
            200, embedding_body(served.name, len(work.texts), batches, usage, is_base64=is_base64)
        )

    async def rerank_v1(self, visit: Visit) -> None:
        """Answer `POST /v1/rerank`, which returns the documents unless told otherwise (Jina)."""
        await self._answer_rerank(visit, "1", returns_documents=True)

    async def rerank_v2(self, visit: Visit) -> None:
        """Answer `POST /v2/rerank`, which returns indexes alone unless told otherwise (Cohere)."""
        await self._answer_rerank(visit, "2", returns_documents=False)

    async def _answer_rerank(self, visit: Visit, version: str, *, returns_documents: bool) -> None:
        edge, exchange = self._edge, visit.exchange
        body = await visit.read(self._rerank)
        served = edge.catalog.resolve(body.model, ("rerank",), edge.clock.now())
        plan = plan_rerank(body, served, returns_documents=returns_documents)
        found, usage = await self._run(visit, plan.work, _RERANK_OPERATION, Scores)
        if len(found) != 1:
            raise Internal(f"the worker sent {len(found)} score events for one rerank")
        await exchange.respond(
            200, rerank_body(exchange.request_id, served.name, plan, found[0].scores, usage, version)
        )

    async def _run(
        self, visit: Visit, work: Embed | Rerank, operation: str, kind: type[E]
    ) -> tuple[Sequence[E], Usage]:
        found: list[E] = []
        with self._edge.admit(visit, work.model, operation) as ticket:
            stream = ticket.submit(work.model, work)
            async with Watch(visit.exchange, self._edge.settings, ticket.cancel):
                while True:
                    for event in await stream.next_batch():
                        if isinstance(event, kind):
                            found.append(event)
                        elif isinstance(event, Completed):
                            TOKENS.labels("prompt").inc(event.usage.prompt_tokens)
                            visit.span.set(semconv.GEN_AI_USAGE_INPUT_TOKENS, event.usage.prompt_tokens)
                            return found, event.usage
                        else:
                            raise Internal(f"the worker sent {type(event).__name__} for {operation}")
