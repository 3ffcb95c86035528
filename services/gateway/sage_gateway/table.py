"""Which path is which operation."""

from __future__ import annotations

from collections.abc import Sequence

from sage_gateway.cancelling import Cancelling
from sage_gateway.edge import Edge
from sage_gateway.inspection import InspectionRoutes
from sage_gateway.openapi import answer_openapi
from sage_gateway.operation import Operation
from sage_gateway.operations import (
    ChatOperation,
    CompletionOperation,
    DetokenizeOperation,
    EmbeddingOperation,
    RerankOperation,
    ScoreOperation,
    TokenizeOperation,
)
from sage_gateway.responses import ResponseRoutes
from sage_gateway.routes import Route

__all__ = ["route_table"]


def route_table(edge: Edge, responses: ResponseRoutes, cancelling: Cancelling) -> list[Route]:
    """Return every route of the gateway."""
    return [
        Route("/v1/chat/completions", ChatOperation(), id_prefix="chatcmpl"),
        Route("/v1/completions", CompletionOperation(), id_prefix="cmpl"),
        Route("/v1/embeddings", EmbeddingOperation(), id_prefix="embd"),
        *_same(("/v1/rerank", "/rerank"), RerankOperation("1", returns_documents=True), "rerank"),
        Route("/v2/rerank", RerankOperation("2", returns_documents=False), id_prefix="rerank"),
        *_same(("/v1/score", "/score"), ScoreOperation(), "score"),
        *_same(("/v1/tokenize", "/tokenize"), TokenizeOperation(), "tok"),
        *_same(("/v1/detokenize", "/detokenize"), DetokenizeOperation(), "tok"),
        Route("/openapi.json", handlers={"GET": answer_openapi}),
        *responses.routes(),
        *InspectionRoutes(edge, cancelling).routes(),
    ]


def _same(paths: Sequence[str], operation: Operation, id_prefix: str) -> list[Route]:
    """Return routes of one operation that clients know by several paths."""
    return [Route(path, operation, id_prefix=id_prefix) for path in paths]
