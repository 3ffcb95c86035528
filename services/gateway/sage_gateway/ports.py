"""What the gateway needs of the world below it: somewhere to submit work. `sage_client.RequestPort` is one."""

from __future__ import annotations

from typing import Protocol

from sage_core import Budget
from sage_wire.messages import Event, Targets, Work

__all__ = ["Stream", "SubmitPort"]


class Stream(Protocol):
    """The events of one request, read by one task."""

    async def next_batch(self) -> list[Event]:
        """Return every pending event, never none; raises the request's SageError."""
        ...

    def cancel(self, reason: str = ...) -> None:
        """End the request wherever it is; its reader gets Cancelled. Idempotent; no effect after the end."""
        ...


class SubmitPort(Protocol):
    """Takes work for a pool."""

    def submit(
        self,
        pool: str,
        work: Work,
        *,
        budget: Budget | float,
        request_id: str | None = None,
        tenant: str = "default",
        slo_class: str = "interactive",
        targets: Targets = ...,
        route: str = "",
        traceparent: str | None = None,
    ) -> Stream:
        """Submit at once; never waits."""
        ...
