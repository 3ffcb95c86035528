"""Where the spans of a test go, and how they are read back: OTLP over HTTP, OTLP over gRPC, a Jaeger that runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import grpc
import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

__all__ = ["GrpcCollector", "HttpCollector", "JaegerBackend", "SeenSpan", "TraceBackend", "spans_of"]

JAEGER_QUERY = "SAGE_TEST_JAEGER_QUERY"
JAEGER_OTLP = "SAGE_TEST_JAEGER_OTLP"


@dataclass(frozen=True)
class SeenSpan:
    """A span as a backend shows it. Ids are hexadecimal; `kind` is internal, server, client, producer or consumer.

    `links` are (trace id, span id). `resource` describes who recorded it.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    links: list[tuple[str, str]] = field(default_factory=list)
    is_error: bool = False

    @property
    def service(self) -> str:
        """The actor's kind."""
        return str(self.resource["service.name"]).removeprefix("sage-")

    @property
    def ms(self) -> float:
        """How long it lasted."""
        return (self.end_ns - self.start_ns) / 1e6


class TraceBackend(Protocol):
    """Something that takes spans."""

    clock_slack_ns: int
    """How far the times that are read back may be off."""

    def environment(self) -> dict[str, str]:
        """Return the variables that make an instance export to it."""
        ...

    def trace(self, trace_id: str) -> list[SeenSpan]:
        """Return the spans of one trace."""
        ...

    def look(self, trace_id: str) -> list[SeenSpan]:
        """Return what is there of a trace of which there may be nothing."""
        ...

    def stop(self) -> None:
        """End it."""
        ...


class _Collector:
    """Keeps every request that was exported."""

    clock_slack_ns = 0

    def __init__(self) -> None:
        self.received: list[ExportTraceServiceRequest] = []

    def spans(self) -> list[SeenSpan]:
        """Return every span."""
        return [span for request in list(self.received) for span in spans_of(request)]

    def trace(self, trace_id: str) -> list[SeenSpan]:
        """Return the spans of one trace."""
        return [span for span in self.spans() if span.trace_id == trace_id]

    look = trace


class HttpCollector(_Collector):
    """Takes `POST /v1/traces` with protobuf bodies."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__()
        received = self.received

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

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.endpoint = f"http://{host}:{self._server.server_port}"

    def environment(self) -> dict[str, str]:
        """See `TraceBackend`."""
        return {"SAGE_TELEMETRY__OTLP_ENDPOINT": self.endpoint, "SAGE_TELEMETRY__OTLP_PROTOCOL": "http"}

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class GrpcCollector(_Collector, TraceServiceServicer):
    """Takes `TraceService/Export`."""

    def __init__(self) -> None:
        super().__init__()
        self._server = grpc.server(ThreadPoolExecutor(4))
        add_TraceServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.endpoint = f"http://127.0.0.1:{port}"

    def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:
        """Take a batch."""
        del context
        self.received.append(request)
        return ExportTraceServiceResponse()

    def environment(self) -> dict[str, str]:
        """See `TraceBackend`."""
        return {"SAGE_TELEMETRY__OTLP_ENDPOINT": self.endpoint, "SAGE_TELEMETRY__OTLP_PROTOCOL": "grpc"}

    def stop(self) -> None:
        """End it."""
        self._server.stop(None).wait()


class JaegerBackend:
    """A Jaeger at `$SAGE_TEST_JAEGER_QUERY`, e.g. http://127.0.0.1:16686; it is left running.

    It takes OTLP over HTTP at `$SAGE_TEST_JAEGER_OTLP`, by default at port 4318 of the same host.
    """

    clock_slack_ns = 2_000
    """Its query API speaks of whole microseconds, both for starts and for durations."""

    def __init__(self) -> None:
        self._query = os.environ[JAEGER_QUERY].rstrip("/")
        self._otlp = os.environ.get(JAEGER_OTLP) or f"http://{httpx.URL(self._query).host}:4318"

    def environment(self) -> dict[str, str]:
        """See `TraceBackend`."""
        return {"SAGE_TELEMETRY__OTLP_ENDPOINT": self._otlp, "SAGE_TELEMETRY__OTLP_PROTOCOL": "http"}

    def trace(self, trace_id: str) -> list[SeenSpan]:
        """Return the spans of one trace, once two looks a second apart show the same: it stores behind our back."""
        found: list[SeenSpan] = []
        for _ in range(20):
            seen = self.look(trace_id)
            if seen and len(seen) == len(found):
                return seen
            found = seen
            time.sleep(1.0)
        return found

    def look(self, trace_id: str) -> list[SeenSpan]:
        """Return what it has stored of a trace by now."""
        answer = httpx.get(f"{self._query}/api/traces/{trace_id}", timeout=10)
        if answer.status_code == 404:
            return []
        answer.raise_for_status()
        return [span for trace in answer.json().get("data") or [] for span in _spans_of_jaeger(trace)]

    def stop(self) -> None:
        """It is not ours."""


def spans_of(request: ExportTraceServiceRequest) -> Iterable[SeenSpan]:
    """Yield what one export holds."""
    for one in request.resource_spans:
        resource = _attributes(one.resource.attributes)
        for scope in one.scope_spans:
            for span in scope.spans:
                yield SeenSpan(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    name=span.name,
                    kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    attributes=_attributes(span.attributes),
                    resource=resource,
                    links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    is_error=span.status.code == Status.STATUS_CODE_ERROR,
                )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return None if kind is None else getattr(value, kind)


def _spans_of_jaeger(trace: dict[str, Any]) -> Iterable[SeenSpan]:
    """Yield what `GET /api/traces/{id}` shows: https://www.jaegertracing.io/docs/latest/architecture/apis/."""
    for span in trace["spans"]:
        process = trace["processes"][span["processID"]]
        tags = {tag["key"]: tag["value"] for tag in span["tags"]}
        resource = {tag["key"]: tag["value"] for tag in process.get("tags", [])}
        resource["service.name"] = process["serviceName"]
        parents = [ref["spanID"] for ref in span["references"] if ref["refType"] == "CHILD_OF"]
        links = [ref for ref in span["references"] if ref["refType"] != "CHILD_OF"]
        start_ns = int(span["startTime"]) * 1000
        yield SeenSpan(
            trace_id=span["traceID"].rjust(32, "0"),
            span_id=span["spanID"].rjust(16, "0"),
            parent_id=parents[0].rjust(16, "0") if parents else "",
            name=span["operationName"],
            kind=tags.pop("span.kind", "internal"),
            start_ns=start_ns,
            end_ns=start_ns + int(span["duration"]) * 1000,
            attributes=tags,
            resource=resource,
            links=[(ref["traceID"].rjust(32, "0"), ref["spanID"].rjust(16, "0")) for ref in links],
            is_error=tags.get("error") in (True, "true") or tags.get("otel.status_code") == "ERROR",
        )
