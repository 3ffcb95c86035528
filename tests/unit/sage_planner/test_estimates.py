"""Promises of the estimates: what follows a node is learned, and a run's targets become targets of its nodes."""

from __future__ import annotations

import pytest

from sage_pipeline import Plan
from sage_planner import load_library
from sage_planner.estimates import WEIGHT, Following, NodeTimes, node_targets
from sage_wire.messages import Targets


@pytest.fixture
def plan() -> Plan:
    return load_library().plan("rag-docs", {})


def last(plan: Plan) -> str:
    return plan.output


def first(plan: Plan) -> str:
    return plan.steps[0].id


def learned(plan: Plan, seconds: float = 0.1, until_token: float = 0.04) -> NodeTimes:
    times = NodeTimes()
    for step in plan.steps:
        times.finished(plan.pipeline, step.id, seconds)
    times.spoke(plan.pipeline, last(plan), until_token)
    return times


def longest(plan: Plan, node_id: str) -> int:
    """Nodes on the longest path behind a node, counted the slow way."""
    return max((1 + longest(plan, reader) for reader in plan.consumers(node_id)), default=0)


def test_nothing_follows_the_last_node(plan: Plan) -> None:
    assert learned(plan).following(plan, last(plan)) == Following(0.0, 0.0)


def test_what_follows_is_the_longest_path_and_a_streamed_node_speaks_before_it_ends(plan: Plan) -> None:
    times = learned(plan)
    for step in plan.steps[:-1]:
        behind = longest(plan, step.id)
        following = times.following(plan, step.id)
        assert following.end == pytest.approx(0.1 * behind)
        assert following.first_token == pytest.approx(0.1 * (behind - 1) + 0.04)


def test_before_the_first_run_the_compilers_estimate_is_used(plan: Plan) -> None:
    following = NodeTimes().following(plan, first(plan))
    assert following.end == pytest.approx(plan.step(first(plan)).after_s)


def test_the_newest_run_moves_an_estimate_by_its_weight(plan: Plan) -> None:
    times = learned(plan, seconds=1.0, until_token=1.0)
    times.finished(plan.pipeline, last(plan), 2.0)
    before_last = next(step.id for step in plan.steps if last(plan) in plan.consumers(step.id))
    assert times.following(plan, before_last).end == pytest.approx(1.0 + WEIGHT)


def test_the_last_node_has_the_runs_own_targets_on_a_clock_that_goes_on(plan: Plan) -> None:
    run = Targets(ttft_ms=900.0, tpot_ms=40.0, e2e_ms=5000.0, started_ago_ms=50.0)
    found = node_targets(plan, plan.step(last(plan)), run, 0.25, learned(plan))
    assert found == Targets(ttft_ms=900.0, tpot_ms=40.0, e2e_ms=5000.0, started_ago_ms=300.0)


def test_a_node_in_the_middle_must_end_in_time_for_the_tightest_target(plan: Plan) -> None:
    times, step = learned(plan), plan.step(first(plan))
    following = times.following(plan, step.id)
    tight_start = node_targets(plan, step, Targets(ttft_ms=500.0, e2e_ms=90_000.0), 0.0, times)
    assert tight_start.e2e_ms == 500.0
    assert tight_start.downstream_ms == pytest.approx(following.first_token * 1000)
    tight_end = node_targets(plan, step, Targets(ttft_ms=80_000.0, e2e_ms=600.0), 0.0, times)
    assert tight_end.e2e_ms == 600.0
    assert tight_end.downstream_ms == pytest.approx(following.end * 1000)


def test_without_targets_a_node_in_the_middle_knows_what_follows_for_those_of_its_class(plan: Plan) -> None:
    times, step = learned(plan), plan.step(first(plan))
    found = node_targets(plan, step, Targets(started_ago_ms=10.0), 0.5, times)
    assert (found.ttft_ms, found.e2e_ms, found.started_ago_ms) == (None, None, 510.0)
    assert found.downstream_ms == pytest.approx(times.following(plan, step.id).first_token * 1000)
