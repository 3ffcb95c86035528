"""The application: a table of routes, and what is decided from a request's head alone, before its body is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sage_gateway.edge import Edge
from sage_gateway.errors import HttpRefused
from sage_gateway.handler_visit import HandlerVisit
from sage_gateway.http import Answerer, Exchange
from sage_gateway.operation_visit import OperationVisit
from sage_gateway.routes import Route
from sage_gateway.visit import Visit

__all__ = ["App"]

_UNKNOWN: Final = Route("unknown")
_PARAMETER: Final = "{id}"


class App:
    """Finds the route of a request and who answers it. Every answer but a stream is JSON (metrics: text), errors too.

    A path with `{id}` stands for every path that begins and ends like it; the id may hold slashes.
    """

    def __init__(self, edge: Edge, routes: Iterable[Route]) -> None:
        self._edge = edge
        self._by_target: dict[bytes, Route] = {}
        """The hot path: a target as it came, without a query."""
        self._patterns: list[tuple[str, str, Route]] = []
        for route in routes:
            if _PARAMETER in route.name:
                head, _, tail = route.name.partition(_PARAMETER)
                self._patterns.append((head, tail, route))
            else:
                self._by_target[route.name.encode("ascii")] = route
        # `/v1/requests/{id}/cancel` before `/v1/requests/{id}`.
        self._patterns.sort(key=lambda pattern: -len(pattern[1]))

    def begin(self, exchange: Exchange) -> Answerer:
        """See `Application.begin`."""
        route = self._by_target.get(exchange.target) or self._find(exchange.path)
        if route is not None and route.operation is not None:
            visit: OperationVisit | HandlerVisit = OperationVisit(self._edge, exchange, route)
        else:
            visit = HandlerVisit(self._edge, exchange, route or _UNKNOWN)
        visit.guard(self._admit, visit, exchange, route)
        return visit

    def _admit(self, visit: Visit, exchange: Exchange, route: Route | None) -> None:
        """Decide what the head decides; what is refused here is never read. Raises HttpRefused and BadRequest."""
        gate, headers = self._edge.gate, exchange.headers
        if b"x-client-request-id" in headers:
            visit.identify()
        visit.add_headers(gate.cors_headers(headers))
        if exchange.method == "OPTIONS":
            allowed = gate.preflight(headers)
            if allowed is not None:
                visit.respond(204, b"", allowed)
                return
        if exchange.num_headers > self._edge.settings.max_headers:
            raise HttpRefused(
                431,
                "invalid_request_error",
                "too_many_headers",
                f"found {exchange.num_headers} headers; at most {self._edge.settings.max_headers} are allowed",
            )
        # Also unknown paths ask for a key first: what exists here is not told to strangers.
        if route is None or not route.is_public:
            visit.caller = gate.identify(headers)
        if route is None:
            raise self._unknown_path(exchange.path)
        self._check_method(visit, exchange.method, route)
        if b"content-encoding" in headers and headers[b"content-encoding"].lower() != b"identity":
            raise HttpRefused(
                415,
                "invalid_request_error",
                "unknown_content_encoding",
                "compressed bodies are not read; send the body without content-encoding",
                headers=((b"accept-encoding", b"identity"),),
            )
        if route.is_work:
            visit.begin_trace()

    def _check_method(self, visit: Visit, method: str, route: Route) -> None:
        if isinstance(visit, HandlerVisit):
            # The answer to HEAD is the one to GET, and the exchange leaves its body out.
            handler = route.handlers.get("GET" if method == "HEAD" else method)
            if handler is not None:
                visit.handle_with(handler)
                return
        elif method == "POST":
            return
        allowed = ", ".join(route.methods)
        raise HttpRefused(
            405,
            "invalid_request_error",
            "method_not_allowed",
            f"{method} is not allowed for {route.name}; use {allowed}",
            headers=((b"allow", allowed.encode()),),
        )

    def _find(self, path: str) -> Route | None:
        route = self._by_target.get(path.encode("utf-8", "replace"))
        if route is not None:
            return route
        for head, tail, pattern in self._patterns:
            if path.startswith(head) and path.endswith(tail) and len(path) > len(head) + len(tail):
                return pattern
        return None

    def _unknown_path(self, path: str) -> HttpRefused:
        shown = path if len(path) <= 120 else f"{path[:120]}…"
        message = f"there is no {shown} here"
        if self._find(f"/v1{path}") is not None:
            message += f"; did you mean /v1{shown}? The base URL of OpenAI clients ends with /v1"
        return HttpRefused(404, "invalid_request_error", "unknown_url", message)
