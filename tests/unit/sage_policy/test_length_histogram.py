"""The length histogram against its twin, and its promises: quantiles are monotone, conditional, bounded."""

from __future__ import annotations

import random
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_native._native import LengthHistogram
from unit.sage_policy.twins.length_histogram import LengthHistogramTwin, make_edges

IDS = st.integers(0, 2)
KEYS = st.tuples(IDS, st.sampled_from([0, 7, 2**64 - 1]), IDS)
LENGTHS = st.one_of(st.integers(0, 40), st.integers(0, 5000), st.just(2**32 - 1))
RECORDS = st.lists(st.tuples(KEYS, LENGTHS), max_size=60)
SO_FAR = st.one_of(st.just(0), st.integers(0, 3000))
LIMIT = st.one_of(st.just(0), st.integers(1, 4000))


def filled(records, **options):
    histogram = LengthHistogram(**options)
    for key, length in records:
        histogram.record(*key, length)
    return histogram


@given(
    records=RECORDS,
    asked=st.lists(st.tuples(KEYS, st.floats(0, 1), LIMIT, SO_FAR), min_size=1, max_size=6),
    decay=st.sampled_from([0.5, 0.995, 1.0]),
    parent_weight=st.sampled_from([0.5, 16.0]),
    max_keys=st.sampled_from([1, 2, 4, 4096]),
)
def test_quantiles_and_means_are_the_twins(records, asked, decay, parent_weight, max_keys):
    options = {"decay": decay, "parent_weight": parent_weight, "max_keys": max_keys}
    histogram, twin = LengthHistogram(**options), LengthHistogramTwin(**options)
    for turn, (key, length) in enumerate(records):
        histogram.record(*key, length)
        twin.record(*key, length)
        if turn % 7 == 0:  # a question leaves no trace in later answers
            histogram.quantile(*asked[0][0], 0.5)
    for key, q, limit, so_far in asked:
        # The inverse of a flat stretch is any of its lengths: compare what both answers stand for.
        native, expected = histogram.quantile(*key, q, limit, so_far), twin.quantile(key, q, limit, so_far)
        same = native == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert same or twin.below(key, native) == pytest.approx(twin.below(key, expected), abs=1e-9)
        assert histogram.mean(*key, limit, so_far) == pytest.approx(twin.mean(key, limit, so_far), rel=1e-6)


def test_the_bins_are_the_twins():
    assert LengthHistogram.edges() == list(make_edges())
    assert LengthHistogram.edges()[-1] > 131072


@given(
    RECORDS,
    KEYS,
    st.lists(st.floats(0, 1), min_size=2, max_size=2),
    LIMIT,
    st.lists(SO_FAR, min_size=2, max_size=2),
)
def test_quantiles_grow_with_q_and_with_the_tokens_so_far_and_stay_in_their_limits(
    records, key, qs, limit, so_fars
):
    histogram = filled(records)
    values = [histogram.quantile(*key, q, limit, so_fars[0]) for q in sorted(qs)]
    assert values[0] <= values[1] * (1 + 1e-9)
    later = [histogram.quantile(*key, qs[0], limit, so_far) for so_far in sorted(so_fars)]
    assert later[0] <= later[1] * (1 + 1e-9)
    assert all(value >= so_fars[0] for value in values)
    assert limit == 0 or all(value <= max(limit, so_fars[0]) for value in values)
    assert histogram.mean(*key, limit, so_fars[0]) >= so_fars[0]


def test_quantiles_of_many_records_are_those_of_the_records():
    rng = random.Random(3)
    lengths = [max(1, round(rng.lognormvariate(5.3, 0.9))) for _ in range(20_000)]
    histogram = filled([((1, 2, 3), length) for length in lengths], decay=1.0)
    for share, exact in zip(
        (0.1, 0.5, 0.9, 0.99), (quantiles(lengths, n=100)[at - 1] for at in (10, 50, 90, 99)), strict=True
    ):
        assert histogram.quantile(1, 2, 3, share) == pytest.approx(exact, rel=0.04)
    longer = [length for length in lengths if length > 400]
    assert histogram.quantile(1, 2, 3, 0.5, 0, 400) == pytest.approx(quantiles(longer, n=2)[0], rel=0.04)
    assert histogram.mean(1, 2, 3) == pytest.approx(sum(lengths) / len(lengths), rel=0.02)


def test_a_new_key_answers_like_the_keys_above_it_until_it_has_its_own_records():
    histogram = LengthHistogram()
    assert histogram.quantile(1, 2, 3, 0.5) == pytest.approx(200, rel=0.05)
    for _ in range(200):
        histogram.record(9, 9, 3, 1000)
    assert histogram.quantile(1, 2, 3, 0.5) == pytest.approx(1000, rel=0.2)
    assert histogram.quantile(1, 2, 4, 0.5) == pytest.approx(200, rel=0.05)
    medians = []
    for _ in range(40):
        histogram.record(1, 2, 3, 50)
        medians.append(histogram.quantile(1, 2, 3, 0.5))
    assert medians[0] > 700
    assert medians[-1] == pytest.approx(50, rel=0.2)
    assert histogram.quantile(1, 5, 3, 0.5) == pytest.approx(50, rel=0.2)  # another route of that tenant


def test_a_change_of_lengths_is_followed_within_the_memory_of_the_decay():
    histogram = filled([((1, 2, 3), 100)] * 3000)
    for _ in range(300):
        histogram.record(1, 2, 3, 2000)
    assert histogram.quantile(1, 2, 3, 0.5) == pytest.approx(2000, rel=0.2)


def test_keys_are_bounded_and_a_flood_of_routes_leaves_tenants_and_pools_alone():
    histogram = LengthHistogram(max_keys=100)
    for _ in range(100):
        histogram.record(1, 1, 1, 3000)
    for route in range(5000):
        histogram.record(2, route + 10, 2, 10)
    assert histogram.num_keys == 100 + 2 + 2
    assert histogram.quantile(1, 1, 1, 0.5) == pytest.approx(3000, rel=0.2)


def test_an_answer_forgets_its_keys_when_they_leave():
    histogram = LengthHistogram(max_keys=2)
    for pool in (1, 2):
        for _ in range(100):
            histogram.record(1, 1, pool, 3000)
    before = histogram.quantile(1, 5, 1, 0.5)
    histogram.record(1, 2, 3, 10)  # the third pool and tenant key: those of pool 1 leave
    assert before == pytest.approx(3000, rel=0.2)
    assert histogram.quantile(1, 5, 1, 0.5) == pytest.approx(200, rel=0.05)


def test_weights_survive_millions_of_records():
    histogram = LengthHistogram(decay=0.5)
    for turn in range(3000):  # 2**3000 is beyond a double
        histogram.record(0, 0, 0, 10 if turn < 2500 else 1000)
    assert 960 < histogram.quantile(0, 0, 0, 0.5, 0, 950) < 1100
    assert histogram.quantile(0, 0, 0, 0.05) < 300  # the prior still weighs 16 records, the new length 2


def test_options_out_of_range_are_refused():
    for wrong in (
        {"decay": 0.0},
        {"decay": 1.5},
        {"parent_weight": 0.0},
        {"max_keys": 0},
        {"prior_median": -1.0},
    ):
        with pytest.raises(ValueError, match="length histogram"):
            LengthHistogram(**wrong)
