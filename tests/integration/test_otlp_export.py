"""Spans leave as real OTLP and arrive with the right parents, over HTTP and over gRPC."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from sage_core import TelemetrySettings
from sage_telemetry import Telemetry, configure, new_root, record_span, semconv, start_span

pytestmark = pytest.mark.integration


class HttpCollector:
    """Takes `POST /v1/traces` with protobuf bodies."""

    def __init__(self) -> None:
        received: list[ExportTraceServiceRequest] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                assert self.headers["Content-Type"] == "application/x-protobuf"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.received = received
        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.settings = TelemetrySettings(otlp_endpoint=f"http://127.0.0.1:{self._server.server_port}")

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class GrpcCollector(TraceServiceServicer):
    """Takes `TraceService/Export`."""

    def __init__(self) -> None:
        self.received: list[ExportTraceServiceRequest] = []
        self._server = grpc.server(ThreadPoolExecutor(1))
        add_TraceServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.settings = TelemetrySettings(otlp_endpoint=f"http://127.0.0.1:{port}", otlp_protocol="grpc")

    def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:
        self.received.append(request)
        return ExportTraceServiceResponse()

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture(params=[HttpCollector, GrpcCollector], ids=["http", "grpc"])
def collector(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = request.param()
    yield made
    made.stop()


@pytest.fixture
def telemetry(collector: Any) -> Iterator[Telemetry]:
    made = configure("sage-test", "test-1", collector.settings, version="1.2.3")
    yield made
    made.shutdown()
    structlog.reset_defaults()


def test_a_trace_arrives_whole_with_its_parents(collector: Any, telemetry: Telemetry) -> None:
    root = new_root(1.0)
    with start_span(
        "chat", parent=root, kind="server", attributes={semconv.GEN_AI_REQUEST_MODEL: "m"}
    ) as outer:
        with start_span("handle submit"):
            pass
        record_span("queue", parent=outer.traceparent, start_ns=5, end_ns=9)
    with start_span("unseen", parent=new_root(0.0)):
        pass
    telemetry.shutdown()
    resources = [resource for request in collector.received for resource in request.resource_spans]
    attributes = {one.key: one.value for one in resources[0].resource.attributes}
    assert attributes["service.name"].string_value == "sage-test"
    assert attributes["service.instance.id"].string_value == "test-1"
    spans = {span.name: span for one in resources for scope in one.scope_spans for span in scope.spans}
    assert set(spans) == {"chat", "handle submit", "queue"}
    assert {span.trace_id.hex() for span in spans.values()} == {root[3:35]}
    assert spans["chat"].parent_span_id == b""
    assert spans["handle submit"].parent_span_id == spans["chat"].span_id == bytes.fromhex(root[36:52])
    assert spans["queue"].parent_span_id == spans["chat"].span_id
    assert (spans["queue"].start_time_unix_nano, spans["queue"].end_time_unix_nano) == (5, 9)
    assert spans["chat"].attributes[0].value.string_value == "m"
    assert telemetry.num_dropped_spans == 0
