"""Exact top-k against numpy."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sage_native

Floats = npt.NDArray[np.float32]


def twin(
    matrix: Floats, queries: Floats, k: int, mask: npt.NDArray[np.bool_] | None
) -> tuple[list[list[int]], list[list[float]]]:
    indices, scores = [], []
    for query in queries:
        products = [float(row @ query) for row in matrix]
        allowed = [i for i in range(len(matrix)) if mask is None or mask[i]]
        best = sorted(allowed, key=lambda i: (-products[i], i))[:k]
        indices.append(best)
        scores.append([products[i] for i in best])
    return indices, scores


@st.composite
def problems(draw: st.DrawFn) -> tuple[Floats, Floats, int, npt.NDArray[np.bool_] | None]:
    # Small whole numbers: sums are exact in any order, and ties are frequent.
    num_rows, num_queries = draw(st.integers(0, 40)), draw(st.integers(0, 4))
    dim, seed = draw(st.sampled_from([1, 3, 16, 17, 48])), draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    matrix = random.integers(-2, 3, (num_rows, dim)).astype(np.float32)
    queries = random.integers(-2, 3, (num_queries, dim)).astype(np.float32)
    mask = random.random(num_rows) < 0.6 if draw(st.booleans()) else None
    return matrix, queries, draw(st.integers(0, 50)), mask


@given(problems())
@settings(max_examples=150, deadline=None)
def test_agrees_with_the_twin_ties_included(
    problem: tuple[Floats, Floats, int, npt.NDArray[np.bool_] | None],
) -> None:
    matrix, queries, k, mask = problem
    indices, scores = sage_native.top_k(matrix, queries, k, mask)
    expected_indices, expected_scores = twin(matrix, queries, k, mask)
    assert indices.tolist() == expected_indices
    assert scores.tolist() == expected_scores
    assert indices.dtype == np.int64
    assert scores.dtype == np.float32


def test_real_vectors_over_many_blocks_agree_with_numpy() -> None:
    random = np.random.default_rng(3)
    matrix = random.standard_normal((5000, 384), dtype=np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    queries = matrix[[7, 4999]] + np.float32(0.01)
    indices, scores = sage_native.top_k(matrix, queries, 20)
    products = queries.astype(np.float64) @ matrix.T.astype(np.float64)
    np.testing.assert_allclose(scores, np.sort(products, axis=1)[:, ::-1][:, :20], atol=1e-5)
    assert indices[:, 0].tolist() == [7, 4999]


def test_other_threads_run_meanwhile() -> None:
    matrix = np.ones((60_000, 256), dtype=np.float32)
    started, num_turns = threading.Event(), 0

    def search() -> None:
        started.set()
        sage_native.top_k(matrix, matrix[:8], 1)

    thread = threading.Thread(target=search)
    thread.start()
    started.wait()
    while thread.is_alive():
        num_turns += 1
    assert num_turns > 100


@pytest.mark.parametrize(
    ("matrix", "queries", "k", "mask", "complaint"),
    [
        (np.zeros((2, 3)), np.zeros((1, 3), np.float32), 1, None, "matrix is float64; expected float32"),
        (np.zeros(3, np.float32), np.zeros((1, 3), np.float32), 1, None, "1 dimensions; expected 2"),
        (np.zeros((2, 3), np.float32), np.zeros((1, 4), np.float32), 1, None, "4 columns; expected 3"),
        (np.zeros((2, 6), np.float32)[:, ::2], np.zeros((1, 3), np.float32), 1, None, "C-contiguous"),
        (
            np.zeros((2, 3), np.float32),
            np.zeros((1, 3), np.float32),
            -1,
            None,
            "k is -1; expected at least 0",
        ),
        (
            np.zeros((2, 3), np.float32),
            np.zeros((1, 3), np.float32),
            1,
            np.ones(3, np.bool_),
            "mask has 3 entries; expected 2",
        ),
        (
            np.zeros((2, 3), np.float32),
            np.zeros((1, 3), np.float32),
            1,
            np.ones(2, np.uint8),
            "mask is uint8; expected bool",
        ),
        (
            np.zeros((0, 3), np.float32),
            np.zeros((1, 3), np.float32),
            1,
            np.ones(3, np.bool_),
            "mask has 3 entries; expected 0",
        ),
    ],
)
def test_wrong_input_is_refused_saying_what_was_expected(
    matrix: Floats, queries: Floats, k: int, mask: npt.NDArray[np.bool_] | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        sage_native.top_k(matrix, queries, k, mask)
