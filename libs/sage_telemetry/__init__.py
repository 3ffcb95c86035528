"""Logs, metrics and traces of one process. Before `configure`, trace headers are forwarded and nothing is kept."""

from sage_telemetry import metrics, semconv
from sage_telemetry.logs import get_logger
from sage_telemetry.telemetry import Telemetry, configure
from sage_telemetry.traceparent import is_sampled, new_root
from sage_telemetry.tracing import (
    AttributeValue,
    SpanHandle,
    current_traceparent,
    record_span,
    records_content,
    start_span,
    use_parent,
)
from sage_telemetry.works import describe_answer, describe_message, describe_work

__all__ = [
    "AttributeValue",
    "SpanHandle",
    "Telemetry",
    "configure",
    "current_traceparent",
    "describe_answer",
    "describe_message",
    "describe_work",
    "get_logger",
    "is_sampled",
    "metrics",
    "new_root",
    "record_span",
    "records_content",
    "semconv",
    "start_span",
    "use_parent",
]
