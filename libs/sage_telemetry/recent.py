"""The last finished spans of this process, kept in memory so that a trace can be read without a collector."""

from __future__ import annotations

from collections import deque

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import StatusCode
from opentelemetry.util.types import AnyValue

from sage_telemetry import semconv
from sage_wire import decode, encode
from sage_wire.messages import Span

__all__ = ["RecentSpans"]


class RecentSpans(SpanProcessor):
    """A ring of the last `max_spans` finished spans; 0 keeps none.

    Kept encoded: 0.5 KiB per span, where the SDK's own objects take 3 KiB.
    """

    def __init__(self, max_spans: int) -> None:
        self._spans: deque[tuple[int, bytes]] = deque(maxlen=max_spans)

    def __len__(self) -> int:
        return len(self._spans)

    def on_end(self, span: ReadableSpan) -> None:
        """Keep `span`; the oldest makes room."""
        if self._spans.maxlen and span.context is not None:
            self._spans.append((span.context.trace_id, encode(_to_wire(span))))

    def find(self, trace_id: str) -> list[Span]:
        """Return the kept spans of `trace_id` (32 hexadecimal digits), by start. An unknown id gives []."""
        try:
            wanted = int(trace_id, 16)
        except ValueError:
            return []
        found = [decode(Span, encoded) for kept, encoded in self._spans.copy() if kept == wanted]
        return sorted(found, key=lambda span: span.start_ns)

    def find_request(self, request_id: str) -> list[Span]:
        """Return the kept spans that name `request_id`, by start. An unknown or empty id gives []."""
        # The encoded text is searched first: decoding the whole ring would block the event loop.
        wanted = request_id.encode("utf-8", "replace")
        if not wanted:
            return []
        near = [decode(Span, encoded) for _, encoded in self._spans.copy() if wanted in encoded]
        found = [span for span in near if request_id in span.attributes.values()]
        return sorted(found, key=lambda span: span.start_ns)


def _to_wire(span: ReadableSpan) -> Span:
    context = span.context
    assert context is not None
    return Span(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id=None if span.parent is None else f"{span.parent.span_id:016x}",
        name=span.name,
        service=str(span.resource.attributes.get(semconv.SERVICE_NAME, "")),
        start_ns=span.start_time or 0,
        end_ns=span.end_time or 0,
        is_error=span.status.status_code is StatusCode.ERROR,
        attributes={key: _plain(value) for key, value in (span.attributes or {}).items()},
        kind=span.kind.name.lower(),
        links=[f"{link.context.trace_id:032x}-{link.context.span_id:016x}" for link in span.links],
    )


def _plain(value: AnyValue) -> str | int | float | bool:
    if isinstance(value, str | int | float | bool):
        return value
    return ", ".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)
