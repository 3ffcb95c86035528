"""Export never holds up the process: a bounded queue, counted drops, a shutdown with a limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from sage_core import ConfigurationError, TelemetrySettings
from sage_telemetry import configure, metrics, record_span
from sage_telemetry.export import BoundedExport


class Collector(SpanExporter):
    """Takes spans when its gate is open; answers `result`."""

    def __init__(self, result: SpanExportResult = SpanExportResult.SUCCESS) -> None:
        self.result = result
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.names: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        self.gate.wait(5.0)
        self.names += [span.name for span in spans]
        return self.result

    def shutdown(self) -> None:
        self.gate.set()


def end_spans(export: BoundedExport, number: int) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export)
    tracer = provider.get_tracer("test")
    for index in range(number):
        tracer.start_span(str(index)).end()


def test_spans_over_the_bound_are_dropped_and_counted_without_waiting() -> None:
    collector = Collector()
    export = BoundedExport(collector, max_queued=10, delay_ms=1.0)
    started = time.perf_counter()
    end_spans(export, 25)
    assert time.perf_counter() - started < 0.5
    assert export.num_dropped == 15
    collector.gate.set()
    export.shutdown()
    assert len(collector.names) == export.num_exported == 10


def test_spans_that_the_collector_refuses_count_as_dropped() -> None:
    collector = Collector(SpanExportResult.FAILURE)
    collector.gate.set()
    export = BoundedExport(collector, delay_ms=1.0)
    end_spans(export, 5)
    export.shutdown()
    assert (export.num_exported, export.num_dropped) == (0, 5)


def test_spans_after_the_shutdown_are_dropped() -> None:
    collector = Collector()
    collector.gate.set()
    export = BoundedExport(collector)
    export.shutdown()
    end_spans(export, 2)
    assert export.num_dropped == 2


def test_a_collector_that_is_down_does_not_hold_up_the_shutdown(configured: Any) -> None:
    # Port 9 of the loopback refuses; the SDK alone would retry for many seconds.
    telemetry = configured(otlp_endpoint="http://127.0.0.1:9")
    record_span(
        "lost", parent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", start_ns=1, end_ns=2
    )
    started = time.perf_counter()
    telemetry.shutdown(0.2)
    telemetry.shutdown(0.2)
    assert time.perf_counter() - started < 3.0
    # What is given up does not go on trying, and complain, behind the back of whoever comes after.
    assert not [thread for thread in threading.enumerate() if thread.name == "telemetry-shutdown"]


@pytest.mark.parametrize("endpoint", ["localhost:4317", "ftp://x", ""])
def test_an_endpoint_that_is_no_url_is_refused_by_name(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match=r"telemetry\.otlp_endpoint"):
        configure("s", "a", TelemetrySettings(otlp_endpoint=endpoint))


def test_metrics_are_made_once_and_rendered() -> None:
    one = metrics.counter("sage_test_things", "Things.", ["kind"])
    assert metrics.counter("sage_test_things", "Things.", ["kind"]) is one
    one.labels("x").inc(2)
    metrics.gauge("sage_test_level", "Level.").set(3)
    metrics.histogram("sage_test_seconds", "Seconds.").observe(0.003)
    text = metrics.render().decode()
    assert 'sage_test_things_total{kind="x"} 2.0' in text
    assert "sage_test_level 3.0" in text
    assert 'sage_test_seconds_bucket{le="0.005"} 1.0' in text


def test_a_metrics_port_in_use_is_refused_by_name() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"telemetry\.metrics_port = {port}"):
            metrics.serve(port)
