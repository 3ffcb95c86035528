"""The scheduling seam: `Policy.handle(event, now) -> commands`. Live and simulated drivers run the same object.

A policy has no clock, no IO and no asyncio; randomness comes from its own seeded generator. `now` is in seconds
on the driver's monotonic clock and never goes back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import nan
from typing import Final, Protocol

import msgspec

__all__ = [
    "RECONCILE_AFTER",
    "UNLISTED_AFTER",
    "Abort",
    "Cancelled",
    "Candidate",
    "Command",
    "Decision",
    "Dispatch",
    "EngineProfile",
    "Event",
    "Finished",
    "FirstToken",
    "Instance",
    "InstanceDown",
    "InstanceUp",
    "Policy",
    "PoolClosed",
    "Progressed",
    "ScaleHint",
    "SetTimer",
    "Shed",
    "Started",
    "Submitted",
    "Telemetry",
    "Timer",
]

RECONCILE_AFTER: Final = 3.0
"""Seconds after which a dispatch that its instance does not list counts as lost, on its way there or back."""

UNLISTED_AFTER: Final = 1.0
"""Seconds for which it must have been missing: the last report of a request may be behind the announcement."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request arrived. `key` is unique: request id and attempt.

    `deadline` is absolute on the driver's clock. The targets (`*_slo`) are seconds, None: the class's own; their clock
    started `started_ago` seconds before this event, when the pipeline did that the request belongs to.
    `downstream_seconds` of work follow it there before the target is met. `blocks` are chained hashes of the prompt's
    leading blocks of `Instance.prefix_block` tokens. `route` is what output lengths are learned by.
    """

    key: str
    pool: str
    deadline: float
    num_items: int = 1
    num_chars: int = 0
    max_tokens: int = 0
    tenant: str = "default"
    slo_class: str = "interactive"
    priority: int = 0
    num_prompt_tokens: int = 0
    ttft_slo: float | None = None
    tpot_slo: float | None = None
    e2e_slo: float | None = None
    started_ago: float = 0.0
    downstream_seconds: float = 0.0
    blocks: tuple[int, ...] = ()
    route: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The instance confirmed a dispatch."""

    key: str


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The instance produced its first output for the request; `num_cached` prompt tokens were not computed again."""

    key: str
    num_cached: int = 0


@dataclass(frozen=True, slots=True)
class Progressed:
    """The request has `num_tokens` output tokens by now."""

    key: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The request left its instance: completed, failed or aborted there."""

    key: str
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The caller no longer wants the request, wherever it is."""

    key: str


class EngineProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Step times and limits of one engine on one kind of hardware; the formula is in native/include/sage/step_cost.hpp.

    Coefficients are seconds per unit; limits are the engine's own.
    """

    description: str = ""
    a0: float = 0.0
    a1: float = 0.0
    a2: float = 0.0
    m0: float = 0.0
    m1: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0
    host: float = 0.0
    max_sequences: int = 256
    max_step_tokens: int = 2048
    max_context: int = 32768
    kv_tokens: int = 1_000_000
    block_tokens: int = 16
    watermark: float = 0.0
    async_scheduling: bool = True

    @property
    def is_instant(self) -> bool:
        """True where no step takes any time, or where nothing is known of it."""
        return not any((self.a0, self.a1, self.a2, self.m0, self.m1, self.m2, self.m3, self.m4, self.host))


@dataclass(frozen=True, slots=True)
class Instance:
    """A worker's capacity for one pool.

    `in_flight` holds keys it already runs, after a scheduler restart. Instances on one `device` slow each other down.
    `is_batched`: it runs whole batches (embed, rerank, operators), not token by token.
    """

    instance_id: str
    pool: str
    max_in_flight: int
    in_flight: tuple[str, ...] = ()
    is_batched: bool = False
    is_gpu: bool = True
    device: str = ""
    usd_per_hour: float = 0.0
    prefix_block: int = 512
    profile: EngineProfile = field(default_factory=EngineProfile)


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
class Telemetry:
    """What the engine says of itself; it corrects, it never decides. `kv_used` is a share, 0..1."""

    instance_id: str
    pool: str
    num_running: int
    num_waiting: int
    kv_used: float


@dataclass(frozen=True, slots=True)
class PoolClosed:
    """Another scheduler leads the pool now: forget it, command nothing."""

    pool: str


@dataclass(frozen=True, slots=True)
class Timer:
    """The time asked for by `SetTimer` has come."""


Event = (
    Submitted
    | Started
    | FirstToken
    | Progressed
    | Finished
    | Cancelled
    | InstanceUp
    | InstanceDown
    | Telemetry
    | PoolClosed
    | Timer
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instance that was considered. Lower score wins; a non-empty reason says why it could not be used."""

    instance_id: str
    score: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a command was given; becomes the receipt. Predictions are seconds from now, NaN where none was made."""

    reason: str
    queue_seconds: float
    num_queued: int
    candidates: tuple[Candidate, ...] = ()
    predicted_ttft: float = nan
    predicted_tpot: float = nan
    predicted_e2e: float = nan


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Start `key` on `instance_id` now. Dispatches with one non-zero `batch` form one batch and follow each other."""

    key: str
    instance_id: str
    decision: Decision
    batch: int = 0


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


@dataclass(frozen=True, slots=True)
class ScaleHint:
    """The pool would keep its targets with `num_instances` instances."""

    pool: str
    num_instances: int
    decision: Decision


Command = Dispatch | Shed | Abort | SetTimer | ScaleHint


class Policy(Protocol):
    """One scheduler's pools. Deterministic: the same events at the same times give the same commands."""

    name: str

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event; return what must happen, in order. Unknown keys and instances are ignored."""
        ...
