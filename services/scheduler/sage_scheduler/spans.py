"""What a sampled request's trace says of its scheduler: how long it waited, and its dispatch."""

from __future__ import annotations

import time

from sage_core import SageError
from sage_scheduler.held import Held
from sage_scheduler.outgoing import SendDispatch
from sage_telemetry import describe_message, record_span, semconv
from sage_wire.messages import Dispatch, Submit, WireError

__all__ = ["record_dispatch", "record_shed"]


def record_dispatch(
    item: SendDispatch, subject: str, num_bytes: int, dispatched_at: float, now: float
) -> None:
    """Record the wait in the queue, decision included, and the dispatch, which ends `now` on the desk's clock.

    Both hang under the attempt that was submitted, beside the work itself: that begins when the dispatch has ended.
    """
    dispatch = item.dispatch
    end_ns = time.time_ns()
    dispatched_ns = end_ns - int((now - dispatched_at) * 1e9)
    _record_queue(dispatch, end_ns - int((now - item.submitted_at) * 1e9), dispatched_ns)
    record_span(
        semconv.SPAN_DISPATCH,
        parent=dispatch.traceparent,
        start_ns=dispatched_ns,
        end_ns=end_ns,
        kind="producer",
        attributes={
            **describe_message(semconv.SPAN_DISPATCH, semconv.OPERATION_TYPE_SEND, subject),
            semconv.MESSAGING_MESSAGE_ID: f"{dispatch.request_id}/{dispatch.attempt}",
            semconv.MESSAGING_MESSAGE_BODY_SIZE: num_bytes,
            semconv.REQUEST_ID: dispatch.request_id,
            semconv.ATTEMPT: dispatch.attempt,
            semconv.POOL: dispatch.pool,
            semconv.WORKER_ID: item.worker_id,
        },
    )


def record_shed(held: Held, error: WireError, now: float) -> None:
    """Record the wait of a request that ends `now` with `error`, as no worker took it."""
    end_ns = time.time_ns()
    _record_queue(held.submit, end_ns - int((now - held.since) * 1e9), end_ns, error.raised())


def _record_queue(
    request: Submit | Dispatch, start_ns: int, end_ns: int, error: SageError | None = None
) -> None:
    record_span(
        semconv.SPAN_QUEUE,
        parent=request.traceparent,
        start_ns=start_ns,
        end_ns=end_ns,
        attributes={
            semconv.REQUEST_ID: request.request_id,
            semconv.ATTEMPT: request.attempt,
            semconv.POOL: request.pool,
            semconv.SLO_CLASS: request.slo_class,
            semconv.TENANT: request.tenant,
        },
        error=error,
    )
