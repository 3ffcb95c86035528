"""What the gateway needs of the world below it: somewhere to submit work. `sage_client.RequestPort` is one."""

from __future__ import annotations

from typing import Protocol

from sage_client import RequestSink
from sage_core import Budget
from sage_wire.messages import Targets, Work

__all__ = ["OpenWork", "WorkPort"]


class OpenWork(Protocol):
    """One work on its way."""

    @property
    def worker_id(self) -> str | None:
        """Who runs it; None until it started."""
        ...

    def cancel(self, reason: str = ...) -> None:
        """End it wherever it is; its sink gets `finish(Cancelled)`. Idempotent; no effect after the end."""
        ...


class WorkPort(Protocol):
    """Takes work for a pool."""

    def open(
        self,
        pool: str,
        work: Work,
        sink: RequestSink,
        *,
        budget: Budget | float,
        request_id: str | None = None,
        tenant: str = "default",
        slo_class: str = "interactive",
        targets: Targets = ...,
        route: str = "",
        traceparent: str | None = None,
    ) -> OpenWork:
        """Submit at once; never waits, and never calls `sink` before it has returned."""
        ...
