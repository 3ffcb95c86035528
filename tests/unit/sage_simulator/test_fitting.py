"""Fits: what made the times is found again, and nothing costs less than nothing."""

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sage_policy import EngineProfile
from sage_simulator.fitting import Steps, draw_steps, fit_batches, fit_steps, predicted_seconds
from sage_simulator.least_squares import nonnegative_least_squares
from sage_simulator.measured_tables import profile_text
from sage_simulator.profiles import read_profiles

LIMITS = EngineProfile(max_sequences=64, max_step_tokens=512, kv_tokens=40_000)
COSTS = ("a0", "a1", "a2", "m0", "m1", "m2", "m3", "m4")


def best_over_all_subsets(matrix, target):
    """The oracle: the best of the unbounded solutions over every set of columns that is nowhere negative."""
    best = np.zeros(matrix.shape[1])
    for count in range(1, matrix.shape[1] + 1):
        for columns in itertools.combinations(range(matrix.shape[1]), count):
            found = np.zeros(matrix.shape[1])
            found[list(columns)] = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
            if (found >= 0).all() and residual(matrix, target, found) < residual(matrix, target, best):
                best = found
    return best


def residual(matrix, target, x):
    return float(np.linalg.norm(matrix @ x - target))


numbers = st.floats(-100, 100, allow_subnormal=False).map(lambda value: round(value, 3))


@given(
    arrays.arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 5)), elements=numbers),
    st.data(),
)
def test_no_other_nonnegative_solution_is_closer(matrix, data):
    target = data.draw(arrays.arrays(np.float64, matrix.shape[0], elements=numbers))
    found = nonnegative_least_squares(matrix, target)
    assert (found >= 0).all()
    oracle = residual(matrix, target, best_over_all_subsets(matrix, target))
    assert residual(matrix, target, found) <= oracle + 1e-6 * (1 + np.linalg.norm(target))


def test_a_column_of_zeros_costs_nothing():
    matrix = np.array([[1.0, 0.0], [2.0, 0.0]])
    assert nonnegative_least_squares(matrix, np.array([3.0, 6.0])).tolist() == pytest.approx([3.0, 0.0])


costs = st.fixed_dictionaries(
    {
        "a0": st.floats(1e-3, 0.1),
        "a1": st.floats(0, 1e-4),
        "a2": st.floats(0, 1e-6),
        "m0": st.floats(1e-3, 0.1),
        "m1": st.floats(0, 1e-4),
        "m2": st.floats(0, 1e-6),
        "m3": st.floats(0, 1e-8),
        "m4": st.floats(0, 1e-4),
    }
)


@settings(max_examples=30)
@given(costs, st.integers(0, 100))
def test_the_coefficients_that_made_the_times_are_found_again(made_of, seed):
    profile = msgspec.structs.replace(LIMITS, **made_of)
    steps = draw_steps(LIMITS, 300, seed)
    fit = fit_steps(steps, predicted_seconds(profile, steps), LIMITS)
    found = predicted_seconds(fit.profile, steps)
    assert found == pytest.approx(predicted_seconds(profile, steps), rel=1e-6)
    assert fit.decode.p90 < 1e-6
    assert fit.mixed.p90 < 1e-6
    assert msgspec.structs.replace(fit.profile, **dict.fromkeys(COSTS, 0.0)) == LIMITS


def test_what_prompts_and_decoding_cost_each_other_is_taken_from_decode_steps_where_nobody_measured_it():
    profile = msgspec.structs.replace(LIMITS, a0=0.01, a1=1e-5, a2=1e-7, m0=0.02, m1=1e-5)
    steps = draw_steps(LIMITS, 300, 0)
    steps = steps.take((steps.prefill == 0) | (steps.decoding == 0))
    fit = fit_steps(steps, predicted_seconds(profile, steps), LIMITS)
    assert fit.profile.m2 == fit.profile.a2 == pytest.approx(1e-7)
    assert fit.profile.m4 == 0.0


@pytest.mark.parametrize("prefill", [0.0, 16.0])
def test_steps_of_one_kind_only_are_refused(prefill):
    some = np.array([1.0, 2.0])
    steps = Steps(np.full(2, prefill), np.full(2, float(prefill > 0)), np.zeros(2), some, some)
    with pytest.raises(ValueError, match="with and without prompts"):
        fit_steps(steps, some, LIMITS)


def test_several_prompts_of_one_step_compare_no_tokens_with_each_other():
    steps = Steps(*(np.array([value]) for value in (400.0, 4.0, 50.0, 2.0, 100.0)))
    assert steps.work[0] == 4 * 100 * (50 + 100 / 2)
    assert steps.resident[0] == 4 * 50 + 2 * 100


@given(st.floats(1e-4, 0.1), st.floats(0, 1e-3), st.floats(0, 1e-2))
def test_batches_give_what_a_batch_a_token_and_an_item_cost(per_batch, per_token, per_item):
    items, length = (axis.ravel().astype(float) for axis in np.meshgrid([1, 2, 8, 32], [8, 64, 256]))
    seconds = per_batch + per_token * items * length + per_item * items
    fit = fit_batches(items * length, items, seconds, LIMITS)
    again = fit.profile.m0 + fit.profile.m1 * items * length + fit.profile.m4 * items
    assert again == pytest.approx(seconds, rel=1e-6)
    assert fit.decode.count == 0


@given(
    st.integers(1, 300),
    st.integers(1, 4096),
    st.integers(8192, 1_000_000),
    st.integers(0, 1000),
)
@settings(max_examples=30)
def test_drawn_steps_are_within_the_engines_limits(max_sequences, max_step_tokens, kv_tokens, seed):
    limits = EngineProfile(max_sequences=max_sequences, max_step_tokens=max_step_tokens, kv_tokens=kv_tokens)
    steps = draw_steps(limits, 50, seed)
    assert len(steps) == 50
    assert (steps.decoding <= max_sequences).all()
    with_prompts = steps.prefill > 0
    assert (steps.prefill + steps.decoding)[with_prompts].max(initial=0) <= max_step_tokens
    assert (steps.resident + steps.prefill).max() <= kv_tokens
    again = draw_steps(limits, 50, seed)
    assert (again.prefill == steps.prefill).all()


def test_a_profile_is_read_back_as_it_was_written(tmp_path):
    profile = msgspec.structs.replace(
        LIMITS, description='an "engine"', a0=0.01729, a2=1.614e-07, host=0.00021, async_scheduling=False
    )
    file = tmp_path / "mine.toml"
    file.write_text(profile_text("mine", profile, ["where it is from"]), "utf-8")
    assert read_profiles(file)["mine"].profile == profile
