"""Snapshots of a collection's vectors against a dict."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_operator_worker.matrix import Matrix

DIM = 4


def held(matrix: Matrix) -> dict[int, list[float]]:
    ids = matrix.storage.ids[: matrix.num_rows][matrix.alive].tolist()
    return dict(zip(ids, matrix.storage.vectors[: matrix.num_rows][matrix.alive].tolist(), strict=True))


@given(
    steps=st.lists(st.tuples(st.integers(0, 200), st.floats(0, 1)), max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_every_snapshot_stays_what_it_was(steps: list[tuple[int, float]], seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix = Matrix.of(0, np.empty(0, dtype=np.int64), np.empty((0, DIM), dtype=np.float32))
    model: dict[int, list[float]] = {}
    history = [(matrix, model)]
    next_id = 1
    for generation, (num_added, share_removed) in enumerate(steps, start=1):
        removed = [identifier for identifier in model if random.random() < share_removed]
        added = np.arange(next_id, next_id + num_added, dtype=np.int64)
        next_id += num_added
        vectors = random.standard_normal((num_added, DIM), dtype=np.float32)
        matrix = matrix.changed(generation, np.array(removed, dtype=np.int64), added, vectors)
        model = {identifier: row for identifier, row in model.items() if identifier not in removed}
        model |= dict(zip(added.tolist(), vectors.tolist(), strict=True))
        history.append((matrix, model))
    for snapshot, expected in history:
        assert held(snapshot) == expected


def test_two_changes_of_one_snapshot_do_not_meet() -> None:
    def row(value: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return np.full((1, DIM), value, dtype=np.float32)

    none = np.empty(0, dtype=np.int64)
    base = Matrix.of(0, np.array([1]), row(1.0))
    left = base.changed(1, none, np.array([2]), row(2.0))
    right = base.changed(1, none, np.array([3]), row(3.0))
    assert held(left) == {1: [1.0] * DIM, 2: [2.0] * DIM}
    assert held(right) == {1: [1.0] * DIM, 3: [3.0] * DIM}
    assert held(base) == {1: [1.0] * DIM}


def test_the_nearest_are_found_among_the_living() -> None:
    vectors = np.eye(DIM, dtype=np.float32)
    matrix = Matrix.of(0, np.array([10, 11, 12, 13]), vectors).changed(
        1, np.array([11]), np.empty(0, dtype=np.int64), np.empty((0, DIM), dtype=np.float32)
    )
    ids, scores = matrix.nearest(vectors[1], 10)
    assert ids.tolist() == [10, 12, 13]
    assert scores.tolist() == [0.0, 0.0, 0.0]
    assert matrix.nearest(vectors[2], 1)[0].tolist() == [12]
