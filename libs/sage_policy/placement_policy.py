"""The base of policies written in Python: a subclass says which instance suits a request, the base does the rest.

Queues per pool, slots, batches, deadlines, cancels, lost instances and reconciliation are not a policy's business: they
are in placement_pool.py. How to write one: docs/how-to/write-a-policy.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from math import inf, isnan
from numbers import Real

from sage_policy.configured import CHARS_PER_TOKEN
from sage_policy.placement_pool import InstanceView, PlacementPool
from sage_policy.policy import (
    Cancelled,
    Command,
    Decision,
    Event,
    Finished,
    FirstToken,
    InstanceDown,
    InstanceUp,
    PoolClosed,
    Progressed,
    SetTimer,
    Shed,
    Started,
    Submitted,
    Telemetry,
    Timer,
)
from sage_policy.slo import DEFAULT_CLASSES, SloClass
from sage_policy.split_mix import SplitMix64

__all__ = ["LeastOutstanding", "PlacementPolicy"]


class PlacementPolicy(ABC):
    """A `Policy` for all pools of one scheduler. Subclasses define `score`, and what else they want to change."""

    name: str = ""
    """How receipts and reports call it; the name of the class where it is empty."""

    def __init__(
        self,
        *,
        max_queued: int = 1024,
        seed: int = 0,
        classes: Mapping[str, SloClass] | None = None,
    ) -> None:
        """`max_queued` limits each pool's queue; `classes` give tiers to SLO classes."""
        self.name = self.name or type(self).__name__
        self.max_queued = max_queued
        self.classes = dict(DEFAULT_CLASSES if classes is None else classes)
        self.random = SplitMix64(seed)
        self.now = 0.0
        self._pools: dict[str, PlacementPool] = {}
        self._where: dict[str, PlacementPool] = {}
        self._timer_at = inf

    # -- what a policy decides ----------------------------------------------------------------------------

    @abstractmethod
    def score(self, request: Submitted, instance: InstanceView) -> float:
        """Return how badly the instance suits the request: the lowest wins, ties are broken at random.

        A finite number, or infinity for "only where every other is infinite too": to keep a request waiting,
        `may_take` is asked. Anything else, NaN above all, ends the run.
        """

    def may_take(self, request: Submitted, instance: InstanceView) -> bool:  # noqa: ARG002
        """Return False to keep the request waiting rather than send it there. Slots are checked already.

        Asked again at the pool's next event: something must end or arrive before the answer can change.
        """
        return True

    def key(self, request: Submitted) -> float:  # noqa: ARG002
        """Return the request's place among those of its tier and priority: smaller first, equals as they arrived.

        Asked once, when it is queued.
        """
        return 0.0

    def finished(self, request: Submitted, instance: InstanceView, num_tokens: int) -> None:  # noqa: B027
        """Learn from a request that ended after `num_tokens` output tokens (0: failed or unknown)."""

    # -- the seam -----------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Command]:
        """See `Policy.handle`."""
        self.now = now
        commands: list[Command] = []
        if isinstance(event, Timer):
            self._timer_at = inf
            moved = list(self._pools.values())
        else:
            pool = self._take(event, commands)
            moved = [] if pool is None else [pool]
        for pool in moved:
            commands += pool.pump()
        for command in commands:
            if isinstance(command, Shed):
                self._where.pop(command.key, None)
        return commands + self._arm()

    def _take(self, event: Event, commands: list[Command]) -> PlacementPool | None:
        """Bring the event to its pool; return the pool whose queue may move now."""
        pool: PlacementPool | None
        match event:
            case Submitted(key, pool_name):
                pool = self._pools.get(pool_name)
                if pool is None:
                    decision = Decision("nothing serves this pool now", 0.0, 0)
                    commands.append(Shed(key, "overloaded", 1.0, decision))
                elif key not in self._where:
                    self._where[key] = pool
                    commands += pool.submit(_sized(event))
                return pool
            case Finished(key, num_tokens):
                pool = self._where.get(key)
                if pool is not None and pool.finish(key, num_tokens):
                    del self._where[key]
                return pool
            case Cancelled(key):
                pool = self._where.get(key)
                if pool is not None:
                    commands += pool.cancel(key)
                return pool
            case FirstToken(key) | Progressed(key):
                pool = self._where.get(key)
                if pool is not None:
                    pool.progress(key, event.num_tokens if isinstance(event, Progressed) else 1)
                return pool if isinstance(event, FirstToken) else None
            case InstanceUp(instance):
                pool = self._pools.setdefault(instance.pool, PlacementPool(_Checked(self)))
                for key in instance.in_flight:
                    self._where.setdefault(key, pool)
                commands += pool.instance_up(instance)
                return pool
            case InstanceDown(instance_id, pool_name, is_lost):
                pool = self._pools.get(pool_name)
                if pool is not None:
                    commands += pool.instance_down(instance_id, is_lost=is_lost)
                return pool
            case Telemetry(instance_id, pool_name):
                pool = self._pools.get(pool_name)
                if pool is not None and instance_id in pool.instances:
                    pool.instances[instance_id].telemetry = event
            case PoolClosed(pool_name):
                pool = self._pools.pop(pool_name, None)
                self._where = {key: owner for key, owner in self._where.items() if owner is not pool}
            case Started() | Timer():
                pass
        return None

    def _arm(self) -> list[Command]:
        earliest = min((pool.deadlines[0][0] for pool in self._pools.values() if pool.deadlines), default=inf)
        if earliest in (inf, self._timer_at):
            return []
        self._timer_at = earliest
        return [SetTimer(earliest)]


class _Checked:
    """A policy as its pools ask it: answers that cannot be compared are refused before they decide anything."""

    def __init__(self, policy: PlacementPolicy) -> None:
        self._policy = policy
        self.max_queued = policy.max_queued
        self.classes = policy.classes
        self.random = policy.random
        self.finished = policy.finished

    @property
    def now(self) -> float:
        return self._policy.now

    @now.setter
    def now(self, now: float) -> None:
        self._policy.now = now

    def score(self, request: Submitted, instance: InstanceView) -> float:
        found = self._policy.score(request, instance)
        if not isinstance(found, Real) or isnan(found) or found == -inf:
            raise ValueError(
                f"score is {found!r} for request {request.key} on instance {instance.instance.instance_id}; "
                "expected a finite number or infinity"
            )
        return found

    def may_take(self, request: Submitted, instance: InstanceView) -> bool:
        found: bool | None = self._policy.may_take(request, instance)
        if found is None:
            raise ValueError(
                f"may_take is None for request {request.key} on instance {instance.instance.instance_id}; "
                "expected True or False"
            )
        return found

    def key(self, request: Submitted) -> float:
        found = self._policy.key(request)
        if not isinstance(found, Real) or isnan(found):
            raise ValueError(f"key is {found!r} for request {request.key}; expected a number")
        return found


class LeastOutstanding(PlacementPolicy):
    """The instance with the fewest requests in flight: the shortest policy, and the oracle of its native twin."""

    name = "least-outstanding"

    def score(self, request: Submitted, instance: InstanceView) -> float:
        """Count what runs there."""
        del request
        return instance.num_running


def _sized(event: Submitted) -> Submitted:
    """Fill in the sizes that the driver left open, as for native policies."""
    num_tokens = event.num_prompt_tokens or -(-event.num_chars // CHARS_PER_TOKEN)
    return replace(event, num_prompt_tokens=num_tokens, num_items=max(1, event.num_items))
