"""Pure functions over texts and vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_core import BadRequest
from sage_embedding_worker.vectors import MAX_EVENT_BYTES, normalise, shorten, split_events, unique


@given(st.lists(st.text(max_size=3), max_size=30))
def test_unique_items_with_their_places_rebuild_the_list(items: list[str]) -> None:
    distinct, inverse = unique(items)
    assert len(distinct) == len(set(items))
    assert [distinct[place] for place in inverse] == items


@given(num_rows=st.integers(0, 40), dim=st.integers(1, 9), max_bytes=st.integers(1, 200))
def test_events_carry_all_rows_in_order_within_their_size(num_rows: int, dim: int, max_bytes: int) -> None:
    vectors = np.arange(num_rows * dim, dtype=np.float32).reshape(num_rows, dim)
    events = list(split_events(vectors, max_bytes))
    offset = 0
    for event in events:
        assert event.offset == offset
        assert event.dim == dim
        assert len(event.data) <= max(max_bytes, 4 * dim)
        offset += len(event.data) // (4 * dim)
    joined = np.frombuffer(b"".join(event.data for event in events), dtype="<f4")
    assert joined.tolist() == vectors.ravel().tolist()


def test_a_large_answer_is_cut_below_the_frame_limit() -> None:
    events = list(split_events(np.ones((2048, 384), dtype=np.float32)))
    assert len(events) == 16
    assert all(len(event.data) <= MAX_EVENT_BYTES for event in events)


def test_rows_are_normalised_and_zero_rows_stay_zero() -> None:
    rows = normalise(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert rows.dtype == np.float32


def test_shortened_vectors_are_normalised_again() -> None:
    vectors = normalise(np.random.default_rng(1).standard_normal((5, 8)))
    short = shorten(vectors, 3)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(short[:, 0] / short[:, 1], vectors[:, 0] / vectors[:, 1], rtol=1e-5)
    assert shorten(vectors, None) is vectors
    for wrong in (0, -1, 9):
        with pytest.raises(BadRequest, match=f"dimensions is {wrong}; expected 1 to 8"):
            shorten(vectors, wrong)
