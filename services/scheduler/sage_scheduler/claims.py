"""Which pools a scheduler should try to lead now: decisions only, no IO. Who succeeds is the lease's business.

Pools that share a worker or a device should have one leader, so that their work is scheduled together. So a scheduler
that leads one of a group claims the rest at once, others wait a moment before they do; and where nobody leads any of a
group, all begin with the same pool, so that whoever gets it gets the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Final

from sage_wire.subjects import pool_lease

__all__ = ["Claims"]

STAND_BACK: Final = 0.3
"""Seconds for which a free pool is left to the scheduler that leads its neighbours."""
RETRY: Final = 1.0
"""Seconds until a claim that was refused, or that no server answered, is made again if nothing is heard before."""


class Claims:
    """One scheduler's view. `now` never goes back; leases are named as in `LEASES_BUCKET`."""

    def __init__(self, scheduler_id: str) -> None:
        self._me = scheduler_id
        self._ties: dict[str, frozenset[str]] = {}
        self._groups: dict[str, list[str]] = {}
        self._owners: dict[str, str] = {}
        self._mine: set[str] = set()
        self._claiming: set[str] = set()
        self._free_since: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self.next_at = inf
        """When `due` has something to say again if nothing happens before."""

    @property
    def mine(self) -> frozenset[str]:
        """The pools that are led here."""
        return frozenset(self._mine)

    def served(self, ties: Mapping[str, frozenset[str]], now: float) -> None:
        """Take in which pools are served now, each with what it shares with others: its workers and devices."""
        self._ties = dict(ties)
        self._groups = _groups(self._ties)
        for pool in self._ties:
            self._free_since.setdefault(pool, now)

    def held(self, lease: str, owner: str) -> None:
        """Take in that `owner` holds a lease."""
        self._owners[lease] = owner

    def freed(self, lease: str, now: float) -> None:
        """Take in that a lease ended or was given up."""
        self._owners.pop(lease, None)
        for pool in self._ties:
            if pool_lease(pool) == lease:
                self._free_since[pool] = now
                self._not_before.pop(pool, None)

    def gained(self, pool: str) -> None:
        """A claim succeeded."""
        self._claiming.discard(pool)
        self._mine.add(pool)
        self._owners[pool_lease(pool)] = self._me

    def refused(self, pool: str, now: float) -> None:
        """A claim failed: another was first, or the server did not answer."""
        self._claiming.discard(pool)
        self._not_before[pool] = now + RETRY

    def lost(self, pool: str, now: float) -> None:
        """The lease is not held any more."""
        self._mine.discard(pool)
        self._not_before[pool] = now + RETRY

    def due(self, now: float) -> list[str]:
        """Return the pools to claim now, each of which must end in `gained` or `refused`."""
        chosen: list[str] = []
        self.next_at = inf
        for pool in sorted(self._ties):
            at = self._claim_at(pool)
            if at <= now:
                self._claiming.add(pool)
                chosen.append(pool)
            else:
                self.next_at = min(self.next_at, at)
        return chosen

    def _claim_at(self, pool: str) -> float:
        """When to claim a pool; infinite where something must happen first."""
        if pool in self._mine or pool in self._claiming:
            return inf
        free_at = self._not_before.get(pool, self._free_since[pool])
        if pool_lease(pool) in self._owners:
            # The watch tells when it ends. Our own, of an earlier life or lost to a gap, is tried now and then.
            return free_at if self._owners[pool_lease(pool)] == self._me else inf
        neighbours = self._groups[pool]
        leaders = {self._owners[lease] for lease in map(pool_lease, neighbours) if lease in self._owners}
        if self._me in leaders:
            return free_at
        if leaders:
            return max(free_at, self._free_since[pool] + STAND_BACK)
        return free_at if pool == neighbours[0] else inf


def _groups(ties: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    """Return for each pool the sorted pools that it is tied to, directly or through others, itself among them."""
    by_tie: dict[str, set[str]] = {}
    for pool, shared in ties.items():
        for tie in shared:
            by_tie.setdefault(tie, set()).add(pool)
    found: dict[str, list[str]] = {}
    for pool in ties:
        if pool in found:
            continue
        group, open_pools = {pool}, [pool]
        while open_pools:
            for tie in ties[open_pools.pop()]:
                for other in by_tie[tie] - group:
                    group.add(other)
                    open_pools.append(other)
        members = sorted(group)
        found.update(dict.fromkeys(members, members))
    return found
