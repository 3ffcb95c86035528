"""The gateway's Prometheus metrics. Labels come from the route table and from HTTP statuses alone."""

from __future__ import annotations

from typing import Final

from sage_telemetry import metrics

__all__ = ["IGNORED_FIELDS", "IN_FLIGHT", "REQUESTS", "REQUEST_SECONDS", "TOKENS", "TTFT_SECONDS"]

REQUESTS: Final = metrics.counter(
    "sage_gateway_requests_total",
    "Answered requests; status 499: ended by the client.",
    ("route", "status"),
)
REQUEST_SECONDS: Final = metrics.histogram(
    "sage_gateway_request_seconds", "From the request's headers to the end of its answer.", ("route",)
)
TTFT_SECONDS: Final = metrics.histogram(
    "sage_gateway_time_to_first_token_seconds",
    "From the request's headers to its first generated token.",
    ("route",),
)
IN_FLIGHT: Final = metrics.gauge("sage_gateway_in_flight", "Requests being served.")
TOKENS: Final = metrics.counter(
    "sage_gateway_tokens_total",
    "Tokens as the engines counted them; kind is prompt or completion.",
    ("kind",),
)
IGNORED_FIELDS: Final = metrics.counter(
    "sage_gateway_ignored_fields_total",
    "Body fields that were accepted and have no meaning here.",
    ("route",),
)
