"""What every route of the gateway shares: its parts, and how a decoded request becomes admitted work."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from sage_core import BadRequest, Budget, Clock
from sage_gateway.access import DEFAULT_TENANT
from sage_gateway.catalog import Catalog
from sage_gateway.decoding import BodyDecoder
from sage_gateway.exchange import Exchange
from sage_gateway.in_flight import InFlight, Ticket
from sage_gateway.metrics import IGNORED_FIELDS
from sage_gateway.ports import SubmitPort
from sage_gateway.settings import GatewaySection
from sage_telemetry import SpanHandle, is_sampled, new_root, semconv
from sage_wire.messages import Targets

__all__ = ["SLO_CLASSES", "Edge", "Visit", "parent_of"]

B = TypeVar("B", bound=msgspec.Struct)

SLO_CLASSES: Final = ("interactive", "normal", "batch")
_CLASS_OF_TIER: Final = {"flex": "batch"}
"""OpenAI's cheaper, slower tier; all other tiers are served as interactive."""

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_BUDGET_MS: Final = re.compile(rb"[1-9][0-9]{0,11}")
_TARGET_MS: Final = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,3})?")


@dataclass(slots=True)
class Visit:
    """One authenticated call of a route: the exchange, whose it is, and its root span."""

    exchange: Exchange
    route: str
    span: SpanHandle
    tenant: str = DEFAULT_TENANT

    async def read(self, decoder: BodyDecoder[B]) -> B:
        """Return the decoded body; fields without meaning are counted. Raises what reading and decoding raise."""
        decoded = decoder.decode(await self.exchange.read_body())
        if decoded.num_ignored:
            IGNORED_FIELDS.labels(self.route).inc(decoded.num_ignored)
        return decoded.body


@dataclass(slots=True)
class Edge:
    """The gateway's parts. One per life of the actor."""

    settings: GatewaySection
    clock: Clock
    port: SubmitPort
    catalog: Catalog
    in_flight: InFlight
    sample_ratio: float = 1.0
    created: int = field(default_factory=lambda: int(time.time()))
    """When this gateway started, in Unix seconds: shown as the age of every model."""

    @contextmanager
    def admit(
        self, visit: Visit, model: str, operation: str, service_tier: str | None = None
    ) -> Iterator[Ticket]:
        """Admit the request of `visit` for the length of the block.

        Raises BadRequest for headers that cannot be meant, and what `InFlight.admit` raises.
        """
        exchange, span = visit.exchange, visit.span
        slo_class = self._slo_class(exchange, service_tier)
        budget = self._budget(exchange)
        targets = Targets(
            ttft_ms=self._target_ms(exchange, "x-slo-ttft-ms"),
            tpot_ms=self._target_ms(exchange, "x-slo-tpot-ms"),
            e2e_ms=self._target_ms(exchange, "x-slo-e2e-ms"),
        )
        if span.is_recording:
            span.set(semconv.GEN_AI_OPERATION_NAME, operation)
            span.set(semconv.GEN_AI_REQUEST_MODEL, model)
            span.set(semconv.GEN_AI_RESPONSE_ID, exchange.request_id)
            span.set(semconv.SLO_CLASS, slo_class)
            span.set(semconv.TENANT, visit.tenant)
            span.set(semconv.BUDGET_MS, round(budget.remaining * 1000))
        ticket = Ticket(
            request_id=exchange.request_id,
            shown_id=exchange.shown_id,
            tenant=visit.tenant,
            slo_class=slo_class,
            targets=targets,
            route=visit.route,
            budget=budget,
            traceparent=span.traceparent,
            port=self.port,
        )
        with self.in_flight.admit(ticket):
            yield ticket

    def parent(self, exchange: Exchange) -> str:
        """Return the trace parent of a request: the caller's, or a new root, and show a sampled trace's id."""
        parent = parent_of(exchange.headers.get(b"traceparent")) or new_root(self.sample_ratio)
        if is_sampled(parent):
            exchange.response_headers.append((b"x-sage-trace-id", parent[3:35].encode()))
        return parent

    def _budget(self, exchange: Exchange) -> Budget:
        given = exchange.headers.get(b"x-sage-budget-ms")
        if given is None:
            return Budget.of(self.settings.default_budget, self.clock)
        maximum_ms = int(self.settings.max_budget * 1000)
        if _BUDGET_MS.fullmatch(given) is None or int(given) > maximum_ms:
            raise BadRequest(
                f"'x-sage-budget-ms': expected a whole number of milliseconds from 1 to {maximum_ms}",
                param="x-sage-budget-ms",
            )
        return Budget.of(int(given) / 1000, self.clock)

    def _target_ms(self, exchange: Exchange, name: str) -> float | None:
        """Return the target that a header names; none may be longer than the longest budget."""
        given = exchange.headers.get(name.encode())
        if given is None:
            return None
        maximum_ms = self.settings.max_budget * 1000
        if _TARGET_MS.fullmatch(given) is None or not 0 < float(given) <= maximum_ms:
            shown = given[:32].decode("ascii", "replace")
            raise BadRequest(
                f"'{name}': found {shown!r}; expected milliseconds, more than 0 and at most {maximum_ms:g}",
                param=name,
            )
        return float(given)

    def _slo_class(self, exchange: Exchange, service_tier: str | None) -> str:
        given = exchange.headers.get(b"x-slo-class")
        if given is None:
            return _CLASS_OF_TIER.get(service_tier or "", SLO_CLASSES[0])
        name = given.decode("latin-1")
        if name not in SLO_CLASSES:
            raise BadRequest(f"'x-slo-class': expected one of {', '.join(SLO_CLASSES)}", param="x-slo-class")
        return name


def parent_of(header: bytes | None) -> str | None:
    """Return a valid `traceparent` header as text, else None; W3C says that an invalid one starts a new trace."""
    if header is None:
        return None
    text = header.decode("latin-1")
    return text if _TRACEPARENT.fullmatch(text) is not None else None
