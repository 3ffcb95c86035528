"""The ASGI application: a table of routes, and one place where whatever happens to a request becomes an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from sage_core import Internal, SageError, Unavailable, new_id
from sage_gateway.access import Access
from sage_gateway.chunks import error_event
from sage_gateway.edge import Edge, Visit
from sage_gateway.errors import CLIENT_CLOSED, HttpError, HttpRefused, describe
from sage_gateway.exchange import ClientGone, Exchange, Receive, Scope, Send
from sage_gateway.generation import GenerationRoutes
from sage_gateway.inspection import InspectionRoutes
from sage_gateway.metrics import REQUEST_SECONDS, REQUESTS
from sage_gateway.vectors import VectorRoutes
from sage_telemetry import SpanHandle, get_logger, semconv, start_span

__all__ = ["App"]

_UNKNOWN_ROUTE: Final = "unknown"
_FAREWELL_SECONDS: Final = 1.0
"""How long a client of a stopping gateway may take to receive the error that ends its request."""

Handler = Callable[[Visit], Awaitable[None]]
log = get_logger()


@dataclass(frozen=True, slots=True)
class Route:
    """What one path answers, by method. `is_work` routes are traced; only `is_public` ones need no key."""

    name: str
    handlers: dict[str, Handler]
    id_prefix: str = "req"
    is_work: bool = False
    is_public: bool = False


class App:
    """The gateway as an ASGI 3 callable. Every answer but a stream is JSON (metrics: text), errors included."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._access = Access(edge.settings.api_keys)
        generation, vectors, look = GenerationRoutes(edge), VectorRoutes(edge), InspectionRoutes(edge)
        self._model = Route("/v1/models/{id}", {"GET": look.model})
        self._request = Route("/v1/requests/{id}", {"DELETE": look.cancel})
        self._request_cancel = Route("/v1/requests/{id}/cancel", {"POST": look.cancel})
        routes = (
            Route("/v1/chat/completions", {"POST": generation.chat}, "chatcmpl", is_work=True),
            Route("/v1/completions", {"POST": generation.complete}, "cmpl", is_work=True),
            Route("/v1/embeddings", {"POST": vectors.embed}, "embd", is_work=True),
            Route("/v1/rerank", {"POST": vectors.rerank_v1}, "rerank", is_work=True),
            Route("/v2/rerank", {"POST": vectors.rerank_v2}, "rerank", is_work=True),
            Route("/v1/models", {"GET": look.models}),
            Route("/healthz", {"GET": look.healthz}, is_public=True),
            Route("/readyz", {"GET": look.readyz}),
            Route("/metrics", {"GET": look.metrics}),
        )
        self._routes = {route.name: route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Nothing but cancellation leaves this function."""
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway speaks HTTP alone; the server sent a {scope['type']} scope")
        exchange = Exchange(scope, receive, send, self._edge.settings, self._edge.clock)
        route = self._find(exchange.path)
        name = _UNKNOWN_ROUTE if route is None else route.name
        status = CLIENT_CLOSED
        try:
            status = await self._serve(exchange, route)
        finally:
            REQUESTS.labels(name, str(status)).inc()
            REQUEST_SECONDS.labels(name).observe(self._edge.clock.now() - exchange.started_at)

    async def _serve(self, exchange: Exchange, route: Route | None) -> int:
        """Run the request to its end and return the status that counts: of an error even in a started stream."""
        try:
            await self._handle(exchange, route)
        except ClientGone:
            return CLIENT_CLOSED
        except HttpRefused as refusal:
            return await self._fail(exchange, refusal.http_error)
        except SageError as error:
            if error.code == Internal.code and not exchange.is_gone:
                log.error("request_failed", request_id=exchange.request_id, error=error.message)
            return await self._fail(exchange, describe(error))
        except asyncio.CancelledError:
            await self._say_farewell(exchange)
            raise
        except Exception as error:  # the edge of the process: a bug costs its request alone
            log.error("request_crashed", request_id=exchange.request_id, exc_info=error)
            return await self._fail(
                exchange, describe(Internal("internal error; the gateway's log has details"))
            )
        assert exchange.status is not None
        return exchange.status

    async def _handle(self, exchange: Exchange, route: Route | None) -> None:
        exchange.identify(new_id("req" if route is None else route.id_prefix))
        if exchange.num_headers > self._edge.settings.max_headers:
            raise HttpRefused(
                431,
                "invalid_request_error",
                "too_many_headers",
                f"found {exchange.num_headers} headers; at most {self._edge.settings.max_headers} are allowed",
            )
        # Also unknown paths ask for a key first: what exists here is not told to strangers.
        is_public = route is not None and route.is_public
        tenant = "" if is_public else self._access.tenant(exchange.headers)
        if route is None:
            raise self._unknown_path(exchange)
        handler = self._handler(exchange, route)
        if not route.is_work:
            await handler(Visit(exchange, route.name, SpanHandle(None, None), tenant))
            return
        await self._handle_work(exchange, route, handler, tenant)

    async def _handle_work(self, exchange: Exchange, route: Route, handler: Handler, tenant: str) -> None:
        span = start_span(
            f"{exchange.method} {route.name}",
            parent=self._edge.parent(exchange),
            kind="server",
            attributes={
                semconv.HTTP_REQUEST_METHOD: exchange.method,
                semconv.HTTP_ROUTE: route.name,
                semconv.REQUEST_ID: exchange.request_id,
            },
        )
        if exchange.shown_id != exchange.request_id:
            span.set(semconv.CLIENT_REQUEST_ID, exchange.shown_id)
        refused: Exception | None = None
        with span:
            try:
                await handler(Visit(exchange, route.name, span, tenant))
                status = exchange.status or CLIENT_CLOSED
            except (SageError, HttpRefused, ClientGone) as error:
                status = _status_of(error)
                # A server's span has failed only where the server did: semantic conventions, HTTP spans, status.
                if status >= 500:
                    span.set(semconv.HTTP_RESPONSE_STATUS_CODE, status)
                    raise
                refused = error
            span.set(semconv.HTTP_RESPONSE_STATUS_CODE, status)
        if refused is not None:
            raise refused

    def _find(self, path: str) -> Route | None:
        route = self._routes.get(path)
        if route is not None:
            return route
        if path.startswith("/v1/models/") and len(path) > len("/v1/models/"):
            return self._model
        if path.startswith("/v1/requests/"):
            return self._request_cancel if path.endswith("/cancel") else self._request
        return None

    def _handler(self, exchange: Exchange, route: Route) -> Handler:
        # The server leaves out the body of an answer to HEAD.
        method = "GET" if exchange.method == "HEAD" else exchange.method
        handler = route.handlers.get(method)
        if handler is None:
            allowed = ", ".join(route.handlers)
            raise HttpRefused(
                405,
                "invalid_request_error",
                "method_not_allowed",
                f"{exchange.method} is not allowed for {route.name}; use {allowed}",
                headers=((b"allow", allowed.encode()),),
            )
        return handler

    def _unknown_path(self, exchange: Exchange) -> HttpRefused:
        shown = exchange.path if len(exchange.path) <= 120 else f"{exchange.path[:120]}…"
        message = f"there is no {shown} here"
        if self._find(f"/v1{exchange.path}") is not None:
            message += f"; did you mean /v1{shown}? The base URL of OpenAI clients ends with /v1"
        return HttpRefused(404, "invalid_request_error", "unknown_url", message)

    async def _fail(self, exchange: Exchange, error: HttpError) -> int:
        """Tell the client, in the form that its answer has reached; return the status that counts."""
        if exchange.is_gone:
            return CLIENT_CLOSED
        events = exchange.event_stream
        try:
            async with asyncio.timeout(self._edge.settings.stall_timeout):
                if events is not None and events.is_started:
                    await events.finish(error_event(error))
                elif exchange.status is None:
                    await exchange.refuse(error)
        except TimeoutError:
            exchange.abort()
        return error.status

    async def _say_farewell(self, exchange: Exchange) -> None:
        """The server is stopping and this request's time is up: end it with an error rather than a cut."""
        error = describe(Unavailable("the gateway is shutting down; try again"))
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._fail(exchange, error)
        except TimeoutError:
            exchange.abort()


def _status_of(error: SageError | HttpRefused | ClientGone) -> int:
    match error:
        case SageError():
            return describe(error).status
        case HttpRefused():
            return error.http_error.status
        case ClientGone():
            return CLIENT_CLOSED
