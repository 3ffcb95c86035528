"""The gateway's Prometheus metrics. Labels come from the route table and from HTTP statuses alone.

What requests add to is in `meters`; it is read when Prometheus asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from sage_gateway.meters import RouteMeter
from sage_telemetry import metrics

__all__ = ["METERS", "Meters"]


class Meters(Collector):
    """Everything that is counted, by route."""

    def __init__(self) -> None:
        self._routes: dict[str, RouteMeter] = {}
        self.num_prompt_tokens = 0
        self.num_completion_tokens = 0
        self.num_in_flight = 0

    def route(self, name: str) -> RouteMeter:
        """Return the meter of a route, made on first use."""
        return self._routes.setdefault(name, RouteMeter())

    def collect(self) -> Iterator[Metric]:
        """Yield all of it, for a scrape."""
        answers = CounterMetricFamily(
            "sage_gateway_requests",
            "Answered requests; status 499: ended by the client.",
            labels=("route", "status"),
        )
        seconds = HistogramMetricFamily(
            "sage_gateway_request_seconds",
            "From the request's headers to the end of its answer.",
            labels=("route",),
        )
        first_tokens = HistogramMetricFamily(
            "sage_gateway_time_to_first_token_seconds",
            "From the request's headers to its first generated token.",
            labels=("route",),
        )
        ignored = CounterMetricFamily(
            "sage_gateway_ignored_fields",
            "Body fields that were accepted and have no meaning here.",
            labels=("route",),
        )
        # Copied: a scrape of the telemetry port runs in a thread of its own.
        for name, meter in dict(self._routes).items():
            for status, count in dict(meter.num_by_status).items():
                answers.add_metric([name, str(status)], count)
            meter.request_seconds.add_to(seconds, [name])
            meter.first_token_seconds.add_to(first_tokens, [name])
            if meter.num_ignored_fields:
                ignored.add_metric([name], meter.num_ignored_fields)
        tokens = CounterMetricFamily(
            "sage_gateway_tokens",
            "Tokens as the engines counted them; kind is prompt or completion.",
            labels=("kind",),
        )
        tokens.add_metric(["prompt"], self.num_prompt_tokens)
        tokens.add_metric(["completion"], self.num_completion_tokens)
        in_flight = GaugeMetricFamily(
            "sage_gateway_in_flight", "Requests being served.", value=self.num_in_flight
        )
        yield from (answers, seconds, first_tokens, ignored, tokens, in_flight)


METERS: Final = Meters()
metrics.REGISTRY.register(METERS)
