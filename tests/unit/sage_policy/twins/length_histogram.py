"""Twin of the native LengthHistogram: keeps every record, and counts them again for each question."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

__all__ = ["LengthHistogramTwin"]

Floats = npt.NDArray[np.float64]
Key = tuple[int, ...]
NUM_BINS = 64


def make_edges() -> Floats:
    edges = [0.0]
    while len(edges) <= NUM_BINS:
        edges.append(max(edges[-1] + 1, float(round(edges[-1] * 1.2))))
    return np.array(edges)


class LengthHistogramTwin:
    def __init__(
        self,
        decay: float = 0.995,
        parent_weight: float = 16.0,
        prior_median: float = 200.0,
        prior_shape: float = 2.0,
        max_keys: int = 4096,
    ) -> None:
        self.decay, self.parent_weight, self.max_keys = decay, parent_weight, max_keys
        self.edges = make_edges()
        below = np.zeros(NUM_BINS + 1)
        below[1:] = 1 / (1 + (self.edges[1:] / prior_median) ** -prior_shape)
        self.prior = np.diff(below) / below[-1]
        self.levels: list[OrderedDict[Key, list[int]]] = [OrderedDict(), OrderedDict(), OrderedDict()]

    @staticmethod
    def keys(tenant: int, route: int, pool: int) -> list[Key]:
        return [(pool,), (pool, tenant), (pool, tenant, route)]

    def record(self, tenant: int, route: int, pool: int, num_tokens: int) -> None:
        for level, key in zip(self.levels, self.keys(tenant, route, pool), strict=True):
            level.setdefault(key, []).append(num_tokens)
            level.move_to_end(key)
            if len(level) > self.max_keys:
                level.popitem(last=False)

    def shares(self, tenant: int, route: int, pool: int) -> Floats:
        """Return the share of lengths in each bin: each level blended with the one above it."""
        shares = self.prior
        for level, key in zip(self.levels, self.keys(tenant, route, pool), strict=True):
            if lengths := level.get(key):
                weights = self.decay ** np.arange(len(lengths))[::-1]
                bins = np.searchsorted(self.edges, np.clip(lengths, 1, self.edges[-1])) - 1
                counts = np.bincount(bins, weights, minlength=NUM_BINS)
                shares = (counts + self.parent_weight * shares) / (weights.sum() + self.parent_weight)
        return shares

    def below(self, key: tuple[int, int, int], length: float) -> float:
        cumulative = np.concatenate([[0.0], np.cumsum(self.shares(*key))])
        return float(np.interp(length, self.edges, cumulative))

    def quantile(self, key: tuple[int, int, int], q: float, max_tokens: int, so_far: int) -> float:
        cumulative = np.concatenate([[0.0], np.cumsum(self.shares(*key))])
        ended = float(np.interp(so_far, self.edges, cumulative))
        length = float(np.interp(ended + q * (1 - ended), cumulative, self.edges))
        return max(min(length, max_tokens or np.inf), so_far)

    def mean(self, key: tuple[int, int, int], max_tokens: int, so_far: int) -> float:
        limit = min(max_tokens or np.inf, self.edges[-1])
        if so_far >= limit:
            return float(so_far)
        cumulative = np.concatenate([[0.0], np.cumsum(self.shares(*key))])
        inner = self.edges[(self.edges > so_far) & (self.edges < limit)]
        places = np.concatenate([[so_far], inner, [limit]])
        alive = 1 - np.interp(places, self.edges, cumulative)
        return so_far + float(np.sum(np.diff(places) * (alive[1:] + alive[:-1]) / 2) / alive[0])
