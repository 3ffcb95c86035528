"""The queue of policies written in Python: tiers, within them priority, the policy's own key, order of arrival."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice
from typing import Final

__all__ = ["TierQueue"]

NUM_TIERS: Final = 3
LOWER_TIER_SHARE: Final = 0.05
"""What a waiting tier earns of each request that is served above it: every twentieth turn is its own."""

Position = tuple[int, float, int, str]  # -priority, key, arrival, request


class TierQueue:
    """Holds requests by name; linear only in what `first` is asked for, and in the memory moved by an insertion."""

    def __init__(self) -> None:
        self._tiers: tuple[list[Position], ...] = tuple([] for _ in range(NUM_TIERS))
        self._places: dict[str, tuple[int, Position]] = {}
        self._credit = [0.0] * NUM_TIERS
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._places)

    def push(self, request: str, tier: int, priority: int, key: float) -> None:
        """Add a request that is not queued. Smaller tiers, higher priorities and smaller keys leave first."""
        position = (-priority, key, self._arrivals, request)
        self._arrivals += 1
        insort(self._tiers[tier], position)
        self._places[request] = (tier, position)

    def remove(self, request: str) -> None:
        """Take a queued request out, wherever it stands."""
        tier, position = self._places.pop(request)
        queue = self._tiers[tier]
        del queue[bisect_left(queue, position)]

    def serve(self, request: str) -> None:
        """Take a queued request out because its turn came: the tiers below that wait earn their share."""
        tier, _ = self._places[request]
        self.remove(request)
        self._credit[tier] = max(0.0, self._credit[tier] - 1.0)
        for lower in range(tier + 1, NUM_TIERS):
            # No more than its next turn is saved up: what could not run for long must not shut the others out later.
            if self._tiers[lower] and self._credit[lower] < 1.0:
                self._credit[lower] += LOWER_TIER_SHARE

    def first(self, count: int) -> list[str]:
        """Return the first `count` requests in the order in which they would be served."""
        return list(islice(self._in_order(), count))

    def _in_order(self) -> Iterator[str]:
        favoured = self._favoured()
        if favoured:
            yield self._tiers[favoured][0][-1]
        for tier, queue in enumerate(self._tiers):
            for position in queue[1:] if tier == favoured else queue:
                yield position[-1]

    def _favoured(self) -> int | None:
        """Return the lowest tier whose turn has come."""
        for tier in range(NUM_TIERS - 1, 0, -1):
            if self._tiers[tier] and self._credit[tier] >= 1.0:
                return tier
        return None
