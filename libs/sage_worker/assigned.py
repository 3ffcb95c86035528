"""One attempt that a worker holds: what it is asked to do, and how far it is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from sage_core import Budget
from sage_wire.messages import Targets, Work
from sage_worker.formed_batches import FormedBatch
from sage_worker.frame_writer import Outlet
from sage_worker.ledger import Key
from sage_worker.perform_trace import PerformTrace

__all__ = ["Assigned", "Held"]


@dataclass(frozen=True, slots=True)
class Assigned:
    """What `Worker.perform` gets. `queue_ms` is how long the scheduler held it, on the scheduler's clock.

    `traceparent` is the span of this attempt; calls made from `perform` carry it by themselves. `targets` count from
    now. `batch`: what the scheduler wants to be computed together.
    """

    request_id: str
    attempt: int
    pool: str
    work: Work
    tenant: str
    priority: int
    budget: Budget
    traceparent: str | None
    queue_ms: float
    slo_class: str = "interactive"
    targets: Targets = field(default_factory=Targets)
    batch: FormedBatch | None = None


@dataclass(slots=True, eq=False)
class Held:
    """The worker's own record of an attempt, from its dispatch to its last event.

    `due_at` and `queued_at` are kept by the alarm that ends it with its budget. `trace` is None unless it is sampled.
    """

    key: Key
    assigned: Assigned
    outlet: Outlet
    started: float
    num_tokens: int = 0
    num_cached: int = 0
    has_token: bool = False
    cancel_reason: str | None = None
    is_expired: bool = False
    due_at: float | None = None
    queued_at: float | None = None
    task: asyncio.Task[None] | None = None
    trace: PerformTrace | None = None

    @property
    def is_finished(self) -> bool:
        """True once its last event was sent."""
        return self.outlet.is_ended

    def expire(self) -> None:
        """Stop it: its budget is spent. Idempotent."""
        if self.cancel_reason is None and not self.is_expired:
            self.is_expired = True
            if self.task is not None:
                self.task.cancel()

    def cancel(self, reason: str) -> None:
        """Stop it; the slot is free when its task has ended. Idempotent."""
        if self.cancel_reason is None and not self.is_expired:
            self.cancel_reason = reason
            if self.task is not None:
                self.task.cancel()
