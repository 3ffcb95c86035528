"""Spans: parentage by header, nothing recorded where nothing was asked for, costs that allow leaving it on."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import sys
import time
from collections.abc import AsyncIterator
from types import FrameType
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from sage_core import NotFound
from sage_telemetry import (
    SpanHandle,
    current_traceparent,
    is_sampled,
    new_root,
    record_span,
    semconv,
    start_span,
    use_parent,
)

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = SAMPLED[:-2] + "00"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def test_a_child_carries_its_parents_trace_and_names_it(configured: Any) -> None:
    telemetry = configured()
    with start_span("outer", parent=SAMPLED, kind="server") as outer:
        assert current_traceparent() == outer.traceparent
        with start_span("inner", attributes={semconv.POOL: "m"}) as inner:
            inner.set(semconv.ATTEMPT, 2)
    assert current_traceparent() is None
    spans = {span.name: span for span in telemetry.recent.find(TRACE_ID)}
    assert spans["outer"].parent_id == "b7ad6b7169203331"
    assert spans["inner"].parent_id == spans["outer"].span_id
    assert spans["inner"].attributes == {semconv.POOL: "m", semconv.ATTEMPT: 2}
    assert spans["inner"].service == "sage-test"
    assert outer.traceparent == f"00-{TRACE_ID}-{spans['outer'].span_id}-01"
    assert (
        spans["outer"].start_ns <= spans["inner"].start_ns <= spans["inner"].end_ns <= spans["outer"].end_ns
    )


@pytest.mark.parametrize("parent", [UNSAMPLED, "garbage", "00-zz-yy-01", "0" * 54 + "1"])
def test_an_unsampled_or_malformed_parent_is_forwarded_and_nothing_is_recorded(
    configured: Any, parent: str
) -> None:
    telemetry = configured()
    with start_span("outer", parent=parent) as outer, start_span("inner") as inner:
        inner.set("key", 1)
        inner.event("something")
        inner.fail(ValueError())
        assert not inner.is_recording
        assert outer.traceparent == inner.traceparent == current_traceparent() == parent
    assert record_span("measured", parent=parent, start_ns=1, end_ns=2) == parent
    assert len(telemetry.recent) == 0


def test_without_a_parent_nothing_is_recorded(configured: Any) -> None:
    telemetry = configured()
    with start_span("alone") as span:
        assert span.traceparent is None
    assert len(telemetry.recent) == 0


def test_before_configure_headers_are_forwarded() -> None:
    with start_span("outer", parent=SAMPLED) as span:
        assert span.traceparent == SAMPLED
        assert current_traceparent() == SAMPLED
    assert record_span("measured", parent=SAMPLED, start_ns=1, end_ns=2) == SAMPLED


def test_the_first_span_under_a_new_root_is_the_root(configured: Any) -> None:
    telemetry = configured()
    root = new_root(1.0)
    with start_span("request", parent=root) as span, start_span("child"):
        assert span.traceparent == root
    with start_span("second", parent=root):
        pass
    spans = {one.name: one for one in telemetry.recent.find(root[3:35])}
    assert spans["request"].parent_id is None
    assert spans["child"].parent_id == spans["second"].parent_id == spans["request"].span_id == root[36:52]


def test_the_share_of_sampled_roots_is_the_ratio() -> None:
    assert all(is_sampled(new_root(1.0)) for _ in range(100))
    assert not any(is_sampled(new_root(0.0)) for _ in range(100))
    assert 400 < sum(is_sampled(new_root(0.5)) for _ in range(1000)) < 600
    assert len({new_root(1.0)[3:35] for _ in range(1000)}) == 1000


def test_spans_measured_elsewhere_keep_their_times(configured: Any) -> None:
    telemetry = configured()
    made = record_span(
        "queue", parent=SAMPLED, start_ns=1_000, end_ns=4_000, attributes={semconv.QUEUE_MS: 3.0}
    )
    (span,) = telemetry.recent.find(TRACE_ID)
    assert (span.start_ns, span.end_ns, span.attributes) == (1_000, 4_000, {semconv.QUEUE_MS: 3.0})
    assert made == f"00-{TRACE_ID}-{span.span_id}-01"


def test_an_exception_marks_the_span_failed_with_its_code_and_is_raised(configured: Any) -> None:
    telemetry = configured()
    with pytest.raises(NotFound), start_span("lookup", parent=SAMPLED):
        raise NotFound("no such model")
    with pytest.raises(asyncio.CancelledError), start_span("wait", parent=SAMPLED):
        raise asyncio.CancelledError
    found = {span.name: span for span in telemetry.recent.find(TRACE_ID)}
    assert found["lookup"].is_error
    assert found["lookup"].attributes[semconv.ERROR_TYPE] == "not_found"
    assert found["wait"].attributes[semconv.ERROR_TYPE] == "cancelled"


def test_use_parent_ends_with_its_block(configured: Any) -> None:
    with use_parent(SAMPLED):
        assert current_traceparent() == SAMPLED
        with use_parent(None):
            assert current_traceparent() is None
        assert current_traceparent() == SAMPLED
    assert current_traceparent() is None


async def test_a_stream_closed_from_another_context_still_ends_its_span(configured: Any) -> None:
    telemetry = configured()

    async def stream() -> AsyncIterator[int]:
        with start_span("stream", parent=SAMPLED):
            yield 1
            yield 2

    one = stream()
    await asyncio.create_task(anext(one), context=contextvars.copy_context())  # type: ignore[arg-type]
    await asyncio.create_task(one.aclose(), context=contextvars.Context())  # type: ignore[attr-defined]
    assert [span.name for span in telemetry.recent.find(TRACE_ID)] == ["stream"]


def test_the_ring_keeps_the_newest_spans_only(configured: Any) -> None:
    telemetry = configured(recent_spans=3)
    for number in range(5):
        record_span(str(number), parent=SAMPLED, start_ns=number, end_ns=number + 1)
    assert [span.name for span in telemetry.recent.find(TRACE_ID)] == ["2", "3", "4"]
    assert telemetry.recent.find("f" * 32) == telemetry.recent.find("no hex") == []


def test_spans_are_found_by_the_request_they_name(configured: Any) -> None:
    telemetry = configured()
    for request_id in ("chat-1", "chat-12"):
        attributes = {semconv.REQUEST_ID: request_id}
        record_span(request_id, parent=SAMPLED, start_ns=1, end_ns=2, attributes=attributes)
    assert [span.name for span in telemetry.recent.find_request("chat-1")] == ["chat-1"]
    assert telemetry.recent.find_request("chat") == telemetry.recent.find_request("") == []


def test_an_unsampled_parent_runs_no_code_of_the_sdk_and_allocates_one_object(configured: Any) -> None:
    configured()

    def use(parent: str) -> None:
        with start_span("x", parent=parent) as span:
            span.set("key", 1)
        record_span("y", parent=parent, start_ns=1, end_ns=2)

    def num_sdk_calls(parent: str) -> int:
        num_calls = 0

        def count(frame: FrameType, event: str, _: object) -> None:
            nonlocal num_calls
            if event == "call" and f"{os.sep}opentelemetry{os.sep}" in frame.f_code.co_filename:
                num_calls += 1

        sys.setprofile(count)
        try:
            use(parent)
        finally:
            sys.setprofile(None)
        return num_calls

    assert num_sdk_calls(UNSAMPLED) == 0
    assert num_sdk_calls(SAMPLED) > 10  # the same count of what a sampled one costs

    gc.collect()
    gc.disable()
    try:
        held = [start_span("x", parent=UNSAMPLED) for _ in range(100)]
        made = [found for found in gc.get_objects(0) if type(found).__module__.startswith("opentelemetry")]
    finally:
        gc.enable()
    assert made == []
    assert {type(handle) for handle in held} == {SpanHandle}


def test_a_retry_links_to_the_attempt_before_it(configured: Any) -> None:
    telemetry = configured()
    with start_span("first", parent=SAMPLED) as first:
        pass
    with start_span("second", parent=SAMPLED, retry_of=first.traceparent):
        pass
    spans = {span.name: span for span in telemetry.recent.find(TRACE_ID)}
    assert spans["second"].links == [f"{TRACE_ID}-{spans['first'].span_id}"]
    assert spans["first"].links == []


def test_a_span_keeps_its_kind_and_may_end_in_the_past(configured: Any) -> None:
    telemetry = configured()
    span = start_span("sent", parent=SAMPLED, kind="producer")
    before = time.time_ns()
    span.end(before)
    span.end()
    (found,) = telemetry.recent.find(TRACE_ID)
    assert (found.kind, found.end_ns) == ("producer", before)


@pytest.mark.parametrize("record_content", [False, True])
def test_of_a_bug_the_lines_are_kept_and_its_message_only_with_content(
    configured: Any, record_content: bool
) -> None:
    seen: list[ReadableSpan] = []

    class Keep(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            seen.append(span)

    telemetry = configured(record_content=record_content)
    telemetry._provider.add_span_processor(Keep())
    with pytest.raises(ValueError, match="grandmother"), start_span("parse", parent=SAMPLED):
        raise ValueError("cannot read 'my grandmother's recipe'")
    (span,) = seen
    (event,) = span.events
    attributes = dict(event.attributes or {})
    assert attributes[semconv.EXCEPTION_TYPE] == span.status.description == "ValueError"
    assert "test_tracing.py" in str(attributes[semconv.EXCEPTION_STACKTRACE])
    # The line of code that is quoted is this test's own, and holds the text: so look for what was put together.
    assert (semconv.EXCEPTION_MESSAGE in attributes) is record_content
