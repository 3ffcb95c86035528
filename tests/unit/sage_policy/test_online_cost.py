"""Learned costs and factors against their twins, and against the truth that they are to find."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sage_native._native import (
    BoundedLeastSquares,
    OnlineCost,
    QuantileFactor,
    SpeedFactor,
    batch_throughput,
    knee_tokens,
)
from unit.sage_policy.twins.online_cost import LeastSquaresTwin, QuantileFactorTwin, SpeedFactorTwin

# a0 a1 a2 m0 m1 m2 m3 m4 host: an 8B model on one accelerator.
PRIOR = [0.0169, 4.2e-5, 1.49e-7, 0.0142, 7.7e-5, 3.4e-7, 5.4e-9, 5e-6, 0.001]
FOLDED = [0.0179, 4.2e-5, 1.49e-7, 0.0152, 7.7e-5, 3.4e-7, 5.4e-9, 5e-6, 0.0]
SHARES = st.lists(st.floats(0, 1), min_size=5, max_size=5)
TIMES = st.floats(1e-3, 1e3)


def decode(cost, decoding, resident):
    return cost[8] + cost[0] + cost[1] * decoding + cost[2] * resident


def mixed(cost, prefill, decoding, resident, work):
    return (
        cost[8]
        + cost[3]
        + cost[4] * (prefill + decoding)
        + cost[5] * resident
        + cost[6] * work
        + cost[7] * decoding
    )


def steps(rng, count):
    """Decode steps and mixed steps of an engine at random load."""
    for _ in range(count):
        decoding, prefill = rng.randint(1, 200), rng.randint(64, 2048)
        resident, context = decoding * rng.randint(100, 2000), rng.randint(0, 4000)
        yield prefill, decoding, resident, prefill * (context + prefill / 2)


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(SHARES, st.floats(0, 6)), max_size=30),
    size=st.integers(1, 4),
    forgetting=st.sampled_from([0.5, 0.995, 1.0]),
    prior_weight=st.sampled_from([0.01, 0.5]),
)
@example(  # here a coefficient meets its bound on the way and must leave it again
    rows=[([0.2, 0.4, 0.0, 0, 0], 2.8), ([0.2, 0.4, 0.5, 0, 0], 1.7), ([0.2, 0.2, 0.2, 0, 0], 0.1)],
    size=3,
    forgetting=1.0,
    prior_weight=0.01,
)
def test_bounded_least_squares_finds_the_same_coefficients_as_trying_every_set_of_bounds(
    rows, size, forgetting, prior_weight
):
    native = BoundedLeastSquares(size, forgetting=forgetting, prior_weight=prior_weight)
    twin = LeastSquaresTwin(size, forgetting, prior_weight, 0.3, 3.0)
    for inputs, output in rows:
        native.observe(inputs, output)
        twin.observe(inputs, output)
    found = np.array(native.solve()[:size])
    assert found == pytest.approx(twin.solve(), abs=1e-6)
    assert native.solve()[size:] == [0.0] * (5 - size)


@given(st.lists(st.tuples(SHARES, st.floats(0.5, 2)), min_size=1, max_size=60))
def test_without_active_bounds_it_is_numpys_least_squares_with_exponential_weights(rows):
    native = BoundedLeastSquares(5, lowest=0.0, highest=1e9, prior_weight=0.1)
    twin = LeastSquaresTwin(5, 0.995, 0.1, 0.0, 1e9)
    for inputs, output in rows:
        native.observe(inputs, output)
        twin.observe(inputs, output)
    expected = np.linalg.lstsq(*twin.system(), rcond=None)[0]
    found = np.array(native.solve())
    if np.all(expected > 0):
        assert found == pytest.approx(expected, abs=1e-6)
    else:
        assert np.all(found >= 0)
        assert twin.error(found) >= twin.error(expected) - 1e-9


def test_a_cost_never_observed_is_its_prior_with_the_host_in_the_constants():
    cost = OnlineCost(PRIOR)
    assert cost.cost == pytest.approx(FOLDED)
    assert OnlineCost([0.0] * 9).cost == [0.0] * 9


def test_true_coefficients_are_found_from_noisy_steps():
    rng = random.Random(11)
    truth = [
        value * factor for value, factor in zip(FOLDED, [1.4, 0.7, 2, 0.8, 1.5, 0.6, 2, 1, 1], strict=True)
    ]
    cost = OnlineCost(PRIOR, forgetting=0.999)
    for step in steps(rng, 4000):
        cost.observe_decode(step[1], step[2], decode(truth, *step[1:3]) * rng.lognormvariate(0, 0.05))
        cost.observe_mixed(*step, mixed(truth, *step) * rng.lognormvariate(0, 0.05))
    errors = [
        max(
            abs(decode(cost.cost, *step[1:3]) / decode(truth, *step[1:3]) - 1),
            abs(mixed(cost.cost, *step) / mixed(truth, *step) - 1),
        )
        for step in steps(rng, 200)
    ]
    assert max(errors) < 0.05
    assert cost.cost[0] == pytest.approx(truth[0], rel=0.1)


def test_coefficients_stay_within_the_bounds_whatever_is_observed():
    rng = random.Random(12)
    cost = OnlineCost(PRIOR)
    for prefill, decoding, resident, work in steps(rng, 2000):
        cost.observe_decode(
            decoding, resident, rng.choice([1e-9, 1e9, math.inf, math.nan, -1, 0, rng.random()])
        )
        cost.observe_mixed(prefill, decoding, resident, work, rng.choice([1e-9, 1e9, rng.random()]))
        ratios = [found / prior for found, prior in zip(cost.cost[:8], FOLDED[:8], strict=True)]
        assert all(0.3 - 1e-9 <= ratio <= 3 + 1e-9 for ratio in ratios)


def test_identical_steps_for_ever_do_not_make_it_trust_one_other_step_blindly():
    cost = OnlineCost(PRIOR)
    for _ in range(200_000):  # the covariance form would wind up
        cost.observe_decode(64, 64_000, decode(FOLDED, 64, 64_000) * 1.2)
    settled = cost.cost
    assert decode(settled, 64, 64_000) == pytest.approx(decode(FOLDED, 64, 64_000) * 1.2, rel=0.01)
    cost.observe_decode(1, 500, decode(FOLDED, 1, 500))
    assert cost.cost == pytest.approx(settled, rel=0.1)


def test_an_unknown_executor_is_learned_from_its_batches():
    rng = random.Random(13)
    cost = OnlineCost([0.0] * 9)
    for _ in range(300):
        tokens, items = rng.randint(100, 16_000), rng.randint(1, 64)
        cost.observe_batch(tokens, items, (0.3 + 2e-3 * tokens + 1e-2 * items) * rng.lognormvariate(0, 0.02))
    found = cost.cost
    assert [found[3], found[4], found[7]] == pytest.approx([0.3, 2e-3, 1e-2], rel=0.3)
    assert found[3] + found[4] * 8000 + found[7] * 32 == pytest.approx(16.62, rel=0.02)


def test_a_coefficient_that_the_prior_lacks_stays_zero():
    cost = OnlineCost([0.0, 0, 0, 0.005, 1e-5, 0, 0, 0, 0])
    for tokens in range(100, 5000, 7):
        cost.observe_batch(tokens, 3, 0.006 + 2e-5 * tokens)
    assert cost.cost == pytest.approx([0, 0, 0, 0.006, 2e-5, 0, 0, 0, 0], rel=0.02)


def test_request_times_scale_the_prior_until_steps_are_seen():
    cost = OnlineCost(PRIOR)
    for _ in range(300):
        cost.observe_scale(True, 0.02, 0.03)
    assert cost.cost[:3] == pytest.approx([1.5 * value for value in FOLDED[:3]], rel=0.02)
    assert cost.cost[3:] == pytest.approx(FOLDED[3:])
    for _ in range(300):
        cost.observe_decode(10, 1000, decode(FOLDED, 10, 1000))
    assert cost.cost[:3] == pytest.approx(FOLDED[:3])
    assert (cost.num_observed(True), cost.num_observed(False)) == (600, 0)


@given(st.lists(st.tuples(TIMES, TIMES), max_size=80))
def test_the_speed_factor_is_the_twins(pairs):
    native, twin = SpeedFactor(), SpeedFactorTwin()
    for predicted, actual in pairs:
        native.observe(predicted, actual)
        twin.observe(predicted, actual)
        assert native.value == pytest.approx(twin.value, rel=1e-9)
    assert native.num_observed == len(pairs)


def test_the_speed_factor_is_steady_under_noise_and_quick_after_a_change():
    rng = random.Random(14)
    factor = SpeedFactor()
    values = []
    for turn in range(4000):
        factor.observe(1, (1.1 if turn < 2000 else 2.2) * rng.lognormvariate(0, 0.2))
        values.append(factor.value)
    assert np.std(np.log(values[500:2000])) < 0.03
    assert np.mean(values[500:2000]) == pytest.approx(1.1, rel=0.03)
    assert values[2030] == pytest.approx(2.2, rel=0.15)
    assert np.mean(values[2500:]) == pytest.approx(2.2, rel=0.03)


def test_one_stall_moves_the_speed_factor_little():
    rng = random.Random(15)
    factor = SpeedFactor()
    for _ in range(500):
        factor.observe(1, rng.lognormvariate(0, 0.1))
    before = factor.value
    factor.observe(1, 1000)
    assert factor.value == pytest.approx(before, rel=0.02)


@given(st.lists(st.tuples(TIMES, TIMES), max_size=80), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_quantile_factor_is_the_twins(pairs, q):
    native, twin = QuantileFactor(q=q), QuantileFactorTwin(q)
    for predicted, actual in pairs:
        if abs(actual / (predicted * twin.value) - 1) > 1e-9:  # on the border rounding decides
            native.observe(predicted, actual)
            twin.observe(predicted, actual)
        assert native.value == pytest.approx(twin.value, rel=1e-9)
        assert native.coverage == pytest.approx(twin.coverage, rel=1e-9)


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_the_quantile_factor_finds_the_true_quantile(q):
    rng = random.Random(16)
    factor = QuantileFactor(q=q, step=0.01)
    values, is_covered = [], []
    for _ in range(20_000):
        predicted = rng.lognormvariate(0, 1)
        actual = predicted * rng.lognormvariate(0.1, 0.4)
        is_covered.append(actual <= factor.value * predicted)
        factor.observe(predicted, actual)
        values.append(factor.value)
    true = math.exp(0.1 + 0.4 * {0.5: 0.0, 0.9: 1.2816}[q])
    assert np.mean(values[2000:]) == pytest.approx(true, rel=0.04)
    assert np.mean(is_covered[2000:]) == pytest.approx(q, abs=0.01)
    assert factor.coverage == pytest.approx(q, abs=0.12)


def test_factors_ignore_what_is_no_time():
    for factor in (QuantileFactor(), SpeedFactor()):
        for predicted, actual in ((0, 1), (1, 0), (-1, 1), (math.nan, 1), (1, math.inf)):
            factor.observe(predicted, actual)
        assert (factor.value, factor.num_observed) == (1.0, 0)


@given(st.lists(st.tuples(TIMES, TIMES), max_size=300))
def test_the_quantile_factor_stays_in_its_bounds(pairs):
    factor = QuantileFactor(step=0.5)
    for predicted, actual in pairs:
        factor.observe(predicted, actual)
        assert 0.5 - 1e-12 <= factor.value <= 3 + 1e-12


@given(
    constant=st.floats(1e-5, 1),
    per_token=st.floats(1e-8, 1e-3),
    per_item=st.floats(0, 1e-2),
    item=st.integers(1, 4000),
    gain=st.floats(0.01, 0.5),
)
def test_doubling_gains_less_beyond_the_knee_and_more_before_it(constant, per_token, per_item, item, gain):
    cost = [0.0, 0, 0, constant, per_token, 0, 0, per_item, 0]
    knee = knee_tokens(cost, item, 1e12, gain)
    before, at, after = (
        batch_throughput(cost, 2 * tokens, item) / batch_throughput(cost, tokens, item) - 1
        for tokens in (knee * 0.999, knee, knee * 1.001)
    )
    assert after < gain * (1 + 1e-6)
    assert before >= at >= after
    if knee > item:
        assert at == pytest.approx(gain, rel=1e-5)
        assert before > gain


def test_the_knee_stays_within_one_item_and_the_limit():
    assert knee_tokens([0.0] * 9, 100, 4096) == 4096  # unknown: nothing speaks against a full batch
    assert knee_tokens([0, 0, 0, 1e-9, 1e-3, 0, 0, 0, 0], 100, 4096) == 100
    assert knee_tokens([0, 0, 0, 1, 1e-6, 0, 0, 0, 0], 100, 4096) == 4096
    assert knee_tokens([0, 0, 0, 0.004, 1e-5, 0, 0, 0, 0.001], 1, 1e9) == pytest.approx(9.5 * 0.005 / 1e-5)
