"""Routes that only look, and the one that cancels: models, liveness, readiness, metrics, requests by id."""

from __future__ import annotations

import msgspec

from sage_core import NotFound
from sage_gateway.edge import Edge, Visit
from sage_gateway.replies import model_body, models_body
from sage_telemetry import metrics

__all__ = ["InspectionRoutes"]

_MODEL_PREFIX = "/v1/models/"
_REQUEST_PREFIX = "/v1/requests/"
_CANCEL_SUFFIX = "/cancel"
_PROMETHEUS_TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")

_encoder = msgspec.json.Encoder()


class _Status(msgspec.Struct, frozen=True):
    status: str
    reasons: list[str] = []


class _CancelledRequest(msgspec.Struct, frozen=True):
    id: str
    object: str
    status: str


class InspectionRoutes:
    """Handlers that submit no work."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def models(self, visit: Visit) -> None:
        """Answer `GET /v1/models`."""
        edge = self._edge
        models = edge.catalog.models(edge.clock.now())
        await visit.exchange.respond(200, models_body(models, edge.created))

    async def model(self, visit: Visit) -> None:
        """Answer `GET /v1/models/{id}`; an id may hold slashes."""
        edge, now = self._edge, self._edge.clock.now()
        found = edge.catalog.find(visit.exchange.path.removeprefix(_MODEL_PREFIX), now)
        models = [model for model in edge.catalog.models(now) if model.name == found.name]
        await visit.exchange.respond(200, model_body(models, edge.created))

    async def healthz(self, visit: Visit) -> None:
        """Answer `GET /healthz`: this process answers, whatever else is down."""
        await visit.exchange.respond(200, _encoder.encode(_Status("ok")))

    async def readyz(self, visit: Visit) -> None:
        """Answer `GET /readyz`: 200 where a chat request can be served now, else 503 with the reasons."""
        reasons = self._edge.catalog.missing(self._edge.clock.now())
        if self._edge.in_flight.is_draining:
            reasons.append("this gateway is shutting down")
        status = _Status("not_ready" if reasons else "ready", reasons)
        await visit.exchange.respond(503 if reasons else 200, _encoder.encode(status))

    async def metrics(self, visit: Visit) -> None:
        """Answer `GET /metrics` in Prometheus' text format."""
        await visit.exchange.respond(200, metrics.render(), [_PROMETHEUS_TEXT])

    async def cancel(self, visit: Visit) -> None:
        """Answer `DELETE /v1/requests/{id}` and `POST /v1/requests/{id}/cancel` for this gateway's own requests."""
        request_id = visit.exchange.path.removeprefix(_REQUEST_PREFIX)
        if visit.exchange.method == "POST":
            request_id = request_id.removesuffix(_CANCEL_SUFFIX)
        tickets = self._edge.in_flight.find(request_id, visit.tenant)
        if not tickets:
            raise NotFound(
                f"no request '{request_id[:120]}' is running at this gateway; it may have ended", param="id"
            )
        for ticket in tickets:
            ticket.cancel("cancelled by id")
        await visit.exchange.respond(
            200, _encoder.encode(_CancelledRequest(request_id, "request", "cancelled"))
        )
