"""Prometheus metrics of this process: one registry, names made once, served on a port of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
    start_http_server,
)

from sage_core import ConfigurationError

__all__ = ["REGISTRY", "SECONDS_BUCKETS", "counter", "gauge", "histogram", "render", "serve"]

REGISTRY: Final[CollectorRegistry] = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

SECONDS_BUCKETS: Final[tuple[float, ...]] = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip

_made: dict[str, Counter | Gauge | Histogram] = {}


def counter(name: str, description: str, labels: Sequence[str] = ()) -> Counter:
    """Return the counter `name`, made on first use. Label values come from closed sets, never from callers."""
    metric = _made.setdefault(name, _made.get(name) or Counter(name, description, labels, registry=REGISTRY))
    assert isinstance(metric, Counter)
    return metric


def gauge(name: str, description: str, labels: Sequence[str] = ()) -> Gauge:
    """Return the gauge `name`, made on first use."""
    metric = _made.setdefault(name, _made.get(name) or Gauge(name, description, labels, registry=REGISTRY))
    assert isinstance(metric, Gauge)
    return metric


def histogram(
    name: str, description: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS_BUCKETS
) -> Histogram:
    """Return the histogram `name`, made on first use; buckets are seconds unless given."""
    metric = _made.setdefault(
        name, _made.get(name) or Histogram(name, description, labels, buckets=buckets, registry=REGISTRY)
    )
    assert isinstance(metric, Histogram)
    return metric


def render() -> bytes:
    """Return the text exposition of every metric of this process."""
    return generate_latest(REGISTRY)


def serve(port: int, host: str = "127.0.0.1") -> Callable[[], None]:
    """Serve `/metrics` on `host:port` from a daemon thread; returns what stops it.

    Raises ConfigurationError where the port cannot be bound.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=REGISTRY)
    except OSError as error:
        raise ConfigurationError(
            f"telemetry.metrics_port = {port}: cannot listen on {host}:{port}: {error.strerror or error}",
            param="telemetry.metrics_port",
        ) from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(1.0)

    return stop
