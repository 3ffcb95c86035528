"""One request that is open at a port: who takes what comes of it, how it is submitted, how it is cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from sage_client.attempt_spans import AttemptSpan
from sage_client.request_state import RequestState
from sage_core import SageError
from sage_wire.messages import Event, Targets

__all__ = ["OpenRequest", "RequestSink", "Terms"]

_CANCELLED_BY_CALLER: Final = "cancelled by the caller"


class RequestSink(Protocol):
    """Takes what comes of one request. Called from the event loop, never from within `RequestPort.open`.

    Both calls must return at once. What they raise is logged as a bug, and cancels this request alone.
    """

    def deliver(self, events: list[Event]) -> None:
        """Take what one frame brought for this request, in order; never an empty list. `Completed` comes last."""
        ...

    def finish(self, error: SageError | None) -> None:
        """Take the end: exactly once and last, None after `Completed`."""
        ...


class Terms(msgspec.Struct, frozen=True, gc=False):
    """On whose behalf and on which promises a request is submitted; the same for all its attempts."""

    tenant: str
    slo_class: str
    priority: int
    targets: Targets
    route: str
    traceparent: str | None


class OpenRequest:
    """A request from `RequestPort.open` to its end; see there. `is_finished` from the moment the end is known."""

    __slots__ = (
        "_on_cancel",
        "due_at",
        "is_finished",
        "noted_worker",
        "opened_at",
        "pending",
        "pool",
        "queued_at",
        "request_id",
        "sink",
        "span",
        "state",
        "terms",
    )

    def __init__(
        self,
        request_id: str,
        pool: str,
        state: RequestState,
        sink: RequestSink,
        terms: Terms,
        opened_at: float,
        on_cancel: Callable[[OpenRequest, str], None],
    ) -> None:
        """The port keeps its own notes in `pending`, `due_at`, `queued_at`, `noted_worker` and `span`."""
        self.request_id = request_id
        self.pool = pool
        self.state = state
        self.sink = sink
        self.terms = terms
        self.opened_at = opened_at
        self.is_finished = False
        self.pending: list[Event] = []
        self.due_at: float | None = None
        self.queued_at: float | None = None
        self.noted_worker: str | None = None
        self.span: AttemptSpan | None = None
        self._on_cancel = on_cancel

    @property
    def attempt(self) -> int:
        """The current attempt, from 0."""
        return self.state.attempt

    @property
    def worker_id(self) -> str | None:
        """Who runs the current attempt; None until it started."""
        return self.state.worker_id

    @property
    def queue_ms(self) -> float:
        """How long the attempt that started last had waited at the scheduler."""
        return self.state.queue_ms

    def cancel(self, reason: str = _CANCELLED_BY_CALLER) -> None:
        """End the request wherever it is; its sink gets `finish(Cancelled)` before this returns.

        Idempotent; no effect after the end.
        """
        if not self.is_finished:
            self._on_cancel(self, reason)
