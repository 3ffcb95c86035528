"""The scheduling seam: `Policy.handle(event, now) -> commands`. Live and simulated drivers run the same object.

A policy has no clock, no IO and no asyncio; randomness comes from its own seeded generator. `now` is in seconds
on the driver's monotonic clock and never goes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "Abort",
    "Cancelled",
    "Candidate",
    "Command",
    "Decision",
    "Dispatch",
    "Event",
    "Finished",
    "FirstToken",
    "Instance",
    "InstanceDown",
    "InstanceUp",
    "Policy",
    "SetTimer",
    "Shed",
    "Started",
    "Submitted",
    "Timer",
]


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request arrived. `deadline` is absolute on the driver's clock. `key` is unique: request id and attempt."""

    key: str
    pool: str
    deadline: float
    num_items: int = 1
    num_chars: int = 0
    max_tokens: int = 0
    tenant: str = "default"
    slo_class: str = "interactive"
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """The instance confirmed a dispatch."""

    key: str


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The instance produced its first output for the request."""

    key: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The request left its instance: completed, failed or aborted there."""

    key: str
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The caller no longer wants the request, wherever it is."""

    key: str


@dataclass(frozen=True, slots=True)
class Instance:
    """A worker's slot count for one pool. `in_flight` holds keys it already runs, after a scheduler restart."""

    instance_id: str
    pool: str
    max_in_flight: int
    in_flight: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InstanceUp:
    """An instance is ready for a pool, or changed its limits. Idempotent."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class InstanceDown:
    """An instance takes no more work for a pool. `is_lost`: what it ran is gone too; else it is draining."""

    instance_id: str
    pool: str
    is_lost: bool


@dataclass(frozen=True, slots=True)
class Timer:
    """The time asked for by `SetTimer` has come."""


Event = Submitted | Started | FirstToken | Finished | Cancelled | InstanceUp | InstanceDown | Timer


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instance that was considered. Lower score wins; a non-empty reason says why it could not be used."""

    instance_id: str
    score: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a command was given; becomes the receipt."""

    reason: str
    queue_seconds: float
    num_queued: int
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Start `key` on `instance_id` now."""

    key: str
    instance_id: str
    decision: Decision


@dataclass(frozen=True, slots=True)
class Shed:
    """Refuse `key`. `code` is a `SageError` code: overloaded, deadline_exceeded, worker_lost, cancelled …"""

    key: str
    code: str
    retry_after: float | None
    decision: Decision


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop `key` on `instance_id`."""

    key: str
    instance_id: str
    decision: Decision


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Send `Timer` at `at`; replaces any earlier timer of this policy."""

    at: float


Command = Dispatch | Shed | Abort | SetTimer


class Policy(Protocol):
    """One pool's scheduling. Deterministic: the same events at the same times give the same commands."""

    name: str

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event; return what must happen, in order. Unknown keys and instances are ignored."""
        ...
