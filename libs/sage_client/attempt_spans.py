"""One span per attempt at a traced request, from its submit to its end: what is done for the attempt hangs under it.

It is recorded here, at the consumer, so that an attempt whose worker was killed is in the trace all the same. The next
attempt links to it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sage_core import SageError
from sage_telemetry import SpanHandle, describe_message, describe_work, semconv, start_span
from sage_wire import subjects
from sage_wire.messages import Work

if TYPE_CHECKING:
    from sage_client.open_request import OpenRequest

__all__ = ["AttemptSpan", "begin_attempt", "end_attempt"]


class AttemptSpan:
    """The span of attempt `attempt`."""

    __slots__ = ("attempt", "handle")

    def __init__(self, attempt: int, handle: SpanHandle) -> None:
        self.attempt = attempt
        self.handle = handle


def begin_attempt(request: OpenRequest, attempt: int, work: Work, now: float) -> str | None:
    """Return the traceparent that `attempt` of a sampled request travels with; its span is begun on the first call.

    The span of the attempt before ends, with the time and the reason for which it was given up.
    """
    earlier = request.span
    if earlier is not None and earlier.attempt == attempt:
        earlier.handle.event(semconv.EVENT_SUBMITTED_AGAIN)
        return earlier.handle.traceparent
    retry_of = None if earlier is None else earlier.handle.traceparent
    end_attempt(request, None, now)
    handle = start_span(
        f"{semconv.SPAN_SUBMIT} {request.pool}",
        parent=request.terms.traceparent,
        kind="client",
        retry_of=retry_of,
    )
    if handle.is_recording:
        subject = subjects.pool_submit(request.pool)
        attributes = {
            **describe_work(work),
            **describe_message(semconv.SPAN_SUBMIT, semconv.OPERATION_TYPE_SEND, subject),
            semconv.REQUEST_ID: request.request_id,
            semconv.ATTEMPT: attempt,
            semconv.POOL: request.pool,
        }
        for name, value in attributes.items():
            handle.set(name, value)
        request.span = AttemptSpan(attempt, handle)
    return handle.traceparent


def end_attempt(request: OpenRequest, error: SageError | None, now: float) -> None:
    """End the request's open span, failed with `error`, or with why its attempt was given up. Idempotent."""
    span, request.span = request.span, None
    if span is None:
        return
    state, end_ns, worker_id = request.state, None, request.state.worker_id
    if state.given_up is not None and span.attempt < state.attempt:
        error, worker_id = state.given_up.error, state.given_up.worker_id
        end_ns = time.time_ns() - int((now - state.given_up.at) * 1e9)
    if worker_id is not None:
        span.handle.set(semconv.WORKER_ID, worker_id)
    if error is not None:
        span.handle.fail(error)
    span.handle.end(end_ns)
