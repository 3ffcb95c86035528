"""What a sampled request's trace says of its scheduler: how long it waited, and its dispatch."""

from __future__ import annotations

import time

from sage_scheduler.held import Held
from sage_scheduler.outgoing import SendDispatch
from sage_telemetry import record_span, semconv
from sage_wire.messages import WireError

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
    record_span(
        semconv.SPAN_QUEUE,
        parent=dispatch.traceparent,
        start_ns=end_ns - int((now - item.submitted_at) * 1e9),
        end_ns=dispatched_ns,
        attributes={
            semconv.REQUEST_ID: dispatch.request_id,
            semconv.ATTEMPT: dispatch.attempt,
            semconv.POOL: dispatch.pool,
            semconv.SLO_CLASS: dispatch.slo_class,
            semconv.TENANT: dispatch.tenant,
        },
    )
    record_span(
        semconv.SPAN_DISPATCH,
        parent=dispatch.traceparent,
        start_ns=dispatched_ns,
        end_ns=end_ns,
        kind="producer",
        attributes={
            semconv.MESSAGING_SYSTEM: semconv.MESSAGING_SYSTEM_NATS,
            semconv.MESSAGING_OPERATION_NAME: semconv.SPAN_DISPATCH,
            semconv.MESSAGING_OPERATION_TYPE: semconv.OPERATION_TYPE_SEND,
            semconv.MESSAGING_DESTINATION_NAME: subject,
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
    submit = held.submit
    end_ns = time.time_ns()
    record_span(
        semconv.SPAN_QUEUE,
        parent=submit.traceparent,
        start_ns=end_ns - int((now - held.since) * 1e9),
        end_ns=end_ns,
        attributes={
            semconv.REQUEST_ID: submit.request_id,
            semconv.ATTEMPT: submit.attempt,
            semconv.POOL: submit.pool,
            semconv.SLO_CLASS: submit.slo_class,
            semconv.TENANT: submit.tenant,
        },
        error=error.raised(),
    )
