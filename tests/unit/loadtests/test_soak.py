"""The soak test's verdict: a leak is found, noise and a short rise are not, a bad answer is never lost."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

FOLDER = Path(__file__).parents[3] / "loadtests" / "soak"
HOUR = np.arange(0.0, 3600.0, 10.0)


@pytest.fixture(scope="module", autouse=True)
def _scripts():
    """The soak test's files are scripts that import each other by name."""
    sys.path.insert(0, str(FOLDER))
    importlib.import_module("soak")  # all of them, once: the first example of a property must not pay for it
    yield
    sys.path.remove(str(FOLDER))


def bound(**more):
    from growth import Bound

    return Bound(**({"figure": "rss", "unit": "MiB", "per_hour": 24.0, "least": 4.0} | more))


@given(rate=st.floats(30.0, 1000.0), start=st.floats(10.0, 1000.0), seed=st.integers(0, 1000))
def test_a_leak_above_the_bound_is_found_in_an_hour_of_noisy_samples(rate, start, seed):
    from growth import grown

    noise = np.random.default_rng(seed).normal(0.0, 3.0, len(HOUR))
    found = grown("gateway", bound(), HOUR, start + rate * HOUR / 3600 + noise)
    assert found.is_growing
    assert found.per_hour == pytest.approx(rate, abs=5 * found.error_per_hour)


@given(rate=st.floats(-100.0, 20.0), seed=st.integers(0, 1000))
def test_what_stays_within_the_bound_passes(rate, seed):
    from growth import grown

    noise = np.random.default_rng(seed).normal(0.0, 1.0, len(HOUR))
    assert not grown("gateway", bound(), HOUR, 100 + rate * HOUR / 3600 + noise).is_growing


def test_a_steep_line_over_a_short_time_is_no_growth_before_it_has_risen_far_enough():
    from growth import grown

    minute = np.arange(0.0, 60.0, 10.0)
    assert not grown("gateway", bound(), minute, 100 + minute * 0.05).is_growing
    assert grown("gateway", bound(), minute, 100 + minute * 0.5).is_growing


def test_one_jump_at_the_beginning_is_no_leak():
    from growth import grown

    values = np.where(HOUR < 20, 50.0, 60.0)
    assert not grown("gateway", bound(), HOUR, values).is_growing


@given(shift=st.floats(-500.0, 500.0))
def test_where_a_figure_starts_makes_no_difference(shift):
    from growth import grown

    values = 30.0 * HOUR / 3600
    assert (
        grown("g", bound(), HOUR, values + shift).is_growing == grown("g", bound(), HOUR, values).is_growing
    )


def test_two_samples_make_no_line():
    from growth import grown

    with pytest.raises(ValueError, match="at least 3"):
        grown("gateway", bound(), [0.0, 10.0], [1.0, 2.0])


@pytest.mark.parametrize(
    "trouble", [{"left_over": ["x"]}, {"lost": ["x"]}, {"num_wrong": 1, "wrong": ["1 times: x"]}, {}]
)
def test_anything_left_over_lost_or_wrong_fails_and_is_named(trouble):
    from soak_report import Report, page

    facts = {"left_over": [], "lost": [], "num_wrong": 0, "wrong": []} | trouble
    report = Report(
        command="make soak", date="2026-01-01", machine="2 cores", minutes=60, warmup_minutes=10, num_users=4,
        counts={"chat_whole": 3}, left_out={}, growth=[], samples=[], **facts,
    )  # fmt: skip
    assert report.is_passed == (not trouble)
    assert ("**Passed**" in page(report)) == (not trouble)
    assert ("- x" in page(report) or "times: x" in page(report)) == bool(trouble)


async def test_a_wrong_answer_is_counted_with_the_behaviour_that_got_it():
    import traffic

    async def fails(_):
        raise traffic.Wrong("status 500")

    load = traffic.Traffic(0, traffic.Models("m", "e"), 1)
    user = traffic.User(0, load.models, traffic.random.Random(0))
    for _ in range(2):
        await load._once(user, "chat_whole", fails)
    assert load.wrong == {"chat_whole: Wrong: status 500": 2}
    assert load.counts["chat_whole"] == 2
