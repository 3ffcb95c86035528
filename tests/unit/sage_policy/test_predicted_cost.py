"""What is predicted of an instance against the formulas of its twin, and what the reckoning promises."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec import structs

from sage_native._native import InstanceState, LengthHistogram
from sage_policy import Dispatch
from unit.sage_policy.drivers import RTX4090, make, submitted, up
from unit.sage_policy.twins.predicted_cost import NAMES, Counts, peak_memory, predict, score

COST = [getattr(RTX4090, name) for name in NAMES]
PROMPTS = st.integers(1, 8000)
FLIGHTS = st.lists(
    st.tuples(PROMPTS, st.floats(0, 1), st.integers(1, 1000), st.integers(1, 2000), st.booleans()),
    max_size=12,
)


def counts_of(state: InstanceState) -> Counts:
    return Counts(
        state.pending, state.pending_work, state.decoding, state.resident, state.reserved, state.prefill_load
    )


@settings(max_examples=300, deadline=None)
@given(
    FLIGHTS,
    st.floats(0, 3),
    st.sampled_from([512, 2048, 8192]),
    st.sampled_from([20_000, 10**6]),
    PROMPTS,
    st.floats(0, 0.9),
    st.integers(1, 2000),
)
def test_predictions_are_those_of_the_twin(
    flights: list[tuple[int, float, int, int, bool]],
    later: float,
    max_step_tokens: int,
    kv_tokens: int,
    prompt: int,
    cached_share: float,
    expected: int,
) -> None:
    state = InstanceState(COST, max_step_tokens=max_step_tokens, kv_tokens=kv_tokens)
    for number, (length, uncached, middle, most, has_first_token) in enumerate(flights):
        state.add(number, prompt=length, uncached=max(1, int(uncached * length)), expected_tokens=middle,
                  reserved_tokens=max(middle, most), now=0.01 * number)  # fmt: skip
        if has_first_token:
            state.first_token(number, 0.01 * number + 0.005)
    state.refresh(1.0 + later)
    cached = int(cached_share * prompt)
    expected_of_flights = [float(middle) for _, _, middle, _, _ in flights]
    twin = predict(
        COST, counts_of(state), max_step_tokens=max_step_tokens, capacity=state.capacity,
        expected_of_flights=expected_of_flights, prompt=prompt, cached=cached, expected=expected,
    )  # fmt: skip
    assert state.predict(prompt, cached, expected) == pytest.approx(twin, rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(PROMPTS, st.integers(8, 2000)), max_size=12), PROMPTS, st.integers(8, 2000))
def test_the_fullest_moment_to_come_is_that_of_the_twin(
    flights: list[tuple[int, int]], prompt: int, reserved: int
) -> None:
    state = InstanceState(COST)
    for number, (length, most) in enumerate(flights):
        state.add(number, prompt=length, uncached=length, expected_tokens=most, reserved_tokens=most, now=0.0)
    twin = peak_memory([*((float(held), float(most)) for held, most in flights), (prompt, reserved)])
    assert state.peak_memory(prompt, reserved) == pytest.approx(twin)


def test_counts_follow_a_request_from_prompt_to_end() -> None:
    state = InstanceState(COST)
    state.add(1, prompt=6000, uncached=4000, expected_tokens=100, reserved_tokens=200, now=0.0)
    assert (state.pending, state.decoding, state.resident, state.reserved) == (4000, 0, 2000, 6200)
    state.refresh(0.2)
    assert 0 < state.pending < 4000, "prompts are computed meanwhile"
    assert state.pending + state.resident == pytest.approx(6000)
    state.first_token(1, 0.4)
    state.refresh(0.4)
    assert (state.pending, state.decoding) == (0, 1)
    assert state.resident == pytest.approx(6001)
    state.refresh(1.4)
    assert 6030 < state.resident < 6070, "a token about every 18 ms"
    assert state.remove(1, 2.0)
    state.refresh(2.0)
    assert (state.pending, state.decoding, state.resident, state.reserved) == (0, 0, 0, 0)
    assert not state.remove(1, 2.0)


@settings(max_examples=100, deadline=None)
@given(FLIGHTS, PROMPTS, PROMPTS, st.integers(1, 1000))
def test_more_to_compute_never_takes_less_time(
    flights: list[tuple[int, float, int, int, bool]], prompt: int, more: int, expected: int
) -> None:
    state = InstanceState(COST)
    for number, (length, _, middle, most, _) in enumerate(flights):
        state.add(number, prompt=length, uncached=length, expected_tokens=middle,
                  reserved_tokens=max(middle, most), now=0.0)  # fmt: skip
    assert state.predict(prompt, 0, expected)[0] <= state.predict(prompt + more, 0, expected)[0]
    assert state.predict(prompt + more, more, expected)[0] <= state.predict(prompt + more, 0, expected)[0]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(PROMPTS, st.integers(20, 1000), st.floats(0.018, 0.1), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.lists(st.floats(0, 5), min_size=2, max_size=6),
    st.floats(0, 2),
)
def test_a_longer_stall_harms_at_least_as_many_and_never_more_than_there_are(
    flights: list[tuple[int, int, float, bool]], stalls: list[float], later: float
) -> None:
    state = InstanceState(COST)
    for number, (length, expected, tpot_slo, has_first_token) in enumerate(flights):
        state.add(number, prompt=length, uncached=length, expected_tokens=expected, reserved_tokens=expected,
                  tpot_slo=tpot_slo, now=0.0)  # fmt: skip
        if has_first_token:
            state.first_token(number, 0.3)
    state.refresh(0.3 + later)
    harmed = [state.harmed_by(stall, 0.5, 0.3 + later) for stall in [0.0, *sorted(stalls)]]
    assert harmed[0] == 0.0
    assert all(one <= other + 1e-9 for one, other in pairwise(harmed))
    assert harmed[-1] <= len(flights) + 1e-9


@settings(max_examples=100, deadline=None)
@given(
    st.lists(PROMPTS, max_size=3),
    PROMPTS,
    st.tuples(
        st.sampled_from([0.5, 2.0, 10.0, inf]),
        st.sampled_from([0.02, 0.05, inf]),
        st.sampled_from([5.0, 60.0, inf]),
    ),
    st.sampled_from([0.5, 0.9]),
    st.sampled_from([3.0, 10.0]),
    st.floats(0, 0.4),
)
def test_the_predicted_score_is_that_of_the_twin(
    prompts: list[int],
    prompt: int,
    targets: tuple[float, float, float],
    knee: float,
    weight: float,
    waited: float,
) -> None:
    """Of one instance where some requests without targets have just been sent, as its receipt shows."""
    policy = make(
        "hybrid-admission", knee=knee, lateness_weight=weight, hold_prefill_tokens=1e9, hold_prefill_share=1e9
    )
    policy.handle(up("a", 16, profile=structs.replace(RTX4090, kv_tokens=10**6)), 0.0)
    lengths = LengthHistogram()
    state = InstanceState(COST, kv_tokens=10**6)
    expected = lengths.quantile(0, 0, 0, 0.5, 500)
    for number, length in enumerate(prompts):
        policy.handle(submitted(f"{number}/0", inf, num_prompt_tokens=length, max_tokens=500), 0.0)
        state.add(
            number,
            prompt=length,
            uncached=length,
            expected_tokens=expected,
            reserved_tokens=expected,
            now=0.0,
        )
    asked = submitted(
        "r/0", inf, num_prompt_tokens=prompt, max_tokens=500, started_ago=waited,
        ttft_slo=targets[0], tpot_slo=targets[1], e2e_slo=targets[2],
    )  # fmt: skip
    commands = [command for command in policy.handle(asked, 0.0) if isinstance(command, Dispatch)]
    assume(commands)
    (candidate,) = commands[0].decision.candidates
    ttft, tpot, _ = state.predict(prompt, 0, expected)
    twin = score(
        ttft, tpot, expected, waited=waited, targets=targets, knee=knee, weight=weight,
        num_running=len(prompts), slots=16,
    )  # fmt: skip
    assert candidate.score == pytest.approx(twin, rel=1e-6)
