"""A fleet: instances of engines in pools, what they share, how far away they are, and what happens to them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
import numpy.typing as npt

from sage_policy import EngineProfile

__all__ = ["Disturbance", "DisturbanceKind", "Fleet", "FleetInstance", "Network"]


class DisturbanceKind(enum.StrEnum):
    """What can happen to an instance; `up` ends `down` and `drain`, `normal` ends `slow`."""

    DOWN = "down"
    DRAIN = "drain"
    UP = "up"
    SLOW = "slow"
    NORMAL = "normal"


@dataclass(frozen=True, slots=True)
class Disturbance:
    """At `at` seconds `instance` (its index) dies, drains, returns, or takes `factor` times as long per step."""

    at: float
    instance: int
    kind: DisturbanceKind
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Network:
    """Seconds from policy to engine and back, and how often engines report what they hold (0: never).

    `hop_latency`: from the end of a pipeline's stage to the submit of the next. `detection_latency`: from the death
    of an instance to its report.
    """

    dispatch_latency: float = 0.0005
    report_latency: float = 0.0005
    hop_latency: float = 0.001
    detection_latency: float = 3.0
    telemetry_interval: float = 1.0
    telemetry_latency: float = 0.0005


@dataclass(frozen=True, slots=True)
class FleetInstance:
    """One engine. `name` is GROUP/NUMBER; instances with one `device` slow each other down by `interference`."""

    name: str
    group: str
    pool: str
    device: str
    is_batched: bool
    is_gpu: bool
    max_in_flight: int
    usd_per_hour: float
    profile: EngineProfile
    noise_sigma: float
    interference: float

    @property
    def longest_run(self) -> int:
        """Most tokens that a single request can have here."""
        if self.is_batched:
            return self.profile.max_step_tokens
        return min(self.profile.max_context, self.profile.kv_tokens)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything that serves. `pools`: in the order of their first instance; instances are known by their index."""

    name: str
    instances: tuple[FleetInstance, ...]
    description: str = ""
    network: Network = field(default_factory=Network)
    disturbances: tuple[Disturbance, ...] = ()
    max_attempts: int = 3

    @property
    def pools(self) -> tuple[str, ...]:
        """The names of the pools; a pool is known by its index here."""
        return tuple(dict.fromkeys(instance.pool for instance in self.instances))

    @property
    def usd_per_hour(self) -> float:
        """What all instances cost; devices that are shared are paid once, at the highest price."""
        prices: dict[str, float] = {}
        for instance in self.instances:
            prices[instance.device] = max(prices.get(instance.device, 0.0), instance.usd_per_hour)
        return sum(prices.values())

    def of_pool(self, pool: str) -> tuple[FleetInstance, ...]:
        """Return the instances of a pool."""
        return tuple(instance for instance in self.instances if instance.pool == pool)

    def is_batched(self, pool: str) -> bool:
        """True where the pool runs whole batches (embed, rerank, operators)."""
        return all(instance.is_batched for instance in self.of_pool(pool))

    def longest_run(self, pool: str) -> float:
        """Most tokens that a request of this pool can have anywhere; infinite for batch work, which is cut."""
        return inf if self.is_batched(pool) else max(instance.longest_run for instance in self.of_pool(pool))

    def unloaded_seconds(
        self, pool: str, prompt_tokens: npt.NDArray[np.uint32], items: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.float64]:
        """Return seconds to the first token (batch work: to its end) of each request alone on the fastest instance."""
        prompt, count = prompt_tokens.astype(np.float64), items.astype(np.float64)
        profiles = {instance.profile: instance.is_batched for instance in self.of_pool(pool)}
        times = [
            _unloaded(profile, prompt, count, is_batched=is_batched)
            for profile, is_batched in profiles.items()
        ]
        fastest: npt.NDArray[np.float64] = np.minimum.reduce(times)
        return fastest + self.network.dispatch_latency + self.network.report_latency

    def without_disturbances(self) -> Fleet:
        """Return the fleet on a quiet day."""
        return replace(self, disturbances=())


def _unloaded(
    profile: EngineProfile,
    prompt: npt.NDArray[np.float64],
    items: npt.NDArray[np.float64],
    *,
    is_batched: bool,
) -> npt.NDArray[np.float64]:
    if is_batched:
        return profile.host + profile.m0 + profile.m1 * prompt + profile.m4 * items
    steps = np.ceil(prompt / profile.max_step_tokens)
    return steps * (profile.host + profile.m0) + profile.m1 * prompt + profile.m3 * prompt * prompt / 2
