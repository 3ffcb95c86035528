"""Re-selection and rank fusion against short Python twins."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sage_native


def mmr_twin(candidates: list[list[int]], relevance: list[float], k: int, trade_off: float) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < min(k, len(candidates)):

        def value(i: int) -> float:
            similarities = [
                sum(a * b for a, b in zip(candidates[i], candidates[j], strict=True)) for j in chosen
            ]
            return trade_off * relevance[i] - (1 - trade_off) * max(similarities, default=0)

        left = [i for i in range(len(candidates)) if i not in chosen]
        chosen.append(max(left, key=lambda i: (value(i), -i)))
    return chosen


def fusion_twin(
    rankings: list[list[int]], k: int, constant: float, weights: list[float]
) -> list[tuple[int, float]]:
    scores: dict[int, float] = defaultdict(float)
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, identifier in enumerate(ranking, start=1):
            scores[identifier] += weight / (constant + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]


@given(
    candidates=st.integers(1, 5).flatmap(
        lambda dim: st.lists(
            st.lists(st.integers(-3, 3), min_size=dim, max_size=dim), min_size=1, max_size=12
        )
    ),
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(0, 15),
    trade_off=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_re_selection_agrees_with_the_twin(
    candidates: list[list[int]], seed: int, k: int, trade_off: float
) -> None:
    relevance = np.random.default_rng(seed).integers(0, 4, len(candidates)).astype(np.float32)
    chosen = sage_native.maximal_marginal_relevance(
        np.array(candidates, dtype=np.float32), relevance, k, trade_off
    )
    assert chosen.tolist() == mmr_twin(candidates, relevance.tolist(), k, trade_off)


rankings_lists = st.lists(st.lists(st.integers(-50, 50), unique=True, max_size=20), max_size=5)


@given(
    rankings=rankings_lists,
    k=st.integers(0, 30),
    constant=st.sampled_from([0.0, 1.0, 60.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_fusion_agrees_with_the_twin(rankings: list[list[int]], k: int, constant: float, seed: int) -> None:
    weights = np.random.default_rng(seed).integers(0, 3, len(rankings)).astype(float).tolist()
    arrays = [np.array(ranking, dtype=np.int64) for ranking in rankings]
    identifiers, scores = sage_native.reciprocal_rank_fusion(arrays, k, constant, weights)
    assert list(zip(identifiers.tolist(), scores.tolist(), strict=True)) == fusion_twin(
        rankings, k, constant, weights
    )


def test_fusion_without_weights_counts_every_ranking_once() -> None:
    arrays = [np.array([3, 1], dtype=np.int64), np.array([1, 2], dtype=np.int64)]
    identifiers, scores = sage_native.reciprocal_rank_fusion(arrays, 2)
    assert identifiers.tolist() == [1, 3]
    assert scores.tolist() == [1 / 62 + 1 / 61, 1 / 61]


def test_wrong_input_is_refused_saying_what_was_expected() -> None:
    rows, relevance = np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    ids = np.array([1, 2], dtype=np.int64)
    with pytest.raises(ValueError, match="relevance has 1 entries; expected 2"):
        sage_native.maximal_marginal_relevance(rows, relevance[:1], 1)
    with pytest.raises(ValueError, match=r"trade_off is 2\.0+; expected 0 to 1"):
        sage_native.maximal_marginal_relevance(rows, relevance, 1, 2.0)
    with pytest.raises(ValueError, match=r"rankings\[0\] is int32; expected int64"):
        sage_native.reciprocal_rank_fusion([ids.astype(np.int32)], 1)
    with pytest.raises(ValueError, match=r"rankings\[0\] holds id 1 twice"):
        sage_native.reciprocal_rank_fusion([np.array([1, 1], dtype=np.int64)], 1)
    with pytest.raises(ValueError, match="weights has 2 entries; expected 1"):
        sage_native.reciprocal_rank_fusion([ids], 1, weights=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"weights\[0\] is -1\.0+; expected a finite number >= 0"):
        sage_native.reciprocal_rank_fusion([ids], 1, weights=[-1.0])
    with pytest.raises(ValueError, match="rank_constant is nan"):
        sage_native.reciprocal_rank_fusion([ids], 1, float("nan"))
    with pytest.raises(ValueError, match="weights has 1 entries; expected 0"):
        sage_native.reciprocal_rank_fusion([], 1, weights=[1.0])
