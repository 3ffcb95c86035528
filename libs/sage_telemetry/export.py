"""OTLP export in the background: a bounded queue in front of a batch exporter, and a count of what is lost."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from sage_core import ConfigurationError
from sage_telemetry import metrics

__all__ = ["BoundedExport", "otlp_exporter"]

_EXPORTED = metrics.counter("sage_spans_exported", "Spans that the collector confirmed.")
_DROPPED = metrics.counter("sage_spans_dropped", "Spans that were recorded but never reached the collector.")
_QUEUED = metrics.gauge("sage_spans_queued", "Spans that wait for the collector.")

MAX_QUEUED: Final = 4096
MAX_BATCH: Final = 512
MAX_BATCH_WITH_CONTENT: Final = 64
"""Collectors take 4 MiB per request over gRPC, and a span with text may have 64 KiB."""
EXPORT_TIMEOUT: Final = 5.0
DELAY_MS: Final = 500.0


def otlp_exporter(endpoint: str, protocol: str) -> SpanExporter:
    """Return the exporter for `endpoint` (`http://host:4318` or `http://host:4317`); nothing is connected yet.

    Raises ConfigurationError for an endpoint that is not an http(s) URL.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"telemetry.otlp_endpoint = {endpoint!r}; expected a URL such as http://127.0.0.1:4318",
            param="telemetry.otlp_endpoint",
        )
    # Each transport takes 50 to 150 ms to import, so only the one in use is.
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint, insecure=endpoint.startswith("http://"), timeout=EXPORT_TIMEOUT)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    url = endpoint.rstrip("/")
    return HttpExporter(url if url.endswith("/v1/traces") else f"{url}/v1/traces", timeout=EXPORT_TIMEOUT)


class BoundedExport(SpanProcessor):
    """Hands spans to a `BatchSpanProcessor` while fewer than `max_queued` wait; counts the rest as dropped.

    The SDK's own queue drops too, but it logs a warning per span and counts nothing that can be read.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        *,
        max_queued: int = MAX_QUEUED,
        max_batch: int = MAX_BATCH,
        delay_ms: float = DELAY_MS,
    ) -> None:
        self._lock = threading.Lock()
        self._max_queued = max_queued
        self._num_queued = 0
        self._num_exported = 0
        self._num_dropped = 0
        self._is_closed = False
        self._exporter = _Counting(exporter, self)
        self._batch = BatchSpanProcessor(
            self._exporter,
            max_queue_size=max_queued,
            schedule_delay_millis=delay_ms,
            max_export_batch_size=min(max_batch, max_queued),
        )

    @property
    def num_dropped(self) -> int:
        """Spans that never reached the collector: queue full, export failed, or left over at shutdown."""
        return self._num_dropped

    @property
    def num_exported(self) -> int:
        """Spans that the collector confirmed."""
        return self._num_exported

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing to do before a span has ended."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue `span`, or drop it; never waits."""
        with self._lock:
            if self._is_closed or self._num_queued >= self._max_queued:
                self._drop(1)
                return
            self._num_queued += 1
            _QUEUED.inc()
        self._batch.on_end(span)

    def shutdown(self) -> None:
        """Export what is queued, then stop; see `Telemetry.shutdown` for the time limit."""
        with self._lock:
            self._is_closed = True
        self._batch.shutdown()  # type: ignore[no-untyped-call]
        with self._lock:
            self._drop(self._num_queued)
            self._leave(self._num_queued)

    def abandon(self) -> None:
        """Give up an export that is being tried again, from another thread: a `shutdown` that waits for it returns."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Export what is queued now, in the caller's thread."""
        return self._batch.force_flush(timeout_millis)

    def settled(self, num_spans: int, *, is_exported: bool) -> None:
        """Take note that `num_spans` left the queue."""
        with self._lock:
            self._leave(min(num_spans, self._num_queued))
            if is_exported:
                self._num_exported += num_spans
                _EXPORTED.inc(num_spans)
            else:
                self._drop(num_spans)

    def _leave(self, num_spans: int) -> None:
        self._num_queued -= num_spans
        _QUEUED.dec(num_spans)

    def _drop(self, num_spans: int) -> None:
        self._num_dropped += num_spans
        _DROPPED.inc(num_spans)


class _Counting(SpanExporter):
    """Tells `BoundedExport` what became of each batch."""

    def __init__(self, exporter: SpanExporter, owner: BoundedExport) -> None:
        self._exporter = exporter
        self._owner = owner
        self._is_shut_down = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        is_exported = False
        try:
            result = self._exporter.export(spans)
            is_exported = result is SpanExportResult.SUCCESS
            return result
        finally:
            self._owner.settled(len(spans), is_exported=is_exported)

    def shutdown(self) -> None:
        # The SDK's exporters warn of a second call.
        if not self._is_shut_down:
            self._is_shut_down = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)
