"""The spans of a sampled attempt at its worker: the work itself, and of generated text its prefill and its decoding."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sage_core import SageError
from sage_telemetry import (
    AttributeValue,
    describe_answer,
    describe_message,
    describe_work,
    record_span,
    records_content,
    semconv,
    start_span,
)
from sage_telemetry.works import MAX_CONTENT_CHARS
from sage_wire import subjects
from sage_wire.messages import Completed, Generate, Tokens

if TYPE_CHECKING:
    from sage_worker.assigned import Assigned

__all__ = ["PerformTrace"]


class PerformTrace:
    """Begins with the work; ends with `complete`, `fail`, or where its `span` is left as a context manager.

    It is made once an attempt is known to be sampled. Prefill lasts until the first token is here, so it holds what
    the engine made the request wait; decoding, from there to the last event.
    """

    __slots__ = ("_first_token_ns", "_is_generate", "_num_chars", "_started_ns", "_texts", "span")

    def __init__(self, assigned: Assigned, worker_id: str) -> None:
        subject = subjects.worker_dispatch(worker_id)
        attributes: dict[str, AttributeValue] = {
            **describe_message(semconv.SPAN_PERFORM, semconv.OPERATION_TYPE_PROCESS, subject),
            semconv.MESSAGING_MESSAGE_ID: f"{assigned.request_id}/{assigned.attempt}",
            semconv.REQUEST_ID: assigned.request_id,
            semconv.ATTEMPT: assigned.attempt,
            semconv.POOL: assigned.pool,
            semconv.WORKER_ID: worker_id,
            semconv.QUEUE_MS: assigned.queue_ms,
        }
        attributes |= describe_work(assigned.work)
        self.span = start_span(
            semconv.SPAN_PERFORM, parent=assigned.traceparent, kind="consumer", attributes=attributes
        )
        self._started_ns = time.time_ns()
        self._is_generate = isinstance(assigned.work, Generate)
        self._first_token_ns: int | None = None
        self._texts: list[str] | None = [] if self._is_generate and records_content() else None
        self._num_chars = 0

    def note(self, tokens: Tokens) -> None:
        """Take note of generated text."""
        if self._first_token_ns is None:
            self._first_token_ns = time.time_ns()
        if self._texts is not None and self._num_chars < MAX_CONTENT_CHARS:
            self._texts.append(tokens.text)
            self._num_chars += len(tokens.text)

    def complete(self, completed: Completed) -> None:
        """End the spans before the consumer hears of the end: its own span holds this one."""
        usage, span = completed.usage, self.span
        if self._is_generate:
            span.set(semconv.GEN_AI_USAGE_OUTPUT_TOKENS, usage.completion_tokens)
            span.set(semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, usage.cached_tokens)
            span.set(semconv.GEN_AI_RESPONSE_FINISH_REASONS, [completed.finish_reason])
        if usage.prompt_tokens:
            span.set(semconv.GEN_AI_USAGE_INPUT_TOKENS, usage.prompt_tokens)
        self._end(completed.finish_reason)

    def fail(self, error: SageError) -> None:
        """End the spans, that of the work failed with `error`. Idempotent; no effect after `complete`."""
        self.span.fail(error)
        self._end("error")

    def _end(self, finish_reason: str) -> None:
        if not self.span.is_recording:
            return
        end_ns, first_ns = time.time_ns(), self._first_token_ns
        if self._is_generate:
            parent = self.span.traceparent
            record_span(
                semconv.SPAN_PREFILL, parent=parent, start_ns=self._started_ns, end_ns=first_ns or end_ns
            )
            if first_ns is not None:
                record_span(semconv.SPAN_DECODE, parent=parent, start_ns=first_ns, end_ns=end_ns)
        if self._texts is not None:
            for name, value in describe_answer("".join(self._texts), finish_reason).items():
                self.span.set(name, value)
        self.span.end(end_ns)
