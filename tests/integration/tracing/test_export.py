"""Spans leave as real OTLP and arrive with the right parents, over HTTP and over gRPC; a lost collector costs spans."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from sage_core import TelemetrySettings
from sage_telemetry import Telemetry, configure, metrics, new_root, record_span, semconv, start_span
from trace_backends import GrpcCollector, HttpCollector

pytestmark = pytest.mark.integration

Collector = HttpCollector | GrpcCollector


@pytest.fixture(params=[HttpCollector, GrpcCollector], ids=["http", "grpc"])
def collector(request: pytest.FixtureRequest) -> Iterator[Collector]:
    made: Collector = request.param()
    yield made
    made.stop()


@pytest.fixture
def telemetry(collector: Collector) -> Iterator[Telemetry]:
    protocol = collector.environment()["SAGE_TELEMETRY__OTLP_PROTOCOL"]
    settings = TelemetrySettings.model_validate(
        {"otlp_endpoint": collector.endpoint, "otlp_protocol": protocol}
    )
    made = configure("sage-test", "test-1", settings, version="1.2.3")
    yield made
    made.shutdown()
    structlog.reset_defaults()


def counted(name: str) -> float:
    found = metrics.REGISTRY.get_sample_value(name)
    assert found is not None
    return found


def test_a_trace_arrives_whole_with_its_parents(collector: Collector, telemetry: Telemetry) -> None:
    exported = counted("sage_spans_exported_total")
    root = new_root(1.0)
    with start_span(
        "chat", parent=root, kind="server", attributes={semconv.GEN_AI_REQUEST_MODEL: "m"}
    ) as outer:
        with start_span("handle submit"):
            pass
        record_span("queue", parent=outer.traceparent, start_ns=5, end_ns=9)
        with start_span("first", kind="client") as first:
            pass
        with start_span("second", kind="client", retry_of=first.traceparent):
            pass
    with start_span("unseen", parent=new_root(0.0)):
        pass
    telemetry.shutdown()
    spans = {span.name: span for span in collector.spans()}
    assert set(spans) == {"chat", "handle submit", "queue", "first", "second"}
    assert {span.trace_id for span in spans.values()} == {root[3:35]}
    chat = spans["chat"]
    assert (chat.parent_id, chat.span_id, chat.kind) == ("", root[36:52], "server")
    assert {span.parent_id for span in spans.values()} == {"", chat.span_id}
    assert (spans["queue"].start_ns, spans["queue"].end_ns, spans["queue"].kind) == (5, 9, "internal")
    assert spans["second"].links == [(root[3:35], spans["first"].span_id)]
    assert spans["first"].links == []
    assert chat.attributes == {"gen_ai.request.model": "m"}
    expected = {
        "service.name": "sage-test",
        "service.namespace": "sage",
        "service.instance.id": "test-1",
        "service.version": "1.2.3",
    }
    assert expected.items() <= chat.resource.items()
    assert chat.resource["host.name"]
    assert telemetry.num_dropped_spans == 0
    assert counted("sage_spans_exported_total") == exported + 5
    assert counted("sage_spans_queued") == 0


def test_what_a_collector_that_went_away_misses_is_dropped_and_counted(
    collector: Collector, telemetry: Telemetry
) -> None:
    dropped, exported = counted("sage_spans_dropped_total"), counted("sage_spans_exported_total")
    collector.stop()
    for _ in range(3):
        with start_span("lost", parent=new_root(1.0)):
            pass
    telemetry.shutdown(0.5)
    assert telemetry.num_dropped_spans == 3
    assert counted("sage_spans_dropped_total") == dropped + 3
    assert counted("sage_spans_exported_total") == exported
    assert counted("sage_spans_queued") == 0
