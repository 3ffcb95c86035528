"""Export never holds up the process: a bounded queue, counted drops, a shutdown with a limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

import sage_telemetry.telemetry
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
        self.gate.wait(30.0)
        self.names += [span.name for span in spans]
        return self.result

    def shutdown(self) -> None:
        self.gate.set()


def counted(name: str) -> float:
    found = metrics.REGISTRY.get_sample_value(name)
    assert found is not None
    return found


def end_spans(export: BoundedExport, number: int) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export)
    tracer = provider.get_tracer("test")
    for index in range(number):
        tracer.start_span(str(index)).end()


def test_spans_over_the_bound_are_dropped_and_counted_without_waiting() -> None:
    before = {name: counted(name) for name in ("sage_spans_dropped_total", "sage_spans_exported_total")}
    collector = Collector()
    export = BoundedExport(collector, max_queued=10, delay_ms=1.0)
    # The collector takes nothing yet, so whoever waited for it would wait for ever.
    end_spans(export, 25)
    assert collector.names == []
    assert export.num_dropped == 15
    assert counted("sage_spans_dropped_total") == before["sage_spans_dropped_total"] + 15
    assert counted("sage_spans_queued") == 10
    collector.gate.set()
    export.shutdown()
    assert len(collector.names) == export.num_exported == 10
    assert counted("sage_spans_exported_total") == before["sage_spans_exported_total"] + 10
    assert counted("sage_spans_queued") == 0


def test_the_bound_is_a_setting_and_the_counts_are_metrics(configured: Any) -> None:
    dropped = counted("sage_spans_dropped_total")
    telemetry = configured(otlp_endpoint="http://127.0.0.1:9", max_queued_spans=2)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for _ in range(5):
        record_span("lost", parent=parent, start_ns=1, end_ns=2)
    assert telemetry.num_dropped_spans == 3
    assert b"sage_spans_dropped_total " in metrics.render()
    telemetry.shutdown(0.1)
    assert telemetry.num_dropped_spans == 5
    assert counted("sage_spans_dropped_total") == dropped + 5


def test_spans_with_text_leave_in_batches_that_collectors_take(
    monkeypatch: pytest.MonkeyPatch, configured: Any
) -> None:
    batches: list[int] = []

    class Sized(Collector):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            batches.append(len(spans))
            return SpanExportResult.SUCCESS

    monkeypatch.setattr(sage_telemetry.telemetry, "otlp_exporter", lambda *_: Sized())
    telemetry = configured(otlp_endpoint="http://127.0.0.1:9", record_content=True)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for _ in range(200):
        record_span("x", parent=parent, start_ns=1, end_ns=2)
    telemetry.shutdown()
    assert sum(batches) == 200
    assert max(batches) <= 64


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
