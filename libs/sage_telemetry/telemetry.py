"""Puts logs, traces and metrics of one process in place, once, from its settings."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from sage_core import TelemetrySettings
from sage_telemetry import metrics, semconv
from sage_telemetry.export import MAX_BATCH, MAX_BATCH_WITH_CONTENT, BoundedExport, otlp_exporter
from sage_telemetry.logs import configure_logs
from sage_telemetry.recent import RecentSpans
from sage_telemetry.tracing import set_provider

__all__ = ["Telemetry", "configure"]


_ABANDON_SECONDS: Final = 1.0
"""How long an export that was given up may take to notice: it is woken, so this is for a slow machine."""


class Telemetry:
    """What `configure` set up. `recent` answers for the last spans; `shutdown` sends what is still queued."""

    def __init__(
        self,
        recent: RecentSpans,
        provider: TracerProvider,
        export: BoundedExport | None,
        stop_metrics: Callable[[], None] | None,
    ) -> None:
        self.recent = recent
        self._provider = provider
        self._export = export
        self._stop_metrics = stop_metrics

    @property
    def num_dropped_spans(self) -> int:
        """Spans that were recorded but never reached the collector."""
        return 0 if self._export is None else self._export.num_dropped

    def shutdown(self, timeout: float = 5.0) -> None:
        """Return to forwarding only, export what is queued for at most `timeout` seconds. Idempotent; blocks."""
        set_provider(None)
        # The SDK waits up to 30 s for a collector that does not answer; nothing here may hold a process that long.
        closer = threading.Thread(target=self._provider.shutdown, name="telemetry-shutdown", daemon=True)
        closer.start()
        closer.join(timeout)
        if closer.is_alive() and self._export is not None:
            self._export.abandon()
            closer.join(_ABANDON_SECONDS)
        if self._stop_metrics is not None:
            self._stop_metrics()
            self._stop_metrics = None


def configure(service: str, actor_id: str, settings: TelemetrySettings, *, version: str = "") -> Telemetry:
    """Set up logs, spans and metrics of this process for `service`.

    Raises ConfigurationError for an endpoint or port that cannot be used. A collector that is down is no error:
    spans wait in a bounded queue and are then dropped and counted.
    """
    configure_logs(service, actor_id, settings)
    export = None
    if settings.otlp_endpoint is not None:
        export = BoundedExport(
            otlp_exporter(settings.otlp_endpoint, settings.otlp_protocol),
            max_queued=settings.max_queued_spans,
            max_batch=MAX_BATCH_WITH_CONTENT if settings.record_content else MAX_BATCH,
        )
    stop_metrics = None
    if settings.metrics_port:
        stop_metrics = metrics.serve(settings.metrics_port, settings.metrics_host)
    resource = Resource.create(
        {
            semconv.SERVICE_NAME: service,
            semconv.SERVICE_NAMESPACE: "sage",
            semconv.SERVICE_INSTANCE_ID: actor_id,
            semconv.SERVICE_VERSION: version,
            semconv.HOST_NAME: socket.gethostname(),
            semconv.PROCESS_PID: os.getpid(),
        }
    )
    # The header decides what is sampled, so every span that gets this far is recorded.
    provider = TracerProvider(
        sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False, id_generator=set_provider(None)
    )
    recent = RecentSpans(settings.recent_spans)
    provider.add_span_processor(recent)
    if export is not None:
        provider.add_span_processor(export)
    set_provider(provider, records_content=settings.record_content)
    return Telemetry(recent, provider, export, stop_metrics)
