"""Spans over W3C trace context. The header decides: an unsampled or absent parent costs a string check.

`configure()` puts one provider in place; before it, and for unsampled parents, headers are only forwarded.
https://www.w3.org/TR/trace-context/#traceparent-header
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from sage_core import SageError
from sage_telemetry import semconv
from sage_telemetry.root import Root
from sage_telemetry.traceparent import is_sampled

__all__ = [
    "AttributeValue",
    "RootIds",
    "SpanHandle",
    "current_traceparent",
    "record_span",
    "records_content",
    "set_provider",
    "start_span",
    "use_parent",
]

AttributeValue = str | int | float | bool | Sequence[str]

_RETRY: Final = {semconv.LINK_KIND: semconv.LINK_RETRY_OF}
_KINDS: Final = {kind.name.lower(): kind for kind in SpanKind}
_current: ContextVar[str | None] = ContextVar("sage_traceparent", default=None)
_tracer: Tracer | None = None
_records_content = False


class RootIds(RandomIdGenerator):
    """Generates random ids, except while a root's ids are pinned in this thread."""

    def __init__(self) -> None:
        self._pinned = threading.local()

    def pin(self, ids: tuple[int, int] | None) -> None:
        """Make the next root span of this thread take `(trace id, span id)`; None ends it."""
        self._pinned.ids = ids

    def generate_trace_id(self) -> int:
        """Return the pinned trace id, or a random one."""
        ids: tuple[int, int] | None = getattr(self._pinned, "ids", None)
        return ids[0] if ids is not None else super().generate_trace_id()

    def generate_span_id(self) -> int:
        """Return the pinned span id, or a random one."""
        ids: tuple[int, int] | None = getattr(self._pinned, "ids", None)
        return ids[1] if ids is not None else super().generate_span_id()


_root_ids = RootIds()


def set_provider(provider: TracerProvider | None, *, records_content: bool = False) -> RootIds:
    """Record spans with `provider` from now on; None returns to forwarding only. Called by `configure`."""
    global _tracer, _records_content
    _tracer = None if provider is None else provider.get_tracer("sage", schema_url=semconv.SCHEMA_URL)
    _records_content = provider is not None and records_content
    return _root_ids


def records_content() -> bool:
    """True where prompts and answers may be attributes of spans: `[telemetry] record_content`."""
    return _records_content


def current_traceparent() -> str | None:
    """Return the header that calls made here should carry."""
    return _current.get()


class use_parent:
    """Make `traceparent` the current parent within the `with` block; None means no trace."""

    __slots__ = ("_token", "_traceparent")

    def __init__(self, traceparent: str | None) -> None:
        self._traceparent = traceparent

    def __enter__(self) -> None:
        self._token = _current.set(self._traceparent)

    def __exit__(self, *_: object) -> None:
        _reset(self._token)


class SpanHandle:
    """A running span, or the mere header where nothing is recorded. A context manager; `end` is idempotent.

    Inside `with`, the span is the current parent. An exception that leaves the block marks it failed.
    """

    __slots__ = ("_span", "_token", "traceparent")

    def __init__(self, span: Span | None, traceparent: str | None) -> None:
        self._span = span
        self._token: Token[str | None] | None = None
        self.traceparent = traceparent

    @property
    def is_recording(self) -> bool:
        """False where attributes need not be computed at all."""
        return self._span is not None

    def set(self, key: str, value: AttributeValue) -> None:
        """Set an attribute; names come from `semconv`."""
        if self._span is not None:
            self._span.set_attribute(key, value)

    def event(self, name: str, **attributes: AttributeValue) -> None:
        """Note a moment within the span."""
        if self._span is not None:
            self._span.add_event(name, attributes)

    def fail(self, error: BaseException) -> None:
        """Mark the span failed. Only a bug's traceback is kept: a SageError says all in code and message.

        The message of any other exception may quote what a caller wrote, so it counts as content.
        """
        if self._span is None:
            return
        if isinstance(error, SageError):
            self._span.set_attribute(semconv.ERROR_TYPE, error.code)
            self._span.set_status(Status(StatusCode.ERROR, error.message))
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._span.set_attribute(semconv.ERROR_TYPE, "cancelled")
            self._span.set_status(Status(StatusCode.ERROR, "cancelled"))
        else:
            self._span.set_attribute(semconv.ERROR_TYPE, type(error).__name__)
            self._span.add_event(semconv.EVENT_EXCEPTION, _bug(error))
            self._span.set_status(Status(StatusCode.ERROR, type(error).__name__))

    def end(self, end_ns: int | None = None) -> None:
        """End the span, now or at a time that has passed (Unix ns); leaving the `with` block ends it now."""
        if self._span is not None:
            self._span.end(end_ns)
            self._span = None

    def __enter__(self) -> SpanHandle:
        self._token = _current.set(self.traceparent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            _reset(self._token)
            self._token = None
        if error is not None:
            self.fail(error)
        self.end()


def start_span(
    name: str,
    *,
    parent: str | None = None,
    kind: str = "internal",
    attributes: Mapping[str, AttributeValue] | None = None,
    retry_of: str | None = None,
) -> SpanHandle:
    """Start a span under `parent` (a traceparent), or under the current one where that is None.

    `kind` is internal, server, client, producer or consumer. `retry_of`, the traceparent of an earlier attempt at the
    same thing, becomes a link. Nothing is recorded without a parent, under an unsampled one, or before `configure`;
    the handle then forwards the header.
    """
    if parent is None:
        parent = _current.get()
    if parent is None or _tracer is None or not is_sampled(parent):
        return SpanHandle(None, parent)
    return _recording(name, parent, kind, attributes, retry_of, None)


def record_span(
    name: str,
    *,
    parent: str | None,
    start_ns: int,
    end_ns: int,
    kind: str = "internal",
    attributes: Mapping[str, AttributeValue] | None = None,
    error: BaseException | None = None,
) -> str | None:
    """Record a span that was measured elsewhere (queue wait, prefill, decode); times are Unix nanoseconds.

    It is marked failed where there is an `error`. Returns its traceparent, or `parent` where nothing is recorded.
    """
    if parent is None or _tracer is None or not is_sampled(parent):
        return parent
    handle = _recording(name, str(parent), kind, attributes, None, start_ns)
    if error is not None:
        handle.fail(error)
    handle.end(end_ns)
    return handle.traceparent


def _recording(
    name: str,
    parent: str,
    kind: str,
    attributes: Mapping[str, AttributeValue] | None,
    retry_of: str | None,
    start_ns: int | None,
) -> SpanHandle:
    assert _tracer is not None
    try:
        origin = _span_context(parent)
        links = [] if retry_of is None else [Link(_span_context(retry_of), _RETRY)]
    except ValueError:
        return SpanHandle(None, parent)
    span_kind = _KINDS.get(kind, SpanKind.INTERNAL)
    if isinstance(parent, Root) and not parent.is_taken:
        parent.is_taken = True
        _root_ids.pin((origin.trace_id, origin.span_id))
        try:
            span = _tracer.start_span(name, Context(), span_kind, attributes, links, start_ns)
        finally:
            _root_ids.pin(None)
    else:
        context = set_span_in_context(NonRecordingSpan(origin), Context())
        span = _tracer.start_span(name, context, span_kind, attributes, links, start_ns)
    made = span.get_span_context()
    return SpanHandle(span, f"00-{made.trace_id:032x}-{made.span_id:016x}-01")


def _span_context(traceparent: str) -> SpanContext:
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16) & 1)
    )


def _bug(error: BaseException) -> dict[str, str]:
    """Return what is kept of an exception that nobody expected: lines of code, which hold no values."""
    facts = {
        semconv.EXCEPTION_TYPE: type(error).__name__,
        semconv.EXCEPTION_STACKTRACE: "".join(traceback.format_tb(error.__traceback__)),
    }
    if _records_content:
        facts[semconv.EXCEPTION_MESSAGE] = str(error)
    return facts


def _reset(token: Token[str | None]) -> None:
    # An async generator that is closed by another task leaves its block in that task's context, where there is
    # nothing to restore and the variable refuses the token.
    with contextlib.suppress(ValueError):
        _current.reset(token)
