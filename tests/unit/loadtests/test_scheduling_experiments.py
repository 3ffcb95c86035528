"""The scheduling experiments: halves do not overlap, policies see the same work, the search finds the capacity."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

FOLDER = Path(__file__).parents[3] / "loadtests" / "scheduling"


@pytest.fixture(scope="module", autouse=True)
def _scripts():
    """The experiments are scripts that import each other by name."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@given(
    crossing=st.integers(-60, 60),
    start=st.integers(-80, 80),
    stride=st.sampled_from([1, 2, 4, 8]),
)
def test_the_search_finds_the_last_rate_that_passes(crossing, start, stride):
    import search

    tried = []

    def passes(step):
        assert -50 < step < 50
        tried.append(step)
        return step <= crossing

    found = search.highest_step(passes, start, -50, 50, stride)
    assert found == min(max(crossing, -50), 49)
    assert len(tried) == len(set(tried)) <= 16


@pytest.mark.parametrize("name", ["conv-mixed", "code-same"])
def test_what_weights_are_tuned_on_is_never_tested_on(name):
    import scenarios

    scenario = scenarios.SCENARIOS[name]
    whole = scenarios._whole_trace(scenario.trace)
    boundary = int(np.searchsorted(whole.arrival, whole.span / 2))
    for half, is_first in (("train", True), ("test", False)):
        for seed in (0, 1):
            drawn = scenarios.slice_of(scenario.trace, half, seed, scenario.num_runs)
            # Rows without a session have one each, numbered in the trace's order; a row drawn again gets another lap.
            laps = int(whole.session[boundary - 1 if is_first else -1]) + 1
            rows = drawn.session % laps
            assert ((rows < boundary) == is_first).all()


def test_slices_of_a_trace_with_prefixes_share_no_block_between_the_halves_of_one_conversation():
    import scenarios

    trace = scenarios.SCENARIOS["mooncake-same"].trace
    whole = scenarios._whole_trace(trace)
    late = whole.arrival >= whole.span / 2
    first_of_run = whole.stages.block_start[:-1]
    ends = whole.stages.block_start[1:] - 1
    last_blocks = {
        half: set(whole.stages.blocks[ends[(ends >= first_of_run) & rows]].tolist())
        for half, rows in (("train", ~late), ("test", late))
    }
    for half in ("train", "test"):
        drawn = scenarios.slice_of(trace, half, 0, 500)
        stages = drawn.stages
        has_blocks = np.diff(stages.block_start) > 0
        found = set(stages.blocks[stages.block_start[1:][has_blocks] - 1].tolist())
        assert found <= last_blocks[half]


def test_a_rate_changes_when_requests_arrive_and_nothing_else():
    import scenarios

    scenario = scenarios.SCENARIOS["conv-mixed"]
    slow, fast = (scenarios.workload_of(scenario, "train", 3, rate) for rate in (5.0, 20.0))
    assert slow.rate == pytest.approx(5.0)
    assert np.allclose(slow.arrival, 4 * fast.arrival)
    assert (slow.prompt_tokens == fast.prompt_tokens).all()
    assert (slow.output_tokens == fast.output_tokens).all()


def test_no_request_says_how_long_its_answer_will_be():
    import scenarios

    workload = scenarios.workload_of(scenarios.SCENARIOS["code-mixed"], "train", 0, 5.0)
    assert len(set(workload.max_tokens.tolist())) == 1
    assert workload.max_tokens.min() >= workload.output_tokens.max()


def test_overload_has_tight_and_relaxed_runs_in_the_stated_shares():
    import scenarios

    scenario = scenarios.SCENARIOS["conv-mixed"]
    workload = scenarios.workload_of(scenario, "train", 0, 5.0, overload=True)
    is_tight = workload.tpot_slo == scenario.tpot
    assert is_tight.mean() == pytest.approx(scenarios.TIGHT_SHARE, abs=0.03)
    assert (workload.tpot_slo[~is_tight] == scenario.tpot * scenarios.RELAXED_TPOT).all()


def test_every_scenario_names_a_fleet_that_can_be_read():
    import scenarios

    for scenario in scenarios.SCENARIOS.values():
        assert "llm" in scenarios.fleet_of(scenario.fleet).pools


def test_every_compared_policy_can_be_made():
    import plan

    from sage_simulator.policies import policy_choice

    for name in plan.POLICIES:
        policy_choice(name)
    assert len(set(plan.POLICIES)) == len(plan.POLICIES)


def test_a_store_cut_off_in_a_line_keeps_the_lines_before(tmp_path):
    import store

    file = tmp_path / "cells.jsonl"
    kept = store.Store(file)
    kept.put("one", [1, 2])
    kept.put("two", {"a": None})
    file.write_bytes(file.read_bytes()[:-4])
    again = store.Store(file)
    assert again["one"] == [1, 2]
    assert "two" not in again
    again.put("three", 3)
    assert store.Store(file)["three"] == 3


def test_a_missed_aim_is_reported_as_missed():
    import claims
    import compare
    import tables

    def overload(goodput):
        from cells import Overload

        return [Overload(0.5, goodput, 0.5, 0.5, 0.0, None, None, None)]

    comparison = compare.Comparison(
        seeds=1,
        steps={"conv-mixed": {"hybrid": [100], "lmetric": [101], "lmetric+shed": [110]}},
        overload_rate={"conv-mixed": [20.0]},
        overloads={
            "conv-mixed": {"hybrid": overload(5), "lmetric": overload(1), "lmetric+shed": overload(9)}
        },
        left_out={"conv-mixed": 0.0},
    )
    found = {claim.aim: claim for claim in claims.claims(comparison)}
    assert not found["push"].is_met
    assert found["worst"].found.other == "lmetric+shed"
    assert found["overload"].is_met
    assert found["overload"].found.mean == pytest.approx(5.0)
    assert "**missed**" in tables.aims_table(comparison)
