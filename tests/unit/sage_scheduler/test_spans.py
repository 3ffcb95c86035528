"""A sampled dispatch: the wait ends where the dispatch begins, both under the attempt that was submitted."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import pytest

from sage_core import Overloaded
from sage_scheduler.held import Held
from sage_scheduler.outgoing import SendDispatch
from sage_scheduler.spans import record_dispatch, record_shed
from sage_telemetry import Telemetry
from sage_wire.messages import Dispatch, Submit, WireError
from span_recording import SAMPLED, TRACE_ID, UNSAMPLED, recording


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    with recording() as made:
        yield made


def sent(traceparent: str) -> SendDispatch:
    dispatch = Dispatch(
        request_id="r", attempt=1, pool="p", reply_to="sage.v1.frames.c", work=msgspec.Raw(b"\x80"), tenant="me",
        slo_class="batch", traceparent=traceparent,
    )  # fmt: skip
    return SendDispatch("w1", dispatch, 100.0)


def test_the_wait_and_the_dispatch_follow_one_another(telemetry: Telemetry) -> None:
    before = time.time_ns()
    record_dispatch(sent(SAMPLED), "sage.v1.worker.w1.dispatch", 77, 100.25, 100.26)
    after = time.time_ns()
    spans = {span.name: span for span in telemetry.recent.find(TRACE_ID)}
    queue, dispatch = spans["queue"], spans["dispatch"]
    assert queue.parent_id == dispatch.parent_id == SAMPLED[36:52]
    assert before <= dispatch.end_ns <= after
    assert queue.end_ns == dispatch.start_ns
    assert (queue.end_ns - queue.start_ns) / 1e6 == pytest.approx(250, abs=0.001)
    assert (dispatch.end_ns - dispatch.start_ns) / 1e6 == pytest.approx(10, abs=0.001)
    assert (queue.kind, dispatch.kind) == ("internal", "producer")
    assert queue.attributes["sage.slo_class"] == "batch"
    assert dispatch.attributes["messaging.message.body.size"] == 77
    assert dispatch.attributes["messaging.message.id"] == "r/1"
    assert dispatch.attributes["sage.worker.id"] == "w1"


def test_a_request_that_no_worker_took_has_its_wait_with_the_reason(telemetry: Telemetry) -> None:
    submit = Submit(
        request_id="r", attempt=0, pool="p", reply_to="sage.v1.frames.c", work=msgspec.Raw(b"\x80"), traceparent=SAMPLED
    )  # fmt: skip
    error = WireError.of(Overloaded("too late", retry_after=1.0))
    record_shed(Held(submit, deadline=110.0, since=100.0), error, 102.0)
    (queue,) = telemetry.recent.find(TRACE_ID)
    assert (queue.name, queue.is_error, queue.attributes["error.type"]) == ("queue", True, "overloaded")
    assert (queue.end_ns - queue.start_ns) / 1e9 == pytest.approx(2.0, abs=0.001)


def test_an_unsampled_dispatch_records_nothing(telemetry: Telemetry) -> None:
    record_dispatch(sent(UNSAMPLED), "sage.v1.worker.w1.dispatch", 77, 100.25, 100.26)
    assert len(telemetry.recent) == 0
