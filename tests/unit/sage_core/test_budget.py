"""Budgets count down on the holder's own clock and never grow."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_core import Budget, FakeClock


def test_a_budget_runs_out_exactly_when_its_seconds_have_passed() -> None:
    clock = FakeClock(100.0)
    budget = Budget.of(2.0, clock)
    assert budget.remaining == 2.0
    clock.advance(1.5)
    assert budget.remaining == 0.5
    assert not budget.is_spent
    clock.advance(0.5)
    assert budget.is_spent
    clock.advance(5.0)
    assert budget.remaining == 0.0


def test_a_budget_of_zero_is_spent_at_once() -> None:
    assert Budget.of(0.0, FakeClock()).is_spent


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_capped_budget_is_the_tighter_of_the_two(seconds: float, cap: float) -> None:
    clock = FakeClock()
    assert Budget.of(seconds, clock).capped(cap).remaining == min(seconds, cap)


@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf, -math.inf])
def test_seconds_that_are_no_duration_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Budget.of(seconds)


def test_the_fake_clock_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="go back"):
        FakeClock().advance(-1.0)
