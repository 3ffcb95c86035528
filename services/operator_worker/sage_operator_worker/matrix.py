"""The vectors of one collection in memory: immutable snapshots that share storage, so readers never wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

import sage_native
from sage_operator_worker.store import Floats

__all__ = ["Ids", "Matrix"]

Ids = npt.NDArray[np.int64]
_MAX_DEAD_SHARE: Final = 0.25
_MIN_CAPACITY: Final = 256


class _Storage:
    """Rows that only ever grow; `num_used` of them belong to the newest snapshot."""

    def __init__(self, capacity: int, dim: int) -> None:
        self.ids: Ids = np.empty(capacity, dtype=np.int64)
        self.vectors: Floats = np.empty((capacity, dim), dtype=np.float32)
        self.num_used = 0

    def append(self, ids: Ids, vectors: Floats) -> None:
        stop = self.num_used + len(ids)
        self.ids[self.num_used : stop] = ids
        self.vectors[self.num_used : stop] = vectors
        self.num_used = stop


@dataclass(frozen=True, slots=True)
class Matrix:
    """The passages' vectors at one generation of the collection. `alive` marks rows not deleted since."""

    generation: int
    storage: _Storage
    num_rows: int
    alive: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, generation: int, ids: Ids, vectors: Floats) -> Matrix:
        """Copy `ids`, shape (n,), and `vectors`, shape (n, dim)."""
        storage = _Storage(max(_MIN_CAPACITY, len(ids) + len(ids) // 4), vectors.shape[1])
        storage.append(ids, vectors)
        return cls(generation, storage, len(ids), np.ones(len(ids), dtype=np.bool_))

    @property
    def dim(self) -> int:
        """Length of each vector."""
        return int(self.storage.vectors.shape[1])

    @property
    def num_bytes(self) -> int:
        """Memory held by the storage."""
        return self.storage.vectors.nbytes + self.storage.ids.nbytes + self.alive.nbytes

    def changed(self, generation: int, removed: Ids, added: Ids, vectors: Floats) -> Matrix:
        """Return the next snapshot without the ids `removed` and with `added`; this one stays valid.

        Appends in place where this is the newest snapshot and there is room; copies otherwise, and when more than
        a quarter of the rows are dead.
        """
        alive = self.alive
        if len(removed):
            alive = alive & ~np.isin(self.storage.ids[: self.num_rows], removed)
        num_alive = int(np.count_nonzero(alive))
        total = self.num_rows + len(added)
        fits = self.storage.num_used == self.num_rows and total <= len(self.storage.ids)
        if fits and self.num_rows - num_alive <= _MAX_DEAD_SHARE * total:
            self.storage.append(added, vectors)
            alive = np.concatenate([alive, np.ones(len(added), dtype=np.bool_)])
            return Matrix(generation, self.storage, total, alive)
        ids = np.concatenate([self.storage.ids[: self.num_rows][alive], added])
        return Matrix.of(
            generation, ids, np.concatenate([self.storage.vectors[: self.num_rows][alive], vectors])
        )

    def nearest(self, vector: Floats, k: int) -> tuple[Ids, Floats]:
        """Return the (ids, inner products) of the `k` nearest passages, exactly, ties by age."""
        rows = self.storage.vectors[: self.num_rows]
        mask = None if self.alive.all() else self.alive
        indices, scores = sage_native.top_k(rows, np.ascontiguousarray(vector[None]), k, mask)
        return self.storage.ids[indices[0]], scores[0]
