"""Routes that only look, and the one that cancels: models, liveness, readiness, metrics, requests by id."""

from __future__ import annotations

import msgspec

from sage_core import NotFound
from sage_gateway.cancelling import Cancelling
from sage_gateway.edge import Edge
from sage_gateway.handler_visit import HandlerVisit
from sage_gateway.operations.models import model_body, models_body
from sage_gateway.routes import Route
from sage_telemetry import metrics
from sage_wire.messages import ServedModel

__all__ = ["InspectionRoutes"]

_MODEL_PREFIX = "/v1/models/"
_REQUEST_PREFIX = "/v1/requests/"
_CANCEL_SUFFIX = "/cancel"
_PROMETHEUS_TEXT = b"text/plain; version=0.0.4; charset=utf-8"

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

    def __init__(self, edge: Edge, cancelling: Cancelling) -> None:
        self._edge = edge
        self._cancelling = cancelling

    def routes(self) -> tuple[Route, ...]:
        """Return the routes, as the table wants them."""
        return (
            Route("/v1/models", handlers={"GET": self.models}),
            Route("/v1/models/{id}", handlers={"GET": self.model}),
            Route("/v1/requests/{id}", handlers={"DELETE": self.cancel}),
            Route("/v1/requests/{id}/cancel", handlers={"POST": self.cancel}),
            Route("/healthz", handlers={"GET": self.healthz}, is_public=True),
            Route("/readyz", handlers={"GET": self.readyz}),
            Route("/metrics", handlers={"GET": self.metrics}),
        )

    async def models(self, visit: HandlerVisit) -> None:
        """Answer `GET /v1/models` with what the key may ask for."""
        visit.respond(200, models_body(self._visible(visit), self._edge.created))

    async def model(self, visit: HandlerVisit) -> None:
        """Answer `GET /v1/models/{id}`; an id may hold slashes."""
        name = visit.path.removeprefix(_MODEL_PREFIX)
        allowed = visit.caller.allowed_models
        found = self._edge.catalog.find(name, self._edge.clock.now(), allowed)
        models = [model for model in self._visible(visit) if model.name == found.name]
        visit.respond(200, model_body(models, self._edge.created))

    def _visible(self, visit: HandlerVisit) -> list[ServedModel]:
        allowed = visit.caller.allowed_models
        models = self._edge.catalog.models(self._edge.clock.now())
        return models if allowed is None else [model for model in models if model.name in allowed]

    async def healthz(self, visit: HandlerVisit) -> None:
        """Answer `GET /healthz`: this process answers, whatever else is down."""
        visit.respond(200, _encoder.encode(_Status("ok")))

    async def readyz(self, visit: HandlerVisit) -> None:
        """Answer `GET /readyz`: 200 where a chat request can be served now, else 503 with the reasons."""
        reasons = self._edge.catalog.missing(self._edge.clock.now())
        if self._edge.in_flight.is_draining:
            reasons.append("this gateway is shutting down")
        status = _Status("not_ready" if reasons else "ready", reasons)
        visit.respond(503 if reasons else 200, _encoder.encode(status))

    async def metrics(self, visit: HandlerVisit) -> None:
        """Answer `GET /metrics` in Prometheus' text format."""
        visit.respond(200, metrics.render(), content_type=_PROMETHEUS_TEXT)

    async def cancel(self, visit: HandlerVisit) -> None:
        """Answer `DELETE /v1/requests/{id}` and `POST /v1/requests/{id}/cancel`, whichever gateway serves it."""
        request_id = visit.path.removeprefix(_REQUEST_PREFIX)
        if visit.method == "POST":
            request_id = request_id.removesuffix(_CANCEL_SUFFIX)
        if not await self._cancelling.cancel(visit.caller.tenant, request_id):
            raise NotFound(f"no request '{request_id[:120]}' is running; it may have ended", param="id")
        visit.respond(200, _encoder.encode(_CancelledRequest(request_id, "request", "cancelled")))
