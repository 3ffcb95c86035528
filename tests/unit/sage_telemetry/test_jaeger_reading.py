"""The tests' own reader of Jaeger's query API agrees with the published mapping from OTLP to Jaeger's model.

https://github.com/open-telemetry/opentelemetry-collector-contrib/blob/main/pkg/translator/jaeger/README.md
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from trace_backends import JAEGER_QUERY, JaegerBackend, SeenSpan

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
ANSWER = {
    "data": [
        {
            "traceID": TRACE_ID,
            "spans": [
                {
                    "traceID": TRACE_ID,
                    "spanID": "00f067aa0ba902b7",
                    "operationName": "submit chat",
                    "references": [
                        {"refType": "CHILD_OF", "traceID": TRACE_ID, "spanID": "b7ad6b7169203331"},
                        {"refType": "FOLLOWS_FROM", "traceID": TRACE_ID, "spanID": "1111111111111111"},
                    ],
                    "startTime": 1_700_000_000_000_001,
                    "duration": 250,
                    "tags": [
                        {"key": "sage.request.attempt", "type": "int64", "value": 1},
                        {"key": "span.kind", "type": "string", "value": "client"},
                        {"key": "error", "type": "bool", "value": True},
                    ],
                    "logs": [],
                    "processID": "p1",
                    "warnings": None,
                }
            ],
            "processes": {
                "p1": {
                    "serviceName": "sage-gateway",
                    "tags": [{"key": "host.name", "type": "string", "value": "vm"}],
                }
            },
        }
    ]
}


@pytest.fixture
def jaeger(monkeypatch: pytest.MonkeyPatch) -> Iterator[JaegerBackend]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_known = self.path == f"/api/traces/{TRACE_ID}"
            self.send_response(200 if is_known else 404)
            self.end_headers()
            self.wfile.write(json.dumps(ANSWER if is_known else {"data": None}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(JAEGER_QUERY, f"http://127.0.0.1:{server.server_port}/")
    yield JaegerBackend()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_span_is_read_with_its_parent_its_links_its_kind_and_its_times(jaeger: JaegerBackend) -> None:
    (span,) = jaeger.look(TRACE_ID)
    assert span == SeenSpan(
        trace_id=TRACE_ID,
        span_id="00f067aa0ba902b7",
        parent_id="b7ad6b7169203331",
        name="submit chat",
        kind="client",
        start_ns=1_700_000_000_000_001_000,
        end_ns=1_700_000_000_000_251_000,
        attributes={"sage.request.attempt": 1, "error": True},
        resource={"service.name": "sage-gateway", "host.name": "vm"},
        links=[(TRACE_ID, "1111111111111111")],
        is_error=True,
    )


def test_a_trace_that_is_not_there_has_no_spans(jaeger: JaegerBackend) -> None:
    assert jaeger.look("f" * 32) == []


def test_spans_go_to_the_host_that_answers_queries(jaeger: JaegerBackend) -> None:
    assert jaeger.environment()["SAGE_TELEMETRY__OTLP_ENDPOINT"] == "http://127.0.0.1:4318"
