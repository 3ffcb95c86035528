"""The order of native/include/sage/policy/fair_queue.hpp, sorted anew at every question."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Entry:
    request: int
    tenant: int
    tier: int
    position: tuple[int, float, int]  # -priority, key, arrival
    service: float


class FairQueueTwin:
    def __init__(self, *, fair: bool, quantum: float, lower_tier_share: float) -> None:
        self.fair, self.quantum, self.lower_tier_share = fair, quantum, lower_tier_share
        self.entries: dict[int, Entry] = {}
        self.counters: dict[tuple[int, int], float] = {}  # (tier, tenant) -> seconds of service received
        self.floors = [0.0, 0.0, 0.0]
        self.credits = [0.0, 0.0, 0.0]
        self.arrivals = 0

    def push(self, request: int, tenant: int, tier: int, priority: int, key: float, service: float) -> None:
        tenant = tenant if self.fair else 0
        active = self.active(tier)
        if tenant not in active:
            # Who comes back has no claim on what it did not use meanwhile.
            self.floors[tier] = max(self.floors[tier], min(active.values(), default=0.0))
            self.counters[tier, tenant] = max(self.counters.get((tier, tenant), 0.0), self.floors[tier])
        self.entries[request] = Entry(request, tenant, tier, (-priority, key, self.arrivals), service)
        self.arrivals += 1

    def remove(self, request: int) -> bool:
        entry = self.entries.pop(request, None)
        if entry is not None and not self.active(entry.tier):
            self.floors[entry.tier] = max(self.floors[entry.tier], self.counters[entry.tier, entry.tenant])
        return entry is not None

    def serve(self, request: int) -> None:
        entry = self.entries.get(request)
        if entry is None:
            return
        self.remove(request)
        self.charge(entry.tenant, entry.tier, entry.service)
        self.credits[entry.tier] = max(0.0, self.credits[entry.tier] - entry.service)
        for lower in range(entry.tier + 1, 3):
            waiting = self.in_order(lower)
            if waiting and self.credits[lower] < waiting[0].service:
                self.credits[lower] += self.lower_tier_share * entry.service

    def charge(self, tenant: int, tier: int, service: float) -> None:
        slot = (tier, tenant if self.fair else 0)
        if slot in self.counters:
            self.counters[slot] += service

    def first(self, count: int) -> list[int]:
        tiers = [self.in_order(tier) for tier in range(3)]
        turn = [tier for tier in (2, 1) if tiers[tier] and 0 < self.credits[tier] >= tiers[tier][0].service]
        order = [tiers[turn[0]].pop(0)] if turn else []
        return [entry.request for entry in [*order, *tiers[0], *tiers[1], *tiers[2]]][:count]

    def active(self, tier: int) -> dict[int, float]:
        """Counters of the tenants that have work in the tier."""
        tenants = {entry.tenant for entry in self.entries.values() if entry.tier == tier}
        return {tenant: self.counters[tier, tenant] for tenant in tenants}

    def in_order(self, tier: int) -> list[Entry]:
        """Tenants within the quantum of the least served compete by key, then those of the next counters."""
        left, order = self.active(tier), []
        while left:
            limit = min(left.values()) + self.quantum
            band = {tenant for tenant, counter in left.items() if counter <= limit}
            of_band = [e for e in self.entries.values() if e.tier == tier and e.tenant in band]
            order += sorted(of_band, key=lambda entry: entry.position)
            left = {tenant: counter for tenant, counter in left.items() if tenant not in band}
        return order
