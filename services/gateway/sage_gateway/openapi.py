"""The OpenAPI 3.1 document of every route, from the types that bodies are decoded to and answers are encoded from.

https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec

from sage_gateway.handler_visit import HandlerVisit
from sage_gateway.operations.chat_body import ChatBody
from sage_gateway.operations.chat_completion import ChatCompletion
from sage_gateway.operations.completion import CompletionBody
from sage_gateway.operations.completion_answers import TextCompletion
from sage_gateway.operations.embedding import EmbeddingBody, Embeddings
from sage_gateway.operations.models import ModelBody, ModelsBody
from sage_gateway.operations.rerank import RerankBody, Reranked
from sage_gateway.operations.score import ScoreBody, Scored
from sage_gateway.operations.tokenize import DetokenizeBody, DetokenizedBody, TokenizeBody, TokenizedBody
from sage_gateway.responses.bodies import CreateBody
from sage_gateway.responses.resource import ResponseBody

__all__ = ["DOCUMENTED", "DocumentedRoute", "answer_openapi", "openapi_document"]

_TITLE: Final = "SAGE gateway"
_VERSION: Final = "1"
"""Of the interface, not of the software: it is the 1 of `/v1`."""

_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_ERROR_CONTENT: Final = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
_STATUSES: Final = {
    "400": "The body, a header or a value in them is wrong; `param` names it.",
    "401": "The key is missing or not known.",
    "403": "The key does not allow this.",
    "404": "The model or the object does not exist, as far as the key may know.",
    "408": "The body did not arrive in time.",
    "409": "The object is in a state that does not allow this.",
    "413": "The body is too large.",
    "429": "Too much is asked for at once; `retry-after` says when to come back.",
    "499": "The request was cancelled.",
    "500": "The engine or the gateway failed.",
    "503": "Nothing can serve this now; `retry-after` says when to come back.",
    "504": "The request's budget ended.",
}


class DocumentedRoute(msgspec.Struct, frozen=True):
    """One method of one path. `answer`: the type of a 200, or its media type where it is no JSON."""

    path: str
    method: str
    summary: str
    answer: Any
    body: type[msgspec.Struct] | None = None
    is_streamed: bool = False
    is_public: bool = False
    query: tuple[tuple[str, str], ...] = ()


class StatusBody(msgspec.Struct, frozen=True):
    """How this gateway is."""

    status: str
    reasons: list[str] = []


class ObjectStatus(msgspec.Struct, frozen=True):
    """What became of an object."""

    id: str
    object: str


def _same(paths: tuple[str, ...], *facts: Any) -> tuple[DocumentedRoute, ...]:
    return tuple(DocumentedRoute(path, "post", *facts) for path in paths)


DOCUMENTED: Final = (
    DocumentedRoute(
        "/v1/chat/completions", "post", "Answer a conversation", ChatCompletion, ChatBody, is_streamed=True
    ),
    DocumentedRoute(
        "/v1/completions", "post", "Complete prompts", TextCompletion, CompletionBody, is_streamed=True
    ),
    DocumentedRoute("/v1/responses", "post", "Create a response", ResponseBody, CreateBody, is_streamed=True),
    DocumentedRoute(
        "/v1/responses/{id}",
        "get",
        "Return a stored response",
        ResponseBody,
        is_streamed=True,
        query=(("include", "string"), ("stream", "string"), ("starting_after", "string")),
    ),
    DocumentedRoute("/v1/responses/{id}", "delete", "Delete a stored response", ObjectStatus),
    DocumentedRoute("/v1/responses/{id}/cancel", "post", "Cancel a response in the background", ResponseBody),
    DocumentedRoute(
        "/v1/responses/{id}/input_items",
        "get",
        "List what a response was made from",
        dict[str, Any],
        query=(("limit", "string"), ("order", "string"), ("after", "string"), ("include", "string")),
    ),
    DocumentedRoute("/v1/embeddings", "post", "Embed texts or token ids", Embeddings, EmbeddingBody),
    *_same(("/v1/rerank", "/rerank", "/v2/rerank"), "Rank documents for a query", Reranked, RerankBody),
    *_same(("/v1/score", "/score"), "Score pairs of texts", Scored, ScoreBody),
    *_same(("/v1/tokenize", "/tokenize"), "Tokenize a prompt", TokenizedBody, TokenizeBody),
    *_same(("/v1/detokenize", "/detokenize"), "Turn token ids into text", DetokenizedBody, DetokenizeBody),
    DocumentedRoute("/v1/models", "get", "List what can be asked for", ModelsBody),
    DocumentedRoute("/v1/models/{id}", "get", "Describe a model", ModelBody),
    DocumentedRoute("/v1/requests/{id}", "delete", "Cancel a running request", ObjectStatus),
    DocumentedRoute("/v1/requests/{id}/cancel", "post", "Cancel a running request", ObjectStatus),
    DocumentedRoute("/healthz", "get", "Answer while the process runs", StatusBody, is_public=True),
    DocumentedRoute("/readyz", "get", "Say whether chat can be served now", StatusBody),
    DocumentedRoute("/metrics", "get", "Show metrics for Prometheus", "text/plain"),
    DocumentedRoute("/openapi.json", "get", "Show this document", dict[str, Any]),
)


async def answer_openapi(visit: HandlerVisit) -> None:
    """Answer `GET /openapi.json`."""
    visit.respond(200, openapi_document())


@lru_cache(maxsize=1)
def openapi_document() -> bytes:
    """Return the document as JSON, indented for readers."""
    types = list(
        dict.fromkeys(
            kind
            for route in DOCUMENTED
            for kind in (route.body, route.answer)
            if kind is not None and not isinstance(kind, str)
        )
    )
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in DOCUMENTED:
        paths.setdefault(route.path, {})[route.method] = _operation(route, by_type)
    document = {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": _VERSION},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "responses": {
                f"Failure{status}": {"description": description, "content": _ERROR_CONTENT}
                for status, description in _STATUSES.items()
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def _operation(route: DocumentedRoute, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{route.method}{route.path}".translate(_ID_CHARACTERS),
        "summary": route.summary,
        "responses": {"200": _success(route, schemas), **_failures(route, schemas)},
    }
    if route.is_public:
        operation["security"] = []
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": {"type": kind}}
        for name, kind in route.query
    ]
    if "{id}" in route.path:
        parameters.insert(0, {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}})
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        content = {"application/json": {"schema": schemas[route.body]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


_ID_CHARACTERS: Final = str.maketrans({"/": "_", "{": None, "}": None, ".": "_"})


def _success(route: DocumentedRoute, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    if isinstance(route.answer, str):
        return {"description": "As text.", "content": {route.answer: {"schema": {"type": "string"}}}}
    content: dict[str, Any] = {"application/json": {"schema": schemas[route.answer]}}
    if route.is_streamed:
        # Chunks are JSON inside of events, which OpenAPI 3.1 has no words for: a schema would be of all of them.
        content["text/event-stream"] = {}
    return {"description": "The answer.", "content": content}


def _failures(route: DocumentedRoute, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    failures: dict[str, Any] = {
        status: {"$ref": f"#/components/responses/Failure{status}"} for status in _STATUSES
    }
    if route.path == "/readyz":
        failures["503"] = {
            "description": "It cannot; the reasons are in the body.",
            "content": {"application/json": {"schema": schemas[StatusBody]}},
        }
    return failures
